//! Good files read, every kind of bad header refused by name, and random bytes never a panic.

use std::fs;

use proptest::prelude::*;
use reverie_tensor::quant::QUANTS;
use tempfile::TempDir;

use super::write::{Builder, Flag};
use super::*;

fn read(bytes: &[u8]) -> Result<Header> {
    header(Path::new("m.gguf"), bytes, QUANTS)
}

fn refusal(bytes: &[u8]) -> String {
    let error = read(bytes).unwrap_err().to_string();
    assert!(error.contains("m.gguf"), "{error}");
    error
}

/// Keys of every kind, a plain tensor and a quantised one.
fn sample() -> Builder {
    let nested =
        [9u32.to_le_bytes().as_slice(), &1u64.to_le_bytes(), &0u32.to_le_bytes(), &2u64.to_le_bytes(), &[7, 9]]
            .concat();
    Builder::new()
        .text("general.architecture", "llama")
        .u32("llama.block_count", 2)
        .i32("some.signed", -3)
        .f32("llama.rope.freq_base", 1e4)
        .flag("tokenizer.ggml.add_bos_token", Flag::On)
        .texts("tokenizer.ggml.tokens", &["a", "β", ""])
        .i32s("tokenizer.ggml.token_type", &[1, 3, 1])
        .f32s("tokenizer.ggml.scores", &[0.5, -1.0, 0.0])
        .raw("wide", 10, &7u64.to_le_bytes())
        .raw("narrow", 1, &[0xff])
        .raw("double", 12, &0.25f64.to_le_bytes())
        .raw("nested", 9, &nested)
        .tensor("norm.weight", &[3], 0, &[1.0f32, 2.0, 3.0].map(f32::to_le_bytes).concat())
        .tensor("q.weight", &[2, 32], 8, &[5; 68])
}

#[test]
fn a_good_file_shows_keys_and_tensors() {
    let bytes = sample().build();
    let header = read(&bytes).unwrap();
    let m = &header.metadata;
    assert_eq!(header.version, 3);
    assert_eq!(m.text("general.architecture").unwrap(), "llama");
    assert_eq!(m.usize("llama.block_count").unwrap(), 2);
    assert_eq!((m.u64("wide").unwrap(), m.f64("double").unwrap()), (7, 0.25));
    assert_eq!(m.f64("llama.rope.freq_base").unwrap(), 1e4);
    assert_eq!(m.optional_bool("tokenizer.ggml.add_bos_token").unwrap(), Some(true));
    assert_eq!(m.get("narrow"), Some(&Value::Signed(-1)));
    assert_eq!(m.get("nested"), Some(&Value::List(List::Lists(vec![List::Unsigned(vec![7, 9])]))));
    assert_eq!(m.optional_f64s("tokenizer.ggml.scores").unwrap().unwrap(), [0.5, -1.0, 0.0]);
    assert_eq!(m.optional_i64s("tokenizer.ggml.token_type").unwrap().unwrap(), [1, 3, 1]);
    let (norm, q) = (&header.tensors["norm.weight"], &header.tensors["q.weight"]);
    assert_eq!((norm.shape.as_slice(), norm.storage.name()), (&[3][..], "F32"));
    assert_eq!((q.shape.as_slice(), q.storage.name()), (&[2, 32][..], "q8_0"));
    assert_eq!(bytes[q.range.clone()], [5; 68]);
    assert_eq!(norm.range.start % 32, 0);
}

#[test]
fn getters_name_the_key() {
    let header = read(&sample().build()).unwrap();
    let m = &header.metadata;
    for (error, key) in [
        (m.usize("llama.head_count").unwrap_err(), "llama.head_count"),
        (m.usize("some.signed").unwrap_err(), "some.signed"),
        (m.text("llama.block_count").unwrap_err(), "llama.block_count"),
        (m.optional_texts("tokenizer.ggml.scores").unwrap_err(), "tokenizer.ggml.scores"),
        (m.f64("general.architecture").unwrap_err(), "general.architecture"),
    ] {
        let error = error.to_string();
        assert!(error.contains(key) && error.contains("expected") && error.contains("m.gguf"), "{error}");
    }
}

#[test]
fn every_truncation_is_refused() {
    let bytes = sample().build();
    for end in 0..bytes.len() {
        refusal(&bytes[..end]);
    }
}

