//! How linear mixers end: a norm over each head or over all of them, a gate made from the layer's input, the projection back. Knows no
//! recurrence.

use reverie_tensor::{Act, Input, Norm, Tensor};

use super::qkv::Narrow;
use super::{Step, Stream};
use crate::Build;
use crate::error::Result;
use crate::linear::Linear;
use crate::plan::{NormSpec, NormWeight};

/// What the normalised output is multiplied by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// Nothing.
    Absent,
    /// silu(gate).
    Silu,
    /// σ(gate).
    Sigmoid,
}

/// What a norm covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// Each head alone.
    Head,
    /// All heads at once.
    All,
}

/// The end of a mixer as described.
#[derive(Clone, Debug)]
pub struct ClosingSpec {
    /// Spellings of the RMS norm.
    pub norm: &'static [&'static str],
    /// What it covers.
    pub over: Over,
    /// Added under its root.
    pub eps: f32,
    /// How the gate is applied.
    pub gate: Gate,
    /// The projection back.
    pub out: &'static str,
}

/// The end of a mixer with its weights.
pub struct Closing {
    norm: Norm,
    over: Over,
    gate: Option<Narrow>,
    kind: Gate,
    out: Linear,
}

impl ClosingSpec {
    /// Takes the weights of `heads` heads of `dim` values; the gate, if there is one, is the caller's to find.
    pub fn build(&self, b: &Build<'_>, (heads, dim): (usize, usize), gate: Option<Narrow>) -> Result<Closing> {
        let found = self.norm.iter().find(|n| b.has(&format!("{n}.weight"))).or(self.norm.first());
        let norm = NormSpec::rms(found.copied().unwrap_or_default(), self.eps, NormWeight::Plain);
        let covered = if self.over == Over::Head { dim } else { heads * dim };
        let (norm, out) = (b.norm(&norm, covered)?, b.linear(self.out, b.width(), heads * dim)?);
        Ok(Closing { norm, over: self.over, gate, kind: self.gate, out })
    }
}

impl Closing {
    /// The projection of the layer's input that `finish` wants back, if there is a gate.
    pub fn gate(&self) -> Option<&Linear> {
        self.gate.as_ref().map(|g| &g.first)
    }

    /// From y `[T, H, Dv]` and what `gate` gave.
    pub fn finish(&self, step: &Step<'_>, stream: Stream<'_>, y: Tensor, z: Option<Tensor>) -> Result<Tensor> {
        let be = step.backend;
        let &[t, heads, dim] = y.dims() else {
            return Err(reverie_tensor::Error::shape("closing", y.shape(), "[T, H, Dv]").into());
        };
        let flat = [t, heads * dim];
        let y = if self.over == Over::All { y.reshape(&flat)? } else { y };
        let z = match (&self.gate, z) {
            (Some(gate), Some(z)) => Some(gate.finish(step, z)?),
            _ => None,
        };
        match (z, self.kind) {
            (Some(z), Gate::Silu) if self.over == Over::Head => {
                let y = be.gated_norm(&y, &z.reshape(y.dims())?, &self.norm)?.reshape(&flat)?;
                stream.close(be, &self.out, Input::Plain(&y))
            }
            (Some(z), kind) => {
                let y = be.norm(&y, &self.norm)?.reshape(&flat)?;
                let input =
                    if kind == Gate::Silu { Input::Glu(&z, &y, Act::Silu) } else { Input::SigmoidGated(&y, &z) };
                stream.close(be, &self.out, input)
            }
            (None, _) => {
                let y = be.norm(&y, &self.norm)?.reshape(&flat)?;
                stream.close(be, &self.out, Input::Plain(&y))
            }
        }
    }
}
