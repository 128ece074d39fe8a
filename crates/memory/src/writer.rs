//! Putting objects and moving heads. What is reported as written is durable; what is interrupted leaves a file in `tmp` or an object
//! that nothing names, never a torn one and never a name that points at less than a whole state.

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use crate::error::{Error, Result};
use crate::hash::Hash;
use crate::manifest::{MAX_MANIFEST_BYTES, Manifest};
use crate::name::check_name;
use crate::object::{self, Kind, MAX_OBJECT_BYTES};
use crate::refs;
use crate::store::{Hold, Store, StoreLock, Temp};
use crate::threads::together;

/// Files that wait for the commit to be flushed, at most; more open ones than this no writer has.
const WAITING_FILES: usize = 16;
/// Threads that flush: a disk flushes several files in the time of one.
const FLUSHERS: usize = 32;

/// Writes into a store. While it lives, nothing it put can be swept. Shared by threads.
#[derive(Debug)]
pub struct Writer {
    store: Store,
    /// Objects that are written and wait to be flushed and moved to their places, in the order in which they came.
    waiting: Mutex<VecDeque<Waiting>>,
    /// Shared by those who flush one of them; who wants all durable waits until nobody does.
    flushing: RwLock<()>,
    /// Puts under way.
    putting: AtomicUsize,
    /// Objects that were found or put, and the lengths of their files: while the writer lives, they stay.
    there: Mutex<HashMap<Hash, u64>>,
    _lock: StoreLock,
}

/// An object that is not in its place yet.
#[derive(Debug)]
struct Waiting {
    hash: Hash,
    temp: Temp,
}

/// What became of a `put`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Put {
    /// The object's name.
    pub hash: Hash,
    /// Its length.
    pub bytes: u64,
    /// False where it was there before.
    pub new: bool,
    /// Length of its file, header included.
    pub disk_bytes: u64,
}

/// What a caller believes a name to point at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Whatever it is.
    Any,
    /// Nothing: the name is new.
    Absent,
    /// This commit.
    Head(Hash),
}

impl Store {
    /// A writer; gc waits for it to be dropped. Waits in turn while another process collects.
    pub fn writer(&self) -> Result<Writer> {
        Ok(Writer {
            _lock: self.lock(Hold::Shared)?,
            store: self.clone(),
            waiting: Mutex::default(),
            flushing: RwLock::default(),
            putting: AtomicUsize::new(0),
            there: Mutex::default(),
        })
    }
}

/// What is behind a lock. A poisoned one: a thread died between two inserts, which leaves a collection whole.
fn locked<T>(set: &Mutex<T>) -> MutexGuard<'_, T> {
    set.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts a put until it is dropped.
struct Putting<'a>(&'a AtomicUsize);

impl<'a> Putting<'a> {
    fn begin(count: &'a AtomicUsize) -> Putting<'a> {
        count.fetch_add(1, Ordering::Relaxed);
        Putting(count)
    }
}

impl Drop for Putting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Writer {
    /// The store it writes to.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Stores the bytes of `parts` in a row as one object, unless it is there. Readable and durable with the next commit, or when the
    /// writer is dropped. From many threads.
    pub fn put(&self, parts: &[&[u8]]) -> Result<Put> {
        let bytes: u64 = parts.iter().map(|p| p.len() as u64).sum();
        if bytes > MAX_OBJECT_BYTES {
            return Err(Error::refused("an object", format!("{bytes} bytes"), format!("at most {MAX_OBJECT_BYTES}")));
        }
        self.put_kind(parts, Kind::Payload)
    }

    pub(crate) fn put_kind(&self, parts: &[&[u8]], kind: Kind) -> Result<Put> {
        let _counted = Putting::begin(&self.putting);
        let hash = object::hash_parts(parts);
        let bytes = parts.iter().map(|p| p.len() as u64).sum();
        if let Some(disk_bytes) = self.present(&hash, bytes, kind) {
            locked(&self.there).insert(hash, disk_bytes);
            return Ok(Put { hash, bytes, new: false, disk_bytes });
        }
        let encoded = object::encode(parts, kind)?;
        let mut pieces = vec![encoded.header.as_slice()];
        match &encoded.body {
            Some(body) => pieces.push(body),
            None => pieces.extend_from_slice(parts),
        }
        let disk_bytes = self.put_file(&hash, &pieces)?;
        Ok(Put { hash, bytes, new: true, disk_bytes })
    }