#[test]
fn versions_and_byte_orders_are_told_apart() {
    let mut bytes = sample().build();
    bytes[4] = 2;
    assert_eq!(read(&bytes).unwrap().version, 2);
    for (version, part) in [(1u32, "found 1"), (4, "found 4"), (3u32.swap_bytes(), "big-endian"), (0, "big-endian")] {
        bytes[4..8].copy_from_slice(&version.to_le_bytes());
        assert!(refusal(&bytes).contains(part));
    }
    bytes[..4].copy_from_slice(b"GGML");
    assert!(refusal(&bytes).contains("'GGML'"));
}

#[test]
fn counts_beyond_the_file_are_refused_before_anything_is_allocated() {
    for (at, what) in [(8, "tensor count"), (16, "metadata count")] {
        for count in [u64::MAX, 1 << 40, 1 << 20] {
            let mut bytes = sample().build();
            bytes[at..at + 8].copy_from_slice(&count.to_le_bytes());
            assert!(refusal(&bytes).contains(what));
        }
    }
    // A key whose length, a string whose length and a list whose count lie.
    let long = u64::MAX.to_le_bytes();
    let text = Builder::new().raw("key", 8, &long).build();
    assert!(refusal(&text).contains("'key'"));
    for element in [0u32, 4, 7, 8, 9, 12] {
        for count in [u64::MAX, 1 << 33] {
            let list = [element.to_le_bytes().as_slice(), &count.to_le_bytes(), &[0; 64]].concat();
            assert!(refusal(&Builder::new().raw("key", 9, &list).build()).contains("'key'"), "{element} {count}");
        }
    }
}

#[test]
fn odd_values_are_refused_with_their_key() {
    let mut deep = Vec::new();
    for _ in 0..100 {
        deep.extend([9u32.to_le_bytes().as_slice(), &1u64.to_le_bytes()].concat());
    }
    let cases: &[(u32, &[u8], &str)] = &[
        (13, &[0; 16], "value type 13"),
        (9, &[99, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], "element type 99"),
        (7, &[2], "byte 2"),
        (8, &[1, 0, 0, 0, 0, 0, 0, 0, 0xff], "UTF-8"),
        (9, &deep, "deep"),
    ];
    for (kind, value, part) in cases {
        let error = refusal(&Builder::new().raw("my.key", *kind, value).build());
        assert!(error.contains("my.key") && error.contains(part), "{part}: {error}");
    }
    assert!(refusal(&Builder::new().u32("k", 1).u32("k", 1).build()).contains("two values"));
    for alignment in [0, 3, 1 << 30] {
        assert!(refusal(&Builder::new().u32("general.alignment", alignment).build()).contains("general.alignment"));
    }
}

#[test]
fn bad_tensors_are_refused_by_name() {
    let cases: &[(&[usize], u32, u64, &str)] = &[
        (&[4], 0, 1 << 20, "within 0 bytes"),
        (&[4], 0, u64::MAX - 31, "within 0 bytes"),
        (&[4], 0, 4, "alignment"),
        (&[1 << 40, 1 << 40], 0, 0, "product"),
        (&[usize::MAX], 0, 0, "product"),
        (&[1 << 61], 0, 0, "within"),
        (&[33], 2, 0, "multiple of 32"),
        (&[32], 14, 0, "multiple of 256"),
        (&[32], 16, 0, "IQ2_XXS"),
        (&[32], 4_000_000, 0, "4000000"),
        (&[], 0, 0, "number of dimensions"),
        (&[1; 5], 0, 0, "number of dimensions"),
    ];
    for (shape, kind, offset, part) in cases {
        let error = refusal(&Builder::new().entry("my.tensor", shape, *kind, *offset).build());
        assert!(error.contains("my.tensor") && error.contains(part), "{part}: {error}");
    }
    let twice = Builder::new().tensor("t", &[1], 0, &[0; 4]).tensor("t", &[1], 0, &[0; 4]);
    assert!(refusal(&twice.build()).contains("two entries"));
    let overlap = Builder::new().tensor("a", &[16], 0, &[0; 64]).entry("b", &[4], 0, 32);
    assert!(refusal(&overlap.build()).contains("the tensor before it ends there"));
}

#[test]
fn an_empty_tensor_shows_no_bytes() {
    let bytes = Builder::new().entry("empty", &[0, 4], 0, 0).build();
    let header = read(&bytes).unwrap();
    assert!(bytes[header.tensors["empty"].range.clone()].is_empty());
}

