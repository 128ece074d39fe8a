//! Good files read, every kind of bad file refused by name, and random bytes never a panic.

use std::fs;

use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

/// A file from a header and data, without any check.
fn file(header: &Value, data: &[u8]) -> Vec<u8> {
    raw(&header.to_string(), data)
}

fn raw(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

/// Two tensors: eight bytes of F32 and three of U8.
fn good() -> Vec<u8> {
    let header = json!({
        "__metadata__": {"format": "pt"},
        "b": {"dtype": "U8", "shape": [3], "data_offsets": [8, 11]},
        "a": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]},
    });
    file(&header, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11])
}

fn read(bytes: &[u8]) -> Result<Header> {
    header(Path::new("m.safetensors"), bytes)
}

fn refusal(bytes: &[u8]) -> String {
    let error = read(bytes).unwrap_err().to_string();
    assert!(error.contains("m.safetensors"), "{error}");
    error
}

#[test]
fn a_good_file_shows_its_tensors() {
    let bytes = good();
    let header = read(&bytes).unwrap();
    let a = &header.tensors["a"];
    assert_eq!(
        (a.element, a.shape.as_slice(), &bytes[a.range.clone()]),
        (Element::F32, &[1, 2][..], &bytes[bytes.len() - 11..][..8])
    );
    assert_eq!(&bytes[header.tensors["b"].range.clone()], [9, 10, 11]);
    assert_eq!(header.metadata["format"], "pt");
    let empty = file(&json!({"e": {"dtype": "F16", "shape": [0, 4], "data_offsets": [0, 0]}}), &[]);
    assert_eq!(read(&empty).unwrap().tensors["e"].shape, [0, 4]);
}

#[test]
fn every_truncation_is_refused() {
    let bytes = good();
    for end in 0..bytes.len() {
        refusal(&bytes[..end]);
    }
    let mut longer = bytes;
    longer.push(0);
    assert!(refusal(&longer).contains("12 bytes"));
}

#[test]
fn absurd_header_lengths_are_refused_before_anything_is_allocated() {
    for length in [u64::MAX, 1 << 63, 1 << 40, 100_000_001, 99_999_999, 12] {
        let mut bytes = good();
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        refusal(&bytes);
    }
}

