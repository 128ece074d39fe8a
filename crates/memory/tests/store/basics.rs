//! Put, read, commit, resolve, fork, find: what each promises.

use std::os::unix::fs::PermissionsExt;

use reverie_memory::{Error, Expect, Hash, Manifest, Store};

use crate::stand::{self, PAGE, grow, hybrid, identity, noise, state, store, wake};

#[test]
fn what_is_put_is_read_in_parts_and_whole() {
    let (_folder, store) = store();
    for n in [0, 1, 63, 64, 1000, 300_000, 1_100_000] {
        for bytes in [noise(n as u64, n), vec![7; n], noise(1, 64).repeat(n / 64)] {
            let writer = store.writer().unwrap();
            let put = writer.put(&[&bytes[..n.min(bytes.len()) / 3], &bytes[n.min(bytes.len()) / 3..]]).unwrap();
            assert!(!writer.put(&[&bytes]).unwrap().new, "on its way");
            drop(writer);
            assert_eq!((put.hash, put.bytes, put.new), (Hash::of(&bytes), bytes.len() as u64, put.new));
            assert_eq!(store.get(&put.hash).unwrap(), bytes);
            let mut back = vec![1; bytes.len()];
            let (a, b) = back.split_at_mut(bytes.len() / 2);
            store.read_into(&put.hash, &mut [a, &mut [], b]).unwrap();
            assert_eq!(back, bytes);
            assert!(!store.writer().unwrap().put(&[&bytes]).unwrap().new, "in its place");
            let mut wrong = vec![0; bytes.len() + 1];
            assert!(store.read_into(&put.hash, &mut [&mut wrong]).is_err());
        }
    }
}

#[test]
fn raw_objects_can_be_mapped_and_other_versions_are_refused() {
    let (_folder, store) = store();
    let writer = store.writer().unwrap();
    let bytes = noise(5, 3000);
    let put = writer.put(&[&bytes]).unwrap();
    let squeezed = writer.put(&[&[0; 3000]]).unwrap();
    drop(writer);
    let (file, begins) = store.raw_file(&put.hash, 3000).unwrap().expect("raw and aligned");
    assert_eq!((begins % 64, file.metadata().unwrap().len()), (0, 3000 + begins));
    let path = store.object_path(&put.hash);
    assert_eq!(std::fs::read(&path).unwrap().get(begins as usize..), Some(&bytes[..]));
    assert!(store.raw_file(&put.hash, 2999).unwrap().is_none(), "another length");
    store.prove(&put.hash, &[&bytes[..7], &bytes[7..]]).unwrap();
    assert!(store.prove(&put.hash, &[&bytes[7..], &bytes[..7]]).unwrap_err().is_damage());
    assert!(store.raw_file(&squeezed.hash, 3000).unwrap().is_none(), "compressed");
    let sound = std::fs::read(&path).unwrap();
    for version in [1, 3] {
        let mut other = sound.clone();
        other[4] = version;
        let seal = blake3::hash(&other[..16]);
        other[16..24].copy_from_slice(&seal.as_bytes()[..8]);
        std::fs::write(&path, other).unwrap();
        let refusal = store.get(&put.hash).unwrap_err().to_string();
        assert!(refusal.contains("version 2"), "{refusal}");
    }
}

#[test]
fn only_what_shrinks_is_compressed() {
    let (_folder, store) = store();
    let writer = store.writer().unwrap();
    let zeros = writer.put(&[&vec![0; 1 << 20]]).unwrap();
    let noise = writer.put(&[&noise(1, 1 << 20)]).unwrap();
    assert!(zeros.disk_bytes < 1000, "{zeros:?}");
    assert_eq!(noise.disk_bytes, (1 << 20) + 64);
}

#[test]
fn files_are_private() {
    let (_folder, store) = store();
    grow(&store, "a/b", 1);
    let mut open = vec![store.place().to_owned()];
    while let Some(path) = open.pop() {
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, if path.is_dir() { 0o700 } else { 0o600 }, "{}", path.display());
        if path.is_dir() {
            open.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
    }
}