#[test]
fn a_format_that_is_not_registered_is_refused() {
    let rows: Vec<_> = QUANTS.iter().copied().filter(|row| row.name != "q8_0").collect();
    let error = header(Path::new("m.gguf"), &sample().build(), &rows).unwrap_err().to_string();
    assert!(error.contains("q.weight") && error.contains("number 8"), "{error}");
}

fn part(number: u32, count: u32, tensor: &str) -> Vec<u8> {
    let keys = Builder::new().raw("split.no", 2, &(number as u16).to_le_bytes()).raw(
        "split.count",
        2,
        &(count as u16).to_le_bytes(),
    );
    keys.i32("split.tensors.count", 2).tensor(tensor, &[1], 0, &[number as u8; 4]).build()
}

#[test]
fn split_files_are_read_from_their_first_part() {
    let folder = TempDir::new().unwrap();
    let path = |i: u32| folder.path().join(format!("m-{i:05}-of-00002.gguf"));
    fs::write(path(1), part(0, 2, "a")).unwrap();
    let error = Gguf::open(&path(1), QUANTS).unwrap_err().to_string();
    assert!(error.contains("m-00002-of-00002.gguf"), "{error}");
    fs::write(path(2), part(1, 2, "b")).unwrap();
    let all = Gguf::open(&path(1), QUANTS).unwrap();
    assert_eq!(all.tensors.keys().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(all.files[1].bytes()[all.tensors["b"].1.range.clone()], [1; 4]);
    assert!(Gguf::open(&path(2), QUANTS).unwrap_err().to_string().contains("first part"));
    for (bad, what) in [(part(0, 2, "b"), "split.no"), (part(1, 2, "a"), "second copy"), (part(1, 3, "b"), "split.no")]
    {
        fs::write(path(2), bad).unwrap();
        let error = Gguf::open(&path(1), QUANTS).unwrap_err().to_string();
        assert!(error.contains(what), "{what}: {error}");
    }
    let renamed = folder.path().join("renamed.gguf");
    fs::write(&renamed, part(0, 2, "a")).unwrap();
    assert!(Gguf::open(&renamed, QUANTS).unwrap_err().to_string().contains("-00001-of-00002.gguf"));
}

fn vocab(builder: Builder) -> Result<GgufVocab> {
    GgufVocab::read(&read(&builder.build()).unwrap().metadata)
}

#[test]
fn vocabularies_are_read_and_checked() {
    let base = || sample().text("tokenizer.ggml.model", "llama");
    let v = vocab(base().u32("tokenizer.ggml.bos_token_id", 1)).unwrap();
    assert_eq!((v.model.as_str(), v.tokens.len(), v.bos, v.add_bos), ("llama", 3, Some(1), Some(true)));
    assert_eq!((v.types, v.scores), (vec![1, 3, 1], vec![0.5, -1.0, 0.0]));
    assert_eq!(vocab(base().i32("tokenizer.ggml.padding_token_id", -1)).unwrap().pad, None);
    for (builder, key) in [
        (base().u32("tokenizer.ggml.eos_token_id", 3), "eos_token_id"),
        (base().text("tokenizer.ggml.eos_token_id", "x"), "eos_token_id"),
        (base().text("tokenizer.ggml.merges", "x"), "merges"),
        (Builder::new(), "tokens"),
        (sample(), "tokenizer.ggml.model"),
        (Builder::new().texts("tokenizer.ggml.tokens", &["a"]).f32s("tokenizer.ggml.scores", &[0.0; 2]), "scores"),
    ] {
        let error = vocab(builder).unwrap_err().to_string();
        assert!(error.contains(key), "{key}: {error}");
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(tail in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = read(&tail);
        let _ = read(&[&MAGIC[..], &3u32.to_le_bytes(), &tail].concat());
        let counts = [1u64, 1].map(u64::to_le_bytes).concat();
        let _ = read(&[&MAGIC[..], &3u32.to_le_bytes(), &counts, &tail].concat());
    }

    #[test]
    fn a_damaged_file_never_shows_a_range_outside_itself(edits in proptest::collection::vec((0usize..1000, any::<u8>()), 1..4)) {
        let mut bytes = sample().build();
        let length = bytes.len();
        edits.iter().for_each(|&(at, value)| bytes[at % length] = value);
        if let Ok(header) = read(&bytes) {
            for stored in header.tensors.values() {
                prop_assert!(bytes.get(stored.range.clone()).is_some());
            }
            let _ = GgufVocab::read(&header.metadata);
        }
    }
}
