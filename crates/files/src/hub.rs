//! Models by name: fetches `owner/name` from a Hugging Face hub into the ordinary Hugging Face cache, and finds it there.
//! What other tools downloaded is used, and what is downloaded here is found by them. Ends at paths on disk: what the
//! files contain is read elsewhere. Blocking, on one thread, with progress by callback.

mod cache;
mod client;
mod config;
mod download;
mod error;
mod id;
mod select;

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

pub use config::{DEFAULT_ENDPOINT, HubConfig, Patience, Token};
pub use error::HubError;
pub use id::{HubId, parse_model_id};

use cache::{Placed, RepoCache};
use client::{Client, RemoteFile};
use download::News;
use select::{Choice, Weights};

/// How far a fetch has come. Bytes and files are those of the whole fetch and include what the cache held already.
#[derive(Clone, Debug)]
pub struct Progress<'a> {
    /// The file at hand; empty before the first.
    pub file: &'a str,
    /// Bytes on this disk.
    pub done_bytes: u64,
    /// Bytes in all; grows once, when the small files have told which weights there are.
    pub total_bytes: u64,
    /// Files that are whole and in their place.
    pub files_done: usize,
    /// Files in all; grows together with `total_bytes`.
    pub files_total: usize,
    /// Something the user must be told, in words by its `Display`.
    pub notice: Option<Notice>,
}

/// What happened beside the plain course of things.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// The hub cannot be reached, and the cache holds the model: that copy is used, however old.
    CacheOnly {
        /// Why the hub cannot be reached.
        reason: String,
    },
    /// A passing failure; the same is tried again after a wait.
    Retry {
        /// What failed.
        reason: String,
        /// How long until the next try.
        wait: Duration,
    },
    /// What had arrived of a file cannot be used.
    Restart {
        /// File in the repository.
        file: String,
        /// Why it starts over.
        reason: &'static str,
    },
    /// Another process downloads this file; its end is awaited.
    OtherDownload {
        /// File in the repository.
        file: String,
    },
    /// The file system has no locks, so that two downloads of one model would spoil each other.
    NoLocks {
        /// The cache.
        folder: PathBuf,
    },
    /// The file system has no symbolic links; the file lies in the snapshot itself and is shared by no other.
    NoLinks {
        /// File in the repository.
        file: String,
    },
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CacheOnly { reason } => {
                write!(f, "the hub cannot be reached ({reason}); using the copy in the cache, which may be out of date")
            }
            Self::Retry { reason, wait } => write!(f, "{reason}; trying again in {:.1} s", wait.as_secs_f32()),
            Self::Restart { file, reason } => write!(f, "{file}: {reason}; starting over"),
            Self::OtherDownload { file } => write!(f, "{file}: waiting for another download of it to end"),
            Self::NoLocks { folder } => {
                write!(f, "{} cannot be locked: do not download this model twice at once", folder.display())
            }
            Self::NoLinks { file } => {
                write!(f, "{file}: stored without a symbolic link, which this disk does not have")
            }
        }
    }
}

const GO_ONLINE: &str = "unset HF_HUB_OFFLINE to download it";
const FETCH_AGAIN: &str = "run the same again to complete it";