#[test]
fn headers_that_are_no_tensor_table_are_refused() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for header in ["", "{", "[]", "null", "{\"a\": 3}", "{\"a\": {\"dtype\": \"F32\"}}", "\u{7}", deep.as_str()] {
        refusal(&raw(header, &[]));
    }
    let error = refusal(&raw(r#"{"my.weight": {"dtype": "F32", "shape": [1]}}"#, &[]));
    assert!(error.contains("my.weight") && error.contains("data_offsets"), "{error}");
    for field in [
        r#""shape": [-1]"#,
        r#""shape": [1.5]"#,
        r#""shape": "x""#,
        r#""data_offsets": [0]"#,
        r#""data_offsets": [0, 1, 2]"#,
        r#""data_offsets": [-4, 0]"#,
        r#""dtype": 7"#,
    ] {
        let fields = [r#""dtype": "F32""#, r#""shape": [1]"#, r#""data_offsets": [0, 4]"#];
        let name = field.split(':').next().unwrap();
        let all: Vec<_> = fields.iter().map(|f| if f.starts_with(name) { field } else { f }).collect();
        let error = refusal(&raw(&format!(r#"{{"t": {{{}}}}}"#, all.join(", ")), &[0; 4]));
        assert!(error.contains("'t'"), "{error}");
    }
    let error = refusal(&raw(
        r#"{"t": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "t": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}}"#,
        &[0; 2],
    ));
    assert!(error.contains("two entries"), "{error}");
}

#[test]
fn bad_entries_are_refused_with_the_tensors_name() {
    let cases = [
        ("F31", json!([1]), json!([0, 4]), "'F31'"),
        ("F32", json!([2]), json!([0, 4]), "8"),
        ("F32", json!([1]), json!([4, 0]), "[4, 0]"),
        ("F32", json!([1]), json!([4, 8]), "[4, 8]"),
        ("F32", json!([1u64 << 62, 1u64 << 62]), json!([0, 4]), "product"),
        ("F32", json!([u64::MAX]), json!([0, 4]), "product"),
        ("U8", json!([u64::MAX]), json!([0, u64::MAX]), "within 4 bytes"),
        ("U8", json!([3]), json!([1, 4]), "start"),
    ];
    for (dtype, shape, offsets, part) in cases {
        let header = json!({"my.tensor": {"dtype": dtype, "shape": shape, "data_offsets": offsets}});
        let error = refusal(&file(&header, &[0; 4]));
        assert!(error.contains("my.tensor") && error.contains(part), "{part}: {error}");
    }
}

#[test]
fn overlaps_and_holes_are_refused() {
    for (first, second) in [((0, 4), (2, 6)), ((0, 4), (0, 4)), ((0, 3), (4, 6)), ((0, 6), (2, 4))] {
        let entry = |(a, b): (u64, u64)| json!({"dtype": "U8", "shape": [b - a], "data_offsets": [a, b]});
        let error = refusal(&file(&json!({"x": entry(first), "y": entry(second)}), &[0; 6]));
        assert!(error.contains("neither overlap nor leave holes"), "{error}");
    }
}

/// A name and content.
type File<'a> = (&'a str, &'a [u8]);

fn folder(files: &[File<'_>]) -> TempDir {
    let folder = TempDir::new().unwrap();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

fn open(folder: &TempDir) -> Result<SafeTensors> {
    SafeTensors::open(&Place::Folder(folder.path().to_owned()))
}

fn one(name: &str, value: u8) -> Vec<u8> {
    file(&json!({name: {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}), &[value])
}

fn index(map: Value) -> Vec<u8> {
    json!({"metadata": {"total_size": 2}, "weight_map": map}).to_string().into_bytes()
}

#[test]
fn shards_are_read_together() {
    let map = index(json!({"x": "s1.safetensors", "y": "s2.safetensors"}));
    let folder = folder(&[(INDEX, &map), ("s1.safetensors", &one("x", 7)), ("s2.safetensors", &one("y", 8))]);
    let all = open(&folder).unwrap();
    assert_eq!((all.bytes("x"), all.bytes("y"), all.bytes("z")), (Some(&[7][..]), Some(&[8][..]), None));
}

/// The Hugging Face cache links every file of a model to a blob elsewhere.
#[cfg(unix)]
#[test]
fn linked_files_are_read() {
    let blobs = folder(&[("blob", &one("x", 7))]);
    let folder = folder(&[]);
    std::os::unix::fs::symlink(blobs.path().join("blob"), folder.path().join(SINGLE)).unwrap();
    assert_eq!(open(&folder).unwrap().bytes("x"), Some(&[7][..]));
}

#[test]
fn bad_sets_of_shards_are_refused() {
    let (x, y) = (one("x", 7), one("y", 8));
    let both = index(json!({"x": "s1.safetensors", "y": "s2.safetensors"}));
    let cases: &[(&[File<'_>], &str)] = &[
        (&[], SINGLE),
        (&[("other.safetensors", &x)], SINGLE),
        (&[(SINGLE, &[])], "0 bytes"),
        (&[(INDEX, b"{")], INDEX),
        (&[(INDEX, b"{}")], "weight_map"),
        (&[(INDEX, &both), ("s1.safetensors", &x)], "s2.safetensors"),
        (&[(INDEX, &both), ("s1.safetensors", &x), ("s2.safetensors", &y[..y.len() - 1])], "s2.safetensors"),
        (&[(INDEX, &both), ("s1.safetensors", &y), ("s2.safetensors", &x)], "'x'"),
        (&[(INDEX, &both), ("s1.safetensors", &x), ("s2.safetensors", &x)], "second copy"),
        (&[(INDEX, &both), ("s1.safetensors", &x), ("s2.safetensors", &one("z", 1))], "no such tensor"),
        (&[(INDEX, &both), ("s1.safetensors", &x), ("s2.safetensors", &y), (SINGLE, &x)], "stale"),
    ];
    for (files, part) in cases {
        let folder = folder(files);
        let error = open(&folder).unwrap_err().to_string();
        assert!(error.contains(part), "{part}: {error}");
        assert!(error.contains(folder.path().to_str().unwrap()), "{error}");
    }
}

#[test]
fn shard_names_do_not_leave_the_folder() {
    let outside = folder(&[("secret.safetensors", &one("x", 7))]);
    let absolute = outside.path().join("secret.safetensors");
    for name in
        ["../secret.safetensors", "a/../../b", absolute.to_str().unwrap(), "", ".", "/", "..", "C:\\x", "a\\b", "a\0b"]
    {
        let folder = folder(&[(INDEX, &index(json!({"x": name})))]);
        let error = open(&folder).unwrap_err().to_string();
        assert!(error.contains("own folder"), "{name}: {error}");
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = read(&bytes);
    }

    #[test]
    fn a_damaged_file_never_shows_a_range_outside_itself(at in 0usize..240, value in any::<u8>(), cut in 0usize..240) {
        let mut bytes = good();
        let length = bytes.len();
        bytes[at % length] = value;
        bytes.truncate(length - cut % 3);
        if let Ok(header) = read(&bytes) {
            for stored in header.tensors.values() {
                prop_assert!(bytes.get(stored.range.clone()).is_some());
                let elements: usize = stored.shape.iter().product();
                prop_assert_eq!(elements * stored.element.size(), stored.range.len());
            }
        }
    }
}
