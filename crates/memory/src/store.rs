//! The store as a folder: where things lie, how they are read, who may change them when. A read is verified against its name, so
//! that torn or decayed bytes never leave this room.

use std::collections::BTreeSet;
use std::fs::{File, TryLockError};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::disk::{Disk, RealDisk, private};
use crate::error::{Error, Result};
use crate::hash::Hash;
use crate::manifest::{MAX_MANIFEST_BYTES, Manifest};
use crate::object::{self, Codec, HEADER_BYTES, Header};
use crate::refs::{self, MAX_REF_BYTES, TagTarget};

/// First line of the file `format`.
const FORMAT: &str = "reverie-store 2\n";
/// What lies in a store.
pub(crate) const OURS: [&str; 12] = [
    "damaged",
    "format",
    "index.lock",
    "index.new",
    "index.redb",
    "lock",
    "objects",
    "refs",
    "refs.lock",
    "shallow",
    "tags",
    "tmp",
];
/// How long a lock is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// A place for states. Cheap to clone; every clone is the same store.
#[derive(Clone, Debug)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) place: PathBuf,
    pub(crate) disk: Arc<dyn Disk>,
    /// One at a time per process at the index; other processes wait at its lock file.
    pub(crate) index: Mutex<()>,
    /// Folders of objects with names that are not durable yet.
    pub(crate) unsynced: Mutex<BTreeSet<PathBuf>>,
    notices: Mutex<Vec<String>>,
    next_temp: AtomicU64,
}

/// The lock on the whole store, until dropped.
#[derive(Debug)]
pub(crate) struct StoreLock {
    _file: File,
}

/// A file in `tmp`, on its way to its place. One that is dropped before it got there is removed.
#[derive(Debug)]
pub(crate) struct Temp {
    store: Store,
    path: PathBuf,
    file: File,
    bytes: u64,
    moved: bool,
}

impl Temp {
    /// Brings its bytes to the medium.
    pub(crate) fn flush(&self) -> Result<()> {
        let store = &self.store;
        store.disk().flush(&self.file).map_err(|e| store.not_written("flush", &self.path, self.bytes)(e))
    }

    /// Gives it its name, once it is flushed.
    pub(crate) fn move_to(mut self, path: &Path) -> Result<()> {
        self.store.disk().rename(&self.path, path).map_err(Error::io("create", path))?;
        self.moved = true;
        Ok(())
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        if !self.moved {
            // What cannot be removed either is a leftover that gc and fsck know.
            let _ = self.store.disk().remove(&self.path);
        }
    }
}

/// How a lock is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    Shared,
    Exclusive,
}

impl Store {
    /// Opens the local store at `place`, and creates it if there is none.
    pub fn open(place: &Path) -> Result<Store> {
        Store::open_on(place, Arc::new(RealDisk))
    }

    /// As [`open`](Store::open), with every change going through `disk`.
    pub fn open_on(place: &Path, disk: Arc<dyn Disk>) -> Result<Store> {
        let inner = Inner {
            place: place.to_owned(),
            disk,
            index: Mutex::new(()),
            unsynced: Mutex::default(),
            notices: Mutex::default(),
            next_temp: AtomicU64::new(0),
        };
        let store = Store { inner: Arc::new(inner) };
        store.prepare()?;
        Ok(store)
    }

    /// Where states lie unless told otherwise: `store` below `REVERIE_HOME`, else below `reverie` in the user's data folder
    /// (`XDG_DATA_HOME`, else `~/.local/share`).
    pub fn home() -> Result<PathBuf> {
        let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        if let Some(home) = set("REVERIE_HOME") {
            return Ok(home.join("store"));
        }
        let data = set("XDG_DATA_HOME").filter(|p| p.is_absolute());
        let data = data.or_else(|| Some(set("HOME").or_else(|| set("USERPROFILE"))?.join(".local/share")));
        let none = || Error::refused("the home of states", "no REVERIE_HOME, XDG_DATA_HOME or HOME", "one of them set");
        Ok(data.ok_or_else(none)?.join("reverie").join("store"))
    }

    /// The folder.
    pub fn place(&self) -> &Path {
        &self.inner.place
    }

    fn prepare(&self) -> Result<()> {
        let format = self.path("format");
        match std::fs::read(&format) {
            Ok(found) if found == FORMAT.as_bytes() => return Ok(()),
            Ok(found) => {
                let found = format!("'{}'", crate::error::excerpt(&String::from_utf8_lossy(&found)));
                let expected = format!(
                    "'{}', which this release reads; for others take the release of reverie that wrote them",
                    FORMAT.trim_end()
                );
                return Err(Error::refused(format.display().to_string(), found, expected));
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io("read", &format)(e)),
        }
        let strangers = std::fs::read_dir(self.place()).ok().into_iter().flatten().filter_map(std::result::Result::ok);
        if let Some(other) = strangers.map(|e| e.file_name()).find(|n| !OURS.iter().any(|o| n == o)) {
            let found = format!("'{}' and no file 'format'", other.to_string_lossy());
            return Err(Error::refused(self.place().display().to_string(), found, "a store, an empty folder, or none"));
        }
        for folder in ["", "tmp", "objects", "refs", "tags", "shallow"] {
            let path = self.path(folder);
            self.disk().create_folder(&path).map_err(Error::io("create", &path))?;
        }
        self.replace(&format, FORMAT.as_bytes())
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        if below.is_empty() { self.inner.place.clone() } else { self.inner.place.join(below) }
    }

