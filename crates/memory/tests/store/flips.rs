//! Decay: any flipped bit in any file of a store is noticed, or changes nothing, before a token could come from it.

use std::path::PathBuf;

use reverie_memory::{Expect, FindingKind, FsckRun, Hash, Manifest, Store};

use crate::stand::{grow, hybrid, identity, store};

/// All files below, with their bytes.
fn files(place: &std::path::Path) -> Vec<(PathBuf, Vec<u8>)> {
    let (mut open, mut found) = (vec![place.to_owned()], Vec::new());
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        } else {
            found.push((path.clone(), std::fs::read(&path).unwrap()));
        }
    }
    found.sort();
    found
}

/// A small store with history, a snapshot, a compressed page, a tag.
fn small() -> (tempfile::TempDir, Store) {
    let (folder, store) = store();
    grow(&store, "trip", 2);
    let writer = store.writer().unwrap();
    let squeezed = writer.put(&[&[7; 900]]).unwrap();
    assert!(squeezed.disk_bytes < 200);
    let base = hybrid(&writer, &(100..116).collect::<Vec<_>>(), &[16]);
    let manifest = Manifest { pages: vec![base.pages[0], squeezed.hash], ..base };
    writer.commit("h", Expect::Absent, &manifest).unwrap();
    drop(writer);
    store.tag("trip@1", "label").unwrap();
    // The page that the compressed one replaced: nothing reads it, so nobody would notice.
    store.gc(&reverie_memory::GcSpec::default()).unwrap();
    (folder, store)
}

/// A commit and its payloads.
type Whole = (Hash, Vec<Vec<u8>>);

/// All that can be got out of the store by its names: manifests and payloads.
fn all(store: &Store) -> Result<Vec<Whole>, reverie_memory::Error> {
    let mut out = Vec::new();
    for spec in ["trip", "h", "label"] {
        for commit in store.log(spec)? {
            let payload: Result<Vec<_>, _> = commit.manifest.objects().map(|o| store.get(o)).collect();
            out.push((commit.hash, payload?));
        }
    }
    Ok(out)
}

#[test]
fn any_flipped_bit_of_objects_names_and_tags_is_noticed() {
    let (_folder, store) = small();
    let truth = all(&store).unwrap();
    let mut flips = 0;
    for (path, bytes) in files(store.place()) {
        let below = path.strip_prefix(store.place()).unwrap().display().to_string();
        if !["objects", "refs", "tags"].iter().any(|f| below.starts_with(&format!("{f}/"))) {
            continue;
        }
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1 << (at % 8);
            std::fs::write(&path, &bad).unwrap();
            let seen = all(&store);
            assert!(seen.is_err(), "{below} byte {at} is not noticed");
            flips += 1;
            if at % 97 == 0 {
                let report = store.fsck(FsckRun::Check, &mut |_, _| {}).unwrap();
                let named = report.findings.iter().any(|f| f.kind == FindingKind::Damaged && f.what == below);
                assert!(named, "{below} byte {at}: {:?}", report.findings);
            }
        }
        for length in [0, 1, bytes.len() / 2, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..length]).unwrap();
            assert!(all(&store).is_err(), "{below} cut to {length}");
        }
        std::fs::write(&path, [&bytes[..], b"x"].concat()).unwrap();
        assert!(all(&store).is_err(), "{below} with a byte more");
        std::fs::write(&path, &bytes).unwrap();
    }
    assert!(flips > 3000, "{flips}");
    assert_eq!(all(&store).unwrap(), truth);
}

#[test]
fn two_objects_that_change_places_are_noticed() {
    let (_folder, store) = small();
    let manifest = store.resolve("trip").unwrap().manifest;
    use crate::stand::Files;
    let (a, b) = (store.object_file(&manifest.pages[0]), store.object_file(&manifest.pages[1]));
    let (x, y) = (std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());
    std::fs::write(&a, y).unwrap();
    std::fs::write(&b, x).unwrap();
    assert!(store.get(&manifest.pages[0]).unwrap_err().is_damage());
    std::fs::copy(store.path_of("refs/trip"), store.path_of("refs/other")).unwrap();
    assert!(store.head("other").unwrap_err().is_damage(), "a name's file under another name");
}

/// Flips bits of the index; every answer afterwards is the true one, rebuilt or not.
fn flip_index(step: usize) {
    let (folder, store) = small();
    let weights = folder.path().join("weights");
    std::fs::write(&weights, [3; 10_000]).unwrap();
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(60);
    std::fs::File::options().write(true).open(&weights).unwrap().set_modified(old).unwrap();
    let truth = |store: &Store| {
        let find = |tokens: Vec<u32>| {
            store.find(&identity(), &tokens).unwrap().map(|f| (f.manifest.tokens[..f.common].to_vec(), f.stands))
        };
        let hash = store.file_hash(&weights, &mut |_, _| {}).unwrap();
        (find((0..20).collect()), find((0..13).collect()), find((100..130).collect()), find(vec![5]), hash)
    };
    let right = truth(&store);
    assert_eq!(right.4, Hash::of(&[3; 10_000]));
    let path = store.place().join("index.redb");
    let bytes = std::fs::read(&path).unwrap();
    let used: Vec<usize> = (0..bytes.len()).filter(|&i| bytes[i] != 0).collect();
    let mut rebuilt = 0;
    for (n, &at) in used.iter().enumerate().step_by(step) {
        let mut bad = bytes.clone();
        bad[at] ^= 1 << (n % 8);
        std::fs::write(&path, &bad).unwrap();
        let seen = truth(&store);
        rebuilt += usize::from(!store.notices().is_empty());
        // A shorter prefix costs time and no truth; another hash of the weights would be a lie.
        assert_eq!(seen.4, right.4, "byte {at}");
        for (seen, right) in [(&seen.0, &right.0), (&seen.1, &right.1), (&seen.2, &right.2), (&seen.3, &right.3)] {
            if let Some((tokens, stands)) = seen {
                let (most, deepest) = right.as_ref().expect("nothing is found that is not there");
                assert!(most.starts_with(tokens) && stands <= deepest, "byte {at}");
            }
        }
    }
    println!("{} bytes, {} used, {} flips, {rebuilt} rebuilt", bytes.len(), used.len(), used.len() / step);
    assert!(rebuilt > 0);
}

#[test]
fn a_flipped_bit_of_the_index_is_noticed_or_changes_nothing() {
    flip_index(61);
}

#[test]
#[ignore = "minutes: every byte of the index"]
fn any_flipped_bit_of_the_index() {
    flip_index(1);
}
