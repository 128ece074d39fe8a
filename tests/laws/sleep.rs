//! Sleep and wake: what slept gives the same bits, for every layer, at every cut, and costs what is new.

use std::path::Path;
use std::sync::Arc;

use reverie::rooms::engine::memory::{Expect, GcSpec, Store};
use reverie::rooms::engine::{EngineSpec, Error, Note};
use reverie::{Go, LoadedModel, Loader};

use crate::fixtures::{ggufs, ids, load, long_enough, name, oracles};

fn opened(path: &Path, place: &Path) -> (LoadedModel, Store) {
    opened_by(&Loader { threads: Some(2), ..Loader::default() }, path, place)
}

fn opened_by(loader: &Loader, path: &Path, place: &Path) -> (LoadedModel, Store) {
    let loaded = load(loader, path);
    let store = loaded.open_store(Some(place), &mut |_, _, _| {}).expect("store");
    (loaded, store)
}

/// Logits as bits after reading `rest` behind what the session has.
fn go_on(session: &mut reverie::Session, rest: &[u32]) -> Vec<Vec<u32>> {
    let bits = |s: &reverie::Session| s.logits().expect("logits").iter().map(|v| v.to_bits()).collect();
    let mut out = vec![bits(session)];
    for &id in rest {
        session.accept(id).expect("accept");
        out.push(bits(session));
    }
    out
}

/// Reads, sleeps as `cut-N` after N tokens, and gives the logits of going on.
fn asleep_and_on(loaded: &LoadedModel, read: &[u32], rest: &[u32]) -> Vec<Vec<u32>> {
    let mut session = loaded.session();
    session.sync(read, &mut |_| Go::On).expect("sync");
    session.sleep(&format!("cut-{}", read.len()), Expect::Absent, Note::default()).expect("sleep");
    go_on(&mut session, rest)
}

#[test]
fn what_slept_goes_on_with_the_same_bits() {
    for path in long_enough(200) {
        let folder = tempfile::tempdir().expect("folder");
        let (loaded, _) = opened(&path, folder.path());
        let vocab = loaded.engine().model().plan().vocab;
        let tokens = ids(140, vocab, 3);
        let rest = ids(4, vocab, 4);
        let cuts = [1usize, 15, 16, 17, 63, 64, 65, 127, 128, 129, 140];
        let mut want = Vec::new();
        for &cut in &cuts {
            want.push(asleep_and_on(&loaded, &tokens[..cut], &rest));
        }
        // Another engine over the same store: nothing of the first one's tree.
        let (other, store) = opened(&path, folder.path());
        for (&cut, want) in cuts.iter().zip(&want) {
            let manifest = store.resolve(&format!("cut-{cut}")).expect("resolve").state().expect("state");
            let mut session = other.engine().wake(&manifest).expect("wake");
            assert_eq!(session.tokens(), &tokens[..cut]);
            assert_eq!(&go_on(&mut session, &rest), want, "{} woken at {cut}", name(&path));
            other.engine().forget();
        }
        // A prefix of a state, and `sync` finding by itself what sleeps below.
        let whole = store.resolve("cut-140").expect("resolve").state().expect("state");
        let (third, _) = opened(&path, folder.path());
        for (&cut, want) in cuts.iter().zip(&want).rev() {
            if let Some(manifest) = whole.cut(cut) {
                let mut session = third.engine().wake(&manifest).expect("wake");
                session.sync(&tokens[..cut], &mut |_| Go::On).expect("sync");
                assert_eq!(&go_on(&mut session, &rest), want, "{} cut at {cut}", name(&path));
            }
            third.engine().forget();
            let mut session = third.session();
            let done = session.sync(&tokens[..cut], &mut |_| Go::On).expect("sync");
            if cut >= 64 {
                // At most the last token, where a longer state with a snapshot here but no logits was found first.
                assert!(done.computed <= 2, "{}: {cut} tokens sleep whole, {done:?}", name(&path));
            }
            assert_eq!(&go_on(&mut session, &rest), want, "{} found at {cut}", name(&path));
            third.engine().forget();
        }
    }
}

/// Where a process finds what another one left: the checkpoint, and a folder with the store and the logits.
const LEFT: [&str; 2] = ["REVERIE_LAW_MODEL", "REVERIE_LAW_FOLDER"];

/// Cuts that the next process goes on from: inside a page, at its end, behind it.
const LEFT_AT: [usize; 4] = [17, 64, 65, 129];

