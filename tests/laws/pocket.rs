//! The trained pocket models: their answers are transformers' answers, they recall what they were told, and quantising them costs
//! what the table in docs/LOG.md says.

use std::path::{Path, PathBuf};

use reverie::rooms::engine::EngineSpec;
use reverie::rooms::files::Checkpoint;
use reverie::rooms::model::{Sequence, Want};
use reverie::rooms::pack::QuantizeSpec;
use reverie::rooms::tensor::quant::QUANTS;
use reverie::rooms::text::Specials;
use reverie::{Go, LoadedModel, Loader};
use serde_json::Value;

use super::pack::quantised;
use crate::fixtures::{load, root};

const MODELS: [&str; 2] = ["pocket", "pocket-hybrid"];

fn folder(model: &str) -> PathBuf {
    root().join("pocket").join(model)
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(root().join("pocket").join(name)).expect(name)).expect("json")
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().expect("ids").iter().map(|v| v.as_u64().expect("id") as u32).collect()
}

fn exact(path: &Path) -> LoadedModel {
    let engine = EngineSpec { kv: "f32".into(), ..EngineSpec::default() };
    load(&Loader { exact: true, engine, ..Loader::default() }, path)
}

/// Greedy continuation: up to `n` tokens, an end token included.
fn greedy(model: &LoadedModel, prompt: &[u32], n: usize) -> Vec<u32> {
    let mut session = model.session();
    session.sync(prompt, &mut |_| Go::On).expect("sync");
    let mut answer = Vec::new();
    while answer.len() < n {
        let logits = session.logits().expect("logits");
        let best = (0..logits.len()).fold(0, |b, i| if logits[i] > logits[b] { i } else { b }) as u32;
        answer.push(best);
        if model.voice().ends.contains(&best) {
            break;
        }
        session.accept(best).expect("accept");
    }
    answer
}

#[test]
fn answers_are_those_of_transformers() {
    for model in MODELS {
        let loaded = exact(&folder(model));
        let answers = json(&format!("answers-{model}.json"));
        let cases = answers["cases"].as_array().expect("cases");
        assert_eq!(cases.len(), 200);
        for case in cases {
            let (prompt, want) = (ids(&case["prompt_ids"]), ids(&case["answer_ids"]));
            let tools = case["tools"].as_array().cloned().unwrap_or_default();
            let arguments = case["template_kwargs"].as_object().cloned().unwrap_or_default();
            let messages = case["messages"].as_array().expect("messages");
            let text = loaded.voice().render(messages, &tools, &arguments).expect("template");
            assert_eq!(text, case["prompt_text"].as_str().expect("text"));
            assert_eq!(loaded.voice().encode_rendered(&text).expect("encode"), prompt, "{text}");
            assert_eq!(greedy(&loaded, &prompt, 48), want, "{model}: {text}");
        }
    }
}

/// The embedded model, quantised and with its ordinary caches, recalls over pages what transformers recalls on the bf16 weights.
#[test]
fn facts_are_recalled_over_pages() {
    let loaded = Loader::default().load(reverie::EMBEDDED).expect("embedded");
    let answers = json(&format!("answers-{}.json", reverie::EMBEDDED));
    let cases = answers["cases"].as_array().expect("cases");
    let far: Vec<_> = cases.iter().filter(|case| case["recalled"] == true).step_by(3).collect();
    assert!(far.len() >= 5, "{} far facts", far.len());
    let kept = far.iter().filter(|case| {
        let prompt = ids(&case["prompt_ids"]);
        assert!(prompt.len() > 3 * 64, "{} tokens", prompt.len());
        let answer = greedy(&loaded, &prompt, 24);
        let text = loaded.voice().tokenizer.decode(&answer, reverie::rooms::text::SpecialText::Skip).expect("decode");
        text.contains(case["expected"].as_str().expect("expected"))
    });
    let kept = kept.count();
    assert!(kept * 10 >= far.len() * 9, "{kept} of {} far facts recalled", far.len());
}

