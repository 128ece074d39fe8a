//! Configs: any JSON is planned or refused by every architecture.
#![no_main]

use std::path::Path;

use reverie_files::{Bare, ModelConfig};
use reverie_model::Registries;
use reverie_model::arch::Source;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(config) = ModelConfig::parse(Path::new("config.json"), text) else { return };
    let registries = Registries::builtin();
    for arch in registries.archs() {
        if let Ok(source) = Source::hugging_face(&config, &Bare(&[]), &registries) {
            let _ = (arch.plan)(&source);
        }
    }
});
