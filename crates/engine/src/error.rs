//! What an engine refuses, and why.

use crate::sample::SampleError;

/// Errors of the dining table.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A request that would not fit the byte budget; refused before it starts.
    #[error(
        "{tokens} tokens of context would take {needed} bytes ({}) at their peak, the budget is {limit} ({}); raise --memory, \
         shorten the context, or use fewer bits or --kv f16", mib(*needed), mib(*limit)
    )]
    Budget {
        /// Context asked for.
        tokens: usize,
        /// Predicted peak.
        needed: u64,
        /// The budget.
        limit: u64,
    },
    /// Nothing to read.
    #[error("found no tokens to read, expected at least one; give a prompt")]
    Empty,
    /// The caller stopped a long read.
    #[error("stopped after {done} of {total} tokens; what was read is kept and the next call goes on from there")]
    Stopped {
        /// Tokens in the session now.
        done: usize,
        /// Tokens asked for.
        total: usize,
    },
    /// The engine has no store.
    #[error("this engine has no store to sleep in or wake from; attach one first")]
    NoStore,
    /// A sleeping state was computed by something else.
    #[error(
        "the sleeping state's {field} is {asleep}, here it is {here}; wake it with what it was made with, or read its tokens \
         again with --re-read"
    )]
    Identity {
        /// What differs.
        field: String,
        /// What the state was made with.
        asleep: String,
        /// What this engine has.
        here: String,
    },
    /// A sleeping state has pages of another size.
    #[error(
        "the sleeping state has pages of {found} tokens, this build has pages of {expected}; read its tokens again with --re-read"
    )]
    PageTokens {
        /// In the manifest.
        found: usize,
        /// Here.
        expected: usize,
    },
    /// A sleeping state lacks what it takes to stand somewhere.
    #[error(
        "the sleeping state cannot stand after {at} tokens; the deepest place before that is {deepest}: choose it, or a turn's end"
    )]
    CannotStand {
        /// Asked for.
        at: usize,
        /// Where it can.
        deepest: usize,
    },
    /// The store refused.
    #[error(transparent)]
    Memory(#[from] reverie_memory::Error),
    /// The model refused.
    #[error(transparent)]
    Model(#[from] reverie_model::Error),
    /// The sampler refused.
    #[error(transparent)]
    Sample(#[from] SampleError),
}

impl From<reverie_tensor::Error> for Error {
    fn from(e: reverie_tensor::Error) -> Error {
        Error::Model(e.into())
    }
}

/// Result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
