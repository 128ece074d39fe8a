//! States that travel: as a file, to another folder, to a bucket. They arrive whole or not at all, and a name only moves forward.

use std::sync::Arc;

use object_store::memory::InMemory;
use proptest::prelude::*;
use reverie_memory::{Depth, Error, Expect, FsckRun, GcSpec, Hash, Landing, Manifest, Remote, Store};

use crate::stand::{Files, grow, hybrid, identity, state, store, wake};

fn whole(store: &Store) {
    let report = store.fsck(FsckRun::Check, &mut |_, _| {}).expect("fsck runs");
    assert_eq!(report.findings, []);
}

/// Both stores have the same commits under these names, and all can be woken.
fn same(a: (&Store, &str), b: (&Store, &str)) {
    let (left, right) = (a.0.log(a.1).expect("log"), b.0.log(b.1).expect("log"));
    assert_eq!(left.iter().map(|c| c.hash).collect::<Vec<_>>(), right.iter().map(|c| c.hash).collect::<Vec<_>>());
    right.iter().for_each(|c| wake(b.0, &c.manifest));
}

#[test]
fn a_file_carries_a_state_with_or_without_its_past() {
    let (folder, from) = store();
    grow(&from, "trip", 5);
    let (head, all) = (folder.path().join("head.reverie"), folder.path().join("all.reverie"));
    let mut steps = Vec::new();
    let small = from.export("trip", &head, Depth::Head, &mut |p| steps.push(p)).unwrap();
    let large = from.export("trip", &all, Depth::History, &mut |_| {}).unwrap();
    assert_eq!((small.commits, large.commits), (1, 5));
    assert_eq!(small.bytes, std::fs::metadata(&head).unwrap().len());
    assert_eq!(steps.last().map(|p| (p.done, p.total)), Some((small.objects, small.objects)));
    let (_other, to) = store();
    let first = to.import(&head, None, &mut |_| {}).unwrap();
    assert_eq!((first.name.as_str(), first.landing, first.objects), ("trip", Landing::Created, small.objects));
    assert_eq!(to.log("trip").unwrap().len(), 1);
    whole(&to);
    // The past may follow later.
    let again = to.import(&all, None, &mut |_| {}).unwrap();
    assert_eq!((again.landing, again.objects), (Landing::UpToDate, large.objects - small.objects));
    same((&from, "trip"), (&to, "trip"));
    to.import(&all, Some("copy/of"), &mut |_| {}).unwrap();
    same((&from, "trip"), (&to, "copy/of"));
    let found = to.find(&identity(), &(0..50).collect::<Vec<_>>()).unwrap().unwrap();
    assert_eq!(found.common, 50);
    whole(&to);
    to.gc(&GcSpec::default()).unwrap();
    same((&from, "trip"), (&to, "trip"));
}

#[test]
fn an_import_does_not_overwrite_another_history() {
    let (folder, from) = store();
    let hashes = grow(&from, "trip", 3);
    let file = folder.path().join("f");
    from.export("trip", &file, Depth::History, &mut |_| {}).unwrap();
    let (_other, to) = store();
    let writer = to.writer().unwrap();
    let own = writer.commit("trip", Expect::Absent, &state(&writer, &[9, 9, 9])).unwrap();
    drop(writer);
    let refusal = to.import(&file, None, &mut |_| {}).unwrap_err();
    assert!(matches!(&refusal, Error::Moved { .. }) && refusal.to_string().contains("--as"), "{refusal}");
    assert_eq!(to.head("trip").unwrap(), Some(own));
    to.import(&file, Some("theirs"), &mut |_| {}).unwrap();
    assert_eq!(to.head("theirs").unwrap(), Some(hashes[2]));
    // Further on than what arrives: stays.
    grow(&from, "longer", 5);
    let (_third, third) = store();
    grow(&third, "trip", 5);
    assert_eq!(third.import(&file, None, &mut |_| {}).unwrap().landing, Landing::UpToDate);
    assert_eq!(third.log("trip").unwrap().len(), 5);
}

