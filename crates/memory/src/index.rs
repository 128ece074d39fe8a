//! What can be looked up without reading all manifests: prefixes of tokens, and the hashes of big files. It is an aid, wholly
//! rebuilt from refs and objects when it is missing or damaged, and whatever it answers is verified elsewhere. Every row carries a
//! seal. Opened for one transaction at a time, since several processes share it.

use std::cell::Cell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use redb::backends::FileBackend;
use redb::{Database, Durability, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, TableHandle};

use crate::barrier::Barrier;
use crate::error::{Error, Result, excerpt};
use crate::hash::{Hash, seal};
use crate::manifest::{Identity, Manifest};
use crate::store::{Hold, Store};

type Table = TableDefinition<'static, &'static [u8], &'static [u8]>;
type Open<'a> = redb::Table<'a, &'static [u8], &'static [u8]>;
type Points = redb::ReadOnlyTable<&'static [u8], &'static [u8]>;
type Guard<'a> = redb::AccessGuard<'a, &'static [u8]>;

/// Points of prefixes: `chain ‖ mark ‖ tokens` to the hash of a manifest. The chain names all whole pages before; the tokens, at most a
/// page of them, are u32, big-endian, so that neighbours in the table share the longest prefix.
const POINTS: Table = TableDefinition::new("points");
/// `identity ‖ page_tokens`: which page lengths there are for an identity.
const SHAPES: Table = TableDefinition::new("shapes");
/// Path of a file to what it was and its hash.
const FILES: Table = TableDefinition::new("files");

const FILE: &str = "index.redb";
/// An index in the making: it gets its name when it is whole.
const UNFINISHED: &str = "index.new";
/// Memory of one transaction.
const CACHE_BYTES: usize = 8 << 20;

/// The state stands anywhere along these tokens.
const ANYWHERE: u8 = 0;
/// A snapshot stands at exactly these tokens.
const EXACT: u8 = 1;
/// A state passes here and cannot stand.
const PASSES: u8 = 2;

/// Why the index cannot answer: it is thrown away and rebuilt.
#[derive(Debug)]
pub(crate) struct Broken(pub(crate) String);

impl<E: std::error::Error> From<E> for Broken {
    fn from(e: E) -> Broken {
        Broken(e.to_string())
    }
}

/// A place in the tree of prefixes, as the index has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Point {
    pub(crate) manifest: Hash,
    pub(crate) stands: usize,
    pub(crate) common: usize,
}

/// The name of a chain before its first page.
pub(crate) fn root(identity: &Identity, page_tokens: usize) -> Result<Hash> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"reverie prefix 1");
    hasher.update(identity_hash(identity)?.as_bytes());
    hasher.update(&(page_tokens as u64).to_le_bytes());
    Ok(hasher.finalize().into())
}

fn identity_hash(identity: &Identity) -> Result<Hash> {
    let text = serde_json::to_vec(identity).map_err(|e| Error::refused("an identity", e, "text"))?;
    Ok(Hash::of(&text))
}

/// The name of a chain with one more page.
fn extend(chain: &Hash, page: &[u32]) -> Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(chain.as_bytes());
    page.iter().for_each(|t| {
        hasher.update(&t.to_le_bytes());
    });
    hasher.finalize().into()
}

fn key(chain: &Hash, mark: u8, tail: &[u32]) -> Vec<u8> {
    let mut key = chain.as_bytes().to_vec();
    key.push(mark);
    tail.iter().for_each(|t| key.extend_from_slice(&t.to_be_bytes()));
    key
}

fn put(table: &mut Open<'_>, name: &str, key: &[u8], value: &[u8]) -> Result<(), Broken> {
    let mut row = value.to_vec();
    row.extend_from_slice(&seal(&[name.as_bytes(), key, value]));
    table.insert(key, row.as_slice())?;
    Ok(())
}

fn open<'a>(name: &str, key: &[u8], row: &'a [u8]) -> Result<&'a [u8], Broken> {
    let (value, sealed) = row.split_last_chunk::<8>().ok_or_else(|| Broken("a row without a seal".into()))?;
    if seal(&[name.as_bytes(), key, value]) != *sealed {
        return Err(Broken(format!("a row of '{name}' that its seal contradicts")));
    }
    Ok(value)
}

