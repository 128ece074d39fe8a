//! Configs: any JSON is planned or refused by every architecture.
#![no_main]

use std::path::Path;

use reverie_files::{Error, ModelConfig, TensorStore};
use reverie_model::Registries;
use reverie_model::arch::Source;
use reverie_tensor::WeightSource;

/// A checkpoint without a tensor.
struct Nothing;

impl TensorStore for Nothing {
    fn contains(&self, _: &str) -> bool {
        false
    }
    fn shape(&self, _: &str) -> Option<Vec<usize>> {
        None
    }
    fn matrix<'a>(&'a self, name: &str, _: (usize, usize)) -> Result<Box<dyn WeightSource + 'a>, Error> {
        Err(none(name))
    }
    fn floats(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>), Error> {
        Err(none(name))
    }
    fn vector(&self, name: &str, _: usize) -> Result<Vec<f32>, Error> {
        Err(none(name))
    }
}

fn none(name: &str) -> Error {
    ModelConfig::new(Path::new("fuzz"), serde_json::Map::new()).refuse(name, "nothing", "a tensor")
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(config) = ModelConfig::parse(Path::new("config.json"), text) else { return };
    let registries = Registries::builtin();
    for arch in registries.archs() {
        if let Ok(source) = Source::hugging_face(&config, &Nothing, &registries) {
            let _ = (arch.plan)(&source);
        }
    }
});
