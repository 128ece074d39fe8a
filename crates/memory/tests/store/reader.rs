//! The format page is enough to read a store: a reader in another language, written from it, agrees with ours.

use std::path::{Path, PathBuf};
use std::process::Command;

use reverie_memory::{Depth, Expect, GcSpec, Manifest, Store, Value};

use crate::stand::{Files, grow, hybrid, state, store};

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/state_reader.py")
}

/// What the reader says of a store or a file; None where there is no python3.
fn read(place: &Path) -> Option<Value> {
    let out = match Command::new("python3").arg(script()).arg(place).output() {
        Ok(out) => out,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            assert!(std::env::var_os("CI").is_none(), "CI must have python3");
            return None;
        }
        Err(e) => panic!("{e}"),
    };
    let value: Value =
        serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&out.stderr)));
    let wrong = value["wrong"].as_array().is_some_and(|w| !w.is_empty());
    assert_eq!(out.status.success(), !wrong);
    Some(value)
}

/// A store with all that the format has: history, a fork, a hybrid, a tag, let-go history, text beyond ASCII, JSON of the writer's.
fn rich() -> (tempfile::TempDir, Store) {
    let (folder, store) = store();
    grow(&store, "trip", 4);
    store.tag("trip@2", "v1/second").unwrap();
    store.fork("trip@3", "a/fork").unwrap();
    let writer = store.writer().unwrap();
    let tokens: Vec<u32> = (0..30).map(|i| u32::MAX - i).collect();
    let base = hybrid(&writer, &tokens, &[16, 30]);
    let text = "ä🦀\n\"\\\u{7f}\u{1}".to_owned() + &base.text;
    let turns = Vec::new();
    let plain = Manifest { text, turns, ..base };
    writer.commit("plain", Expect::Absent, &plain).unwrap();
    let extra = serde_json::json!({"system": "be brief", "top_p": 0.95, "seed": u64::MAX, "tiny": 1e-7});
    writer.commit("mixed", Expect::Absent, &Manifest { sampler: extra.clone(), extra, ..plain }).unwrap();
    writer.commit("empty", Expect::Absent, &state(&writer, &[])).unwrap();
    drop(writer);
    let age = store.resolve("trip~1").unwrap().manifest.created_ms;
    store.gc(&GcSpec { before_ms: Some(age), ..GcSpec::default() }).unwrap();
    (folder, store)
}

fn agrees(store: &Store, read: &Value) {
    assert_eq!(read["wrong"], serde_json::json!([]));
    let names: Vec<String> = store.refs().unwrap().into_iter().map(|r| r.name).collect();
    // A JSON map keeps its keys sorted or as they came, by a feature that other crates of a build may ask for.
    let mut seen: Vec<&String> = read["states"].as_object().unwrap().keys().collect();
    seen.sort();
    assert_eq!(names.iter().collect::<Vec<_>>(), seen);
    for name in names {
        let ours = store.log(&name).unwrap();
        let theirs = read["states"][&name].as_array().unwrap();
        assert_eq!(ours.len(), theirs.len(), "{name}");
        for (a, b) in ours.iter().zip(theirs) {
            assert_eq!(b["hash"], a.hash.to_string());
            assert_eq!(b["tokens"], serde_json::to_value(&a.manifest.tokens).unwrap());
            assert_eq!(b["text"], a.manifest.text);
            let ends: Vec<usize> =
                b["turns"].as_array().unwrap().iter().map(|t| t["tokens"].as_u64().unwrap() as usize).collect();
            assert_eq!(ends, a.manifest.turns.iter().map(|t| t.tokens).collect::<Vec<_>>());
            assert_eq!(b["pages"], a.manifest.pages.len());
        }
    }
}

#[test]
fn the_python_reader_agrees_on_a_store_and_on_an_export() {
    let (folder, store) = rich();
    let Some(seen) = read(store.place()) else { return };
    agrees(&store, &seen);
    let tag = store.tags().unwrap().remove(0);
    assert_eq!(seen["tags"]["v1/second"], serde_json::json!({"manifest": tag.manifest, "tokens": tag.tokens}));
    let file = folder.path().join("trip.reverie");
    store.export("trip", &file, Depth::History, &mut |_| {}).unwrap();
    let seen = read(&file).unwrap();
    let (_other, alone) = crate::stand::store();
    alone.import(&file, None, &mut |_| {}).unwrap();
    agrees(&alone, &seen);
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[700] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    assert_eq!(read(&file).unwrap()["wrong"].as_array().unwrap().len(), 1);
}

#[test]
fn the_python_reader_finds_what_fsck_finds() {
    let (_folder, store) = rich();
    if read(store.place()).is_none() {
        return;
    }
    let head = store.resolve("trip").unwrap();
    let files = [
        store.object_file(&head.hash),
        store.object_file(&head.manifest.pages[1]),
        store.path_of("refs/a/fork"),
        store.path_of("tags/v1/second"),
    ];
    for file in files {
        let whole = std::fs::read(&file).unwrap();
        for at in [0, 9, 20, whole.len() / 2, whole.len() - 1] {
            let mut bad = whole.clone();
            bad[at] ^= 2;
            std::fs::write(&file, &bad).unwrap();
            let seen = read(store.place()).unwrap();
            assert!(!seen["wrong"].as_array().unwrap().is_empty(), "{} byte {at}", file.display());
        }
        std::fs::write(&file, whole).unwrap();
    }
    std::fs::remove_file(store.object_file(&head.manifest.pages[0])).unwrap();
    assert!(read(store.place()).unwrap()["wrong"][0].as_str().unwrap().contains("missing"));
}

#[test]
fn what_the_python_reader_cannot_decode_it_names() {
    let (_folder, store) = rich();
    let writer = store.writer().unwrap();
    // Two frames, and one.
    let mut long = vec![7; 1_200_000];
    long[600_000] = 8;
    let objects = [writer.put(&[&long]).unwrap().hash, writer.put(&[&[0; 5000]]).unwrap().hash];
    let page_tokens = crate::stand::PAGE;
    let manifest = Manifest { tokens: (0..16).collect(), pages: objects.to_vec(), page_tokens, ..Manifest::default() };
    writer.commit("zeros", Expect::Absent, &manifest).unwrap();
    drop(writer);
    let Some(seen) = read(store.place()) else { return };
    let knows = ["-c", "from compression import zstd"];
    if Command::new("python3").args(knows).output().unwrap().status.success() {
        return agrees(&store, &seen);
    }
    let wrong: Vec<&str> = seen["wrong"].as_array().unwrap().iter().map(|w| w.as_str().unwrap()).collect();
    let unread = |o: &reverie_memory::Hash| {
        wrong.iter().any(|w| w.contains(&o.to_string()[2..]) && w.contains("zstd needs Python 3.14"))
    };
    assert!(objects.iter().all(unread), "{wrong:?}");
    assert!(
        wrong.iter().all(|w| w.contains("zstd needs") || objects.iter().any(|o| w.contains(&o.to_string()))),
        "{wrong:?}"
    );
    assert_eq!(seen["states"].as_object().unwrap().len(), store.refs().unwrap().len());
}