fn to_hash(value: &[u8]) -> Result<Hash, Broken> {
    value.try_into().map(Hash::from_bytes).map_err(|_| Broken(format!("a hash of {} bytes", value.len())))
}

/// Adds the points of one manifest.
pub(crate) fn insert(db: &Database, manifests: &[(Hash, Manifest)]) -> Result<(), Broken> {
    let mut transaction = db.begin_write()?;
    // Closing the database makes it so.
    transaction.set_durability(Durability::None)?;
    {
        let mut points = transaction.open_table(POINTS)?;
        let mut shapes = transaction.open_table(SHAPES)?;
        for (hash, manifest) in manifests {
            insert_one(&mut points, &mut shapes, hash, manifest)?;
        }
    }
    transaction.commit()?;
    Ok(())
}

fn insert_one(points: &mut Open<'_>, shapes: &mut Open<'_>, hash: &Hash, manifest: &Manifest) -> Result<(), Broken> {
    let page_tokens = manifest.page_tokens;
    let mut shape = identity_hash(&manifest.identity)?.as_bytes().to_vec();
    shape.extend_from_slice(&(page_tokens as u64).to_be_bytes());
    put(shapes, SHAPES.name(), &shape, &[])?;
    let mut chain = vec![root(&manifest.identity, page_tokens)?];
    for page in manifest.tokens.chunks_exact(page_tokens) {
        let next = extend(chain.last().unwrap_or(hash), page);
        chain.push(next);
    }
    let mark = if manifest.snapshots.is_empty() { ANYWHERE } else { PASSES };
    // From the deepest: where a page has its row, all before it have theirs.
    let pages: Vec<(&Hash, &[u32])> = chain.iter().zip(manifest.tokens.chunks(page_tokens)).collect();
    let last = pages.last().map_or(hash, |(link, _)| *link);
    for (link, page) in pages.into_iter().rev() {
        let key = key(link, mark, page);
        // One that ends here has its last row too, and displaces one that passes.
        let ends = std::ptr::eq(link, last);
        if !ends && points.get(key.as_slice())?.is_some() {
            break;
        }
        put(points, POINTS.name(), &key, hash.as_bytes())?;
    }
    for snapshot in &manifest.snapshots {
        let from = snapshot.position / page_tokens;
        let tail = manifest.tokens.get(from * page_tokens..snapshot.position).unwrap_or_default();
        if let Some(link) = chain.get(from) {
            let key = key(link, EXACT, tail);
            // A state that ends there has its last row too: it is not displaced by one that only passes.
            if snapshot.position == manifest.tokens.len() || points.get(key.as_slice())?.is_none() {
                put(points, POINTS.name(), &key, hash.as_bytes())?;
            }
        }
    }
    Ok(())
}

/// The point at which the deepest state stands along `tokens`, or the one that goes along furthest if none stands.
pub(crate) fn deepest(
    transaction: &ReadTransaction,
    identity: &Identity,
    tokens: &[u32],
) -> Result<Option<Point>, Broken> {
    let (points, shapes) = (transaction.open_table(POINTS)?, transaction.open_table(SHAPES)?);
    let name = identity_hash(identity)?;
    let mut best: Option<Point> = None;
    for row in shapes.range(name.as_bytes().as_slice()..)? {
        let (key, value) = row?;
        let Some(length) = key.value().strip_prefix(name.as_bytes()) else { break };
        open(SHAPES.name(), key.value(), value.value())?;
        let page_tokens = length.try_into().map(u64::from_be_bytes).ok().and_then(|n| usize::try_from(n).ok());
        let page_tokens = page_tokens.filter(|&n| n > 0).ok_or_else(|| Broken("a page length of zero".into()))?;
        walk(&points, root(identity, page_tokens)?, tokens, page_tokens, &mut best)?;
    }
    Ok(best)
}

