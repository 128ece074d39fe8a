//! `reverie state` as a person or a script meets it, over stores that the library made.

use std::path::Path;
use std::process::{Command, Output};

use reverie::rooms::memory::{Expect, Identity, Manifest, Snapshot, Store, Turn};
use serde_json::Value;

use crate::bucket::Bucket;

fn state(store: &Path, args: &[&str]) -> Output {
    let mut all = vec!["state"];
    all.extend(args);
    Command::new(env!("CARGO_BIN_EXE_reverie"))
        .args(all)
        .env("REVERIE_HOME", store.parent().expect("a folder above"))
        .output()
        .expect("runs")
}

fn json(store: &Path, args: &[&str]) -> Value {
    let mut all = args.to_vec();
    all.push("--json");
    let out = state(store, &all);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{args:?}: {e}"))
}

fn people(store: &Path, args: &[&str]) -> String {
    let out = state(store, args);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("text")
}

fn refused(store: &Path, args: &[&str], code: i32, words: &[&str]) {
    let out = state(store, args);
    let err = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(code), "{args:?}: {err}");
    for word in words {
        assert!(err.contains(word), "{args:?} does not say '{word}': {err}");
    }
    assert!(!err.contains("panicked"), "{err}");
}

/// A store with `trip`: four commits, a turn each, and a hybrid `book`.
fn stand() -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().expect("tempdir");
    let place = folder.path().join("store");
    let store = Store::open(&place).expect("opens");
    let writer = store.writer().expect("writer");
    let page = |n: usize| writer.put(&[format!("page {n}").repeat(40).as_bytes()]).expect("put").hash;
    for turns in 1..=4usize {
        let parent = store.head("trip").expect("head");
        let text: String = (1..=turns).map(|t| format!("line {t}\n")).collect();
        let turn = |t: usize| Turn { role: ["user", "assistant"][(t + 1) % 2].into(), text_end: t * 7, tokens: t * 5 };
        let manifest = Manifest {
            parent,
            created_ms: 1_700_000_000_000 + turns as u64,
            identity: Identity::from([("weights".into(), "w".into())]),
            page_tokens: 4,
            tokens: (0..turns as u32 * 5).collect(),
            pages: (0..(turns * 5).div_ceil(4))
                .map(|i| page(if i == turns * 5 / 4 { 100 + turns } else { i }))
                .collect(),
            turns: (1..=turns).map(turn).collect(),
            text,
            ..Manifest::default()
        };
        writer.commit("trip", parent.map_or(Expect::Absent, Expect::Head), &manifest).expect("commits");
    }
    let book = Manifest {
        tokens: vec![1; 8],
        page_tokens: 8,
        pages: vec![page(7)],
        snapshots: vec![Snapshot { object: page(8), position: 8 }],
        ..Manifest::default()
    };
    writer.commit("lib/book", Expect::Absent, &book).expect("commits");
    drop(writer);
    (folder, place)
}

#[test]
fn states_are_listed_and_shown() {
    let (_folder, store) = stand();
    let listed = json(&store, &["ls"]);
    let names: Vec<&str> =
        listed["states"].as_array().expect("list").iter().filter_map(|s| s["name"].as_str()).collect();
    assert_eq!(names, ["lib/book", "trip"]);
    assert_eq!(listed["states"][1]["tokens"], 20);
    assert!(people(&store, &["ls"]).contains("trip"));
    let log = json(&store, &["log", "trip"]);
    assert_eq!(log.as_array().map(Vec::len), Some(4));
    assert_eq!(log[0]["parent"], log[1]["head"]);
    assert_eq!(people(&store, &["log", "trip"]).lines().count(), 4);
    let shown = json(&store, &["show", "trip@2"]);
    assert_eq!((shown["tokens"].as_array().map(Vec::len), &shown["text"]), (Some(10), &"line 1\nline 2\n".into()));
    assert!(people(&store, &["show", "trip"]).contains("line 3"));
    let stats = json(&store, &["stats"]);
    assert_eq!((&stats["names"], &stats["commits"]), (&2.into(), &5.into()));
    assert!(stats["dedup"].as_f64().expect("a factor") > 1.0);
}

