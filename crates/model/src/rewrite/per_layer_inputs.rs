//! Per-layer embeddings: beside the stream, each token brings a small vector of its own to every layer, half looked up by its id, half
//! projected from its embedding. Leaves the stream as it is, and the vectors in the step's carry. Reference: transformers'
//! modeling_gemma4.py, `project_per_layer_inputs`.

use reverie_files::ModelConfig;
use reverie_tensor::backend::Map;
use reverie_tensor::{Input, Norm, Tensor, Weight};

use super::{Rewrite, RewriteSpec};
use crate::Build;
use crate::error::{Error, Result};
use crate::linear::{Linear, project};
use crate::mixer::Step;
use crate::plan::{NormSpec, NormWeight};

/// Where the vectors wait: `[T · layers, width]`, those of one token side by side.
pub const CARRY: &str = "per_layer_inputs";

/// The vectors of all layers.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Rows of `embed_tokens_per_layer`; ids beyond it look up row 0.
    pub vocab: usize,
    /// Layers that get a vector.
    pub layers: usize,
    /// Width of one vector.
    pub width: usize,
    /// `per_layer_projection_norm`.
    pub norm: NormSpec,
}

impl Spec {
    /// Of `width` for every layer of the config.
    pub fn from_config(config: &ModelConfig, width: usize) -> Result<Spec> {
        let eps = config.f64_or("rms_norm_eps", 1e-6)? as f32;
        Ok(Spec {
            vocab: config.usize("vocab_size_per_layer_input")?,
            layers: config.usize("num_hidden_layers")?,
            width,
            norm: NormSpec::rms("per_layer_projection_norm", eps, NormWeight::Plain),
        })
    }
}

impl RewriteSpec for Spec {
    fn kind(&self) -> &'static str {
        "per_layer_inputs"
    }

    fn build(&self, b: &mut Build<'_>) -> Result<Box<dyn Rewrite>> {
        let all = self.layers.checked_mul(self.width).filter(|n| *n > 0 && self.vocab > 0).ok_or_else(|| {
            Error::config("hidden_size_per_layer_input", self.width, "a positive width, and a vocabulary for it")
        })?;
        Ok(Box::new(PerLayerInputs {
            table: b.linear("embed_tokens_per_layer", self.vocab, all)?.weight,
            projection: b.linear("per_layer_model_projection", all, b.width())?,
            projection_scale: (b.width() as f32).powf(-0.5),
            norm: b.norm(&self.norm, self.width)?,
            width: self.width,
        }))
    }
}

struct PerLayerInputs {
    table: Weight,
    projection: Linear,
    projection_scale: f32,
    norm: Norm,
    width: usize,
}

impl Rewrite for PerLayerInputs {
    fn forward(&self, step: &Step<'_>, x: Tensor, _: Option<&Norm>) -> Result<Tensor> {
        let be = step.backend;
        let [projected] = project(be, Input::Plain(&x), [&self.projection])?;
        let rows = projected.rows() * projected.width() / self.width;
        let projected = be.map(projected.reshape(&[rows, self.width])?, Map::Scale(self.projection_scale))?;
        let projected = be.norm(&projected, &self.norm)?;
        let ids: Vec<u32> = step.ids.iter().map(|&id| if (id as usize) < self.table.n { id } else { 0 }).collect();
        let looked_up = be.embed(&self.table, &ids, (self.width as f32).sqrt())?.reshape(&[rows, self.width])?;
        let both = be.map(be.add(projected, &looked_up)?, Map::Scale(std::f32::consts::FRAC_1_SQRT_2))?;
        step.carry.put(CARRY, both);
        Ok(x)
    }
}
