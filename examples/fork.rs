//! Reads a fact once, then asks two futures of the same session about it: nothing is read twice, and neither future sees the
//! other.

use reverie::{GenerateSpec, Go, Loader, SamplerParams};
use serde_json::json;

fn main() -> reverie::Result<()> {
    let model = Loader::default().load(reverie::EMBEDDED)?;
    let voice = model.voice();
    let greedy = SamplerParams { temperature: 0.0, ..SamplerParams::default() };
    let told = vec![
        json!({"role": "user", "content": "The code for Zoe is 4711."}),
        json!({"role": "assistant", "content": "Noted."}),
    ];
    let mut trunk = model.session();
    // What both futures begin with, and no more: a state that is no list of pages stands only where it was read up to.
    let read = voice.encode_rendered(&voice.render_opening(&told, &serde_json::Map::new())?)?;
    trunk.sync(&read, &mut |_| Go::On)?;
    for question in ["What is the code for Zoe?", "What does Vec::pop do?"] {
        let mut messages = told.clone();
        messages.push(json!({"role": "user", "content": question}));
        let text = voice.render(&messages, &[], &serde_json::Map::new())?;
        let ids = voice.encode_rendered(&text)?;
        let mut branch = trunk.fork();
        let spec = GenerateSpec { sampler: greedy.clone(), max_tokens: Some(40), ..GenerateSpec::default() };
        let mut answer = String::new();
        let mut generation = model.generate_ids(&mut branch, (&ids, &text), spec, &mut |_| Go::On)?;
        for delta in generation.by_ref() {
            answer.push_str(&delta?.text);
        }
        let usage = generation.finish().usage;
        println!("{question}\n  {answer}\n  ({} of {} prompt tokens reused)", usage.reused_tokens, usage.prompt_tokens);
    }
    Ok(())
}
