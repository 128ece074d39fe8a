//! RWKV-4's weighted mean (arXiv 2305.13048, appendix; the steps of transformers' rwkv): sums are kept over e^max, so that no
//! exponential overflows.

use super::scratch;
use crate::backend::{Backend, StateSegment};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// See `Backend::wkv`.
pub fn run<B: Backend + ?Sized>(
    b: &B,
    (k, v): (&Tensor, &Tensor),
    (decay, first): (&Tensor, &Tensor),
    segments: &mut [StateSegment<'_>],
) -> Result<Tensor> {
    let c = check(k, v, decay, first)?;
    let (keys, values, decay, first) = (b.read(k)?, b.read(v)?, b.read(decay)?, b.read(first)?);
    let mut out = vec![0.0f32; keys.len()];
    for segment in segments {
        let mut state = b.read(segment.state)?;
        if state.len() != 3 * c {
            return Err(Error::shape("wkv state", segment.state.shape(), [3, c]));
        }
        for t in segment.rows.clone() {
            for i in 0..c {
                let (k, v) = (keys[t * c + i], values[t * c + i]);
                let (above, below) = (state[i], state[c + i]);
                // Before the first token there is nothing: no weight, however large the key may be negative.
                let top = if below > 0.0 || below.is_nan() { state[2 * c + i] } else { -1e38 };
                let most = larger(top, k + first[i]);
                let (old, new) = ((top - most).exp(), (k + first[i] - most).exp());
                out[t * c + i] = (old * above + new * v) / (old * below + new);
                let most = larger(top + decay[i], k);
                let (old, new) = ((top + decay[i] - most).exp(), (k - most).exp());
                state[i] = old * above + new * v;
                state[c + i] = old * below + new;
                state[2 * c + i] = most;
            }
        }
        let bytes: Vec<u8> = state.iter().flat_map(|v| v.to_le_bytes()).collect();
        b.write_bytes(segment.state, &bytes)?;
    }
    scratch(b, &out, k.dims())
}

/// The larger; the newer one where they cannot be compared, so that a key that is not a number stays visible.
fn larger(old: f32, new: f32) -> f32 {
    if old > new { old } else { new }
}

/// C, once the shapes agree.
pub fn check(k: &Tensor, v: &Tensor, decay: &Tensor, first: &Tensor) -> Result<usize> {
    let c = k.width();
    if c == 0 || v.shape() != k.shape() || decay.shape().elements() != c || first.shape().elements() != c {
        let found = (v.shape(), decay.shape(), first.shape());
        return Err(Error::shape("wkv", found, (k.shape(), [c], [c])));
    }
    Ok(c)
}
