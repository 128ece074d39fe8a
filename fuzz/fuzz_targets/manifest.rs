//! Manifests: any bytes are read or refused; what is read is sound, has one spelling, and can be cut anywhere.
#![no_main]

use reverie_memory::Manifest;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(manifest) = Manifest::parse(bytes) else { return };
    let again = manifest.to_bytes().expect("what was read can be written");
    assert_eq!(Manifest::parse(&again).expect("what was written can be read"), manifest);
    for tokens in 0..=manifest.tokens.len().min(64) {
        if let Some(cut) = manifest.cut(tokens) {
            cut.check().expect("a cut is sound");
        }
    }
});
