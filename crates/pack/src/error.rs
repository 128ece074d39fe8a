//! What the packing room refuses.

use std::path::PathBuf;

/// Errors of the packing room.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A source that cannot be packed this way.
    #[error("{path}: found {found}, expected {expected}")]
    Source {
        /// The checkpoint.
        path: PathBuf,
        /// What it is.
        found: String,
        /// What would be right.
        expected: String,
    },
    /// A choice that no format allows.
    #[error("{what}: found {found}, expected {expected}")]
    Value {
        /// The argument.
        what: String,
        /// What was found.
        found: String,
        /// What would be right.
        expected: String,
    },
    /// Somebody asked for an end.
    #[error("stopped before the end: nothing was written")]
    Stopped,
    /// The kitchen refused.
    #[error(transparent)]
    Model(#[from] reverie_model::Error),
    /// The loading dock refused.
    #[error(transparent)]
    Files(#[from] reverie_files::Error),
    /// The ground floor refused.
    #[error(transparent)]
    Tensor(#[from] reverie_tensor::Error),
    /// A file that could not be copied.
    #[error("cannot copy {path}: {source}")]
    Copy {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
}

/// Result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;
