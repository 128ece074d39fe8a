//! What a layer makes of its per-layer input: project(gelu_tanh(gate x) ⊙ p), p from the step's carry. Reference: transformers'
//! modeling_gemma4.py.

use reverie_tensor::{Act, Input, Tensor};

use super::{Ffn, FfnEntry};
use crate::Build;
use crate::error::{Error, Result};
use crate::linear::{Linear, project};
use crate::mixer::{Step, Stream};
use crate::plan::FfnSpec;
use crate::rewrite::per_layer_inputs::CARRY;

/// The row.
pub const ENTRY: FfnEntry = FfnEntry {
    name: "per_layer",
    about: "project(gelu_tanh(gate x) * the token's own input to this layer)",
    spec: |config, layer| Ok(Box::new(Spec { layer, width: config.usize("hidden_size_per_layer_input")? })),
};

/// One layer's use of its input.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Which of the inputs.
    pub layer: usize,
    /// Width of an input.
    pub width: usize,
}

impl FfnSpec for Spec {
    fn kind(&self) -> &'static str {
        ENTRY.name
    }

    fn build(&self, b: &mut Build<'_>) -> Result<Box<dyn Ffn>> {
        let width = b.width();
        Ok(Box::new(PerLayer {
            layer: self.layer,
            gate: b.linear("per_layer_input_gate", self.width, width)?,
            out: b.linear("per_layer_projection", width, self.width)?,
        }))
    }
}

struct PerLayer {
    layer: usize,
    gate: Linear,
    out: Linear,
}

impl Ffn for PerLayer {
    fn forward(&self, step: &Step<'_>, stream: Stream<'_>) -> Result<Tensor> {
        let be = step.backend;
        let missing = || Error::config("per-layer inputs", "nothing", "a plan that makes them before the layers");
        let inputs = step.carry.get(CARRY).ok_or_else(missing)?;
        let [gate] = project(be, stream.input(), [&self.gate])?;
        let t = gate.rows();
        let layers = inputs.rows() / t;
        let own: Vec<usize> = (0..t).map(|row| row * layers + self.layer).collect();
        let own = be.rows(&inputs, &own)?;
        stream.close(be, &self.out, Input::Glu(&gate, &own, Act::GeluTanh))
    }
}
