//! Finds the fixtures and loads them.

use std::path::{Path, PathBuf};

use reverie::rooms::model::{Model, Sequence, State, Want};
use reverie::rooms::tensor::Tensor;
use reverie::{LoadedModel, Loader};

use crate::twins;

/// The fixtures' folder.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// Every folder with a checkpoint that runs alone and reference logits, by name.
pub fn oracles() -> Vec<PathBuf> {
    let found: Vec<PathBuf> = references().into_iter().filter(|p| target(p).is_none()).collect();
    assert!(found.len() >= 10, "found only {} oracle fixtures", found.len());
    found
}

/// Every drafter with reference logits, and its target.
pub fn drafters() -> Vec<(PathBuf, PathBuf)> {
    let found: Vec<_> = references().into_iter().filter_map(|p| target(&p).map(|t| (p, t))).collect();
    assert!(!found.is_empty(), "no drafter among the fixtures");
    found
}

/// Every folder with a checkpoint and reference logits.
fn references() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(root())
        .expect("fixtures/")
        .filter_map(|e| e.ok().map(|e| e.path()))
        .filter(|p| p.join("reference.safetensors").exists() && p.join("config.json").exists())
        .collect();
    found.sort();
    found
}

/// The model that a drafter's reference was made with.
fn target(folder: &Path) -> Option<PathBuf> {
    let json = std::fs::read(folder.join("reference.json")).expect("reference.json");
    let json: serde_json::Value = serde_json::from_slice(&json).expect("json");
    json["target"].as_str().map(|t| root().join(t))
}

/// The oracles whose context holds `tokens`.
pub fn long_enough(tokens: usize) -> Vec<PathBuf> {
    let holds = |path: &PathBuf| {
        let loader = Loader { check: reverie::Check::WithBudget, ..Loader::default() };
        load(&loader, path).engine().context() >= tokens
    };
    let found: Vec<_> = oracles().into_iter().filter(holds).collect();
    assert!(found.len() >= 10, "only {} fixtures hold {tokens} tokens", found.len());
    found
}

/// Every whole GGUF file among the fixtures that runs alone: twins, and those with quantised weights.
pub fn ggufs() -> Vec<PathBuf> {
    let quantised = std::fs::read_dir(root().join("gguf_quants")).expect("gguf_quants/");
    let mut found: Vec<PathBuf> = quantised
        .filter_map(|e| e.ok().map(|e| e.path()))
        .filter(|p| p.extension().is_some_and(|x| x == "gguf"))
        .chain(oracles().iter().filter_map(|folder| twins::of(folder)).map(|twin| twin.path))
        .collect();
    found.sort();
    found
}

/// The name of a fixture for messages.
pub fn name(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// Loads with `loader`.
pub fn load(loader: &Loader, path: &Path) -> LoadedModel {
    loader.load(&path.display().to_string()).unwrap_or_else(|e| panic!("{}: {e}", name(path)))
}

/// `n` ids below `vocab`, the same for every call.
pub fn ids(n: usize, vocab: usize, seed: u64) -> Vec<u32> {
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..n)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            (x % (vocab as u64).min(255)) as u32
        })
        .collect()
}

/// Logits of every token, `[T][V]` as bits, read in chunks of the given sizes (the last repeats).
pub fn logits(model: &Model, state: &mut State, tokens: &[u32], chunk: usize) -> Vec<Vec<u32>> {
    let mut out = Vec::new();
    for piece in tokens.chunks(chunk) {
        let got = model.forward(&mut [Sequence { tokens: piece, state, want: Want::All }]).expect("forward");
        out.extend(rows(model, got[0].as_ref().expect("logits")));
    }
    out
}

/// The rows of a tensor as bits.
pub fn rows(model: &Model, tensor: &Tensor) -> Vec<Vec<u32>> {
    let values = model.backend().read(tensor).expect("read");
    values.chunks(tensor.width()).map(|r| r.iter().map(|v| v.to_bits()).collect()).collect()
}
