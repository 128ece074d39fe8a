//! Depthwise causal convolution with a slot that holds the last inputs.

use super::elementwise::activate;
use super::scratch;
use crate::backend::{Backend, ConvSpec, StateSegment};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// See `Backend::conv`.
pub fn run<B: Backend + ?Sized>(
    b: &B,
    x: &Tensor,
    segments: &mut [StateSegment<'_>],
    spec: &ConvSpec,
) -> Result<Tensor> {
    let &[kernel, c] = spec.taps.dims() else { return Err(Error::shape("conv", spec.taps.shape(), "[kernel, C]")) };
    if x.width() != c {
        return Err(Error::shape("conv", x.shape(), ("T", c)));
    }
    let (values, taps) = (b.read(x)?, b.read(&spec.taps)?);
    let bias = spec.bias.as_ref().map(|t| b.read(t)).transpose()?;
    let mut out = vec![0.0; values.len()];
    for segment in segments {
        let mut line = b.read(segment.state)?;
        if line.len() != (kernel - 1) * c {
            return Err(Error::shape("conv state", segment.state.shape(), [kernel - 1, c]));
        }
        line.extend_from_slice(&values[segment.rows.start * c..segment.rows.end * c]);
        for (t, row) in segment.rows.clone().enumerate() {
            for ch in 0..c {
                let mut acc = 0.0f32;
                for tap in 0..kernel {
                    acc = taps[tap * c + ch].mul_add(line[(t + tap) * c + ch], acc);
                }
                if let Some(bias) = &bias {
                    acc += bias[ch];
                }
                out[row * c + ch] = spec.act.map_or(acc, |act| activate(act, acc));
            }
        }
        let kept: Vec<u8> = line[line.len() - (kernel - 1) * c..].iter().flat_map(|v| v.to_le_bytes()).collect();
        b.write_bytes(segment.state, &kept)?;
    }
    scratch(b, &out, x.dims())
}
