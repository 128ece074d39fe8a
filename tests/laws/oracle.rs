//! Logits, hidden states and greedy tokens against transformers, on every fixture.

use std::path::Path;

use reverie::Loader;
use reverie::rooms::files::Checkpoint;
use reverie::rooms::model::{Sequence, Want};
use serde_json::Value;

use crate::fixtures::{load, name, oracles};

struct Reference {
    ids: Vec<u32>,
    greedy: Vec<u32>,
    logits: Vec<f32>,
    hidden: Vec<f32>,
    hidden_shape: Vec<usize>,
}

fn reference(folder: &Path) -> Reference {
    let json: Value = serde_json::from_slice(&std::fs::read(folder.join("reference.json")).expect("reference.json")).expect("json");
    let list = |field: &str| -> Vec<u32> {
        json[field].as_array().expect(field).iter().map(|v| v.as_u64().expect("id") as u32).collect()
    };
    let weights = Checkpoint::open_tensors(&folder.join("reference.safetensors")).expect("reference.safetensors");
    let (_, logits) = weights.tensor_f32("logits").expect("logits");
    let (hidden_shape, hidden) = weights.tensor_f32("hidden_states").expect("hidden_states");
    Reference { ids: list("input_ids"), greedy: list("greedy_continuation"), logits, hidden, hidden_shape }
}

/// Largest absolute difference over largest absolute reference value.
fn distance(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    let top = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    got.iter().zip(want).fold(0.0f32, |m, (a, b)| m.max((a - b).abs())) / top
}

/// The recurrences differ by up to 1e-3 between the reference's own chunked and stepwise forms.
fn bound(folder: &Path) -> f32 {
    if name(folder).contains("qwen3_5") { 1e-3 } else { 2e-4 }
}

#[test]
fn every_family_gives_the_logits_of_transformers() {
    let mut worst = Vec::new();
    for folder in oracles() {
        let want = reference(&folder);
        let loader = Loader { exact: true, record: true, threads: Some(2), ..Loader::default() };
        let loader = Loader { engine: reverie::rooms::engine::EngineSpec { kv: "f32".into(), ..Default::default() }, ..loader };
        let loaded = load(&loader, &folder);
        let (engine, model) = (loaded.engine(), loaded.engine().model());
        let mut state = model.new_state(engine.cache());
        let out = model.forward(&mut [Sequence { tokens: &want.ids, state: &mut state, want: Want::All }]).expect("forward");
        let got = model.backend().read(out[0].as_ref().expect("logits")).expect("read");
        let d = distance(&got, &want.logits);
        assert!(d <= bound(&folder), "{}: logits differ by {d:e} of the largest", name(&folder));
        let (layers, t, width) = (want.hidden_shape[0], want.hidden_shape[1], want.hidden_shape[2]);
        let notes = loaded.recorded();
        assert_eq!(notes.len(), layers, "{}: hidden states", name(&folder));
        let mut deepest = 0.0f32;
        for (i, (note, w, values)) in notes.iter().enumerate() {
            assert_eq!((note.as_str(), *w), (format!("hidden.{i}").as_str(), width));
            let h = distance(values, &want.hidden[i * t * width..(i + 1) * t * width]);
            assert!(h <= bound(&folder), "{}: {note} differs by {h:e} of the largest", name(&folder));
            deepest = deepest.max(h);
        }
        let mut session = loaded.session();
        session.sync(&want.ids, &mut |_| reverie::Go::On).expect("sync");
        for (i, &id) in want.greedy.iter().enumerate() {
            let logits = session.logits().expect("logits");
            let best = (0..logits.len()).fold(0, |b, j| if logits[j] > logits[b] { j } else { b });
            assert_eq!(best as u32, id, "{}: greedy token {i}", name(&folder));
            session.accept(id).expect("accept");
        }
        worst.push(format!("{:16} logits {d:.1e} hidden {deepest:.1e}", name(&folder)));
    }
    println!("{}\n{} of {} families", worst.join("\n"), worst.len(), worst.len());
}

#[test]
fn the_older_config_spelling_loads_the_same_model() {
    for folder in oracles().into_iter().filter(|f| f.join("config.v4.json").exists()) {
        let copy = tempfile::tempdir().expect("tempdir");
        for file in std::fs::read_dir(&folder).expect("folder").filter_map(|e| e.ok().map(|e| e.path())) {
            std::fs::copy(&file, copy.path().join(file.file_name().expect("name"))).expect("copy");
        }
        std::fs::copy(folder.join("config.v4.json"), copy.path().join("config.json")).expect("copy");
        let ids = reference(&folder).ids;
        let logits = |path: &Path| {
            let loaded = load(&Loader { threads: Some(2), ..Loader::default() }, path);
            let mut session = loaded.session();
            session.sync(&ids, &mut |_| reverie::Go::On).expect("sync");
            session.logits().expect("logits")
        };
        assert_eq!(logits(copy.path()), logits(&folder), "{}", name(&folder));
    }
}
