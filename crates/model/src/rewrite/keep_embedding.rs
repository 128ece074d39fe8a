//! Leaves the stream as it is and keeps it for later layers that read the embedding again.

use reverie_tensor::{Norm, Tensor};

use super::{Rewrite, RewriteSpec};
use crate::Build;
use crate::error::Result;
use crate::mixer::Step;

/// Under which the embedding lies in a step's carry.
pub const EMBEDDING: &str = "embedding";

/// The rewrite, which has no weights.
#[derive(Debug)]
pub struct KeepEmbedding;

impl RewriteSpec for KeepEmbedding {
    fn kind(&self) -> &'static str {
        "keep_embedding"
    }

    fn build(&self, _build: &mut Build<'_>) -> Result<Box<dyn Rewrite>> {
        Ok(Box::new(KeepEmbedding))
    }
}

impl Rewrite for KeepEmbedding {
    fn forward(&self, step: &Step<'_>, x: Tensor, _pre: Option<&Norm>) -> Result<Tensor> {
        step.carry.put(EMBEDDING, x.clone());
        Ok(x)
    }
}