/// Makes the model lie on this disk, downloading what is missing, and returns where: the snapshot folder of a
/// checkpoint, or the path of a GGUF.
///
/// The hub is asked for the commit each time; files that the cache holds for that commit are not asked for again. Bytes
/// of a broken download are kept and taken up. Sizes are checked for every file, SHA-256 for those that the hub stores as
/// large files, git's SHA-1 for the others. If the hub cannot be reached and the cache holds the model, that copy is used
/// and [`Notice::CacheOnly`] says so; a hub that answers no is an error all the same.
///
/// # Errors
/// [`HubError`], with what to do.
pub fn fetch(id: &HubId, config: &HubConfig, on_progress: &mut dyn FnMut(Progress<'_>)) -> Result<PathBuf, HubError> {
    let cache = RepoCache::new(&config.cache_dir, id);
    if config.offline {
        return cache.find(id, GO_ONLINE);
    }
    let client = Client::new(config, id)?;
    let mut ledger = Ledger { on_progress, done_bytes: 0, total_bytes: 0, files_done: 0, files_total: 0 };

    let held = cache.find(id, FETCH_AGAIN).ok();
    let url = client.listing_url();
    let mut trial = client.trial(&url);
    if held.is_some() {
        // With a copy at hand there is nothing to be patient for.
        trial = trial.at_most(1);
    }
    let listed = trial.run(&mut |notice| ledger.tell("", 0, Some(notice)), &mut || client.list());
    let listing = match (listed, held) {
        (Err(HubError::Unreachable { reason, .. }), Some(path)) => {
            ledger.tell("", 0, Some(Notice::CacheOnly { reason }));
            return Ok(path);
        }
        (listed, _) => listed?,
    };

    let mut order = Order { client: &client, cache: &cache, commit: &listing.commit, ledger };
    let snapshot = cache.snapshot(&listing.commit);
    let path = match select::choose(&id.repository(), &listing.names, id.file.as_deref())? {
        Choice::Gguf(file) => {
            order.bring(std::slice::from_ref(&file))?;
            snapshot.join(file)
        }
        Choice::Checkpoint { mut beside, weights: Weights::Listed(files) } => {
            beside.extend(files);
            order.bring(&beside)?;
            snapshot
        }
        Choice::Checkpoint { mut beside, weights: Weights::Indexed } => {
            beside.push(select::INDEX.to_owned());
            order.bring(&beside)?;
            let index = snapshot.join(select::INDEX);
            let text = fs::read(&index).map_err(HubError::io(&index))?;
            order.bring(&select::indexed_shards(&id.repository(), &text, &listing.names)?)?;
            snapshot
        }
    };
    // Last, so that the name never stands at a commit that is not whole.
    cache.write_ref(id.revision(), &listing.commit)?;
    Ok(path)
}

/// The sums that progress is told in.
struct Ledger<'a> {
    on_progress: &'a mut dyn FnMut(Progress<'_>),
    done_bytes: u64,
    total_bytes: u64,
    files_done: usize,
    files_total: usize,
}

impl Ledger<'_> {
    /// `file_bytes` are those of `file` that are here, beyond the files that are done.
    fn tell(&mut self, file: &str, file_bytes: u64, notice: Option<Notice>) {
        (self.on_progress)(Progress {
            file,
            done_bytes: self.done_bytes + file_bytes,
            total_bytes: self.total_bytes,
            files_done: self.files_done,
            files_total: self.files_total,
            notice,
        });
    }
}

/// One commit of one repository, being brought into the cache.
struct Order<'a> {
    client: &'a Client<'a>,
    cache: &'a RepoCache,
    commit: &'a str,
    ledger: Ledger<'a>,
}

impl Order<'_> {
    /// Brings these files in this order, after asking for the sizes of those that are missing.
    fn bring(&mut self, names: &[String]) -> Result<(), HubError> {
        self.ledger.files_total += names.len();
        let mut missing = Vec::new();
        for name in names {
            if let Some(held_bytes) = self.cache.held_bytes(self.commit, name) {
                self.ledger.files_done += 1;
                self.ledger.done_bytes += held_bytes;
                self.ledger.total_bytes += held_bytes;
            } else {
                let file = self.describe(name)?;
                self.ledger.total_bytes += file.size_bytes.unwrap_or_default();
                missing.push(file);
            }
        }
        self.ledger.tell("", 0, None);
        missing.iter().try_for_each(|file| self.bring_one(file))
    }

    fn describe(&mut self, name: &str) -> Result<RemoteFile, HubError> {
        let Self { client, ledger, commit, .. } = self;
        let url = client.file_url(commit, name);
        let notify = &mut |notice| ledger.tell(name, 0, Some(notice));
        client.trial(&url).run(notify, &mut || client.describe(commit, name))
    }

    fn bring_one(&mut self, file: &RemoteFile) -> Result<(), HubError> {
        let Self { client, cache, commit, ledger } = self;
        let mut here_bytes = 0;
        download::bring(client, cache, file, &mut |news| match news {
            News::Bytes(file_bytes) => {
                here_bytes = file_bytes;
                ledger.tell(&file.name, file_bytes, None);
            }
            News::Notice(notice) => ledger.tell(&file.name, here_bytes, Some(notice)),
        })?;
        let placed = cache.place(commit, &file.name, &file.etag)?;
        let bytes = cache.held_bytes(commit, &file.name).unwrap_or_default();
        ledger.files_done += 1;
        ledger.done_bytes += bytes;
        ledger.total_bytes += bytes.saturating_sub(file.size_bytes.unwrap_or_default());
        let notice = (placed == Placed::Moved).then(|| Notice::NoLinks { file: file.name.clone() });
        ledger.tell(&file.name, 0, notice);
        Ok(())
    }
}
