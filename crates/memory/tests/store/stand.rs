//! Stores and states to test with: payloads are noise that no codec shrinks, each a function of its seed and nothing else.

use reverie_memory::{Expect, Hash, Identity, Manifest, Snapshot, Store, Turn, Window, Writer};

/// Tokens of a page.
pub const PAGE: usize = 8;
/// Bytes of a page's payload.
pub const PAGE_BYTES: usize = 600;

/// A fresh store that goes with its folder; in memory where that can be had, since thousands of flushes are no part of any claim.
pub fn store() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("tempdir");
    let store = Store::open(&folder.path().join("store")).expect("opens");
    (folder, store)
}

/// `n` bytes of noise.
pub fn noise(seed: u64, n: usize) -> Vec<u8> {
    let mut out = vec![0; n];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

/// The payload of the page that holds these tokens, after all before them.
pub fn page(tokens: &[u32]) -> Vec<u8> {
    let bytes: Vec<u8> = tokens.iter().flat_map(|t| t.to_le_bytes()).collect();
    let mut out = vec![0; PAGE_BYTES];
    blake3::Hasher::new().update(&bytes).finalize_xof().fill(&mut out);
    out
}

pub fn identity() -> Identity {
    Identity::from([("weights".to_owned(), "w1".to_owned()), ("cache".to_owned(), "f16".to_owned())])
}

/// A state over `tokens`, its pages put, one turn for every ten tokens.
pub fn state(writer: &Writer, tokens: &[u32]) -> Manifest {
    let pages = (0..tokens.len().div_ceil(PAGE)).map(|i| {
        let end = ((i + 1) * PAGE).min(tokens.len());
        writer.put(&[&page(&tokens[..end])]).expect("put").hash
    });
    let turns = (1..=tokens.len() / 10).map(|i| Turn {
        role: ["user", "assistant"][(i + 1) % 2].to_owned(),
        text_end: i * 10,
        tokens: i * 10,
    });
    Manifest {
        created_ms: 1_700_000_000_000 + tokens.len() as u64,
        identity: identity(),
        page_tokens: PAGE,
        pages: pages.collect(),
        last: (!tokens.is_empty()).then(|| writer.put(&[&noise(tokens.len() as u64, 64)]).expect("put").hash),
        text: "x".repeat(tokens.len()),
        tokens: tokens.to_vec(),
        turns: turns.collect(),
        ..Manifest::default()
    }
}

/// As [`state`], with a snapshot at each of `at`, and the page around it of layers with a window.
pub fn hybrid(writer: &Writer, tokens: &[u32], at: &[usize]) -> Manifest {
    let snapshot = |&position: &usize| Snapshot {
        object: writer.put(&[&noise(1 << 40 | position as u64, 300)]).expect("put").hash,
        position,
    };
    let mut windows: Vec<Window> = Vec::new();
    for position in at {
        let page = (position - 1) / PAGE;
        windows.retain(|w| w.page != page);
        let object = writer.put(&[&noise(2 << 40 | *position as u64, 200)]).expect("put").hash;
        windows.push(Window { object, page, tokens: position - page * PAGE });
    }
    Manifest { snapshots: at.iter().map(snapshot).collect(), windows, ..state(writer, tokens) }
}

/// Commits `n` turns of ten tokens one after another; gives the hashes, oldest first.
pub fn grow(store: &Store, name: &str, n: usize) -> Vec<Hash> {
    let mut hashes = Vec::new();
    for turn in 1..=n {
        let writer = store.writer().expect("writer");
        let tokens: Vec<u32> = (0..turn as u32 * 10).collect();
        let parent = store.head(name).expect("head");
        let manifest = Manifest { parent, ..state(&writer, &tokens) };
        let expect = parent.map_or(Expect::Absent, Expect::Head);
        hashes.push(writer.commit(name, expect, &manifest).expect("commits"));
    }
    hashes
}

/// Reads every object of a state and holds pages against what they must hold.
pub fn wake(store: &Store, manifest: &Manifest) {
    for (i, object) in manifest.pages.iter().enumerate() {
        let end = ((i + 1) * manifest.page_tokens).min(manifest.tokens.len());
        let mut bytes = vec![0; PAGE_BYTES];
        let (a, b) = bytes.split_at_mut(100);
        store.read_into(object, &mut [a, b]).expect("reads");
        assert_eq!(bytes, page(&manifest.tokens[..end]), "page {i}");
    }
    for object in manifest.objects() {
        store.get(object).expect("reads");
    }
}

/// Where things lie, for tests that spoil them.
pub trait Files {
    fn path_of(&self, below: &str) -> std::path::PathBuf;
    fn object_file(&self, object: &Hash) -> std::path::PathBuf;
}

impl Files for Store {
    fn path_of(&self, below: &str) -> std::path::PathBuf {
        self.place().join(below)
    }
    fn object_file(&self, object: &Hash) -> std::path::PathBuf {
        let name = object.to_string();
        self.place().join("objects").join(&name[..2]).join(&name[2..])
    }
}
