//! The facade's error: whichever room refused, in its own words.

/// Errors of loading and running a model.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// MODEL is none of the things it may be.
    #[error(
        "model '{0}' was not found: it is no folder, no .gguf file, not the embedded model ('{EMBEDDED}'), and no hub id \
         (owner/name); check the spelling or the path", EMBEDDED = crate::EMBEDDED
    )]
    NotFound(String),
    /// MODEL may be a hub id, but the hub did not give it; nor is it a path.
    #[error("{source}; nor is there a folder or file '{model}' here")]
    Nowhere {
        /// As it was written.
        model: String,
        /// What the hub, or the cache, said.
        source: reverie_files::hub::HubError,
    },
    /// A refusal of the porch's own.
    #[error("{what}: found {found}, expected {expected}")]
    Value {
        /// The thing.
        what: String,
        /// What was found.
        found: String,
        /// What would be right.
        expected: String,
    },
    /// A mixture of experts that does not fit the budget.
    #[error(
        "the budget of {limit} bytes holds no mixture with {weights} bytes of other weights and {all} bytes of experts, {at_once} \
         of them for one token in one layer; {advice}, or use fewer bits"
    )]
    Experts {
        /// Packed weights that are no experts.
        weights: u64,
        /// Packed experts.
        all: u64,
        /// Packed experts that one token needs at once.
        at_once: u64,
        /// The budget.
        limit: u64,
        /// What to do first.
        advice: &'static str,
    },
    /// The loading dock refused.
    #[error(transparent)]
    Files(#[from] reverie_files::Error),
    /// The hub refused.
    #[error(transparent)]
    Hub(#[from] reverie_files::hub::HubError),
    /// The reading room refused.
    #[error(transparent)]
    Text(#[from] reverie_text::TextError),
    /// What describes how a checkpoint speaks is missing or wrong.
    #[error("{}: {source}", path.display())]
    Voice {
        /// The folder or .gguf file.
        path: std::path::PathBuf,
        /// What the reading room refused.
        source: reverie_text::TextError,
    },
    /// The ground floor refused.
    #[error(transparent)]
    Tensor(#[from] reverie_tensor::Error),
    /// The kitchen refused.
    #[error(transparent)]
    Model(#[from] reverie_model::Error),
    /// The dining table refused.
    #[error(transparent)]
    Engine(#[from] reverie_engine::Error),
    /// The waiter refused.
    #[error(transparent)]
    Chat(#[from] reverie_chat::Error),
    /// A file that could not be read.
    #[error("cannot read {path}: {source}; check that it exists and may be read")]
    Read {
        /// The file.
        path: std::path::PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
}

/// Result with the facade's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;
