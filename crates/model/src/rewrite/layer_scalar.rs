//! The stream times one stored number, `layer_scalar`.

use reverie_tensor::backend::Map;
use reverie_tensor::{Norm, Tensor};

use super::{Rewrite, RewriteSpec};
use crate::Build;
use crate::error::Result;
use crate::mixer::Step;

/// x · layer_scalar.
#[derive(Clone, Copy, Debug)]
pub struct Spec;

impl RewriteSpec for Spec {
    fn kind(&self) -> &'static str {
        "layer_scalar"
    }

    fn build(&self, b: &mut Build<'_>) -> Result<Box<dyn Rewrite>> {
        Ok(Box::new(LayerScalar(b.values("layer_scalar", 1)?[0])))
    }
}

struct LayerScalar(f32);

impl Rewrite for LayerScalar {
    fn forward(&self, step: &Step<'_>, x: Tensor, _: Option<&Norm>) -> Result<Tensor> {
        Ok(step.backend.map(x, Map::Scale(self.0))?)
    }
}
