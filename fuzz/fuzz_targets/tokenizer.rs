//! tokenizer.json: any bytes become a tokenizer or are refused; what becomes one encodes and decodes.
#![no_main]

use reverie_text::{SpecialText, Specials, Tokenizer};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(tokenizer) = Tokenizer::from_json_bytes(bytes)
        && let Ok(ids) = tokenizer.encode("Hello, wörld! 你好\n\n  <s>", Specials::Parse)
    {
        let _ = tokenizer.decode(&ids, SpecialText::Show);
    }
});
