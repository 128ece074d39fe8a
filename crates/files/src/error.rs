//! What can go wrong between a path and a tensor. Every variant names the file, says found and expected, and what to do.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

/// Errors of reading and writing files.
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
    /// A file that must be there is not.
    #[error("{}: found no {what}; looked for {looked_for}", path.display())]
    Missing {
        /// The folder or file searched.
        path: PathBuf,
        /// The thing needed.
        what: String,
        /// The names tried, and what to do.
        looked_for: String,
    },
    /// A file that contradicts its format.
    #[error("{}: {what}: found {found}, expected {expected}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The field, key or tensor.
        what: String,
        /// What it holds.
        found: String,
        /// What would be right, and what to do.
        expected: String,
    },
    /// A tensor that is not there.
    #[error("{}: no tensor '{name}'{hint}", path.display())]
    NoTensor {
        /// The file or folder.
        path: PathBuf,
        /// The name asked for.
        name: String,
        /// Names that come close, or nothing.
        hint: String,
    },
    /// A tensor that does not fit its use.
    #[error("{}: tensor '{name}': {source}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What does not fit.
        source: reverie_tensor::Error,
    },
}

/// Result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Io { action, path: path.to_owned(), source }
    }

    pub(crate) fn format(
        path: &Path,
        what: impl Into<String>,
        found: impl Display,
        expected: impl Into<String>,
    ) -> Error {
        Error::Format { path: path.to_owned(), what: what.into(), found: found.to_string(), expected: expected.into() }
    }

    pub(crate) fn missing(path: &Path, what: impl Into<String>, looked_for: impl Into<String>) -> Error {
        Error::Missing { path: path.to_owned(), what: what.into(), looked_for: looked_for.into() }
    }
}

/// Text from a file, shortened for a message; control characters are shown as escapes.
pub(crate) fn excerpt(text: &str) -> String {
    const MOST: usize = 160;
    let mut short = String::new();
    for c in text.chars().take(MOST) {
        if c.is_control() {
            short.extend(c.escape_default());
        } else {
            short.push(c);
        }
    }
    if text.chars().nth(MOST).is_some() {
        short.push('…');
    }
    short
}