#[test]
fn what_slept_goes_on_with_the_same_bits_in_another_process() {
    for path in long_enough(200) {
        let folder = tempfile::tempdir().expect("folder");
        let (loaded, _) = opened(&path, &folder.path().join("store"));
        let vocab = loaded.engine().model().plan().vocab;
        let (tokens, rest) = (ids(140, vocab, 3), ids(4, vocab, 4));
        for cut in LEFT_AT {
            let bits = serde_json::to_vec(&asleep_and_on(&loaded, &tokens[..cut], &rest)).expect("json");
            std::fs::write(folder.path().join(format!("{cut}.json")), bits).expect("write");
        }
        drop(loaded);
        let other = std::process::Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "laws::sleep::goes_on_from_what_another_process_left", "--ignored"])
            .envs([(LEFT[0], path.as_path()), (LEFT[1], folder.path())])
            .output()
            .expect("starts");
        let said = String::from_utf8_lossy(&other.stdout);
        assert!(other.status.success() && said.contains("1 passed"), "{}: {said}", name(&path));
    }
}

#[test]
#[ignore = "the other process of the law above, which starts it"]
fn goes_on_from_what_another_process_left() {
    let [Some(path), Some(folder)] = LEFT.map(std::env::var_os) else { return };
    let (path, folder) = (Path::new(&path), Path::new(&folder));
    let (loaded, store) = opened(path, &folder.join("store"));
    let rest = ids(4, loaded.engine().model().plan().vocab, 4);
    for cut in LEFT_AT {
        let manifest = store.resolve(&format!("cut-{cut}")).expect("resolve").state().expect("state");
        let mut session = loaded.engine().wake(&manifest).expect("wake");
        assert_eq!(session.tokens().len(), cut);
        let want: Vec<Vec<u32>> =
            serde_json::from_slice(&std::fs::read(folder.join(format!("{cut}.json"))).expect("read")).expect("json");
        assert_eq!(go_on(&mut session, &rest), want, "{} woken at {cut} by another process", name(path));
        loaded.engine().forget();
    }
}

#[test]
fn logits_after_waking_and_finding_take_the_head_alone() {
    for path in oracles().into_iter().chain(ggufs()) {
        for exact in [false, true] {
            let loader = Loader { threads: Some(2), exact, record: true, ..Loader::default() };
            let folder = tempfile::tempdir().expect("folder");
            let (loaded, _) = opened_by(&loader, &path, folder.path());
            let plan = loaded.engine().model().plan();
            let tokens = ids(70.min(plan.context), plan.vocab, 6);
            let bits = |s: &reverie::Session| -> Vec<u32> {
                s.logits().expect("logits").iter().map(|v| v.to_bits()).collect()
            };
            let mut session = loaded.session();
            session.sync(&tokens, &mut |_| Go::On).expect("sync");
            let want = bits(&session);
            session.sleep("s", Expect::Absent, Note::default()).expect("sleep");
            drop(session);
            assert!(!loaded.recorded().is_empty(), "a read is noted");
            let mut found = loaded.session();
            assert_eq!(found.sync(&tokens, &mut |_| Go::On).expect("sync").computed, 0, "{}", name(&path));
            assert_eq!(bits(&found), want, "{}, exact {exact}: found in the tree", name(&path));
            assert!(loaded.recorded().is_empty(), "{}: a layer ran", name(&path));
            let (other, store) = opened_by(&loader, &path, folder.path());
            let manifest = store.resolve("s").expect("resolve").state().expect("state");
            let row = store.header(&manifest.last.expect("a last row")).expect("header").0.raw_bytes;
            assert_eq!(row, 4 * other.engine().model().plan().width as u64);
            let woken = other.engine().wake(&manifest).expect("wake");
            assert_eq!(bits(&woken), want, "{}, exact {exact}: woken", name(&path));
            assert!(other.recorded().is_empty(), "{}: a layer ran", name(&path));
        }
    }
}