#[test]
fn any_flipped_byte_of_a_file_is_noticed_before_anything_is_written() {
    let (folder, from) = store();
    grow(&from, "trip", 1);
    let file = folder.path().join("f");
    from.export("trip", &file, Depth::History, &mut |_| {}).unwrap();
    let bytes = std::fs::read(&file).unwrap();
    let (_other, to) = store();
    let before = std::fs::read_dir(to.path_of("objects")).unwrap().count();
    for i in 0..bytes.len() {
        let mut bad = bytes.clone();
        bad[i] ^= 1 << (i % 8);
        std::fs::write(&file, &bad).unwrap();
        assert!(to.import(&file, None, &mut |_| {}).is_err(), "byte {i}");
    }
    for cut in [0, 1, 11, 12, 31, 32, 100, bytes.len() - 1] {
        std::fs::write(&file, &bytes[..cut]).unwrap();
        assert!(to.import(&file, None, &mut |_| {}).is_err(), "cut at {cut}");
    }
    assert_eq!(std::fs::read_dir(to.path_of("objects")).unwrap().count(), before);
    assert!(to.refs().unwrap().is_empty());
}

/// A file that is sealed properly and says what it should not.
fn forge(bytes: &[u8], forge: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = bytes[..bytes.len() - 32].to_vec();
    forge(&mut out);
    let seal = *Hash::of(&out).as_bytes();
    out.extend_from_slice(&seal);
    out
}

#[test]
fn hostile_files_are_refused_though_their_seal_is_right() {
    let (folder, from) = store();
    grow(&from, "trip", 2);
    from.tag("trip@1", "a").unwrap();
    from.tag("trip", "b").unwrap();
    let file = folder.path().join("f");
    from.export("trip", &file, Depth::History, &mut |_| {}).unwrap();
    let bytes = std::fs::read(&file).unwrap();
    let json = u32::from_le_bytes(bytes[8..12].try_into().unwrap()) as usize;
    let entries = 12 + json;
    let header = |edit: &dyn Fn(&str) -> String| {
        forge(&bytes, |b| {
            let text = edit(std::str::from_utf8(&bytes[12..entries]).unwrap());
            b.splice(12..entries, text.bytes());
            b[8..12].copy_from_slice(&(text.len() as u32).to_le_bytes());
        })
    };
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("leaves the store", header(&|h| h.replace("\"trip\"", "\"../../trip\""))),
        ("absolute", header(&|h| h.replace("\"trip\"", "\"/etc/trip\""))),
        ("claims many", header(&|h| h.replace("\"manifests\":2", "\"manifests\":18446744073709551615"))),
        (
            "claims many objects",
            header(&|h| {
                let at = h.find("\"objects\":").unwrap();
                let end = at + h[at..].find(',').unwrap();
                format!("{}\"objects\":4000000000{}", &h[..at], &h[end..])
            }),
        ),
        ("another head", header(&|h| h.replace("\"head\":\"", "\"head\":\"00"))),
        ("unknown field", header(&|h| h.replace("{", "{\"aaa\":1,"))),
        ("a longer header", forge(&bytes, |b| b[8..12].copy_from_slice(&u32::MAX.to_le_bytes()))),
        ("a huge entry", forge(&bytes, |b| b[entries + 32..entries + 40].copy_from_slice(&u64::MAX.to_le_bytes()))),
        ("a wrong name of an object", forge(&bytes, |b| b[entries] ^= 1)),
        ("a changed body", forge(&bytes, |b| *b.last_mut().unwrap() ^= 1)),
        (
            "one entry less",
            header(&|h| {
                let at = h.find("\"objects\":").unwrap() + 10;
                let end = at + h[at..].find(',').unwrap();
                let n: u64 = h[at..end].parse().unwrap();
                format!("{}{}{}", &h[..at], n - 1, &h[end..])
            }),
        ),
        ("one byte more", forge(&bytes, |b| b.push(0))),
        ("an earlier version", header(&|h| h.replace("\"version\":3", "\"version\":2"))),
        ("a tag that leaves the store", header(&|h| h.replace("\"label\":\"a\"", "\"label\":\"../../a\""))),
        ("tags out of order", header(&|h| h.replace("\"label\":\"a\"", "\"label\":\"c\""))),
        ("a tag beyond its state", header(&|h| h.replace("\"tokens\":10", "\"tokens\":999"))),
        (
            "a tag of something else",
            header(&|h| {
                let at = h.rfind("\"manifest\":\"").unwrap() + 12;
                format!("{}{}{}", &h[..at], Hash::of(b"else"), &h[at + 64..])
            }),
        ),
    ];
    let (_other, to) = store();
    for (what, bad) in cases {
        std::fs::write(&file, bad).unwrap();
        let refusal = to.import(&file, None, &mut |_| {});
        assert!(refusal.is_err(), "{what}: {refusal:?}");
        assert!(to.refs().unwrap().is_empty(), "{what}");
    }
}

