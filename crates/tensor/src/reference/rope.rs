//! Rotary position embedding (arXiv 2104.09864).

use super::scratch;
use crate::backend::{Backend, Rope, RopeLayout};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// See `Backend::rope`. The angle is computed in f64: f32 loses digits at positions beyond a few thousand.
pub fn run<B: Backend + ?Sized>(b: &B, x: Tensor, positions: &[u32], rope: &Rope) -> Result<Tensor> {
    let (&[t, h, d], half) = (x.dims(), rope.freqs.len()) else {
        return Err(Error::shape("rope", x.shape(), "[T, H, D]"));
    };
    if positions.len() != t || 2 * half > d {
        return Err(Error::shape("rope", (positions.len(), 2 * half), (t, d)));
    }
    let mut values = b.read(&x)?;
    for (row, &position) in values.chunks_mut(h * d).zip(positions) {
        for head in row.chunks_mut(d) {
            for (i, &freq) in rope.freqs.iter().enumerate() {
                let (cos, sin) = turn(position, freq, rope.magnitude);
                let (p, q) = match rope.layout {
                    RopeLayout::Halves => (i, i + half),
                    RopeLayout::Interleaved => (2 * i, 2 * i + 1),
                };
                let (a, c) = (head[p], head[q]);
                head[p] = a * cos - c * sin;
                head[q] = c * cos + a * sin;
            }
        }
    }
    scratch(b, &values, x.dims())
}

/// Cosine and sine of position · freq, times magnitude. Every backend uses this one function, so that a rotation has the
/// same bits everywhere.
pub fn turn(position: u32, freq: f32, magnitude: f32) -> (f32, f32) {
    let angle = f64::from(position) * f64::from(freq);
    ((angle.cos() as f32) * magnitude, (angle.sin() as f32) * magnitude)
}