#[test]
fn sleeping_again_writes_what_is_new_and_forks_share() {
    for path in long_enough(300) {
        let folder = tempfile::tempdir().expect("folder");
        let (loaded, store) = opened(&path, folder.path());
        let vocab = loaded.engine().model().plan().vocab;
        let book = ids(256, vocab, 8);
        let mut session = loaded.session();
        session.sync(&book, &mut |_| Go::On).expect("sync");
        let first = session.sleep("book", Expect::Absent, Note::default()).expect("sleep");
        let again = session.sleep("book", Expect::Head(first.hash), Note::default()).expect("sleep");
        assert_eq!((again.new_bytes, again.new_pages), (0, 0), "{}: nothing is new", name(&path));
        let specs = loaded.engine().model().state_specs();
        let fixed: usize = specs.iter().map(|s| s.fixed_bytes()).sum();
        for fork in 0..10u32 {
            let mut child = session.fork();
            let mut text = book.clone();
            text.extend([fork, 1, 2, 3]);
            child.sync(&text, &mut |_| Go::On).expect("sync");
            let asleep = child.sleep(&format!("fork-{fork}"), Expect::Absent, Note::default()).expect("sleep");
            let spec = |need| loaded.engine().cache().kv(need).page_bytes();
            let page = specs.iter().filter_map(|s| s.kv).map(spec).sum::<usize>() as u64;
            let row = loaded.engine().model().plan().width as u64 * 4;
            // Of the fifth page the four tokens that are there.
            let most = page / 16 + fixed as u64 + row + 64;
            assert!(asleep.new_bytes <= most, "{}: {} new bytes, {most} expected", name(&path), asleep.new_bytes);
        }
        let woken = store.resolve("fork-3").expect("resolve").state().expect("state");
        assert_eq!(woken.pages.get(..4), store.resolve("book").expect("resolve").manifest.pages.get(..4));
        assert_eq!(store.log("book").expect("log").len(), 2);
    }
}

#[test]
fn what_was_swept_away_is_written_again() {
    for path in long_enough(200) {
        let folder = tempfile::tempdir().expect("folder");
        let (loaded, store) = opened(&path, folder.path());
        let vocab = loaded.engine().model().plan().vocab;
        let mut session = loaded.session();
        session.sync(&ids(150, vocab, 6), &mut |_| Go::On).expect("sync");
        let first = session.sleep("gone", Expect::Absent, Note::default()).expect("sleep");
        store.remove("gone", Expect::Head(first.hash)).expect("removes");
        store.gc(&GcSpec::default()).expect("collects");
        let again = session.sleep("back", Expect::Absent, Note::default()).expect("sleep");
        assert_eq!((again.new_bytes, again.new_pages), (first.new_bytes, first.new_pages), "{}", name(&path));
        let want = go_on(&mut session, &[1, 2]);
        let (other, store) = opened(&path, folder.path());
        let manifest = store.resolve("back").expect("resolve").state().expect("state");
        let mut woken = other.engine().wake(&manifest).expect("wake");
        assert_eq!(go_on(&mut woken, &[1, 2]), want, "{}", name(&path));
    }
}

#[test]
fn recurrent_states_keep_the_snapshots_of_earlier_turns() {
    let path = crate::fixtures::root().join("qwen3_5_text");
    let folder = tempfile::tempdir().expect("folder");
    let (loaded, _) = opened(&path, folder.path());
    let tokens = ids(200, 272, 5);
    let mut session = loaded.session();
    for end in [40, 100] {
        session.sync(&tokens[..end], &mut |_| Go::On).expect("sync");
        session.mark();
    }
    session.sleep("s", Expect::Absent, Note::default()).expect("sleep");
    let (other, store) = opened(&path, folder.path());
    let manifest = store.resolve("s").expect("resolve").state().expect("state");
    let mut woken = other.engine().wake(&manifest).expect("wake");
    woken.sync(&tokens, &mut |_| Go::On).expect("sync");
    woken.sleep("s", Expect::Any, Note::default()).expect("sleep");
    let manifest = store.resolve("s").expect("resolve").state().expect("state");
    let at: Vec<usize> = manifest.snapshots.iter().map(|s| s.position).collect();
    assert_eq!(at, [40, 100, 200]);
    let (third, _) = opened(&path, folder.path());
    let early = third.engine().wake(&manifest.cut(40).expect("a turn's end")).expect("wake");
    assert_eq!(early.tokens(), &tokens[..40]);
    assert!(manifest.cut(41).is_none(), "no place to stand");
}

