//! Chat templates: any text is compiled and rendered within bounds, or refused.
#![no_main]

use reverie_text::{ChatTemplate, RenderRequest, SpecialTokens};
use serde_json::json;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(template) = ChatTemplate::new(text, SpecialTokens::none()) {
        let messages = [
            json!({"role": "user", "content": "hi"}),
            json!({"role": "assistant", "content": [{"type": "text", "text": "ho"}]}),
        ];
        let _ = template.render(&RenderRequest { messages: &messages, ..RenderRequest::default() });
    }
});