    pub(crate) fn disk(&self) -> &dyn Disk {
        &*self.inner.disk
    }

    /// Where an object lies: two digits of folder, sixty-two of file.
    pub fn object_path(&self, object: &Hash) -> PathBuf {
        let name = object.to_string();
        let (folder, file) = name.split_at(2);
        self.path("objects").join(folder).join(file)
    }

    /// A fresh name for a file in the making. Whatever lies in `tmp` while nobody writes is a leftover.
    pub(crate) fn temp_path(&self) -> PathBuf {
        let n = self.inner.next_temp.fetch_add(1, Ordering::Relaxed);
        let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos());
        let here = std::ptr::from_ref(&*self.inner).addr();
        self.path("tmp").join(format!("{}-{time:x}-{here:x}-{n}", std::process::id()))
    }

    /// Puts `bytes` at `path`, whole and durable, or not at all.
    pub(crate) fn replace(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let temp = self.write_temp(&[bytes])?;
        temp.flush()?;
        temp.move_to(path)?;
        self.sync_folder(path.parent().unwrap_or(path))
    }

    /// A new file in `tmp`.
    pub(crate) fn write_temp(&self, parts: &[&[u8]]) -> Result<Temp> {
        let (path, bytes) = (self.temp_path(), parts.iter().map(|p| p.len() as u64).sum());
        match self.disk().write_new(&path, parts) {
            Ok(file) => Ok(Temp { store: self.clone(), path, file, bytes, moved: false }),
            Err(e) => {
                let _ = self.disk().remove(&path);
                Err(self.not_written("write", &path, bytes)(e))
            }
        }
    }

    fn not_written(&self, verb: &'static str, path: &Path, needed: u64) -> impl FnOnce(std::io::Error) -> Error {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        move |e| match e.kind() {
            StorageFull | QuotaExceeded => Error::Full { place: self.inner.place.clone(), needed },
            _ => Error::io(verb, path)(e),
        }
    }

    /// Makes the names in a folder durable.
    pub(crate) fn sync_folder(&self, folder: &Path) -> Result<()> {
        match self.disk().sync_folder(folder) {
            // One that is gone has no names.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            done => done.map_err(Error::io("flush", folder)),
        }
    }

    /// Creates folders from the store down to `folder`, each durable in the one above.
    pub(crate) fn grow_folder(&self, folder: &Path) -> Result<()> {
        if folder.is_dir() {
            return Ok(());
        }
        if let Some(above) = folder.parent().filter(|p| p.starts_with(self.place())) {
            self.grow_folder(above)?;
            self.disk().create_folder(folder).map_err(Error::io("create", folder))?;
            self.sync_folder(above)?;
        }
        Ok(())
    }

    /// Something the user should hear: that an index was rebuilt, say.
    pub(crate) fn notice(&self, text: String) {
        if let Ok(mut notices) = self.inner.notices.lock() {
            notices.push(text);
        }
    }

    /// What happened beside the point since the last call, in words for the user.
    pub fn notices(&self) -> Vec<String> {
        self.inner.notices.lock().map(|mut n| std::mem::take(&mut *n)).unwrap_or_default()
    }

    /// The store's lock: writers share it, gc and repair have it alone.
    pub(crate) fn lock(&self, hold: Hold) -> Result<StoreLock> {
        let holder = match hold {
            Hold::Shared => "another process collects or repairs",
            Hold::Exclusive => "another process, or a writer of this one, is writing",
        };
        self.lock_file("lock", hold, holder)
    }

    /// The lock under which refs change: held for the length of one change.
    pub(crate) fn lock_refs(&self) -> Result<StoreLock> {
        self.lock_file("refs.lock", Hold::Exclusive, "another process changes a name")
    }

    pub(crate) fn lock_file(&self, name: &str, hold: Hold, holder: &'static str) -> Result<StoreLock> {
        let path = self.path(name);
        let file = private()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(Error::io("open", &path))?;
        let since = Instant::now();
        loop {
            let tried = match hold {
                Hold::Shared => file.try_lock_shared(),
                Hold::Exclusive => file.try_lock(),
            };
            match tried {
                Ok(()) => return Ok(StoreLock { _file: file }),
                Err(TryLockError::Error(e)) => return Err(Error::io("lock", &path)(e)),
                Err(TryLockError::WouldBlock) if since.elapsed() > PATIENCE => {
                    return Err(Error::Busy { place: self.inner.place.clone(), holder, waited_s: PATIENCE.as_secs() });
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }

    pub(crate) fn open_object(&self, object: &Hash) -> Result<(File, u64)> {
        let path = self.object_path(object);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(Error::no_object(object, self.place())),
            Err(e) => return Err(Error::io("open", &path)(e)),
        };
        let meta = file.metadata().map_err(Error::io("examine", &path))?;
        Ok((file, meta.len()))
    }

    /// The header of an object and the length of its file, without reading the body.
    pub fn header(&self, object: &Hash) -> Result<(Header, u64)> {
        let (mut file, file_bytes) = self.open_object(object)?;
        Ok((object::read_header(object, &mut file, file_bytes)?, file_bytes))
    }

    /// The file of an object of `bytes` bytes that lie in it as they are, and where they begin: for whoever maps it. None where they
    /// are compressed, or not as many. Such a file is never written again; it may be removed or replaced, which a
    /// mapping outlives. What is mapped is nothing to rely on before [`prove`](Store::prove) has seen it.
    pub fn raw_file(&self, object: &Hash, bytes: u64) -> Result<Option<(File, u64)>> {
        let (mut file, file_bytes) = self.open_object(object)?;
        let header = object::read_header(object, &mut file, file_bytes)?;
        let raw = header.codec == Codec::Raw && header.raw_bytes == bytes;
        Ok(raw.then_some((file, HEADER_BYTES as u64)))
    }

    /// Refuses bytes that are not the object's.
    pub fn prove(&self, object: &Hash, parts: &[&[u8]]) -> Result<()> {
        let found = object::hash_parts(parts);
        if found == *object {
            return Ok(());
        }
        let found = format!("content with the hash {found}");
        Err(Error::damaged(format!("object {object}"), found, object.to_string()))
    }

    /// Reads an object into buffers whose total length is the object's, without another copy. On an error the buffers hold nothing to
    /// rely on. May be called from many threads.
    pub fn read_into(&self, object: &Hash, into: &mut [&mut [u8]]) -> Result<()> {
        let (mut file, file_bytes) = self.open_object(object)?;
        object::decode_into(object, &mut file, file_bytes, into)
    }

    /// An object's bytes. Memory grows with what is really there, never with what a header claims.
    pub fn get(&self, object: &Hash) -> Result<Vec<u8>> {
        let (mut file, file_bytes) = self.open_object(object)?;
        let mut out = Vec::new();
        object::decode(object, &mut file, file_bytes, &mut |piece| out.extend_from_slice(piece))?;
        Ok(out)
    }

    /// Bytes that an object takes on the disk, header included.
    pub fn disk_bytes(&self, object: &Hash) -> Result<u64> {
        Ok(self.open_object(object)?.1)
    }

    /// A manifest, verified and checked.
    pub fn manifest(&self, manifest: &Hash) -> Result<Manifest> {
        let (header, _) = self.header(manifest)?;
        if header.raw_bytes > MAX_MANIFEST_BYTES {
            let expected = format!("at most {MAX_MANIFEST_BYTES}");
            return Err(Error::refused(
                format!("manifest {manifest}"),
                format!("{} bytes", header.raw_bytes),
                expected,
            ));
        }
        Manifest::parse(&self.get(manifest)?)
    }

    /// The head of a name, or None.
    pub fn head(&self, name: &str) -> Result<Option<Hash>> {
        crate::name::check_name(name)?;
        self.read_ref_file("refs", name)?.map(|bytes| refs::parse_ref(name, &bytes)).transpose()
    }

    pub(crate) fn tag_target(&self, label: &str) -> Result<Option<TagTarget>> {
        crate::name::check_name(label)?;
        self.read_ref_file("tags", label)?.map(|bytes| refs::parse_tag(label, &bytes)).transpose()
    }

    fn read_ref_file(&self, folder: &str, name: &str) -> Result<Option<Vec<u8>>> {
        let path = self.path(folder).join(name);
        let mut bytes = Vec::new();
        match File::open(&path).and_then(|f| f.take(MAX_REF_BYTES as u64).read_to_end(&mut bytes)) {
            Ok(_) => Ok(Some(bytes)),
            Err(e) if absent(&e) => Ok(None),
            Err(e) => Err(Error::io("read", &path)(e)),
        }
    }

    /// All names below a folder of refs, ascending.
    pub(crate) fn names(&self, folder: &str) -> Result<Vec<String>> {
        let root = self.path(folder);
        let (mut found, mut open) = (Vec::new(), vec![root.clone()]);
        while let Some(folder) = open.pop() {
            for entry in std::fs::read_dir(&folder).map_err(Error::io("list", &folder))? {
                let path = entry.map_err(Error::io("list", &folder))?.path();
                if path.is_dir() {
                    open.push(path);
                } else if let Some(name) = path.strip_prefix(&root).ok().and_then(Path::to_str) {
                    found.push(name.replace('\\', "/"));
                }
            }
        }
        found.sort();
        Ok(found)
    }

    /// True where the parent of this manifest was let go on purpose, by gc or by an export without history.
    pub(crate) fn is_shallow(&self, manifest: &Hash) -> bool {
        self.path("shallow").join(manifest.to_string()).exists()
    }
}

/// True for "not there", also where a parent of the path is a file or the path is a folder of longer names.
fn absent(e: &std::io::Error) -> bool {
    use std::io::ErrorKind::{IsADirectory, NotADirectory, NotFound};
    matches!(e.kind(), NotFound | NotADirectory | IsADirectory)
}