#[test]
fn a_commit_needs_its_objects_its_parent_and_the_head_it_expects() {
    let (_folder, store) = store();
    let writer = store.writer().unwrap();
    let first = state(&writer, &[1, 2, 3]);
    let missing = Manifest { pages: vec![Hash::of(b"nowhere")], ..first.clone() };
    assert!(matches!(writer.commit("a", Expect::Any, &missing), Err(Error::Missing { .. })));
    let orphan = Manifest { parent: Some(Hash::of(b"nowhere")), ..first.clone() };
    assert!(matches!(writer.commit("a", Expect::Any, &orphan), Err(Error::Missing { .. })));
    assert!(store.head("a").unwrap().is_none());
    let head = writer.commit("a", Expect::Absent, &first).unwrap();
    assert!(matches!(writer.commit("a", Expect::Absent, &first), Err(Error::Moved { .. })));
    let other = Manifest { parent: Some(Hash::of(b"other")), ..first.clone() };
    assert!(matches!(writer.commit("a", Expect::Head(Hash::of(b"other")), &other), Err(Error::Moved { .. })));
    assert!(writer.commit("a", Expect::Head(head), &first).is_err(), "parent is not the head");
    assert!(writer.commit("../a", Expect::Any, &first).is_err());
    assert_eq!(store.head("a").unwrap(), Some(head));
}

#[test]
fn words_find_commits() {
    let (_folder, store) = store();
    let hashes = grow(&store, "trip", 5);
    let at = |spec: &str| store.resolve(spec).map(|c| (c.hash, c.tokens));
    assert_eq!(at("trip").unwrap(), (hashes[4], 50));
    assert_eq!(at("trip~2").unwrap(), (hashes[2], 30));
    assert_eq!(at("trip@2").unwrap(), (hashes[1], 20), "a commit made at that turn has its last row");
    assert_eq!(at(&hashes[3].to_string()[..8]).unwrap(), (hashes[3], 40));
    for bad in ["trip~5", "trip@6", "nobody", "0000000000", "trip@0", "../trip"] {
        assert!(at(bad).is_err(), "{bad}");
    }
    let log: Vec<Hash> = store.log("trip").unwrap().iter().map(|c| c.hash).collect();
    assert_eq!(log, hashes.iter().rev().copied().collect::<Vec<_>>());
    store.tag("trip@3", "before-rain").unwrap();
    assert_eq!(at("before-rain").unwrap(), (hashes[2], 30));
    assert!(store.tag("trip", "before-rain").is_err(), "tags do not move");
    assert!(store.tag("trip", "trip").is_err());
    let writer = store.writer().unwrap();
    assert!(writer.commit("before-rain", Expect::Any, &state(&writer, &[1])).is_err(), "a tag's label is no name");
    store.untag("before-rain").unwrap();
    assert!(at("before-rain").is_err());
}

#[test]
fn a_fork_is_a_second_future() {
    let (_folder, store) = store();
    let writer = store.writer().unwrap();
    let whole = state(&writer, &(0..35).collect::<Vec<_>>());
    let head = writer.commit("trip", Expect::Absent, &whole).unwrap();
    drop(writer);
    assert_eq!(store.fork("trip", "twin").unwrap(), head);
    let split = store.fork("trip@2", "early").unwrap();
    let early = store.manifest(&split).unwrap();
    assert_eq!((early.tokens.len(), early.forked_from, early.parent), (20, Some(head), None));
    assert_eq!(early.pages[..2], whole.pages[..2]);
    assert!(store.fork("trip", "twin").is_err(), "the name is taken");
    store.rename("twin", "deep/er").unwrap();
    assert_eq!(store.head("deep/er").unwrap(), Some(head));
    assert!(store.head("twin").unwrap().is_none());
    assert!(store.fork("trip", "deep").is_err() && store.fork("trip", "trip/x").is_err());
    store.remove("deep/er", Expect::Any).unwrap();
    store.fork("trip", "deep").unwrap();
    let names: Vec<String> = store.refs().unwrap().into_iter().map(|r| r.name).collect();
    assert_eq!(names, ["deep", "early", "trip"]);
}

#[test]
fn a_state_that_cannot_be_cut_is_not_forked_there() {
    let (_folder, store) = store();
    let writer = store.writer().unwrap();
    let tokens: Vec<u32> = (0..30).collect();
    writer.commit("h", Expect::Absent, &hybrid(&writer, &tokens, &[20, 30])).unwrap();
    drop(writer);
    assert!(store.fork("h@2", "two").is_ok());
    let refusal = store.fork("h@1", "one").unwrap_err().to_string();
    assert!(refusal.contains("20, 30"), "{refusal}");
}

