//! Experts that stay in the checkpoint until a token wants them: the same bits however few of them stay packed, under every budget
//! that holds those of one token in one layer, and a refusal with numbers below that.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use reverie::backends::{self, BackendSpec};
use reverie::rooms::engine::EngineSpec;
use reverie::rooms::files::Checkpoint;
use reverie::rooms::model::ffn::ExpertBytes;
use reverie::rooms::model::ffn::moe::{Counters, Shelf};
use reverie::rooms::model::{Model, assemble, cache};
use reverie::rooms::tensor::{Class, Event, Numerics};
use reverie::{Check, Go, Loader, Registries, Residence};
use serde_json::json;

use crate::fixtures::{ggufs, ids, load, logits, long_enough, name};
use crate::synthetic;

const TOKENS: usize = 90;

fn open(path: &Path) -> Checkpoint {
    reverie::locate(&path.display().to_string(), &mut |_| {}).and_then(|l| l.open()).expect("open")
}

fn experts(path: &Path) -> ExpertBytes {
    let lazy = Loader { experts: Residence::Lazy, ..Loader::default() };
    lazy.shadow(&open(path)).expect("plan").model().expert_bytes()
}

/// Every checkpoint with experts.
fn mixtures() -> Vec<(PathBuf, ExpertBytes)> {
    let all = long_enough(TOKENS).into_iter().chain(ggufs());
    let found: Vec<_> =
        all.map(|path| (experts(&path), path)).filter(|(e, _)| e.all > 0).map(|(e, p)| (p, e)).collect();
    assert!(found.len() >= 12, "only {} fixtures with experts", found.len());
    found
}

/// The model with its experts packed, or with a shelf that keeps `most_bytes` of them.
fn model(path: &Path, most_bytes: Option<u64>) -> Model {
    let checkpoint = open(path);
    let spec = BackendSpec { threads: Some(2), numerics: Some(Numerics::Int8), isa: None };
    let backend = backends::open(spec).expect("backend");
    let shelf = most_bytes.map(|most| Arc::new(Shelf::new(Arc::clone(&checkpoint.weights) as _, most)));
    let plan = Loader::default().plan(&checkpoint).expect("plan");
    assemble(plan, checkpoint.weights.as_ref(), &backend, shelf.as_ref(), &mut |_, _| {}).expect("assemble")
}

/// Logits of all tokens in chunks, and what the shelf did.
fn run(model: &Model, chunk: usize) -> (Vec<Vec<u32>>, Counters) {
    over(model, &ids(TOKENS, model.plan().vocab, 21), chunk)
}

fn over(model: &Model, tokens: &[u32], chunk: usize) -> (Vec<Vec<u32>>, Counters) {
    let before = model.shelf().map(|s| s.counters()).unwrap_or_default();
    let scheme = cache::CACHES.iter().find(|c| c.name == cache::DEFAULT_KV).expect("the usual scheme");
    let got = logits(model, &mut model.new_state(scheme), tokens, chunk);
    let c = model.shelf().map(|s| s.counters()).unwrap_or_default();
    let did = Counters {
        hits: c.hits - before.hits,
        misses: c.misses - before.misses,
        packed_bytes: c.packed_bytes - before.packed_bytes,
        given_back: c.given_back - before.given_back,
    };
    (got, did)
}

#[test]
fn the_same_bits_however_few_experts_stay() {
    for (path, ExpertBytes { all, at_once, .. }) in mixtures() {
        let want = run(&model(&path, None), TOKENS).0;
        // None that is idle, one and a half tokens' worth, about half, all.
        for most in [0, at_once * 3 / 2, all / 2, all] {
            let model = model(&path, Some(most));
            let held = || model.backend().memory().usage().of(Class::Experts);
            for chunk in [1, 32, TOKENS] {
                let (got, did) = run(&model, chunk);
                assert_eq!(got, want, "{} in chunks of {chunk}, {most} bytes stay", name(&path));
                assert!(held() <= most.max(at_once), "{}: {} bytes held", name(&path), held());
                if most == 0 {
                    assert!(did.given_back > 0 && did.misses > 0, "{}: {did:?}", name(&path));
                }
                if most == all {
                    assert_eq!(did.given_back, 0, "{}: there was room for all", name(&path));
                }
            }
        }
    }
}

/// Mixtures take turns: throwing out what was wanted longest ago would throw out what comes next, every time.
#[test]
fn a_token_that_wants_more_than_stays_finds_a_part() {
    let folder = tempfile::tempdir().expect("tempdir");
    large(folder.path());
    // Half of what one token wants of four mixtures; the same token over and over wants nearly the same.
    let lazy = model(folder.path(), Some(2 * experts(folder.path()).at_once));
    let (_, did) = over(&lazy, &[7; 48], 1);
    assert_eq!(did.hits + did.misses, 48 * 4 * 2);
    assert!(3 * did.hits >= did.misses, "{did:?}");
}