    /// Writes the file of an object that has been proved to be `hash`, and gives its length.
    pub(crate) fn put_file(&self, hash: &Hash, pieces: &[&[u8]]) -> Result<u64> {
        let disk_bytes = pieces.iter().map(|p| p.len() as u64).sum();
        let temp = self.store.write_temp(pieces)?;
        locked(&self.there).insert(*hash, disk_bytes);
        let waiting = {
            let mut waiting = locked(&self.waiting);
            waiting.push_back(Waiting { hash: *hash, temp });
            waiting.len()
        };
        // While others hash and write, the disk has time to flush. The last ones wait for the commit, which flushes them at once.
        if self.putting.load(Ordering::Relaxed) > 1 || waiting > WAITING_FILES {
            let _shared = self.flushing.read().unwrap_or_else(PoisonError::into_inner);
            let first = locked(&self.waiting).pop_front();
            self.land_files(first.into_iter().collect(), None)?;
        }
        Ok(disk_bytes)
    }

    /// Flushes files, and moves them to their places in their order. What fails is not there.
    fn land_files(&self, files: Vec<Waiting>, also: Option<&Temp>) -> Result<()> {
        let hashes: Vec<Hash> = files.iter().map(|f| f.hash).collect();
        let move_in = |file: Waiting| {
            let path = self.store.object_path(&file.hash);
            let folder = path.parent().unwrap_or(&path);
            if !folder.is_dir() {
                self.store.disk().create_folder(folder).map_err(Error::io("create", folder))?;
            }
            // Under the lock: whoever sees the file and flushes folders after that flushes this one.
            let mut unsynced = locked(&self.store.inner.unsynced);
            unsynced.extend(self.names_in(folder));
            file.temp.move_to(&path)
        };
        let landed = together(FLUSHERS, files.iter().map(|f| &f.temp).chain(also).collect(), Temp::flush)
            .and_then(|()| files.into_iter().try_for_each(move_in));
        if landed.is_err() {
            locked(&self.there).retain(|hash, _| !hashes.contains(hash));
        }
        landed
    }

    /// Brings all that was put to the medium and to its place, and `also` to the medium.
    pub(crate) fn settle(&self, also: Option<&Temp>) -> Result<()> {
        let _alone = self.flushing.write().unwrap_or_else(PoisonError::into_inner);
        let files = std::mem::take(&mut *locked(&self.waiting));
        self.land_files(files.into(), also)
    }

    /// True if the object is here; its content is verified when it is read.
    pub fn has(&self, object: &Hash) -> bool {
        self.look(object).is_ok()
    }

    /// As [`has`](Writer::has), with the reason; each object is looked at once.
    fn look(&self, object: &Hash) -> Result<()> {
        if locked(&self.there).contains_key(object) {
            return Ok(());
        }
        let (_, file_bytes) = self.store.header(object)?;
        locked(&self.there).insert(*object, file_bytes);
        Ok(())
    }

    /// The length of the object's file, if one is there that can be it, or on its way. Its folder may have been made by somebody
    /// who has not flushed it, so it counts as touched.
    fn present(&self, hash: &Hash, bytes: u64, kind: Kind) -> Option<u64> {
        if kind == Kind::Payload
            && let Some(disk_bytes) = locked(&self.there).get(hash)
        {
            return Some(*disk_bytes);
        }
        let (header, file_bytes) = self.store.header(hash).ok()?;
        if header.raw_bytes != bytes || (kind == Kind::Manifest && header.kind != Kind::Manifest) {
            return None;
        }
        locked(&self.store.inner.unsynced).extend(self.names_in(self.store.object_path(hash).parent()?));
        Some(file_bytes)
    }

    /// Where a name in a folder of objects stands: in it, and it in the one above.
    fn names_in(&self, folder: &Path) -> [PathBuf; 2] {
        [folder.to_owned(), self.store.path("objects")]
    }

    /// Makes all that was put durable, and brings `also` to the medium.
    pub(crate) fn sync(&self, also: Option<&Temp>) -> Result<()> {
        self.settle(also)?;
        // Also what other writers of this process moved in: it may be what this one found. Held, so that nobody reports what another one is
        // still at.
        let mut folders = locked(&self.store.inner.unsynced);
        together(FLUSHERS, folders.iter().collect(), |folder: &PathBuf| self.store.sync_folder(folder))?;
        folders.clear();
        Ok(())
    }