fn bucket() -> Remote {
    Remote::over(Arc::new(InMemory::new()), "team/states", "memory://").unwrap()
}

#[test]
fn push_and_pull_move_only_what_is_missing() {
    let (folder, a) = store();
    let place = folder.path().join("shared");
    for remote in [bucket(), Remote::open(&format!("file://{}", place.display())).unwrap()] {
        let name = if remote.names().unwrap().is_empty() { "x/trip" } else { unreachable!() };
        if a.head(name).unwrap().is_none() {
            grow(&a, name, 4);
        }
        let (_other, b) = store();
        let first = a.push(name, &remote, None, &mut |_| {}).unwrap();
        assert_eq!((first.landing, first.commits), (Landing::Created, a.log(name).unwrap().len()));
        assert_eq!(a.push(name, &remote, None, &mut |_| {}).unwrap().landing, Landing::UpToDate);
        let pulled = b.pull(name, &remote, None, &mut |_| {}).unwrap();
        assert_eq!((pulled.landing, pulled.objects), (Landing::Created, first.objects));
        same((&a, name), (&b, name));
        // One turn more at b comes back to a, and costs one turn.
        let tokens: Vec<u32> = (0..90).collect();
        let writer = b.writer().unwrap();
        let head = b.head(name).unwrap();
        let next = Manifest { parent: head, ..hybrid(&writer, &tokens, &[90]) };
        writer.commit(name, head.map_or(Expect::Absent, Expect::Head), &next).unwrap();
        drop(writer);
        let second = b.push(name, &remote, None, &mut |_| {}).unwrap();
        assert_eq!((second.landing, second.commits), (Landing::Forwarded, 1));
        assert!(second.objects <= 12, "{second:?}");
        let back = a.pull(name, &remote, None, &mut |_| {}).unwrap();
        assert_eq!((back.landing, back.objects), (Landing::Forwarded, second.objects));
        same((&b, name), (&a, name));
        // Two histories: neither overwrites the other.
        let (_third, c) = store();
        grow(&c, name, 2);
        let writer = c.writer().unwrap();
        let head = c.head(name).unwrap();
        let other = Manifest { parent: head, ..state(&writer, &[7; 30]) };
        writer.commit(name, head.map_or(Expect::Absent, Expect::Head), &other).unwrap();
        drop(writer);
        assert!(matches!(c.push(name, &remote, None, &mut |_| {}), Err(Error::Moved { .. })));
        assert!(matches!(c.pull(name, &remote, None, &mut |_| {}), Err(Error::Moved { .. })));
        c.pull(name, &remote, Some("theirs"), &mut |_| {}).unwrap();
        same((&a, name), (&c, "theirs"));
        c.push(name, &remote, Some("mine"), &mut |_| {}).unwrap();
        assert_eq!(remote.names().unwrap(), ["mine", name]);
        [&a, &b, &c].into_iter().for_each(whole);
    }
    whole(&Store::open(&place).unwrap());
}