#[test]
fn names_are_forked_renamed_tagged_and_removed() {
    let (_folder, store) = stand();
    let fork = json(&store, &["fork", "trip", "early", "--at", "2"]);
    assert_eq!(json(&store, &["log", "early"])[0]["tokens"], 10);
    assert_eq!(fork["name"], "early");
    json(&store, &["rename", "early", "deep/early"]);
    json(&store, &["tag", "trip@3", "before-rain"]);
    assert_eq!(json(&store, &["ls"])["tags"][0]["tokens"], 15);
    json(&store, &["rm", "deep/early"]);
    refused(&store, &["log", "deep/early"], 1, &["deep/early", "state ls"]);
    json(&store, &["rm", "before-rain"]);
    refused(&store, &["show", "before-rain"], 1, &["before-rain"]);
    refused(&store, &["fork", "trip", "../out"], 1, &["../out", "1 to 100"]);
    refused(&store, &["fork", "trip", "lib"], 1, &["folder of states"]);
    for args in [["fork", "trip", "lib/book"], ["rename", "trip", "lib/book"]] {
        refused(&store, &args, 1, &["'lib/book' is taken", "state rm lib/book"]);
    }
    refused(&store, &["show", "trip@9"], 1, &["turn 9 of 4"]);
    refused(&store, &["fork", "trip"], 2, &["<NEW>"]);
}

#[test]
fn states_travel_by_file_and_by_folder() {
    let (folder, store) = stand();
    let file = folder.path().join("trip.reverie").display().to_string();
    let written = json(&store, &["export", "trip", &file, "--history"]);
    assert_eq!(written["commits"], 4);
    let there = folder.path().join("there");
    let at = there.display().to_string();
    let read = json(&store, &["import", &file, "--as", "back", "--store", &at]);
    assert_eq!((&read["result"], &read["name"]), (&"created".into(), &"back".into()));
    let shared = folder.path().join("shared").display().to_string();
    let url = format!("file://{shared}");
    assert_eq!(json(&store, &["push", "trip", &url])["result"], "created");
    assert_eq!(json(&store, &["push", "trip", &url])["result"], "up to date");
    assert_eq!(json(&store, &["push", "lib/book", &url])["objects"], 3);
    let pulled = json(&store, &["pull", &url, "--store", &at]);
    assert_eq!(pulled.as_array().map(Vec::len), Some(2));
    assert_eq!(json(&store, &["pull", &url, "trip", "--as", "t2", "--store", &at])[0]["result"], "created");
    assert_eq!(json(&store, &["ls", "--store", &at])["states"].as_array().map(Vec::len), Some(4));
    let mut bytes = std::fs::read(&file).expect("reads");
    bytes[300] ^= 1;
    std::fs::write(&file, bytes).expect("writes");
    refused(&store, &["import", &file, "--as", "spoilt"], 1, &["damaged", "trip.reverie"]);
    refused(&store, &["push", "trip", "ftp://x"], 1, &["ftp", "s3://"]);
}

#[test]
fn gc_and_fsck_say_what_they_do() {
    let (_folder, place) = stand();
    assert!(people(&place, &["fsck"]).contains("5 commits"));
    let pretend = json(&place, &["gc", "--older-than", "1d", "--dry-run"]);
    assert_eq!(pretend["commits_dropped"], 3);
    assert_eq!(json(&place, &["log", "trip"]).as_array().map(Vec::len), Some(4));
    let swept = json(&place, &["gc", "--older-than", "1d"]);
    assert_eq!(swept["bytes_freed"], pretend["bytes_freed"]);
    assert_eq!(json(&place, &["log", "trip"]).as_array().map(Vec::len), Some(1));
    assert_eq!(json(&place, &["fsck"])["whole"], true);
    refused(&place, &["gc", "--older-than", "soon"], 2, &["soon"]);
    let head = Store::open(&place).expect("opens").resolve("trip").expect("resolves").manifest;
    let name = head.pages[0].to_string();
    let page = place.join("objects").join(&name[..2]).join(&name[2..]);
    let mut bytes = std::fs::read(&page).expect("reads");
    *bytes.last_mut().expect("bytes") ^= 1;
    std::fs::write(&page, bytes).expect("writes");
    refused(&place, &["fsck"], 1, &["not whole"]);
    let out = state(&place, &["fsck", "--json"]);
    let report: Value = serde_json::from_slice(&out.stdout).expect("json");
    assert!(report["findings"].as_array().expect("list").iter().any(|f| f["kind"] == "damaged"), "{report}");
    refused(&place, &["fsck", "--repair"], 1, &["lost"]);
    assert!(place.join("damaged").join(&name).exists());
}

