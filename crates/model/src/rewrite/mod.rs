//! Parts that put something in place of the residual stream instead of adding to it: scalars, parallel streams, what later layers
//! will look up. Each token alone. One file a kind.

pub mod affine;
pub mod altup;
pub mod keep_embedding;
pub mod laurel;
pub mod layer_scalar;
pub mod per_layer_inputs;

use std::fmt::Debug;

use reverie_tensor::{Norm, Tensor};

use crate::Build;
use crate::error::Result;
use crate::mixer::Step;

/// A rewrite as an architecture describes it.
pub trait RewriteSpec: Debug + Send + Sync {
    /// A word for it; also the file's name.
    fn kind(&self) -> &'static str;
    /// Takes its weights.
    fn build(&self, build: &mut Build<'_>) -> Result<Box<dyn Rewrite>>;
}

/// A rewrite with its weights.
pub trait Rewrite: Send + Sync {
    /// The stream `[T, D]` that takes the place of x; `pre` is the block's norm, for what is projected from x.
    fn forward(&self, step: &Step<'_>, x: Tensor, pre: Option<&Norm>) -> Result<Tensor>;
}
