//! The feed-forwards of one token: gated, down(act(gate x) ⊙ up x) (arXiv 2002.05202), of which SwiGLU and GeGLU are rows, and
//! plain, down(act(up x)). Knows no router.

use std::ops::Range;

use reverie_files::ModelConfig;
use reverie_tensor::{Act, Backend, Input, Tensor};

use super::Ffn;
use crate::Build;
use crate::error::{Error, Result};
use crate::linear::{Linear, project};
use crate::mixer::{Step, Stream};
use crate::plan::FfnSpec;

/// Which projections a feed-forward has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `gate_proj`, `up_proj` and `down_proj`.
    Gated,
    /// No gate.
    Plain,
}

/// One feed-forward. Gate and up may be stacked in `gate_up_proj`.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The registry's row.
    pub kind: &'static str,
    /// Width inside.
    pub inner: usize,
    /// On the gate, or on what a plain feed-forward has inside.
    pub act: Act,
    /// Its projections.
    pub shape: Shape,
    /// Multiplies the gate before its activation; 1 nearly everywhere.
    pub gate_factor: f32,
}

impl Spec {
    /// Without factors.
    pub fn new(kind: &'static str, inner: usize, act: Act, shape: Shape) -> Spec {
        Spec { kind, inner, act, shape, gate_factor: 1.0 }
    }

    /// With a gate, from `intermediate_size`.
    pub fn from_config(kind: &'static str, act: Act, config: &ModelConfig) -> Result<Spec> {
        Spec::of_width(kind, act, config, "intermediate_size")
    }

    /// With a gate, from the width in `field`.
    pub fn of_width(kind: &'static str, act: Act, config: &ModelConfig, field: &str) -> Result<Spec> {
        Ok(Spec::new(kind, width(config, field)?, act, Shape::Gated))
    }
}

/// A width inside a feed-forward.
pub fn width(config: &ModelConfig, field: &str) -> Result<usize> {
    match config.usize(field)? {
        inner if inner > 0 && inner <= 1 << 24 => Ok(inner),
        inner => Err(Error::config(field, inner, "a width from 1 to 16777216")),
    }
}

impl Spec {
    /// Takes its weights.
    pub fn weights(&self, b: &Build<'_>) -> Result<Glu> {
        let width = b.width();
        if self.inner == 0 || self.inner > 1 << 24 {
            return Err(Error::config("intermediate_size", self.inner, "a width from 1 to 16777216"));
        }
        let (gate, up) = match self.shape {
            Shape::Gated if b.has("gate_up_proj.weight") => {
                let half = |rows: Range<usize>| b.linear_rows("gate_up_proj", 2 * self.inner, width, rows.collect());
                (Some(half(0..self.inner)?), half(self.inner..2 * self.inner)?)
            }
            Shape::Gated => (Some(b.linear("gate_proj", self.inner, width)?), b.linear("up_proj", self.inner, width)?),
            Shape::Plain => (None, b.linear("up_proj", self.inner, width)?),
        };
        let gate = gate.map(|gate| gate.times(self.gate_factor));
        Ok(Glu { gate, up, down: b.linear("down_proj", width, self.inner)?, act: self.act })
    }

    /// SwiGLU of `factor` widths, rounded up to a multiple; the fields that say them.
    pub fn rounded(config: &ModelConfig, factor: &str, multiple: &str) -> Result<Spec> {
        let (by, of) = (config.f64_or(factor, 2.667)?, config.usize_or(multiple, 64)?);
        let inner = (config.usize("hidden_size")? as f64 * by).ceil();
        if of == 0 || of > 1 << 16 || !(1.0..=16_777_216.0).contains(&inner) {
            return Err(Error::config(
                factor,
                by,
                format!("a factor that makes a width, with {multiple} from 1 to 65536"),
            ));
        }
        Ok(Spec::new("swiglu", (inner as usize).next_multiple_of(of), Act::Silu, Shape::Gated))
    }

    /// SwiGLU in flash-linear-attention's field names: without `intermediate_size`, two thirds of `hidden_ratio` widths, rounded up
    /// to a multiple of 256.
    pub fn flash(config: &ModelConfig) -> Result<Spec> {
        let act = config.optional_text("hidden_act")?.unwrap_or("swish");
        if act != "swish" && act != "silu" {
            return Err(Error::config("hidden_act", act, "swish or silu"));
        }
        let inner = match config.optional_usize("intermediate_size")? {
            Some(n) => n,
            None => {
                let ratio = config.f64_or("hidden_ratio", 4.0)?;
                let whole = (config.usize("hidden_size")? as f64 * ratio * 2.0 / 3.0) as usize;
                whole.min(1 << 24).next_multiple_of(256)
            }
        };
        if inner == 0 {
            return Err(Error::config("intermediate_size", inner, "a positive width"));
        }
        Ok(Spec::new("swiglu", inner, Act::Silu, Shape::Gated))
    }
}

impl FfnSpec for Spec {
    fn kind(&self) -> &'static str {
        self.kind
    }

    fn build(&self, b: &mut Build<'_>) -> Result<Box<dyn Ffn>> {
        Ok(Box::new(self.weights(b)?))
    }
}

/// One feed-forward with its weights.
pub struct Glu {
    gate: Option<Linear>,
    up: Linear,
    down: Linear,
    act: Act,
}

/// What stands before the closing projection.
pub struct Inside {
    gate: Option<Tensor>,
    up: Tensor,
    act: Act,
}

impl Inside {
    /// From the gate's projection, if there is one, and the other.
    pub fn new(gate: Option<Tensor>, up: Tensor, act: Act) -> Inside {
        Inside { gate, up, act }
    }

    /// What the closing projection reads.
    pub fn input(&self) -> Input<'_> {
        match &self.gate {
            Some(gate) => Input::Glu(gate, &self.up, self.act),
            None => Input::Activated(&self.up, self.act),
        }
    }
}

impl Glu {
    /// Up to the closing projection.
    pub fn inside(&self, backend: &dyn Backend, input: Input<'_>) -> Result<Inside> {
        match &self.gate {
            Some(gate) => {
                let [gate, up] = project(backend, input, [gate, &self.up])?;
                Ok(Inside::new(Some(gate), up, self.act))
            }
            None => {
                let [up] = project(backend, input, [&self.up])?;
                Ok(Inside::new(None, up, self.act))
            }
        }
    }

    /// The closing projection.
    pub fn down(&self) -> &Linear {
        &self.down
    }
}

impl Ffn for Glu {
    fn forward(&self, step: &Step<'_>, stream: Stream<'_>) -> Result<Tensor> {
        let inside = self.inside(step.backend, stream.input())?;
        stream.close(step.backend, &self.down, inside.input())
    }
}
