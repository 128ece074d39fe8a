//! gc, fsck and stats: what goes, what stays, what is noticed.

use reverie_memory::{Expect, FindingKind, FsckRun, GcRun, GcSpec, Hash, Manifest, Store};

use crate::stand::{Files, grow, identity, noise, state, store, wake};

fn check(store: &Store) -> Vec<(FindingKind, String)> {
    let report = store.fsck(FsckRun::Check, &mut |_, _| {}).expect("fsck runs");
    report.findings.into_iter().inspect(|f| println!("{f:?}")).map(|f| (f.kind, f.what)).collect()
}

#[test]
fn only_what_nothing_reaches_goes() {
    let (_folder, store) = store();
    grow(&store, "a", 3);
    grow(&store, "b", 5);
    let writer = store.writer().unwrap();
    let rubbish = writer.put(&[&noise(99, 5000)]).unwrap();
    drop(writer);
    std::fs::write(store.path_of("tmp/1-2-3"), b"half").unwrap();
    let pretend = store.gc(&GcSpec { run: GcRun::Pretend, ..GcSpec::default() }).unwrap();
    assert_eq!((pretend.objects_swept, pretend.bytes_freed, pretend.leftovers), (1, rubbish.disk_bytes, 1));
    assert!(store.get(&rubbish.hash).is_ok());
    assert_eq!(store.gc(&GcSpec::default()).unwrap(), pretend);
    assert!(store.get(&rubbish.hash).is_err());
    assert_eq!(store.gc(&GcSpec::default()).unwrap().objects_swept, 0);
    // a's three commits are b's first three.
    store.remove("b", Expect::Any).unwrap();
    let freed = store.gc(&GcSpec::default()).unwrap();
    assert!(freed.objects_swept > 0 && freed.commits_dropped == 0, "{freed:?}");
    for commit in store.log("a").unwrap() {
        wake(&store, &commit.manifest);
    }
    let found = store.find(&identity(), &(0..50).collect::<Vec<_>>()).unwrap().unwrap();
    assert_eq!(found.common, 30, "the index knows that b is gone");
    assert_eq!(check(&store), []);
    assert!(store.notices().is_empty());
}

#[test]
fn history_goes_oldest_first_and_heads_and_tags_stay() {
    let (_folder, store) = store();
    let hashes = grow(&store, "a", 6);
    store.tag("a@2", "second").unwrap();
    let age = store.resolve("a~2").unwrap().manifest.created_ms;
    let report = store.gc(&GcSpec { before_ms: Some(age), ..GcSpec::default() }).unwrap();
    assert_eq!(report.commits_dropped, 2, "1 and 3; 2 has a tag");
    let left: Vec<Hash> = store.log("a").unwrap().iter().map(|c| c.hash).collect();
    assert_eq!(left, [hashes[5], hashes[4], hashes[3]]);
    assert_eq!(store.resolve("second").unwrap().hash, hashes[1]);
    assert_eq!(check(&store), []);
    let all = store.gc(&GcSpec { budget_bytes: Some(0), ..GcSpec::default() }).unwrap();
    assert_eq!(all.commits_dropped, 2);
    assert_eq!(all.over_budget, all.bytes_kept);
    wake(&store, &store.resolve("a").unwrap().manifest);
    wake(&store, &store.resolve("second").unwrap().state().unwrap());
    assert_eq!(check(&store), []);
}

#[test]
fn a_budget_takes_no_more_history_than_it_needs() {
    let (_folder, store) = store();
    let hashes = grow(&store, "a", 8);
    let full = store.gc(&GcSpec::default()).unwrap().bytes_kept;
    let report = store.gc(&GcSpec { budget_bytes: Some(full - 700), ..GcSpec::default() }).unwrap();
    assert!(report.bytes_kept <= full - 700 && report.over_budget == 0, "{report:?}");
    assert!(report.commits_dropped < 4, "{report:?}");
    let left = store.log("a").unwrap();
    assert_eq!(left.last().unwrap().hash, hashes[report.commits_dropped]);
    assert_eq!(check(&store), []);
}