fn walk(
    points: &Points,
    root: Hash,
    tokens: &[u32],
    page_tokens: usize,
    best: &mut Option<Point>,
) -> Result<(), Broken> {
    let (mut chain, mut at) = (root, 0);
    loop {
        let rest = tokens.get(at..).unwrap_or_default();
        let page = rest.get(..page_tokens).unwrap_or(rest);
        // The whole page: nothing else below this chain can be deeper.
        if page.len() == page_tokens
            && let key = key(&chain, ANYWHERE, page)
            && let Some(row) = points.get(key.as_slice())?
        {
            let manifest = to_hash(open(POINTS.name(), &key, row.value())?)?;
            (chain, at) = (extend(&chain, page), at + page_tokens);
            better(best, Point { manifest, stands: at, common: at });
            continue;
        }
        let mut longest = 0;
        for mark in [ANYWHERE, PASSES] {
            for (_, along, manifest) in
                [before(points, &chain, mark, page)?, after(points, &chain, mark, page)?].into_iter().flatten()
            {
                longest = longest.max(along);
                let stands = if mark == ANYWHERE { at + along } else { 0 };
                better(best, Point { manifest, stands, common: at + along });
            }
        }
        // A snapshot stands only if all its tokens are ours: from the nearest row before, ever shorter.
        let mut ours = page;
        while let Some((length, along, manifest)) = before(points, &chain, EXACT, ours)? {
            if along == length {
                better(best, Point { manifest, stands: at + along, common: at + along });
                break;
            }
            ours = ours.get(..along).unwrap_or_default();
        }
        if longest < page_tokens {
            return Ok(());
        }
        (chain, at) = (extend(&chain, page), at + page_tokens);
    }
}

fn better(best: &mut Option<Point>, point: Point) {
    if point.common > 0 && best.is_none_or(|b| (point.stands, point.common) > (b.stands, b.common)) {
        *best = Some(point);
    }
}

/// Length of a row's tokens, how many of them open `page`, and its manifest.
type Row = (usize, usize, Hash);

/// The last row not after `page`.
fn before(points: &Points, chain: &Hash, mark: u8, page: &[u32]) -> Result<Option<Row>, Broken> {
    let (from, to) = (key(chain, mark, &[]), key(chain, mark, page));
    points.range(from.as_slice()..=to.as_slice())?.next_back().map(|row| along(row?, page)).transpose()
}

/// The first row not before `page`.
fn after(points: &Points, chain: &Hash, mark: u8, page: &[u32]) -> Result<Option<Row>, Broken> {
    let (from, to) = (key(chain, mark, page), key(chain, mark + 1, &[]));
    points.range(from.as_slice()..to.as_slice())?.next().map(|row| along(row?, page)).transpose()
}

fn along(row: (Guard<'_>, Guard<'_>), page: &[u32]) -> Result<Row, Broken> {
    let (key, value) = row;
    let manifest = to_hash(open(POINTS.name(), key.value(), value.value())?)?;
    let (tokens, _) = key.value().get(33..).unwrap_or_default().as_chunks::<4>();
    let along = tokens.iter().zip(page).take_while(|(a, b)| u32::from_be_bytes(**a) == **b).count();
    Ok((tokens.len(), along, manifest))
}

/// What a remembered file was, and its hash.
pub(crate) fn remembered(transaction: &ReadTransaction, path: &[u8], was: &[u8]) -> Result<Option<Hash>, Broken> {
    let table = transaction.open_table(FILES)?;
    let Some(row) = table.get(path)? else { return Ok(None) };
    let value = open(FILES.name(), path, row.value())?;
    value.strip_prefix(was).map(to_hash).transpose()
}

/// Remembers the hash of a file that is as `was` says.
pub(crate) fn remember(db: &Database, path: &[u8], was: &[u8], hash: &Hash) -> Result<(), Broken> {
    let transaction = db.begin_write()?;
    {
        let mut table = transaction.open_table(FILES)?;
        put(&mut table, FILES.name(), path, &[was, hash.as_bytes()].concat())?;
    }
    transaction.commit()?;
    Ok(())
}