    /// As [`sync`](Writer::sync), while the index takes up commits; they need not be in their places yet.
    pub(crate) fn sync_and_list(&self, also: Option<&Temp>, commits: &[(Hash, Manifest)]) -> Result<()> {
        let list = || match commits {
            [] => Ok(()),
            _ => self.store.with_index(&mut |db| crate::index::insert(db, commits)),
        };
        std::thread::scope(|scope| {
            let listed = scope.spawn(list);
            let synced = self.sync(also);
            synced.and(listed.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })
    }

    /// Stores a manifest without naming it. Refuses one that is not sound or names an object that is not here.
    pub(crate) fn put_manifest(&self, manifest: &Manifest) -> Result<Hash> {
        manifest.check()?;
        let bytes = manifest.to_bytes()?;
        if bytes.len() as u64 > MAX_MANIFEST_BYTES {
            let expected = format!("at most {MAX_MANIFEST_BYTES}");
            return Err(Error::refused("a manifest", format!("{} bytes", bytes.len()), expected));
        }
        manifest.objects().try_for_each(|object| self.look(object))?;
        Ok(self.put_kind(&[&bytes], Kind::Manifest)?.hash)
    }

    /// Stores `manifest` and makes it the head of `name`, if `name` points where the caller expects. The manifest's `parent` is to be
    /// that head, or history would be lost.
    ///
    /// # Errors
    /// [`Error::Moved`] if the name points elsewhere (nothing is changed), [`Error::Missing`] if the manifest names an object or a
    /// parent that is not here, [`Error::Refused`] for a name or a manifest that is not sound.
    pub fn commit(&self, name: &str, expect: Expect, manifest: &Manifest) -> Result<Hash> {
        check_name(name)?;
        if let Expect::Head(head) = expect
            && manifest.parent != Some(head)
        {
            let found = manifest.parent.map_or("none".into(), |p| p.to_string());
            return Err(Error::refused("the parent of a commit", found, format!("the head it follows, {head}")));
        }
        expected(name, expect, self.store.head(name)?)?;
        if let Some(parent) = &manifest.parent {
            self.store.header(parent)?;
        }
        let hash = self.put_manifest(manifest)?;
        self.publish(name, expect, &hash, &[(hash, manifest.clone())])?;
        Ok(hash)
    }

    /// Moves a name to a commit, once all that was put is durable and the index has taken up `commits`. A kill in between leaves rows for
    /// states that are there, rather than states that are never found.
    pub(crate) fn publish(&self, name: &str, expect: Expect, head: &Hash, commits: &[(Hash, Manifest)]) -> Result<()> {
        let reference = self.store.write_temp(&[refs::render_ref(name, head).as_bytes()])?;
        self.sync_and_list(Some(&reference), commits)?;
        let path = self.store.path("refs").join(name);
        let _refs = self.store.lock_refs()?;
        expected(name, expect, self.store.head(name)?)?;
        if self.store.tag_target(name)?.is_some() {
            return Err(Error::refused("a name of a state", format!("'{name}', which is a tag"), "another name"));
        }
        self.store.make_room(&path)?;
        reference.move_to(&path)?;
        self.store.sync_folder(path.parent().unwrap_or(&path))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // What cannot be made durable was not reported as written.
        let _ = self.sync(None);
    }
}

impl Store {
    /// Folders for a ref, unless a shorter name stands in the way or longer ones do.
    pub(crate) fn make_room(&self, path: &std::path::Path) -> Result<()> {
        let inside = |p: &std::path::Path| p.starts_with(self.place());
        if let Some(file) = path.ancestors().skip(1).filter(|p| inside(p)).find(|p| p.is_file()) {
            let found = format!("'{}', which is a state itself", file.display());
            return Err(Error::refused("a name of a state", found, "a name that is no folder of this one"));
        }
        if path.is_dir() {
            // Left by a name that was removed; a folder that holds one stays, and is refused below.
            let _ = std::fs::remove_dir(path);
        }
        if path.is_dir() {
            let found = format!("'{}', which is a folder of states", path.display());
            return Err(Error::refused("a name of a state", found, "a name that is not the start of others"));
        }
        self.grow_folder(path.parent().unwrap_or(path))
    }
}

/// Checks a compare-and-swap.
pub(crate) fn expected(name: &str, expect: Expect, found: Option<Hash>) -> Result<()> {
    let said = match (expect, found) {
        (Expect::Any, _) | (Expect::Absent, None) => return Ok(()),
        (Expect::Head(head), Some(found)) if head == found => return Ok(()),
        (Expect::Absent, _) => "no such name".to_owned(),
        (Expect::Head(head), _) => head.to_string(),
    };
    let found = found.map_or("no such name".to_owned(), |h| h.to_string());
    Err(Error::Moved { name: name.to_owned(), found, expected: said })
}
