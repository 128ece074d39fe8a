//! The real-gated linear recurrent unit, token by token (Griffin, arXiv 2402.19427, equations 1 to 6, and the reset at position
//! 0 of transformers' recurrent_gemma): a = e^{rate·σ(decay gate)};  h ← a h + √(1 - a²) · σ(input gate) · x.

use super::elementwise::sigmoid;
use super::scratch;
use crate::backend::{Backend, RgLruSpec, StateSegment};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// See `Backend::rg_lru`.
pub fn run<B: Backend + ?Sized>(
    be: &B,
    x: &Tensor,
    positions: &[u32],
    segments: &mut [StateSegment<'_>],
    spec: &RgLruSpec,
) -> Result<Tensor> {
    let c = x.width();
    let &[heads, block, outputs] = spec.input_gate.0.dims() else {
        return Err(Error::shape("rg_lru", spec.input_gate.0.shape(), "[H, C/H, C/H]"));
    };
    if block != outputs || heads * block != c || positions.len() != x.rows() {
        return Err(Error::shape("rg_lru", x.shape(), (positions.len(), heads * block)));
    }
    let (values, rate) = (be.read(x)?, be.read(&spec.rate)?);
    let gate = |g: &(Tensor, Tensor)| -> Result<_> { Ok((be.read(&g.0)?, be.read(&g.1)?)) };
    let (input, decay) = (gate(&spec.input_gate)?, gate(&spec.decay_gate)?);
    let open = |(weight, bias): &(Vec<f32>, Vec<f32>), row: &[f32], ch: usize| {
        let (head, at) = (ch / block, ch % block);
        let w = &weight[head * block * block..];
        sigmoid((0..block).map(|i| row[head * block + i] * w[i * block + at]).sum::<f32>() + bias[ch])
    };
    let mut out = vec![0.0f32; values.len()];
    for segment in segments {
        let mut state = be.read(segment.state)?;
        if state.len() != c {
            return Err(Error::shape("rg_lru state", segment.state.shape(), [c]));
        }
        for t in segment.rows.clone() {
            let row = &values[t * c..(t + 1) * c];
            for ch in 0..c {
                let log = rate[ch] * open(&decay, row, ch);
                let scale = if positions[t] == 0 { 1.0 } else { (1.0 - (2.0 * log).exp()).sqrt() };
                state[ch] = log.exp() * state[ch] + row[ch] * open(&input, row, ch) * scale;
                out[t * c + ch] = state[ch];
            }
        }
        let bytes: Vec<u8> = state.iter().flat_map(|v| v.to_le_bytes()).collect();
        be.write_bytes(segment.state, &bytes)?;
    }
    scratch(be, &out, x.dims())
}