/// Key and value of a remembered file.
type FileRow = (Vec<u8>, Vec<u8>);

/// All remembered files whose rows are whole.
fn files(db: &Database) -> Result<Vec<FileRow>, Broken> {
    let transaction = db.begin_read()?;
    let table = transaction.open_table(FILES)?;
    let mut rows = Vec::new();
    for row in table.iter()? {
        let (key, value) = row?;
        if let Ok(value) = open(FILES.name(), key.value(), value.value()) {
            rows.push((key.value().to_vec(), value.to_vec()));
        }
    }
    Ok(rows)
}

/// Checks every page and every seal.
pub(crate) fn check(db: &mut Database) -> Result<(), Broken> {
    // False also means free pages reckoned otherwise, and going back to the commit before; what matters is asked of the rows.
    db.check_integrity()?;
    let transaction = db.begin_read()?;
    for table in [POINTS, SHAPES, FILES] {
        for row in transaction.open_table(table)?.iter()? {
            let (key, value) = row?;
            open(table.name(), key.value(), value.value())?;
        }
    }
    Ok(())
}

thread_local! {
    /// True while this thread is inside the database.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// True while a panic of this thread would be caught and become a finding about the index. For a panic hook, which then keeps silent.
pub fn panics_are_findings() -> bool {
    GUARDED.get()
}

/// Runs `run` on the database. It is a dependency that may panic on bytes it did not write; that is a broken index like any other.
fn guarded<T>(run: impl FnOnce() -> Result<T, Broken>) -> Result<T, Broken> {
    let before = GUARDED.replace(true);
    let done = catch_unwind(AssertUnwindSafe(run));
    GUARDED.set(before);
    done.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        Err(Broken(format!("bytes that no index has: {}", excerpt(text.unwrap_or("no reason given")))))
    })
}

/// Why an index is made.
#[derive(Clone, Copy, Debug)]
enum Why<'a> {
    /// There is none.
    Missing,
    /// It cannot be right.
    Damaged(&'a str),
    /// It names what was let go.
    Stale,
}

/// Takes some manifests at a time.
type Batch<'a> = dyn FnMut(&[(Hash, Manifest)]) -> Result<(), Broken> + 'a;

impl Store {
    /// Runs one transaction on the index. One that is missing or broken is rebuilt first, and that is said.
    pub(crate) fn with_index<T>(&self, f: &mut dyn FnMut(&mut Database) -> Result<T, Broken>) -> Result<T> {
        let _mine = self.inner.index.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let _lock = self.lock_file("index.lock", Hold::Exclusive, "another process is at the index")?;
        if self.path(FILE).exists() {
            match self.try_index(FILE, f) {
                Ok(done) => return Ok(done),
                Err(Broken(why)) => self.build_index(Why::Damaged(&why))?,
            }
        } else {
            self.build_index(Why::Missing)?;
        }
        self.try_index(FILE, f).map_err(|Broken(why)| self.index_error(why))
    }

    /// Asks the index something. Those who only ask need not wait for each other; what cannot be asked so is asked as
    /// [`with_index`](Store::with_index) does.
    pub(crate) fn ask_index<T>(&self, f: &mut dyn FnMut(&ReadTransaction) -> Result<T, Broken>) -> Result<T> {
        {
            let _lock = self.lock_file("index.lock", Hold::Shared, "another process is at the index")?;
            let ask = || -> Result<T, Broken> {
                let db = Database::builder().set_cache_size(CACHE_BYTES).open_read_only(self.path(FILE))?;
                f(&db.begin_read()?)
            };
            if let Ok(answer) = guarded(ask) {
                return Ok(answer);
            }
        }
        self.with_index(&mut |db| f(&db.begin_read()?))
    }

    fn index_error(&self, why: String) -> Error {
        Error::io("use", &self.path(FILE))(io::Error::other(why))
    }

