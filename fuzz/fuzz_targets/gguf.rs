//! Headers of GGUF files: any bytes are read or refused; what is read has its vocabulary read or refused.
#![no_main]

use std::path::Path;

use reverie_files::GgufVocab;
use reverie_tensor::quant::QUANTS;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(header) = reverie_files::gguf::header(Path::new("fuzz.gguf"), bytes, QUANTS) {
        let _ = GgufVocab::read(&header.metadata);
    }
});
