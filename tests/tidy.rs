//! The shape of the house: who imports whom, which file is which row, how long a file may grow, where `unsafe` may stand.

use std::path::{Path, PathBuf};

use reverie::Registries;
use reverie::rooms::{engine, tensor};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files under some folders, in order.
fn files(mut open: Vec<PathBuf>) -> Vec<PathBuf> {
    let mut found = Vec::new();
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).expect("folder").filter_map(Result::ok) {
            let path = entry.path();
            if path.is_dir() { open.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}

/// All Rust sources of the rooms and the porch.
fn sources() -> Vec<PathBuf> {
    let mut found = files(vec![root().join("src"), root().join("crates"), root().join("tests")]);
    found.retain(|path| path.extension().is_some_and(|e| e == "rs"));
    found
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).expect("inside").display().to_string()
}

/// The import table of docs/ARCHITECTURE.md.
const IMPORTS: &[(&str, &[&str])] = &[
    ("chat", &["engine", "text"]),
    ("cpu", &["tensor"]),
    ("engine", &["memory", "model", "tensor"]),
    ("files", &["tensor"]),
    ("memory", &[]),
    ("model", &["files", "tensor"]),
    ("pack", &["files", "model", "tensor"]),
    ("tensor", &[]),
    ("text", &[]),
];

#[test]
fn rooms_import_what_the_table_allows() {
    let mut rooms: Vec<String> = std::fs::read_dir(root().join("crates"))
        .expect("crates/")
        .filter_map(|e| e.ok()?.file_name().into_string().ok())
        .collect();
    rooms.sort();
    assert_eq!(rooms, IMPORTS.iter().map(|(r, _)| *r).collect::<Vec<_>>(), "rooms of the table");
    for (room, allowed) in IMPORTS {
        let manifest = std::fs::read_to_string(root().join(format!("crates/{room}/Cargo.toml"))).expect("manifest");
        let runtime = manifest.split("[dev-dependencies]").next().unwrap_or_default();
        for line in runtime.lines().filter_map(|l| l.strip_prefix("reverie-")) {
            let other = line.split(['.', ' ', '=']).next().unwrap_or_default();
            assert!(allowed.contains(&other), "{room} may not import {other}");
        }
    }
    let architecture = std::fs::read_to_string(root().join("docs/ARCHITECTURE.md")).expect("docs/ARCHITECTURE.md");
    for (room, allowed) in IMPORTS {
        let cell = if allowed.is_empty() { "nothing local".to_owned() } else { allowed.join(", ") };
        assert!(
            architecture.contains(&format!("| {room} | {cell} |")),
            "docs/ARCHITECTURE.md lacks '| {room} | {cell} |'"
        );
    }
}

#[test]
fn a_row_is_a_file_and_rows_are_alphabetical() {
    let r = Registries::builtin();
    let tables: Vec<(&str, Vec<&str>)> = vec![
        ("crates/model/src/arch", r.archs().iter().map(|a| a.name).collect()),
        ("crates/model/src/cache", r.caches().iter().map(|c| c.name).collect()),
        ("crates/model/src/ffn", r.ffns().iter().map(|f| f.name).collect()),
        ("crates/model/src/mixer", r.mixers().iter().map(|m| m.name).collect()),
        ("crates/tensor/src/quant", tensor::quant::QUANTS.iter().map(|q| q.name).collect()),
        ("crates/engine/src/sample", engine::sample::SAMPLERS.iter().map(|s| s.name).collect()),
    ];
    for (folder, names) in tables {
        let mut sorted = names.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(names, sorted, "{folder}: rows in alphabetical order, each once");
        for name in names {
            assert!(root().join(folder).join(format!("{name}.rs")).exists(), "{folder}/{name}.rs");
        }
    }
}

#[test]
fn generated_tables_are_fresh() {
    let r = Registries::builtin();
    let readme = std::fs::read_to_string(root().join("README.md")).expect("README.md");
    for arch in r.archs() {
        // Some are read under the word of another's file.
        let word = arch.gguf.map_or(String::new(), |gguf| format!("`{}` |", gguf.arch));
        let row = format!("| `{}` | {} | {word}", arch.name, arch.about);
        assert!(readme.contains(&row), "README.md lacks the row '{row}'");
    }
}

/// Files that may be longer than the limit. May only shrink.
const LONG: &[&str] = &[];

#[test]
fn files_stay_short() {
    for path in sources() {
        let lines = std::fs::read_to_string(&path).expect("source").lines().count();
        let name = relative(&path);
        assert!(
            lines <= 650 || LONG.contains(&name.as_str()),
            "{name} has {lines} lines: about 600 is the limit, split it"
        );
    }
}

#[test]
fn fixtures_stay_small() {
    let pocket = root().join("fixtures/pocket");
    let mut found = files(vec![root().join("fixtures")]);
    found.retain(|path| !path.starts_with(&pocket));
    let bytes: u64 = found.iter().map(|path| path.metadata().expect("fixture").len()).sum();
    assert!(bytes < 30_000_000, "fixtures/ without pocket/ has {bytes} bytes: 30 MB is the limit, make one narrower");
}

#[test]
fn files_say_what_they_are() {
    // A `tests.rs` beside a file speaks for that file.
    for path in sources().into_iter().filter(|p| !p.ends_with("tests.rs")) {
        let text = std::fs::read_to_string(&path).expect("source");
        assert!(text.starts_with("//! "), "{} does not open with what it is", relative(&path));
    }
}

#[test]
fn unsafe_stands_where_it_may() {
    let may = ["crates/tensor/src/buffer", "crates/cpu/", "crates/files/src/mmap"];
    for path in sources() {
        let name = relative(&path);
        let text = std::fs::read_to_string(&path).expect("source");
        let uses = text.lines().any(|l| {
            let code = l.split("//").next().unwrap_or_default();
            code.contains("unsafe {") || code.contains("unsafe fn") || code.contains("unsafe impl")
        });
        assert!(
            !uses || name.starts_with("tests/tidy") || may.iter().any(|m| name.starts_with(m)),
            "{name} uses unsafe"
        );
    }
}

#[test]
fn family_names_stay_in_the_arch_folder() {
    let families = ["gemma", "qwen", "mistral", "smollm"];
    for path in sources() {
        let name = relative(&path);
        let engine_room = ["crates/engine/", "crates/cpu/src", "crates/memory/"].iter().any(|r| name.starts_with(r));
        let forward = ["forward.rs", "assemble.rs", "state.rs", "linear.rs", "plan.rs"]
            .iter()
            .any(|f| name == format!("crates/model/src/{f}"));
        if !(engine_room || forward) {
            continue;
        }
        for line in std::fs::read_to_string(&path).expect("source").lines() {
            let code = line.split("//").next().unwrap_or_default().to_lowercase();
            assert!(!families.iter().any(|f| code.contains(f)), "{name} names a family: {line}");
        }
    }
}
