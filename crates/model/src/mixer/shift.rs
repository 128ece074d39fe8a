//! Token shift: what a layer's input was one token ago, and blends of the two (RWKV, arXiv 2305.13048). Knows no layer's formula.

use reverie_tensor::formula::input;
use reverie_tensor::{ConvSpec, Operand, Tensor};

use super::{Step, Stream};
use crate::Build;
use crate::error::Result;
use crate::state::{LayerState, SlotNeed};

/// A shift over channels of one width, as a convolution that takes the older of two taps.
pub struct Shift {
    conv: ConvSpec,
}

/// A layer's input and how far it is from the one before.
pub struct Shifted {
    /// `[T, D]`, normalised.
    pub x: Tensor,
    /// The token before minus this one.
    pub delta: Tensor,
}

impl Shift {
    /// Its slot.
    pub fn slot(width: usize) -> SlotNeed {
        SlotNeed { name: "shift", shape: vec![1, width] }
    }

    /// Over the residual stream.
    pub fn build(b: &Build<'_>) -> Result<Shift> {
        let width = b.width();
        let taps: Vec<f32> = (0..2 * width).map(|i| if i < width { 1.0 } else { 0.0 }).collect();
        Ok(Shift { conv: ConvSpec { taps: b.upload(&taps, &[2, width])?, bias: None, act: None } })
    }

    /// The stream, normalised, and its shift over `slot`.
    pub fn forward(
        &self,
        step: &Step<'_>,
        stream: &Stream<'_>,
        states: &mut [&mut LayerState],
        slot: usize,
    ) -> Result<Shifted> {
        let be = step.backend;
        let x = match stream.pre {
            Some(norm) => be.norm(&stream.x, norm)?,
            None => stream.x.clone(),
        };
        let before = be.conv(&x, &mut step.segments(states, slot)?, &self.conv)?;
        let delta = be.pointwise(x.dims(), &[Operand::Each(&before), Operand::Each(&x)], &(input(0) - input(1)))?;
        Ok(Shifted { x, delta })
    }
}

impl Shifted {
    /// x + delta ⊙ mu, with mu `[D]`.
    pub fn blend(&self, step: &Step<'_>, mu: &Tensor) -> Result<Tensor> {
        let operands = [Operand::Each(&self.x), Operand::Each(&self.delta), Operand::Row(mu)];
        Ok(step.backend.pointwise(self.x.dims(), &operands, &(input(0) + input(1) * input(2)))?)
    }
}