#[test]
fn the_home_of_states_is_told_by_the_environment() {
    let folder = tempfile::tempdir().expect("tempdir");
    let listed = json(&folder.path().join("store"), &["ls"]);
    assert_eq!(listed["place"], folder.path().join("store").display().to_string());
    assert!(folder.path().join("store/format").exists());
}

/// Runs `state` against a stand-in bucket.
fn with_bucket(bucket: &Bucket, store: &Path, args: &[&str]) -> Output {
    let mut all = vec!["state", "--json"];
    all.extend(args);
    Command::new(env!("CARGO_BIN_EXE_reverie"))
        .args(all)
        .env("REVERIE_HOME", store.parent().expect("a folder above"))
        .env("AWS_ENDPOINT", &bucket.endpoint)
        .env("AWS_ALLOW_HTTP", "true")
        .env("AWS_REGION", "nowhere-1")
        .env("AWS_ACCESS_KEY_ID", "id")
        .env("AWS_SECRET_ACCESS_KEY", "secret")
        .output()
        .expect("runs")
}

#[test]
fn states_travel_through_a_bucket_over_the_wire() {
    let (folder, store) = stand();
    let bucket = Bucket::start();
    let there = folder.path().join("there");
    let at = there.display().to_string();
    let go = |args: &[&str]| {
        let out = with_bucket(&bucket, &store, args);
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice::<Value>(&out.stdout).expect("json")
    };
    let url = "s3://states/team";
    assert_eq!(go(&["push", "trip", url])["result"], "created");
    assert_eq!(go(&["push", "lib/book", url])["result"], "created");
    assert_eq!(go(&["push", "trip", url])["result"], "up to date");
    assert!(bucket.keys().iter().all(|k| k.starts_with("team/")), "{:?}", bucket.keys());
    let pulled = go(&["pull", url, "--store", &at]);
    assert_eq!(pulled.as_array().map(Vec::len), Some(2), "{pulled}");
    assert_eq!(json(&there, &["log", "trip", "--store", &at]), json(&store, &["log", "trip"]));
    // A turn more: only that moves, and the name by a conditional write.
    let ours = Store::open(&store).expect("opens");
    let commit = ours.resolve("trip").expect("resolves");
    let writer = ours.writer().expect("writer");
    let next = Manifest { parent: Some(commit.hash), text: "line 1\n".repeat(5), ..commit.manifest };
    writer.commit("trip", Expect::Head(commit.hash), &next).expect("commits");
    drop(writer);
    let forwarded = go(&["push", "trip", url]);
    assert_eq!((&forwarded["result"], &forwarded["objects"]), (&"forwarded".into(), &1.into()));
    let log = bucket.log();
    assert!(log.iter().any(|l| l == "PUT team/refs/trip if-none-match"), "{log:?}");
    assert!(log.iter().any(|l| l == "PUT team/refs/trip if-match"), "{log:?}");
    // Somebody else's history is not overwritten, damage is not taken in.
    let early = with_bucket(&bucket, &store, &["push", "lib/book", url, "--as", "trip"]);
    assert_eq!(early.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&early.stderr).contains("has moved"));
    let page = bucket.keys().into_iter().find(|k| k.contains("/objects/")).expect("an object");
    let mut bytes = bucket.get(&page);
    *bytes.last_mut().expect("bytes") ^= 1;
    bucket.set(&page, bytes);
    let third = folder.path().join("third").display().to_string();
    let spoilt = with_bucket(&bucket, &store, &["pull", url, "--store", &third]);
    assert!(String::from_utf8_lossy(&spoilt.stderr).contains("damaged"), "{}", String::from_utf8_lossy(&spoilt.stderr));
    // Whoever has it whole can heal the place.
    assert_eq!(go(&["push", "trip", url, "--again"])["result"], "up to date");
    go(&["push", "lib/book", url, "--again"]);
    assert_eq!(go(&["pull", url, "--store", &third]).as_array().map(Vec::len), Some(2));
}