#[test]
fn another_model_is_refused_by_the_field() {
    let folder = tempfile::tempdir().expect("folder");
    let root = crate::fixtures::root();
    let (qwen, store) = opened(&root.join("qwen3"), folder.path());
    let mut session = qwen.session();
    session.sync(&ids(70, 272, 1), &mut |_| Go::On).expect("sync");
    session.sleep("s", Expect::Absent, Note::default()).expect("sleep");
    let manifest = store.resolve("s").expect("resolve").state().expect("state");
    let refused = |loader: Loader, path: &Path, field: &str| {
        let loaded = load(&loader, path);
        loaded.open_store(Some(folder.path()), &mut |_, _, _| {}).expect("store");
        let error = loaded.engine().wake(&manifest).err().expect("refused");
        assert!(matches!(&error, Error::Identity { field: f, .. } if f == field), "{field}: {error}");
        let text = error.to_string();
        assert!(text.contains("--re-read") && text.contains(field), "{text}");
        assert_eq!(loaded.session().sync(&manifest.tokens, &mut |_| Go::On).expect("sync").reused, 0, "never found");
    };
    let bf16 = EngineSpec { kv: "bf16".into(), ..EngineSpec::default() };
    refused(Loader { engine: bf16, ..Loader::default() }, &root.join("qwen3"), "cache");
    refused(Loader { exact: true, ..Loader::default() }, &root.join("qwen3"), "numerics");
    refused(Loader { template: Some("{{ messages }}".into()), ..Loader::default() }, &root.join("qwen3"), "template");
    refused(Loader::default(), &root.join("llama"), "plan");
    // The same plan over other weights: one byte of one tensor.
    let copy = tempfile::tempdir().expect("folder");
    for entry in std::fs::read_dir(root.join("qwen3")).expect("folder").filter_map(Result::ok) {
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).expect("copy");
    }
    let weights = copy.path().join("model.safetensors");
    let mut bytes = std::fs::read(&weights).expect("read");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&weights, bytes).expect("write");
    refused(Loader::default(), copy.path(), "weights");
}

/// Turns a bit in the middle of an object round, in a new file under the same name; a second time, back.
fn flip(file: &Path) {
    let mut bytes = std::fs::read(file).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    let temp = file.with_extension("test");
    std::fs::write(&temp, bytes).expect("write");
    std::fs::rename(&temp, file).expect("rename");
}

#[test]
fn a_damaged_page_never_becomes_a_token() {
    let path = crate::fixtures::root().join("llama");
    let folder = tempfile::tempdir().expect("folder");
    let (loaded, store) = opened(&path, folder.path());
    let mut session = loaded.session();
    session.sync(&ids(150, 272, 2), &mut |_| Go::On).expect("sync");
    session.sleep("s", Expect::Absent, Note::default()).expect("sleep");
    let manifest = store.resolve("s").expect("resolve").state().expect("state");
    for object in manifest.objects() {
        let file = store.object_path(object);
        flip(&file);
        let fresh = load(&Loader::default(), &path);
        fresh.open_store(Some(folder.path()), &mut |_, _, _| {}).expect("store");
        let error = fresh.engine().wake(&manifest).and_then(|mut s| s.proved()).expect_err("was flipped");
        assert!(error.to_string().contains(&object.to_string()), "{error}");
        flip(&file);
    }
    let mut back = loaded.engine().wake(&manifest).expect("whole again");
    assert_eq!(back.logits().expect("logits"), session.logits().expect("logits"));
    back.accept(1).expect("accept");
    assert!(Arc::ptr_eq(back.engine(), loaded.engine()));
}

/// Files of the store at `place` that this process has mapped.
#[cfg(target_os = "linux")]
fn mapped(place: &Path) -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
    maps.lines().filter(|l| l.contains(&place.join("objects").display().to_string())).count()
}

/// A loader, and a fixture whose pages it makes large enough to be mapped: those of f32.
#[cfg(target_os = "linux")]
fn mapping() -> (Loader, std::path::PathBuf) {
    let pages = EngineSpec { kv: "f32".into(), ..Default::default() };
    let loader = Loader { threads: Some(2), engine: pages, ..Loader::default() };
    (loader, crate::fixtures::root().join("qwen3"))
}

