//! What can go wrong between a config and a model: always the field or tensor, what was found, what was expected.

/// Errors of the kitchen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A config field that cannot be.
    #[error("config field '{field}': found {found}, expected {expected}")]
    Config {
        /// Name of the field.
        field: String,
        /// What the config holds.
        found: String,
        /// What would be right, and what to do.
        expected: String,
    },
    /// A row that no registry has.
    #[error("{what} '{name}' is not known; known are: {known}")]
    Unknown {
        /// Which registry.
        what: &'static str,
        /// The word looked up.
        name: String,
        /// The rows there are.
        known: String,
    },
    /// A state kind and a cache scheme that do not fit.
    #[error("cache scheme '{cache}' holds {holds} state, mixer '{mixer}' needs {needs}; choose another with --kv")]
    Pairing {
        /// The scheme.
        cache: &'static str,
        /// What it holds.
        holds: &'static str,
        /// The mixer.
        mixer: String,
        /// What it needs.
        needs: &'static str,
    },
    /// A tensor of another shape than the plan says.
    #[error("tensor '{name}': found shape {found}, expected {expected} from the config")]
    TensorShape {
        /// Name of the tensor.
        name: String,
        /// Its shape.
        found: String,
        /// What the plan needs.
        expected: String,
    },
    /// A token id outside the vocabulary.
    #[error("token id {id} is outside the vocabulary of {vocab}; was the text encoded with another model's tokenizer?")]
    TokenId {
        /// The id.
        id: u32,
        /// Rows of the embedding.
        vocab: usize,
    },
    /// More positions than the model has.
    #[error("{tokens} tokens do not fit the context of {context}; shorten the prompt, start a new conversation{}", longer(*context, *longest))]
    Context {
        /// Positions needed.
        tokens: usize,
        /// Positions there are.
        context: usize,
        /// Positions there would be, had they been asked for at load.
        longest: usize,
    },
    /// A drafter asked to run alone.
    #[error(
        "{arch} is a drafter: it guesses for another model from that model's keys, values and stream, and cannot run alone"
    )]
    Drafter {
        /// Its architecture.
        arch: &'static str,
    },
    /// A state that a failed step left half advanced.
    #[error("this state was left half advanced by a failed step; drop it and read its tokens again")]
    Poisoned,
    /// The ground floor refused.
    #[error(transparent)]
    Tensor(#[from] reverie_tensor::Error),
    /// The loading dock refused.
    #[error(transparent)]
    Files(#[from] reverie_files::Error),
}

/// What else can be done about a context.
fn longer(context: usize, longest: usize) -> String {
    if longest > context { format!(" or load with --context, at most {longest}") } else { String::new() }
}

/// Result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Config error from anything printable.
    pub fn config(field: impl Into<String>, found: impl std::fmt::Display, expected: impl Into<String>) -> Error {
        Error::Config { field: field.into(), found: found.to_string(), expected: expected.into() }
    }
}