#[test]
fn the_deepest_prefix_is_found() {
    let (_folder, store) = store();
    let writer = store.writer().unwrap();
    let long: Vec<u32> = (0..100).collect();
    let a = writer.commit("a", Expect::Absent, &state(&writer, &long)).unwrap();
    let mut other: Vec<u32> = (0..50).collect();
    other.extend(900..920);
    let b = writer.commit("b", Expect::Absent, &state(&writer, &other)).unwrap();
    let find = |tokens: &[u32]| store.find(&identity(), tokens).unwrap().map(|f| (f.hash, f.common, f.stands));
    assert_eq!(find(&long), Some((a, 100, 100)));
    assert_eq!(find(&long[..77]), Some((a, 77, 77)));
    assert_eq!(find(&[&other[..], &[5, 6]].concat()), Some((b, 70, 70)));
    assert_eq!(find(&[&other[..67], &[5, 6]].concat()), Some((b, 67, 67)));
    assert_eq!(find(&[0, 1, 2, 77]).map(|f| f.1), Some(3), "less than a page");
    assert_eq!(find(&[7, 8]), None);
    assert_eq!(find(&[]), None);
    let mut foreign = identity();
    foreign.insert("weights".into(), "w2".into());
    assert_eq!(store.find(&foreign, &long).unwrap(), None);
    // One that shares more but stands less deep yields to one that stands deeper.
    let tokens: Vec<u32> = (5000..5060).collect();
    let h1 = writer.commit("h1", Expect::Absent, &hybrid(&writer, &tokens, &[2 * PAGE, 60])).unwrap();
    let mut shorter = tokens[..40].to_vec();
    shorter.extend([1, 2, 3]);
    let h2 = writer.commit("h2", Expect::Absent, &hybrid(&writer, &shorter, &[35, 43])).unwrap();
    assert_eq!(find(&tokens[..59]), Some((h2, 40, 35)));
    assert_eq!(find(&tokens), Some((h1, 60, 60)));
    assert_eq!(find(&tokens[..20]), Some((h1, 20, 16)));
    assert_eq!(find(&tokens[..9]).map(|f| (f.1, f.2)), Some((9, 0)), "shares nine, stands nowhere");
    // Another page length, the same tokens.
    let coarse = Manifest { page_tokens: 64, pages: state(&writer, &long[..16]).pages, ..state(&writer, &long) };
    writer.commit("c", Expect::Absent, &coarse).unwrap();
    assert_eq!(find(&long).map(|f| f.2), Some(100));
}

#[test]
fn a_lost_index_is_made_again_and_that_is_said() {
    let (_folder, store) = store();
    grow(&store, "trip", 4);
    assert!(store.notices().is_empty());
    let tokens: Vec<u32> = (0..40).collect();
    let before = store.find(&identity(), &tokens).unwrap();
    std::fs::remove_file(store.place().join("index.redb")).unwrap();
    assert_eq!(store.find(&identity(), &tokens).unwrap(), before);
    assert!(store.notices().iter().any(|n| n.contains("missing") && n.contains("4 commits")));
    std::fs::write(store.place().join("index.redb"), b"no database").unwrap();
    assert_eq!(store.find(&identity(), &tokens).unwrap(), before);
    assert!(store.notices().iter().any(|n| n.contains("damaged")));
}

#[test]
fn a_file_is_hashed_once() {
    let (folder, store) = store();
    let path = folder.path().join("weights");
    std::fs::write(&path, noise(1, 3 << 20)).unwrap();
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(60);
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
    let mut steps = 0;
    let hash = store.file_hash(&path, &mut |_, _| steps += 1).unwrap();
    assert_eq!(hash, Hash::of(&noise(1, 3 << 20)));
    let mut heard = Vec::new();
    assert_eq!(store.file_hash(&path, &mut |done, all| heard.push((done, all))).unwrap(), hash);
    assert_eq!(heard, [(3 << 20, 3 << 20)]);
    std::fs::write(&path, noise(2, 3 << 20)).unwrap();
    assert_eq!(store.file_hash(&path, &mut |_, _| {}).unwrap(), Hash::of(&noise(2, 3 << 20)));
}

#[test]
fn a_folder_of_something_else_is_no_store() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("photo.jpg"), b"x").unwrap();
    assert!(Store::open(folder.path()).unwrap_err().to_string().contains("photo.jpg"));
    std::fs::remove_file(folder.path().join("photo.jpg")).unwrap();
    for other in ["reverie-store 9", "reverie-store 1"] {
        std::fs::write(folder.path().join("format"), format!("{other}\n")).unwrap();
        let refusal = Store::open(folder.path()).unwrap_err().to_string();
        assert!(refusal.contains(other) && refusal.contains("the release of reverie that wrote"), "{refusal}");
    }
}

#[test]
fn sleeping_again_writes_only_what_is_new() {
    let (_folder, store) = store();
    grow(&store, "trip", 3);
    let writer = store.writer().unwrap();
    let tokens: Vec<u32> = (0..40).collect();
    let puts: Vec<bool> = (0..5).map(|i| writer.put(&[&stand::page(&tokens[..(i + 1) * PAGE])]).unwrap().new).collect();
    assert_eq!(puts, [false, false, false, true, true]);
    wake(&store, &store.resolve("trip~1").unwrap().manifest);
}
