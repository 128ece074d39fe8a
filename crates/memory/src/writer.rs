//! Putting objects and moving heads. What is reported as written is durable; what is interrupted leaves a file in `tmp` or an object
//! that nothing names, never a torn one and never a name that points at less than a whole state.

use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};
use crate::hash::Hash;
use crate::manifest::{MAX_MANIFEST_BYTES, Manifest};
use crate::name::check_name;
use crate::object::{self, Kind, MAX_OBJECT_BYTES};
use crate::refs;
use crate::store::{Hold, Store, StoreLock};

/// Writes into a store. While it lives, nothing it put can be swept. Shared by threads.
#[derive(Debug)]
pub struct Writer {
    store: Store,
    /// Folders with names that are not durable yet.
    unsynced: Mutex<BTreeSet<PathBuf>>,
    /// Objects that were found or put: while the writer lives, they stay.
    there: Mutex<HashSet<Hash>>,
    _lock: StoreLock,
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
            unsynced: Mutex::default(),
            there: Mutex::default(),
        })
    }
}

/// A set behind its lock. A poisoned one: a thread died between two inserts, which leaves the set whole.
fn locked<T>(set: &Mutex<T>) -> MutexGuard<'_, T> {
    set.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Writer {
    /// The store it writes to.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Stores the bytes of `parts` in a row as one object, unless it is there. Durable with the next commit. From many threads.
    pub fn put(&self, parts: &[&[u8]]) -> Result<Put> {
        let bytes: u64 = parts.iter().map(|p| p.len() as u64).sum();
        if bytes > MAX_OBJECT_BYTES {
            return Err(Error::refused("an object", format!("{bytes} bytes"), format!("at most {MAX_OBJECT_BYTES}")));
        }
        self.put_kind(parts, Kind::Payload)
    }

    pub(crate) fn put_kind(&self, parts: &[&[u8]], kind: Kind) -> Result<Put> {
        let hash = object::hash_parts(parts);
        let bytes = parts.iter().map(|p| p.len() as u64).sum();
        if let Some(disk_bytes) = self.present(&hash, bytes, kind) {
            locked(&self.there).insert(hash);
            return Ok(Put { hash, bytes, new: false, disk_bytes });
        }
        let place = self.store.place();
        let encoded = object::encode(parts, kind).map_err(Error::io("compress for", place))?;
        let mut pieces = vec![encoded.header.as_slice()];
        match &encoded.body {
            Some(body) => pieces.push(body),
            None => pieces.extend_from_slice(parts),
        }
        let disk_bytes = pieces.iter().map(|p| p.len() as u64).sum();
        self.put_file(&hash, &pieces)?;
        Ok(Put { hash, bytes, new: true, disk_bytes })
    }

    /// Writes the file of an object that has been proved to be `hash`.
    pub(crate) fn put_file(&self, hash: &Hash, pieces: &[&[u8]]) -> Result<()> {
        let path = self.store.object_path(hash);
        let folder = path.parent().unwrap_or(&path);
        self.store.grow_folder(folder)?;
        let temp = self.store.temp_path();
        self.store.write_temp(&temp, pieces)?;
        self.store.move_in(&temp, &path)?;
        self.touch(folder.to_owned());
        locked(&self.there).insert(*hash);
        Ok(())
    }

    /// True if the object is here; its content is verified when it is read.
    pub fn has(&self, object: &Hash) -> bool {
        self.look(object).is_ok()
    }

    /// As [`has`](Writer::has), with the reason; each object is looked at once.
    fn look(&self, object: &Hash) -> Result<()> {
        if locked(&self.there).contains(object) {
            return Ok(());
        }
        self.store.header(object)?;
        locked(&self.there).insert(*object);
        Ok(())
    }

    /// The length of the object's file, if one lies there that can be it. Its folder may have been made by somebody who has not
    /// flushed it, so it counts as touched.
    fn present(&self, hash: &Hash, bytes: u64, kind: Kind) -> Option<u64> {
        let (header, file_bytes) = self.store.header(hash).ok()?;
        if header.raw_bytes != bytes || (kind == Kind::Manifest && header.kind != Kind::Manifest) {
            return None;
        }
        self.touch(self.store.object_path(hash).parent()?.to_owned());
        Some(file_bytes)
    }

    fn touch(&self, folder: PathBuf) {
        locked(&self.unsynced).insert(folder);
    }

    /// Makes all that was put durable.
    pub(crate) fn sync(&self) -> Result<()> {
        let folders = std::mem::take(&mut *locked(&self.unsynced));
        folders.iter().try_for_each(|f| self.store.disk().sync_folder(f).map_err(Error::io("flush", f)))
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
        // Before the name: a kill in between leaves a row for a state that is there, rather than a state that is never found.
        let row = [(hash, manifest.clone())];
        self.store.with_index(&mut |db| crate::index::insert(db, &row))?;
        self.point(name, expect, &hash)?;
        Ok(hash)
    }

    /// Moves a name to a commit that is stored.
    pub(crate) fn point(&self, name: &str, expect: Expect, head: &Hash) -> Result<()> {
        self.sync()?;
        let path = self.store.path("refs").join(name);
        let _refs = self.store.lock_refs()?;
        expected(name, expect, self.store.head(name)?)?;
        if self.store.tag_target(name)?.is_some() {
            return Err(Error::refused("a name of a state", format!("'{name}', which is a tag"), "another name"));
        }
        self.store.make_room(&path)?;
        self.store.replace(&path, refs::render_ref(name, head).as_bytes())
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
