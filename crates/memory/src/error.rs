//! What can go wrong between a state and its place. Every message says what was found, what was expected and what to do.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

use crate::hash::Hash;

/// Errors of the store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// No room for what is to be written.
    #[error(
        "{}: no room for {needed} more bytes; nothing that was stored before is touched. \
         Free some space, or let old history go: `reverie state gc --budget …`", place.display()
    )]
    Full {
        /// The store.
        place: PathBuf,
        /// Bytes of the write that failed.
        needed: u64,
    },
    /// Bytes that are not what was written.
    #[error("{what} is damaged: found {found}, expected {expected}. `reverie state fsck` lists all damage")]
    Damaged {
        /// The file, the object, the ref.
        what: String,
        /// What it holds.
        found: String,
        /// What it should hold.
        expected: String,
    },
    /// Something that ought to be there.
    #[error("{what}: not in {place}; {hint}")]
    Missing {
        /// The object or ref.
        what: String,
        /// Where it was looked for.
        place: String,
        /// What to do.
        hint: String,
    },
    /// A name points elsewhere than the caller believed: somebody else wrote in between.
    #[error("'{name}' has moved: found {found}, expected {expected}. Nothing was changed; look again and repeat")]
    Moved {
        /// The name.
        name: String,
        /// Where it points.
        found: String,
        /// Where the caller expected it to point.
        expected: String,
    },
    /// Somebody else holds the store.
    #[error("{}: {holder}; expected to have it within {waited_s} s. Try again when that has ended", place.display())]
    Busy {
        /// The store.
        place: PathBuf,
        /// Who holds it.
        holder: &'static str,
        /// How long was waited.
        waited_s: u64,
    },
    /// An input that is not taken: a name, a manifest, a file.
    #[error("{what}: found {found}, expected {expected}")]
    Refused {
        /// The thing.
        what: String,
        /// What it is.
        found: String,
        /// What would be taken.
        expected: String,
    },
    /// A place elsewhere refused, or could not be reached.
    #[error("{url}: cannot {action}: {reason}")]
    Remote {
        /// The place.
        url: String,
        /// What was being done.
        action: String,
        /// Its answer.
        reason: String,
    },
}

/// Result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Io { action, path: path.to_owned(), source }
    }

    pub(crate) fn refused(what: impl Into<String>, found: impl Display, expected: impl Into<String>) -> Error {
        Error::Refused { what: what.into(), found: found.to_string(), expected: expected.into() }
    }

    pub(crate) fn damaged(what: impl Display, found: impl Display, expected: impl Display) -> Error {
        Error::Damaged { what: what.to_string(), found: found.to_string(), expected: expected.to_string() }
    }

    pub(crate) fn no_object(object: &Hash, place: &Path) -> Error {
        Error::Missing {
            what: format!("object {object}"),
            place: place.display().to_string(),
            hint: "it was removed or never arrived: `reverie state fsck` names the states that need it".into(),
        }
    }

    /// True where bytes are wrong or gone, as opposed to a request that cannot be met.
    pub fn is_damage(&self) -> bool {
        matches!(self, Error::Damaged { .. } | Error::Missing { .. })
    }
}

/// Text from outside, shortened for a message; control characters are shown as escapes.
pub(crate) fn excerpt(text: &str) -> String {
    const MOST: usize = 120;
    let mut short: String = text.chars().take(MOST).flat_map(char::escape_debug).collect();
    if text.chars().nth(MOST).is_some() {
        short.push('…');
    }
    short
}