/// Recalled facts of those told.
fn recalled(loaded: &LoadedModel) -> (usize, usize) {
    let recall = json("recall.json");
    let cases = recall["cases"].as_array().expect("cases");
    let kept = cases.iter().filter(|case| {
        let answer = greedy(loaded, &ids(&case["prompt_ids"]), 24);
        let text = loaded.voice().tokenizer.decode(&answer, reverie::rooms::text::SpecialText::Skip).expect("decode");
        text.contains(case["expected"].as_str().expect("expected"))
    });
    (kept.count(), cases.len())
}

#[test]
fn the_embedded_model_recalls() {
    let loaded = Loader::default().load(reverie::EMBEDDED).expect("embedded");
    let (kept, of) = recalled(&loaded);
    assert!(kept * 10 >= of * 9, "{kept} of {of} facts recalled");
}

/// Mean negative log-likelihood of each window of the held-out text: fresh windows, first token not scored.
fn windows(loaded: &LoadedModel, most: usize) -> Vec<f64> {
    let text = std::fs::read_to_string(root().join("pocket/heldout.txt")).expect("heldout.txt");
    let tokens = loaded.voice().tokenizer.encode(&text, Specials::Plain).expect("encode");
    let (engine, core) = (loaded.engine(), loaded.engine().model());
    let window = json("perplexity.json")["window"].as_u64().expect("window") as usize;
    tokens
        .chunks(window)
        .take(most)
        .map(|chunk| {
            let mut state = core.new_state(engine.cache());
            let out =
                core.forward(&mut [Sequence { tokens: chunk, state: &mut state, want: Want::All }]).expect("forward");
            let logits = core.backend().read(out[0].as_ref().expect("logits")).expect("read");
            let rows = logits.chunks(core.plan().vocab).zip(&chunk[1..]);
            rows.map(|(row, &next)| -log_probability(row, next)).sum()
        })
        .collect()
}

fn log_probability(logits: &[f32], id: u32) -> f64 {
    let max = logits.iter().fold(f32::NEG_INFINITY, |m, &v| m.max(v));
    let sum: f64 = logits.iter().map(|&v| f64::from(v - max).exp()).sum();
    f64::from(logits[id as usize] - max) - sum.ln()
}

#[test]
fn perplexity_in_bf16_is_that_of_transformers() {
    for model in MODELS {
        let want = json("perplexity.json")["models"][model]["nll_by_window"].clone();
        let loaded = load(&Loader::default(), &folder(model));
        for (i, got) in windows(&loaded, 2).into_iter().enumerate() {
            let want = want[i].as_f64().expect("nll");
            assert!((got - want).abs() / 1023.0 < 0.005, "{model} window {i}: {got} against {want}");
        }
    }
}

#[test]
#[ignore = "minutes; prints the table of docs/LOG.md"]
fn quality_by_bits() {
    for model in MODELS {
        let scored = json("perplexity.json")["models"][model]["scored_tokens"].as_f64().expect("scored");
        let say = |what: &str, bytes: u64, loaded: &LoadedModel| {
            let perplexity = (windows(loaded, usize::MAX).iter().sum::<f64>() / scored).exp();
            let (kept, of) = recalled(loaded);
            println!(
                "{model:14} {what:12} {:6.2} MB  perplexity {perplexity:8.4}  recall {kept}/{of}",
                bytes as f64 / 1e6
            );
        };
        let source = Checkpoint::open(&folder(model), QUANTS).expect("source");
        say("bf16 exact", source.weights.total_bytes(), &exact(&folder(model)));
        say("bf16", source.weights.total_bytes(), &load(&Loader::default(), &folder(model)));
        for bits in [8, 6, 5, 4, 3] {
            let target = tempfile::tempdir().expect("tempdir");
            let spec = QuantizeSpec { bits, group: 64, overrides: Vec::new(), shard_bytes: u64::MAX };
            let plan = quantised(&source, target.path(), &spec).expect("quantize");
            say(&format!("{bits} bit exact"), plan.target_bytes, &exact(target.path()));
            say(&format!("{bits} bit"), plan.target_bytes, &load(&Loader::default(), target.path()));
        }
    }
}