#[test]
fn one_expert_a_token() {
    let fixture = crate::fixtures::root().join("mixtral");
    let folder = tempfile::tempdir().expect("tempdir");
    for file in std::fs::read_dir(&fixture).expect("fixture").filter_map(Result::ok) {
        std::fs::copy(file.path(), folder.path().join(file.file_name())).expect("copy");
    }
    let config = std::fs::read_to_string(fixture.join("config.json")).expect("config");
    let mut config: serde_json::Value = serde_json::from_str(&config).expect("json");
    config["num_experts_per_tok"] = 1.into();
    std::fs::write(folder.path().join("config.json"), config.to_string()).expect("config");
    let want = run(&model(folder.path(), None), 7).0;
    let lazy = model(folder.path(), Some(0));
    assert_eq!(run(&lazy, 7).0, want);
    assert_eq!(lazy.backend().memory().usage().of(Class::Experts), experts(folder.path()).at_once);
}

/// A mixture whose experts are most of it: 4 layers of 32, of which a token wants 2.
fn large(folder: &Path) {
    let config = json!({
        "model_type": "olmoe", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_experts": 32, "num_experts_per_tok": 2, "norm_topk_prob": true, "vocab_size": 272,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "tie_word_embeddings": true,
    });
    let config = config.as_object().expect("an object");
    let shapes = synthetic::shapes(config, &Registries::builtin()).expect("shapes");
    synthetic::write(folder, config, &shapes);
}

fn loader(experts: Residence, memory: Option<u64>) -> Loader {
    let engine = EngineSpec { chunk: 32, memory, ..EngineSpec::default() };
    Loader { threads: Some(2), experts, engine, check: Check::WithBudget, ..Loader::default() }
}

#[test]
fn a_mixture_larger_than_the_budget_runs() {
    let folder = tempfile::tempdir().expect("tempdir");
    large(folder.path());
    let path = folder.path();
    let tokens = ids(200, 272, 4);
    let run = |loader: Loader| {
        let loaded = load(&loader, path);
        let mut session = loaded.session();
        session.sync(&tokens[..190], &mut |_| Go::On).expect("sync");
        let mut found = vec![session.logits().expect("logits")];
        for token in &tokens[190..] {
            session.accept(*token).expect("accept");
            found.push(session.logits().expect("logits"));
        }
        let usage = loaded.engine().model().backend().memory().usage();
        (found, usage, loaded.engine().model().shelf().map(|s| s.counters()))
    };
    let (want, usage, _) = run(loader(Residence::Resident, None));
    let ExpertBytes { all, at_once, .. } = experts(path);
    let free = load(&Loader { check: Check::Always, ..loader(Residence::Lazy, None) }, path);
    let forecast = free.engine().forecast(200, 1).expect("forecast").expect("checked");
    assert_eq!(forecast.experts_bytes, at_once, "a forecast counts one token's");
    assert!(forecast.peak_bytes < usage.of(Class::Weights) / 2, "{forecast:?}");
    let mut misses = Vec::new();
    for memory in [forecast.peak_bytes, forecast.peak_bytes + all / 4, forecast.peak_bytes + all] {
        let (got, usage, counters) = run(loader(Residence::Lazy, Some(memory)));
        assert_eq!(got, want, "in {memory} bytes");
        assert!(usage.peak <= memory);
        misses.push(counters.expect("lazy").misses);
    }
    assert!(misses[0] > misses[1] && misses[1] > misses[2] && misses[2] <= 4 * 32, "{misses:?}");
}

#[test]
fn an_observer_hears_of_hits_and_misses() {
    let path = crate::fixtures::root().join("qwen2_moe");
    let loaded = load(&Loader { record: true, ..loader(Residence::Lazy, None) }, &path);
    let mut session = loaded.session();
    session.sync(&ids(40, 250, 3), &mut |_| Go::On).expect("sync");
    let counters = loaded.engine().model().shelf().expect("lazy").counters();
    let (mut hits, mut misses, mut bytes) = (0, 0, 0);
    for event in loaded.events() {
        let Event::Experts { hits: h, misses: m, packed_bytes, .. } = event;
        (hits, misses, bytes) = (hits + h as u64, misses + m as u64, bytes + packed_bytes);
    }
    assert!(hits > 0 && misses > 0);
    assert_eq!((hits, misses, bytes), (counters.hits, counters.misses, counters.packed_bytes));
    assert_eq!(bytes, loaded.engine().model().backend().memory().usage().of(Class::Experts), "packed once each");
}

#[test]
fn what_does_not_hold_a_tokens_experts_is_refused_with_numbers() {
    let folder = tempfile::tempdir().expect("tempdir");
    large(folder.path());
    let text = folder.path().display().to_string();
    let ExpertBytes { all, at_once, .. } = experts(folder.path());
    let free = load(&loader(Residence::Lazy, None), folder.path());
    let weights = free.engine().model().backend().memory().usage().of(Class::Weights);
    let refused = |experts, memory| match loader(experts, Some(memory)).load(&text) {
        Ok(_) => panic!("loaded in {memory} bytes"),
        Err(e) => e.to_string(),
    };
    let lazy = refused(Residence::Lazy, weights + at_once - 1);
    for number in [weights, all, at_once] {
        assert!(lazy.contains(&number.to_string()), "{lazy}");
    }
    assert!(lazy.contains("--memory"), "{lazy}");
    let resident = refused(Residence::Resident, weights + at_once);
    assert!(resident.contains("--experts lazy"), "{resident}");
    loader(Residence::Lazy, Some(weights + at_once)).load(&text).expect("holds a token's experts");
}
