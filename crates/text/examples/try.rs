//! scratch
use reverie_text::*;
use serde_json::{Value, json};
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let read = |p: &str| -> Value { serde_json::from_slice(&std::fs::read(p).unwrap()).unwrap() };
    let mut out = Vec::new();
    match args[1].as_str() {
        "tpl" => {
            let job = read(&args[2]);
            for t in job["templates"].as_array().unwrap() {
                let special = SpecialTokens::none().with("bos_token", "<s>").with("eos_token", "</s>");
                let tpl = template::ChatTemplate::with_clock(
                    t["source"].as_str().unwrap(),
                    special,
                    template::Clock::Fixed { unix_seconds: 1_721_980_800 },
                );
                for (i, c) in job["cases"].as_array().unwrap().iter().enumerate() {
                    let empty = vec![];
                    let r = match &tpl {
                        Err(e) => Err(e.to_string()),
                        Ok(tpl) => tpl
                            .render(&RenderRequest {
                                messages: c["messages"].as_array().unwrap(),
                                tools: c["tools"].as_array().unwrap_or(&empty),
                                documents: &[],
                                generation_prompt: if c["add"] == json!(true) {
                                    GenerationPrompt::Add
                                } else {
                                    GenerationPrompt::Omit
                                },
                                arguments: c["args"].as_object(),
                            })
                            .map_err(|e| e.to_string()),
                    };
                    out.push(json!({"name": t["name"], "case": i, "ok": r.as_ref().ok(), "err": r.as_ref().err()}));
                }
            }
        }
        "tok" | "gguf" => {
            let texts = read(&args[3]);
            let start = std::time::Instant::now();
            let tok = if args[1] == "tok" {
                Tokenizer::from_file(&args[2])
            } else {
                let v = read(&args[2]);
                let strs = |k: &str| -> Vec<String> {
                    v[k].as_array()
                        .map(|a| a.iter().map(|s| s.as_str().unwrap().to_owned()).collect())
                        .unwrap_or_default()
                };
                let id = |k: &str| v[k].as_u64().map(|n| n as u32);
                VocabSpec {
                    model: v["model"].as_str().unwrap().into(),
                    pre: v["pre"].as_str().map(Into::into),
                    tokens: strs("tokens"),
                    merges: strs("merges"),
                    scores: v["scores"]
                        .as_array()
                        .map(|a| a.iter().map(|s| s.as_f64().unwrap() as f32).collect())
                        .unwrap_or_default(),
                    types: v["types"]
                        .as_array()
                        .map(|a| a.iter().map(|s| s.as_i64().unwrap() as i32).collect())
                        .unwrap_or_default(),
                    bos: id("bos"),
                    eos: id("eos"),
                    unk: id("unk"),
                    pad: id("pad"),
                    eot: id("eot"),
                    add_bos: v["add_bos"].as_bool(),
                    add_eos: v["add_eos"].as_bool(),
                    add_space_prefix: v["add_space_prefix"].as_bool(),
                }
                .build()
            };
            let tok = match tok {
                Ok(t) => t,
                Err(e) => {
                    println!("{}", json!({"error": e.to_string()}));
                    return;
                }
            };
            eprintln!("load {:?} vocab {}", start.elapsed(), tok.vocab_size());
            let start = std::time::Instant::now();
            for t in texts.as_array().unwrap() {
                let t = t.as_str().unwrap();
                let f = |s| tok.encode(t, s).unwrap();
                let ids = f(Specials::Parse);
                out.push(json!({"parse": ids, "plain": f(Specials::Plain), "frame": f(Specials::ParseAndFrame),
                   "skip": tok.decode(&f(Specials::ParseAndFrame), SpecialText::Skip).unwrap(), "show": tok.decode(&ids, SpecialText::Show).unwrap()}));
            }
            eprintln!("encode {:?}", start.elapsed());
        }
        _ => panic!(),
    }
    println!("{}", Value::from(out));
}
