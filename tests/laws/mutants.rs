//! Changed configs of every fixture are refused or run: no panic, nothing beyond a bound of memory, no hang. The fuzz target `model`
//! goes on where this ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use reverie::rooms::files::{Checkpoint, Weights};
use reverie::rooms::tensor::quant::QUANTS;
use serde_json::Value;

use crate::fixtures::{name, root};
use crate::mutants::{Choices, Reached, mutant, run};

/// Mutants of each config.
const EACH: usize = 40;

/// What no config of a few kilobytes may take.
const LONGEST: Duration = Duration::from_secs(20);

/// Every folder with a config, and its tensors.
fn seeds() -> Vec<(String, Value, Arc<Weights>)> {
    let mut folders: Vec<_> =
        std::fs::read_dir(root()).expect("fixtures/").filter_map(|e| Some(e.ok()?.path())).collect();
    folders.sort();
    let seed = |folder: &std::path::PathBuf| {
        let config = serde_json::from_slice(&std::fs::read(folder.join("config.json")).ok()?).expect("json");
        Some((name(folder), config, Checkpoint::open(folder, QUANTS).ok()?.weights))
    };
    let found: Vec<_> = folders.iter().filter_map(seed).collect();
    assert!(found.len() > 60, "only {} configs", found.len());
    found
}

/// Says which config it was when a panic passes.
struct Witness<'a>(&'a str, &'a Value);

impl Drop for Witness<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("a mutant of {}: {}", self.0, self.1);
        }
    }
}

#[test]
fn changed_configs_are_refused_or_run() {
    let seeds = seeds();
    let all: Vec<Value> = seeds.iter().map(|(_, config, _)| config.clone()).collect();
    let mut counts = [0usize; 3];
    let mut x = 0x9E37_79B9_7F4A_7C15u64;
    for (i, (fixture, config, weights)) in seeds.iter().enumerate() {
        let plain = run(config, Some(Arc::clone(weights)), &mut Choices(&[0, 5]));
        assert!(plain == Reached::Ran || fixture.contains("assistant"), "{fixture} as it is: {plain:?}");
        for _ in 0..EACH {
            let bytes: Vec<u8> = (0..48)
                .map(|_| {
                    x ^= x << 13;
                    x ^= x >> 7;
                    x ^= x << 17;
                    (x >> 32) as u8
                })
                .collect();
            let mut choices = Choices(&bytes);
            let config = mutant(i, &all, &mut choices);
            let _witness = Witness(fixture, &config);
            let real = (choices.below(8) > 0).then(|| Arc::clone(weights));
            let began = Instant::now();
            counts[run(&config, real, &mut choices) as usize] += 1;
            assert!(began.elapsed() < LONGEST, "{:?}", began.elapsed());
        }
    }
    // Found under coverage.
    for (fixture, field) in [("fla_mla", "intermediate_size"), ("zamba2", "hidden_size")] {
        let (_, config, weights) = seeds.iter().find(|(name, ..)| name == fixture).expect("a seed");
        let mut config = config.clone();
        config[field] = i64::MAX.into();
        for weights in [None, Some(Arc::clone(weights))] {
            assert_ne!(run(&config, weights, &mut Choices(&[1, 5])), Reached::Ran, "{fixture}");
        }
    }
    eprintln!("refused, planned, run: {counts:?}");
    assert!(counts[2] > 400 && counts[0] > 400, "{counts:?}: mutants should be neither all mad nor all harmless");
}