#[test]
fn tags_travel_with_their_history() {
    let (folder, from) = store();
    let hashes = grow(&from, "trip", 3);
    grow(&from, "other", 1);
    let writer = from.writer().unwrap();
    writer.commit("own", Expect::Absent, &state(&writer, &[7; 30])).unwrap();
    drop(writer);
    from.tag("trip~1", "v1/second").unwrap();
    from.tag("trip@1", "first").unwrap();
    from.tag("own", "elsewhere").unwrap();
    let labels = |store: &Store| store.tags().unwrap().into_iter().map(|t| t.label).collect::<Vec<_>>();
    let place = folder.path().join("place").display().to_string();
    for remote in [bucket(), Remote::open(&place).unwrap()] {
        let moved = from.push("trip", &remote, None, &mut |_| {}).unwrap();
        assert_eq!(moved.tags, ["first", "v1/second"]);
        assert!(from.push("trip", &remote, None, &mut |_| {}).unwrap().tags.is_empty());
        let (_other, to) = store();
        let came = to.pull("trip", &remote, Some("mine"), &mut |_| {}).unwrap();
        assert_eq!((came.tags, labels(&to)), (moved.tags, labels(&from)[1..].to_vec()));
        assert_eq!(to.resolve("v1/second").unwrap().hash, hashes[1]);
        assert_eq!(to.resolve("first").unwrap().tokens, 10);
        // A tag that came later travels alone; one that means something else refuses the whole, and nothing moves.
        from.tag("trip", "late").unwrap();
        assert_eq!(from.push("trip", &remote, None, &mut |_| {}).unwrap().tags, ["late"]);
        to.tag("mine~2", "late").unwrap();
        let refusal = to.pull("trip", &remote, Some("mine"), &mut |_| {}).unwrap_err().to_string();
        assert!(refusal.contains("'late'") && refusal.contains("remove one of the two"), "{refusal}");
        let refusal = to.push("mine", &remote, Some("new"), &mut |_| {}).unwrap_err().to_string();
        assert!(refusal.contains("'late'"), "{refusal}");
        assert_eq!(remote.names().unwrap(), ["trip"]);
        let refusal = from.push("own", &remote, Some("late"), &mut |_| {}).unwrap_err().to_string();
        assert!(refusal.contains("which is a tag"), "{refusal}");
        from.untag("late").unwrap();
        // One that no name reaches: the way to give it one is said, and works.
        from.fork("other", "brief").unwrap();
        from.tag("brief", "lonely").unwrap();
        from.remove("brief", Expect::Any).unwrap();
        from.remove("other", Expect::Any).unwrap();
        let refusal = from.push("lonely", &remote, None, &mut |_| {}).unwrap_err().to_string();
        assert!(refusal.contains("`reverie state fork lonely NEW`"), "{refusal}");
        from.fork("lonely", "other").unwrap();
        assert_eq!(from.push("other", &remote, None, &mut |_| {}).unwrap().tags, ["lonely"]);
        from.untag("lonely").unwrap();
    }
    // A file takes along those of the commits it holds.
    let file = folder.path().join("f");
    for (depth, want) in [(Depth::Head, &[][..]), (Depth::History, &["first", "v1/second"][..])] {
        from.export("trip", &file, depth, &mut |_| {}).unwrap();
        let (_other, to) = store();
        assert_eq!(to.import(&file, None, &mut |_| {}).unwrap().tags, want);
        assert_eq!(labels(&to), want);
    }
}

#[test]
fn let_go_history_stays_let_go_elsewhere() {
    let (_folder, a) = store();
    grow(&a, "trip", 5);
    let age = a.resolve("trip~1").unwrap().manifest.created_ms;
    a.gc(&GcSpec { before_ms: Some(age), ..GcSpec::default() }).unwrap();
    let remote = bucket();
    assert_eq!(a.push("trip", &remote, None, &mut |_| {}).unwrap().commits, 2);
    let (_other, b) = store();
    b.pull("trip", &remote, None, &mut |_| {}).unwrap();
    same((&a, "trip"), (&b, "trip"));
    whole(&b);
}

#[test]
fn places_that_are_none_are_refused() {
    for (url, word) in [("ftp://x/y", "ftp"), ("s3://", "s3"), ("http://x", "http")] {
        let refusal = Remote::open(url).map(|_| ()).unwrap_err().to_string();
        assert!(refusal.contains(word), "{refusal}");
    }
    let (_folder, store) = store();
    assert!(store.pull("nobody", &bucket(), None, &mut |_| {}).is_err());
    assert!(store.push("nobody", &bucket(), None, &mut |_| {}).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn what_is_exported_is_imported(lengths in proptest::collection::vec(1usize..40, 1..5), text in ".{0,40}", snapshots: bool) {
        let (folder, from) = store();
        let mut tokens: Vec<u32> = Vec::new();
        for (i, n) in lengths.iter().enumerate() {
            tokens.extend((0..*n).map(|k| (i * 1000 + k) as u32));
            let writer = from.writer().unwrap();
            let parent = from.head("s").unwrap();
            let at = [tokens.len()];
            let base = hybrid(&writer, &tokens, if snapshots { &at } else { &[] });
            let next = Manifest { parent, text: text.clone() + &"y".repeat(tokens.len()), turns: Vec::new(), ..base };
            writer.commit("s", parent.map_or(Expect::Absent, Expect::Head), &next).unwrap();
        }
        let file = folder.path().join("f");
        from.export("s", &file, Depth::History, &mut |_| {}).unwrap();
        let (_other, to) = store();
        to.import(&file, None, &mut |_| {}).unwrap();
        same((&from, "s"), (&to, "s"));
        whole(&to);
    }
}
