//! Real processes: killed at random moments, and several at once on one store. The test binary starts itself as the child.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use reverie_memory::{Error, Expect, FindingKind, FsckRun, GcSpec, Manifest, Remote, Snapshot, Store};

use crate::stand::{grow, noise, state, wake};

/// Not a test of its own: what a child does, told by the environment.
#[test]
#[ignore = "run by the tests that kill"]
fn child() {
    let (Ok(work), Ok(place)) = (std::env::var("REVERIE_CHILD"), std::env::var("REVERIE_PLACE")) else { return };
    let store = Store::open(place.as_ref()).expect("opens");
    match work.as_str() {
        "commit" => loop {
            println!("done {}", turn(&store, "trip"));
        },
        "gc" => loop {
            println!("done {}", turn(&store, "trip"));
            let writer = store.writer().expect("writer");
            writer.put(&[&noise(std::process::id().into(), 3000)]).expect("put");
            drop(writer);
            let before = store.resolve("trip").expect("resolves").manifest.created_ms;
            store.gc(&GcSpec { before_ms: Some(before.saturating_sub(25)), ..GcSpec::default() }).expect("collects");
        },
        "push" => loop {
            turn(&store, "trip");
            let remote = Remote::open(&format!("{place}-there")).expect("opens");
            println!("done {}", store.push("trip", &remote, None, &mut |_| {}).expect("pushes").head);
        },
        "turns" => (0..12).for_each(|_| println!("done {}", turn(&store, "trip"))),
        "sweep" => loop {
            store.gc(&GcSpec::default()).expect("collects");
            println!("done");
        },
        "read" => loop {
            let commit = store.resolve("trip").expect("resolves");
            wake(&store, &commit.manifest);
            store.find(&commit.manifest.identity, &commit.manifest.tokens).expect("finds").expect("is there");
            println!("done");
        },
        other => panic!("{other}"),
    }
}

/// One turn more, against whoever else does the same.
fn turn(store: &Store, name: &str) -> reverie_memory::Hash {
    loop {
        let parent = store.head(name).expect("head");
        let n = parent.map_or(0, |h| store.manifest(&h).expect("manifest").tokens.len() as u32);
        let writer = store.writer().expect("writer");
        // Histories of a few turns, so that the thousandth costs what the first does.
        let tokens: Vec<u32> = (0..n % 80 + 10).collect();
        // Large enough for a kill to fall into its writing.
        let bytes = noise(parent.map_or(0, |h| u64::from(h.as_bytes()[0])), 1 << 20);
        let object = writer.put(&[&bytes]).expect("put").hash;
        let snapshots = vec![Snapshot { object, position: tokens.len() }];
        let manifest = Manifest { parent, snapshots, ..state(&writer, &tokens) };
        match writer.commit(name, parent.map_or(Expect::Absent, Expect::Head), &manifest) {
            Ok(hash) => return hash,
            Err(Error::Moved { .. }) => {}
            Err(e) => panic!("{e}"),
        }
    }
}

fn start(work: &str, store: &Store) -> Child {
    Command::new(std::env::current_exe().expect("this binary"))
        .args(["--ignored", "--exact", "kill::child", "--nocapture"])
        .env("REVERIE_CHILD", work)
        .env("REVERIE_PLACE", store.place())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts")
}

/// What the child reported as done.
fn reported(child: &mut Child) -> Vec<String> {
    let lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
    // The last line may be cut; it was not reported then.
    lines
        .map_while(Result::ok)
        .filter_map(|l| l.split("done ").nth(1).map(str::to_owned))
        .filter(|h| h.len() == 64)
        .collect()
}

fn only_in_flight(store: &Store) {
    let report = store.fsck(FsckRun::Check, &mut |_, _| {}).expect("fsck runs");
    let bad: Vec<_> = report.findings.iter().filter(|f| f.kind != FindingKind::InFlight).collect();
    assert!(bad.is_empty(), "{bad:?}");
}

fn kill_many(work: &str, times: u64) {
    let (mut folder, mut store) = crate::stand::store();
    let mut reports = 0;
    for round in 0..times {
        if round % 10 == 0 {
            (folder, store) = crate::stand::store();
            grow(&store, "trip", 1);
        }
        let mut child = start(work, &store);
        // The child needs some milliseconds to start; then it may be anywhere.
        let spread = if work == "push" { 600 } else { 120 };
        let moment = 15 + u64::from_le_bytes(noise(round, 8).try_into().expect("8 bytes")) % spread;
        std::thread::sleep(Duration::from_millis(moment));
        child.kill().expect("kills");
        let done = reported(&mut child);
        child.wait().expect("ends");
        reports += done.len();
        only_in_flight(&store);
        let there = Store::open(format!("{}-there", store.place().display()).as_ref()).expect("opens");
        let promised = if work == "push" { &there } else { &store };
        only_in_flight(&there);
        if let Some(last) = done.last() {
            let head = promised.head("trip").expect("head").expect("was reported");
            let held = promised.history(head).any(|step| step.expect("whole").0.to_string() == *last);
            assert!(held, "round {round}: {last} was reported as written and is not in the history of {head}");
            wake(promised, &promised.manifest(&head).expect("manifest"));
        }
    }
    assert!(reports as u64 > times / 2, "{reports} reports in {times} rounds: the moments are badly chosen");
    drop(folder);
}

#[test]
fn killed_while_committing() {
    kill_many("commit", 12);
}

#[test]
fn killed_while_collecting() {
    kill_many("gc", 12);
}

#[test]
fn killed_while_pushing() {
    kill_many("push", 12);
}

#[test]
#[ignore = "minutes: the full count"]
fn killed_hundreds_of_times() {
    for work in ["commit", "gc", "push"] {
        kill_many(work, 200);
    }
}

#[test]
fn several_processes_lose_no_commit_and_tear_no_read() {
    let (_folder, store) = crate::stand::store();
    grow(&store, "trip", 1);
    let mut readers = [start("read", &store), start("sweep", &store)];
    let mut writers = [start("turns", &store), start("turns", &store)];
    let mut done: Vec<String> = Vec::new();
    for writer in &mut writers {
        done.extend(reported(writer));
        assert!(writer.wait().expect("ends").success());
    }
    for reader in &mut readers {
        let still = reader.try_wait().expect("asks").is_none();
        reader.kill().expect("kills");
        let out = reader.wait().expect("ends");
        assert!(still, "a reader or the sweeper failed: {out:?}");
    }
    assert_eq!(done.len(), 24);
    let history: Vec<String> = store.log("trip").expect("log").iter().map(|c| c.hash.to_string()).collect();
    assert_eq!(history.len(), 25);
    assert!(done.iter().all(|h| history.contains(h)), "a commit was lost");
    only_in_flight(&store);
}
