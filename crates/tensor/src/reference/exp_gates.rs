//! Exponential gates kept from overflowing (xLSTM, arXiv 2405.04517, equations 15 to 17): m ← max(f + m, i).

use super::scratch;
use crate::backend::{Backend, StateSegment};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// See `Backend::exp_gates`.
pub fn run<B: Backend + ?Sized>(
    b: &B,
    input: &Tensor,
    forget: &Tensor,
    segments: &mut [StateSegment<'_>],
) -> Result<[Tensor; 3]> {
    if input.shape() != forget.shape() {
        return Err(Error::shape("exp_gates", forget.shape(), input.shape()));
    }
    let h = input.width();
    let (i, f) = (b.read(input)?, b.read(forget)?);
    let mut out = [vec![0.0f32; i.len()], vec![0.0f32; i.len()], vec![0.0f32; i.len()]];
    for segment in segments {
        let mut m = b.read(segment.state)?;
        if m.len() != h {
            return Err(Error::shape("exp_gates state", segment.state.shape(), [h]));
        }
        for t in segment.rows.clone() {
            for (j, m) in m.iter_mut().enumerate() {
                let at = t * h + j;
                let faded = f[at] + *m;
                // A gate that is not a number stays visible.
                *m = if faded > i[at] { faded } else { i[at] };
                (out[0][at], out[1][at], out[2][at]) = ((faded - *m).exp(), (i[at] - *m).exp(), *m);
            }
        }
        let bytes: Vec<u8> = m.iter().flat_map(|v| v.to_le_bytes()).collect();
        b.write_bytes(segment.state, &bytes)?;
    }
    let [kept, written, top] = out;
    Ok([scratch(b, &kept, input.dims())?, scratch(b, &written, input.dims())?, scratch(b, &top, input.dims())?])
}
