//! Models: a fixture's config, changed as the bytes say, over its tensors and made-up ones, planned, assembled and run for a few tokens.
#![no_main]

use std::path::Path;
use std::sync::{Arc, LazyLock};

use reverie_files::{Checkpoint, Weights};
use reverie_tensor::quant::QUANTS;
use serde_json::Value;

/// The rooms by the names that the shared file knows.
mod rooms {
    pub use reverie_cpu as cpu;
    pub use reverie_files as files;
    pub use reverie_model as model;
    pub use reverie_tensor as tensor;
}

#[path = "../../tests/mutants.rs"]
mod mutants;

use mutants::{Choices, mutant, run};

/// Every fixture's config and tensors.
static SEEDS: LazyLock<Vec<(Value, Arc<Weights>)>> = LazyLock::new(|| {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures");
    let mut folders: Vec<_> = std::fs::read_dir(fixtures).expect("fixtures").flatten().map(|e| e.path()).collect();
    folders.sort();
    let seed = |folder: &std::path::PathBuf| {
        let config = serde_json::from_slice(&std::fs::read(folder.join("config.json")).ok()?).ok()?;
        Some((config, Checkpoint::open(folder, QUANTS).ok()?.weights))
    };
    folders.iter().filter_map(seed).collect()
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let all: &Vec<Value> = &ALL;
    let mut choices = Choices(bytes);
    let which = choices.below(all.len());
    let config = mutant(which, all, &mut choices);
    let real = (choices.below(8) > 0).then(|| Arc::clone(&SEEDS[which].1));
    let _ = run(&config, real, &mut choices);
});

static ALL: LazyLock<Vec<Value>> = LazyLock::new(|| SEEDS.iter().map(|(config, _)| config.clone()).collect());
