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

/// A feed-forward with its weights.
pub trait Ffn: Send + Sync {
    /// One step over all rows.
    fn forward(&self, step: &Step<'_>, stream: Stream<'_>) -> Result<Tensor>;

    /// Bytes of its weights on `backend` that one token leaves unread.
    fn unread_bytes(&self, backend: &dyn Backend) -> usize {
        let _ = backend;
        0
    }
}