#[test]
fn gc_waits_for_writers_and_refuses_to_reckon_with_damage() {
    let (_folder, store) = store();
    let hashes = grow(&store, "a", 2);
    std::fs::remove_file(store.object_file(&hashes[0])).unwrap();
    let refusal = store.gc(&GcSpec::default()).unwrap_err().to_string();
    assert!(refusal.contains("fsck"), "{refusal}");
    let writer = store.writer().unwrap();
    let put = writer.put(&[b"not yet committed"]).unwrap();
    let other = store.clone();
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::scope(|s| {
        s.spawn(|| {
            other.fsck(FsckRun::Repair, &mut |_, _| {}).unwrap();
            let report = other.gc(&GcSpec::default()).unwrap();
            send.send(report).unwrap();
        });
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert!(receive.try_recv().is_err(), "gc ran beside a writer");
        assert!(writer.has(&put.hash));
        drop(writer);
    });
    assert!(store.get(&put.hash).is_err());
}

#[test]
fn damage_is_named_and_set_aside() {
    let (_folder, store) = store();
    let hashes = grow(&store, "a", 4);
    let head = store.resolve("a").unwrap().manifest;
    let page = head.pages[4];
    let mut bytes = std::fs::read(store.object_file(&page)).unwrap();
    bytes[100] ^= 4;
    std::fs::write(store.object_file(&page), bytes).unwrap();
    std::fs::remove_file(store.object_file(&hashes[0])).unwrap();
    std::fs::write(store.path_of("notes.txt"), b"mine").unwrap();
    std::fs::write(store.path_of("objects/ab-cd"), b"x").unwrap();
    std::fs::write(store.path_of("tmp/9-9-9"), b"x").unwrap();
    let findings = check(&store);
    let has = |kind, what: &str| findings.iter().any(|(k, w)| *k == kind && w.contains(what));
    assert!(has(FindingKind::Damaged, &page.to_string()[2..]), "{findings:?}");
    assert!(has(FindingKind::Missing, &page.to_string()), "{findings:?}");
    assert!(has(FindingKind::Missing, &hashes[0].to_string()), "{findings:?}");
    assert!(has(FindingKind::Stray, "notes.txt") && has(FindingKind::Stray, "ab-cd"), "{findings:?}");
    assert!(has(FindingKind::InFlight, "9-9-9"), "{findings:?}");
    let report = store.fsck(FsckRun::Repair, &mut |_, _| {}).unwrap();
    assert!(!report.is_whole());
    // History before the gap is let go; the page can be written anew, and then all is whole.
    assert_eq!(store.log("a").unwrap().len(), 3);
    let writer = store.writer().unwrap();
    assert!(store.get(&page).is_err());
    state(&writer, &head.tokens);
    drop(writer);
    wake(&store, &head);
    let report = store.fsck(FsckRun::Check, &mut |_, _| {}).unwrap();
    assert!(report.is_whole(), "{:?}", report.findings);
}

#[test]
fn a_damaged_name_is_refused_named_and_set_aside() {
    let (_folder, store) = store();
    let hashes = grow(&store, "a/b", 2);
    std::fs::write(store.path_of("refs/a/b"), b"reverie-ref 1\nhead 00\nseal 00\n").unwrap();
    assert!(store.resolve("a/b").unwrap_err().is_damage());
    assert!(store.gc(&GcSpec::default()).is_err(), "nothing is swept while a name cannot be read");
    assert!(check(&store).contains(&(FindingKind::Damaged, "refs/a/b".into())));
    store.fsck(FsckRun::Repair, &mut |_, _| {}).unwrap();
    assert_eq!(check(&store), []);
    assert_eq!(store.fork(&hashes[1].to_string(), "a/b").unwrap(), hashes[1]);
}

#[test]
fn sharing_is_counted() {
    let (_folder, store) = store();
    let writer = store.writer().unwrap();
    let book = state(&writer, &(0..400).collect::<Vec<_>>());
    writer.commit("book", Expect::Absent, &book).unwrap();
    for i in 0..10 {
        let mut tokens = book.tokens.clone();
        tokens.extend([1000 + i; 4]);
        let forked = Manifest { forked_from: None, ..state(&writer, &tokens) };
        writer.commit(&format!("fork{i}"), Expect::Absent, &forked).unwrap();
    }
    drop(writer);
    let stats = store.stats().unwrap();
    assert_eq!((stats.names, stats.commits, stats.unreachable), (11, 11, 0));
    assert!(stats.dedup() > 3.0, "{stats:?} {}", stats.dedup());
    assert!(stats.disk_bytes < 2 * 50 * 600 + 11 * 4000, "{stats:?}");
}
