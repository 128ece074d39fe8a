//! Headers of safetensors files: any bytes are read or refused.
#![no_main]

use std::path::Path;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = reverie_files::safetensors::header(Path::new("fuzz.safetensors"), bytes);
});