#[cfg(target_os = "linux")]
#[test]
fn what_is_mapped_is_proved_before_anything_comes_of_it() {
    type Use = fn(&mut reverie::Session) -> Result<(), Error>;
    let ways: [(&str, Use); 7] = [
        ("proved", |s| s.proved()),
        ("accept", |s| s.accept(1)),
        ("batch", |s| reverie::Session::accept_all(&mut [(s, 1)])),
        ("sync", |s| {
            let tokens = [s.tokens(), &[1, 2]].concat();
            s.sync(&tokens, &mut |_| Go::On).map(drop)
        }),
        ("rewind", |s| s.rewind(100)),
        ("sleep", |s| s.sleep("never", Expect::Absent, Note::default()).map(drop)),
        ("fork", |s| {
            let mut fork = s.fork();
            let refused = fork.accept(1);
            assert!(fork.tokens().is_empty());
            s.accept(1).expect_err("as its fork");
            refused
        }),
    ];
    let (loader, path) = mapping();
    let folder = tempfile::tempdir().expect("folder");
    let (loaded, store) = opened_by(&loader, &path, folder.path());
    let (tokens, rest) = (ids(230, 272, 6), ids(6, 272, 7));
    let want = asleep_and_on(&loaded, &tokens, &rest);
    let manifest = store.resolve("cut-230").expect("resolve").state().expect("state");
    let (fresh, _) = opened_by(&loader, &path, folder.path());
    let held = || fresh.engine().model().backend().memory().usage().of(reverie::rooms::tensor::Class::State);
    for object in &manifest.pages[..3] {
        flip(&store.object_path(object));
        for (way, work) in ways {
            let mut woken = fresh.engine().wake(&manifest).expect("wake");
            assert!(mapped(folder.path()) >= 3, "three whole pages");
            assert_eq!(woken.sync(&tokens, &mut |_| Go::On).expect("stands there").computed, 0);
            assert_eq!(go_on(&mut woken, &[])[0], want[0], "the last row is proved");
            // Which puts nothing into the tree.
            woken.mark();
            let error = work(&mut woken).expect_err(way).to_string();
            assert!(error.contains(&object.to_string()) && error.contains("fsck"), "{way}: {error}");
            assert!(woken.tokens().is_empty() && woken.logits().is_err(), "{way}: stands nowhere");
            woken.sync(&rest, &mut |_| Go::On).expect("begins anew");
            drop(woken);
            fresh.engine().forget();
            assert_eq!((held(), mapped(folder.path())), (0, 0), "{way}");
        }
        assert_eq!(store.head("never").expect("head"), None);
        flip(&store.object_path(object));
    }
    // Sound again: two who wake the same, a fork that is not waited for, and one that is dropped at once.
    let mut both = [0, 1].map(|_| fresh.engine().wake(&manifest).expect("wake"));
    let mut fork = both[0].fork();
    drop(fresh.engine().wake(&manifest).expect("wake"));
    assert_eq!(go_on(&mut fork, &rest), want);
    both.iter_mut().for_each(|woken| assert_eq!(go_on(woken, &rest), want));
    drop((both, fork));
    fresh.engine().forget();
    drop(fresh.engine().wake(&manifest).expect("wake"));
    assert_eq!((held(), mapped(folder.path())), (0, 0), "nothing unproved is kept");
}

#[cfg(target_os = "linux")]
#[test]
fn woken_pages_lie_over_their_objects_and_leave_them_as_they_are() {
    let (loader, path) = mapping();
    let folder = tempfile::tempdir().expect("folder");
    let (loaded, _) = opened_by(&loader, &path, folder.path());
    let (tokens, rest) = (ids(230, 272, 6), ids(40, 272, 7));
    let mut session = loaded.session();
    session.sync(&tokens, &mut |_| Go::On).expect("sync");
    session.sleep("s", Expect::Absent, Note::default()).expect("sleep");
    let want = go_on(&mut session, &rest);
    let (other, store) = opened_by(&loader, &path, folder.path());
    let manifest = store.resolve("s").expect("resolve").state().expect("state");
    let mut woken = other.engine().wake(&manifest).expect("wake");
    assert!(mapped(folder.path()) >= 3, "three whole pages");
    // A name that goes, and a sweep: what is awake stays, and what it writes into the partial page stays in memory.
    store.remove("s", Expect::Any).expect("remove");
    store.gc(&GcSpec::default()).expect("gc");
    assert_eq!(go_on(&mut woken, &rest), want);
    woken.sleep("again", Expect::Absent, Note::default()).expect("sleep");
    let report = store.fsck(reverie::rooms::engine::memory::FsckRun::Check, &mut |_, _| {}).expect("fsck");
    assert_eq!(report.findings, []);
    // Bytes that count as state are given back with the mappings.
    let state = || other.engine().model().backend().memory().usage().of(reverie::rooms::tensor::Class::State);
    assert!(state() > 0);
    drop(woken);
    other.engine().forget();
    assert_eq!((mapped(folder.path()), state()), (0, 0));
}
