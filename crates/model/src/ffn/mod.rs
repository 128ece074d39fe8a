//! The feed-forwards: what works on each token alone. One file a row.

pub mod branches;
pub mod geglu;
pub mod glu;
pub mod moe;
pub mod per_layer;
pub mod relu2;
pub mod sparse_geglu;
pub mod swiglu;

use reverie_files::ModelConfig;
use reverie_tensor::{Backend, Tensor};

use crate::error::Result;
use crate::mixer::{Step, Stream};
use crate::plan::FfnSpec;

/// A row of the registry.
pub struct FfnEntry {
    /// The word for it; also the file's name.
    pub name: &'static str,
    /// One line for people.
    pub about: &'static str,
    /// The layer's spec from a config with conventional field names.
    pub spec: fn(&ModelConfig, usize) -> Result<Box<dyn FfnSpec>>,
}

/// All feed-forwards, by name.
pub static FFNS: &[FfnEntry] =
    &[geglu::ENTRY, moe::ENTRY, per_layer::ENTRY, relu2::ENTRY, sparse_geglu::ENTRY, swiglu::ENTRY];

/// Packed bytes of experts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExpertBytes {
    /// Of all.
    pub all: u64,
    /// Of those that one token reads.
    pub a_token: u64,
    /// Of those that must be packed at the same time: a token's in one mixture.
    pub at_once: u64,
}

impl std::ops::Add for ExpertBytes {
    type Output = ExpertBytes;

    /// Of two mixtures, which are met one after the other.
    fn add(self, other: ExpertBytes) -> ExpertBytes {
        let (all, a_token) = (self.all + other.all, self.a_token + other.a_token);
        ExpertBytes { all, a_token, at_once: self.at_once.max(other.at_once) }
    }
}

/// A feed-forward with its weights.
pub trait Ffn: Send + Sync {
    /// One step over all rows.
    fn forward(&self, step: &Step<'_>, stream: Stream<'_>) -> Result<Tensor>;

    /// What its experts take on `backend` when they are packed, if it has any.
    fn experts(&self, backend: &dyn Backend) -> ExpertBytes {
        let _ = backend;
        ExpertBytes::default()
    }
}
