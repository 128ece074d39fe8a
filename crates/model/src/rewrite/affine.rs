//! The stream normalised, multiplied, or both: RWKV's norm after the embedding, MiniMax-01's residuals that start at a norm and are
//! weighted.

use reverie_tensor::backend::Map;
use reverie_tensor::{Norm, Tensor};

use super::{Rewrite, RewriteSpec};
use crate::Build;
use crate::error::Result;
use crate::mixer::Step;

/// x ← factor · pre(x), with the block's norm if it has one.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// The factor.
    pub factor: f32,
}

impl RewriteSpec for Spec {
    fn kind(&self) -> &'static str {
        "affine"
    }

    fn build(&self, _: &mut Build<'_>) -> Result<Box<dyn Rewrite>> {
        Ok(Box::new(Affine(self.factor)))
    }
}

struct Affine(f32);

impl Rewrite for Affine {
    fn forward(&self, step: &Step<'_>, x: Tensor, pre: Option<&Norm>) -> Result<Tensor> {
        let x = match pre {
            Some(norm) => step.backend.norm(&x, norm)?,
            None => x,
        };
        Ok(if self.0 == 1.0 { x } else { step.backend.map(x, Map::Scale(self.0))? })
    }
}
