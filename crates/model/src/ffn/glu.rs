//! The gated feed-forward that SwiGLU and GeGLU are rows of (arXiv 2002.05202): down(act(gate x) ⊙ up x).

use std::ops::Range;

use reverie_files::ModelConfig;
use reverie_tensor::{Act, Input, Tensor};

use super::Ffn;
use crate::Build;
use crate::error::{Error, Result};
use crate::linear::{Linear, project};
use crate::mixer::{Step, Stream};
use crate::plan::FfnSpec;

/// One gated feed-forward: `gate_proj`, `up_proj` (or both stacked in `gate_up_proj`), `down_proj`.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The registry's row.
    pub kind: &'static str,
    /// Width inside.
    pub inner: usize,
    /// On the gate.
    pub act: Act,
}

impl Spec {
    /// From `intermediate_size`.
    pub fn from_config(kind: &'static str, act: Act, config: &ModelConfig) -> Result<Spec> {
        let inner = config.usize("intermediate_size")?;
        if inner == 0 {
            return Err(Error::config("intermediate_size", inner, "a positive width"));
        }
        Ok(Spec { kind, inner, act })
    }
}

impl FfnSpec for Spec {
    fn kind(&self) -> &'static str {
        self.kind
    }

    fn build(&self, b: &mut Build<'_>) -> Result<Box<dyn Ffn>> {
        let width = b.width();
        let (gate, up) = if b.has("gate_up_proj.weight") {
            let half = |rows: Range<usize>| b.linear_rows("gate_up_proj", 2 * self.inner, width, rows.collect());
            (half(0..self.inner)?, half(self.inner..2 * self.inner)?)
        } else {
            (b.linear("gate_proj", self.inner, width)?, b.linear("up_proj", self.inner, width)?)
        };
        Ok(Box::new(Glu { gate, up, down: b.linear("down_proj", width, self.inner)?, act: self.act }))
    }
}

struct Glu {
    gate: Linear,
    up: Linear,
    down: Linear,
    act: Act,
}

impl Ffn for Glu {
    fn forward(&self, step: &Step<'_>, stream: Stream<'_>) -> Result<Tensor> {
        let [gate, up] = project(step.backend, stream.input(), [&self.gate, &self.up])?;
        stream.close(step.backend, &self.down, Input::Glu(&gate, &up, self.act))
    }
}