    fn try_index<T>(&self, file: &str, f: &mut dyn FnMut(&mut Database) -> Result<T, Broken>) -> Result<T, Broken> {
        let run = || {
            let file =
                crate::disk::private().read(true).write(true).create(true).truncate(false).open(self.path(file))?;
            let (barrier, failure) = Barrier::over(FileBackend::new(file)?);
            let mut db = Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(barrier)?;
            let done = f(&mut db);
            // What it writes last it writes when it is closed, and then tells nobody of a failure.
            drop(db);
            match failure.get() {
                Some(why) => Err(Broken(why.clone())),
                None => done,
            }
        };
        guarded(run)
    }

    /// Throws the index away and makes it again; only under its lock.
    fn build_index(&self, why: Why<'_>) -> Result<()> {
        let (path, unfinished) = (self.path(FILE), self.path(UNFINISHED));
        let kept = match why {
            Why::Missing => Vec::new(),
            _ => self.try_index(FILE, &mut |db| files(db)).unwrap_or_default(),
        };
        if unfinished.exists() {
            std::fs::remove_file(&unfinished).map_err(Error::io("remove", &unfinished))?;
        }
        let mut known = 0;
        let build = &mut |db: &mut Database| {
            let transaction = db.begin_write()?;
            {
                transaction.open_table(POINTS)?;
                transaction.open_table(SHAPES)?;
                let mut table = transaction.open_table(FILES)?;
                kept.iter().try_for_each(|(key, value)| put(&mut table, FILES.name(), key, value))?;
            }
            transaction.commit()?;
            known = 0;
            self.each_reachable(&mut |batch| {
                known += batch.len();
                insert(db, batch)
            })
        };
        self.try_index(UNFINISHED, build).map_err(|Broken(why)| self.index_error(why))?;
        std::fs::rename(&unfinished, &path).map_err(Error::io("replace", &path))?;
        match why {
            Why::Damaged(why) => {
                self.notice(format!("the index was damaged ({why}) and was rebuilt from {known} commits"))
            }
            Why::Missing if known > 0 => {
                self.notice(format!("the index was missing and was rebuilt from {known} commits"))
            }
            Why::Missing | Why::Stale => {}
        }
        Ok(())
    }

    /// Makes the index again after one of its answers was wrong.
    pub(crate) fn rebuild_index(&self, why: &str) -> Result<()> {
        self.locked_build(Why::Damaged(why))
    }

    /// Makes the index again after states went, which is nothing to report.
    pub(crate) fn renew_index(&self) -> Result<()> {
        self.locked_build(Why::Stale)
    }

    fn locked_build(&self, why: Why<'_>) -> Result<()> {
        let _mine = self.inner.index.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let _lock = self.lock_file("index.lock", Hold::Exclusive, "another process is at the index")?;
        self.build_index(why)
    }

    /// What `f` finds wrong with the index as it is; nothing where there is none, since the next use makes one.
    pub(crate) fn look_at_index(
        &self,
        f: &mut dyn FnMut(&mut Database) -> Result<(), Broken>,
    ) -> Result<Option<Broken>> {
        let _mine = self.inner.index.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let _lock = self.lock_file("index.lock", Hold::Exclusive, "another process is at the index")?;
        if !self.path(FILE).exists() {
            return Ok(None);
        }
        Ok(self.try_index(FILE, f).err())
    }

    /// Hands over all commits that a name or tag reaches, some at a time, each once. A damaged one is left out: whoever needs it
    /// will hear of it.
    fn each_reachable(&self, f: &mut Batch<'_>) -> Result<(), Broken> {
        let mut seen = std::collections::HashSet::new();
        let mut heads: Vec<Hash> = Vec::new();
        for name in self.names("refs")? {
            heads.extend(self.head(&name).ok().flatten());
        }
        for label in self.names("tags")? {
            heads.extend(self.tag_target(&label).ok().flatten().map(|t| t.manifest));
        }
        for head in heads {
            let mut batch = Vec::new();
            for step in self.history(head) {
                let Ok((hash, manifest)) = step else { break };
                if !seen.insert(hash) {
                    break;
                }
                batch.push((hash, manifest));
                if batch.len() == 64 {
                    f(&std::mem::take(&mut batch))?;
                }
            }
            if !batch.is_empty() {
                f(&batch)?;
            }
        }
        Ok(())
    }
}
