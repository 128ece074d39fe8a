//! The selective scan as a recurrence, token by token (Mamba, arXiv 2312.00752, section 3.2, the discretisation of its code):
//! with Δ = softplus(dt), S ← e^{Δ·rate} S + Δx·b;  y = c·S + skip·x, a channel at a time.

use super::elementwise::softplus;
use super::scratch;
use crate::backend::{Backend, ScanInput, ScanSpec, StateSegment};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// See `Backend::selective_scan`.
pub fn run<B: Backend + ?Sized>(
    be: &B,
    input: ScanInput<'_>,
    segments: &mut [StateSegment<'_>],
    spec: &ScanSpec,
) -> Result<Tensor> {
    let &[n, c] = spec.rate.dims() else {
        return Err(Error::shape("selective_scan", spec.rate.shape(), "[N, C]"));
    };
    let widths = (input.x.width(), input.dt.width(), input.b.width(), input.c.width());
    if widths != (c, c, n, n) {
        return Err(Error::shape("selective_scan", widths, (c, c, n, n)));
    }
    let (x, dt, b, read) = (be.read(input.x)?, be.read(input.dt)?, be.read(input.b)?, be.read(input.c)?);
    let (rate, skip) = (be.read(&spec.rate)?, be.read(&spec.skip)?);
    let mut out = vec![0.0f32; x.len()];
    for segment in segments {
        let mut state = be.read(segment.state)?;
        if state.len() != n * c {
            return Err(Error::shape("selective_scan state", segment.state.shape(), [n, c]));
        }
        for t in segment.rows.clone() {
            for ch in 0..c {
                let (value, delta) = (x[t * c + ch], softplus(dt[t * c + ch]));
                let mut y = 0.0f32;
                for j in 0..n {
                    let s = &mut state[j * c + ch];
                    *s = *s * (delta * rate[j * c + ch]).exp() + delta * value * b[t * n + j];
                    y += *s * read[t * n + j];
                }
                out[t * c + ch] = y + skip[ch] * value;
            }
        }
        let bytes: Vec<u8> = state.iter().flat_map(|v| v.to_le_bytes()).collect();
        be.write_bytes(segment.state, &bytes)?;
    }
    scratch(be, &out, input.x.dims())
}
