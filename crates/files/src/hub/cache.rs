//! The Hugging Face cache on disk: `models--owner--name/{blobs,refs,snapshots}`, as the Python tools lay it out and lock it.
//! Knows folders, links and locks; opens no connection and asks nobody what a repository should hold.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::id::is_safe_path;
use super::select::{self, Choice, Weights};
use super::{HubError, HubId};

/// Deepest folder below a snapshot that is searched for files.
const MAX_DEPTH: usize = 4;
/// How often a lock held by another process is tried again.
const LOCK_POLL: Duration = Duration::from_millis(100);

/// One repository's part of the cache.
pub(super) struct RepoCache {
    root: PathBuf,
    folder: PathBuf,
    folder_name: String,
}

/// How a file of a snapshot was put in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Placed {
    /// As a link to the blob, or it was there already.
    Linked,
    /// The blob itself was moved, since the disk knows no symbolic links.
    Moved,
}

/// What waiting for a lock is told to do, again and again.
pub(super) type WhileWaiting<'a> = &'a mut dyn FnMut();

/// The outcome of asking for a lock.
pub(super) enum Lock {
    /// Ours until dropped.
    Held(#[expect(dead_code, reason = "dropping the file releases the lock")] File),
    /// The file system has no locks.
    Unsupported,
}

impl RepoCache {
    pub(super) fn new(root: &Path, id: &HubId) -> Self {
        let folder_name = format!("models--{}--{}", id.owner, id.name);
        Self { root: root.to_owned(), folder: root.join(&folder_name), folder_name }
    }

    /// The cache folder that holds every repository.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Where the content with this ETag belongs.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    /// Where that content gathers until it is whole.
    pub(super) fn incomplete(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(format!("{etag}.incomplete"))
    }

    /// The folder of one commit.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// Length in bytes of a file of a snapshot, `None` where it is not there (a dangling link is not there).
    pub(super) fn held_bytes(&self, commit: &str, name: &str) -> Option<u64> {
        fs::metadata(self.snapshot(commit).join(name)).ok().filter(fs::Metadata::is_file).map(|meta| meta.len())
    }

    /// Takes the lock of one blob, the same one that `huggingface_hub` takes.
    pub(super) fn lock(&self, etag: &str, waiting: WhileWaiting<'_>) -> Result<Lock, HubError> {
        let dir = self.root.join(".locks").join(&self.folder_name);
        make_folder(&dir)?;
        make_folder(&self.folder.join("blobs"))?;
        let path = dir.join(format!("{etag}.lock"));
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(HubError::io(&path))?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Lock::Held(file)),
                Err(TryLockError::WouldBlock) => {
                    waiting();
                    std::thread::sleep(LOCK_POLL);
                }
                Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                    return Ok(Lock::Unsupported);
                }
                Err(TryLockError::Error(error)) => return Err(HubError::io(&path)(error)),
            }
        }
    }

    /// Makes a file of a snapshot point at its blob, by a relative link, so that the cache may be moved.
    pub(super) fn place(&self, commit: &str, name: &str, etag: &str) -> Result<Placed, HubError> {
        if !is_safe_path(name) {
            return Err(HubError::HostileName { id: self.folder_name.clone(), name: name.to_owned() });
        }
        let path = self.snapshot(commit).join(name);
        if let Some(dir) = path.parent() {
            make_folder(dir)?;
        }
        let up = "../".repeat(2 + name.matches('/').count());
        let target = PathBuf::from(format!("{up}blobs/{etag}"));
        if fs::read_link(&path).is_ok_and(|held| held == target) {
            return Ok(Placed::Linked);
        }
        let fresh = beside(&path);
        match link(&target, &fresh) {
            Ok(()) => {
                fs::rename(&fresh, &path).map_err(HubError::io(&path))?;
                Ok(Placed::Linked)
            }
            Err(_) => {
                fs::rename(self.blob(etag), &path).map_err(HubError::io(&path))?;
                Ok(Placed::Moved)
            }
        }
    }

    /// Notes which commit a branch or tag stands at.
    pub(super) fn write_ref(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        if revision == commit {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        if fs::read_to_string(&path).is_ok_and(|held| held == commit) {
            return Ok(());
        }
        if let Some(dir) = path.parent() {
            make_folder(dir)?;
        }
        let fresh = beside(&path);
        fs::write(&fresh, commit).map_err(HubError::io(&fresh))?;
        fs::rename(&fresh, &path).map_err(HubError::io(&path))
    }

    /// The model as the cache holds it: a snapshot folder, or a GGUF in one; an error says what is missing.
    ///
    /// Whole means: `config.json` and every shard of the weights are there, or the GGUF is. Files that a repository
    /// need not have cannot be missed; they come before the weights, so a broken download does not look whole.
    pub(super) fn find(&self, id: &HubId, remedy: &'static str) -> Result<PathBuf, HubError> {
        let missing =
            |reason: String| HubError::NotCached { id: id.to_string(), cache: self.root.clone(), reason, remedy };
        let commit =
            self.commit(id.revision()).ok_or_else(|| missing(format!("nothing of {} is there", id.revision())))?;
        let snapshot = self.snapshot(&commit);
        let mut names = Vec::new();
        list_files(&snapshot, "", MAX_DEPTH, &mut names);
        let choice = select::choose(&id.repository(), &names, id.file.as_deref()).map_err(|error| match error {
            HubError::NoModel { reason, .. } => missing(reason),
            other => other,
        })?;
        match choice {
            Choice::Gguf(file) => Ok(snapshot.join(file)),
            Choice::Checkpoint { weights: Weights::Listed(_), .. } => Ok(snapshot),
            Choice::Checkpoint { weights: Weights::Indexed, .. } => {
                let path = snapshot.join(select::INDEX);
                let index = fs::read(&path).map_err(HubError::io(&path))?;
                match select::indexed_shards(&id.repository(), &index, &names) {
                    Ok(_) => Ok(snapshot),
                    Err(HubError::NoModel { reason, .. }) => Err(missing(reason)),
                    Err(other) => Err(other),
                }
            }
        }
    }

    fn commit(&self, revision: &str) -> Option<String> {
        let held = fs::read_to_string(self.folder.join("refs").join(revision)).ok();
        let commit = held.map_or_else(|| revision.to_owned(), |text| text.trim().to_owned());
        (is_commit(&commit) && self.snapshot(&commit).is_dir()).then_some(commit)
    }
}

/// A git object name: 40 (or, in SHA-256 repositories, 64) lower-case hexadecimal digits.
pub(super) fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn make_folder(dir: &Path) -> Result<(), HubError> {
    fs::create_dir_all(dir).map_err(HubError::io(dir))
}

/// A name in the same folder that no other process uses.
fn beside(path: &Path) -> PathBuf {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}-{}.tmp", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
    path.with_file_name(name)
}

#[cfg(unix)]
fn link(target: &Path, path: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, path)
}

#[cfg(windows)]
fn link(target: &Path, path: &Path) -> io::Result<()> {
    let target: PathBuf = target.components().collect();
    std::os::windows::fs::symlink_file(target, path)
}

#[cfg(not(any(unix, windows)))]
fn link(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Names of the files below `dir` whose content is there, with slashes, sorted within each folder.
fn list_files(dir: &Path, prefix: &str, depth: usize, names: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    let mut entries: Vec<_> = entries.flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let Some(name) = entry.file_name().to_str().map(|name| format!("{prefix}{name}")) else { continue };
        match fs::metadata(entry.path()) {
            Ok(meta) if meta.is_file() => names.push(name),
            Ok(meta) if meta.is_dir() && depth > 0 => list_files(&entry.path(), &format!("{name}/"), depth - 1, names),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::parse_model_id;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn links_are_relative_at_any_depth_and_replace_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let cache = RepoCache::new(dir.path(), &parse_model_id("o/n").unwrap());
        make_folder(&cache.folder.join("blobs")).unwrap();
        fs::write(cache.blob("e1"), "one").unwrap();
        fs::write(cache.blob("e2"), "two").unwrap();
        for name in ["a.json", "x/y/b.gguf"] {
            for (etag, text) in [("e1", "one"), ("e1", "one"), ("e2", "two")] {
                assert_eq!(cache.place(COMMIT, name, etag).unwrap(), Placed::Linked);
                let path = cache.snapshot(COMMIT).join(name);
                assert_eq!(fs::read_to_string(&path).unwrap(), text);
                assert!(fs::read_link(&path).unwrap().is_relative());
            }
        }
        assert!(matches!(cache.place(COMMIT, "../x", "e1"), Err(HubError::HostileName { .. })));
        let mut names = Vec::new();
        list_files(&cache.snapshot(COMMIT), "", MAX_DEPTH, &mut names);
        assert_eq!(names, ["a.json", "x/y/b.gguf"]);
    }

    #[test]
    fn finds_only_what_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let id = parse_model_id("o/n@refs/pr/1").unwrap();
        let cache = RepoCache::new(dir.path(), &id);
        let reason = |cache: &RepoCache| cache.find(&id, "stop").unwrap_err().to_string();
        assert!(reason(&cache).contains("nothing of refs/pr/1"));
        let snapshot = cache.snapshot(COMMIT);
        make_folder(&snapshot).unwrap();
        cache.write_ref("refs/pr/1", COMMIT).unwrap();
        fs::write(snapshot.join("config.json"), "{}").unwrap();
        assert!(reason(&cache).contains("no weights"));
        fs::write(snapshot.join(select::INDEX), r#"{"weight_map":{"t":"s.safetensors"}}"#).unwrap();
        assert!(reason(&cache).contains("names \"s.safetensors\""));
        #[cfg(unix)]
        {
            link(Path::new("../../blobs/gone"), &snapshot.join("s.safetensors")).unwrap();
            assert!(reason(&cache).contains("names \"s.safetensors\""), "a dangling link is no shard");
            fs::remove_file(snapshot.join("s.safetensors")).unwrap();
        }
        fs::write(snapshot.join("s.safetensors"), "").unwrap();
        assert_eq!(cache.find(&id, "stop").unwrap(), snapshot);
        let by_commit = parse_model_id(&format!("o/n@{COMMIT}")).unwrap();
        assert_eq!(cache.find(&by_commit, "stop").unwrap(), snapshot);
        fs::write(cache.folder.join("refs/refs/pr/1"), "../../..").unwrap();
        assert!(reason(&cache).contains("nothing of"));
    }
}
