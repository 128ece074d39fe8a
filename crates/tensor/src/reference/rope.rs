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
#[inline]
pub fn turn(position: u32, freq: f32, magnitude: f32) -> (f32, f32) {
    let (cos, sin) = cos_sin(f64::from(position) * f64::from(freq));
    (cos as f32 * magnitude, sin as f32 * magnitude)
}

/// Cosine and sine in f64 by sums and products alone, so that no system's libm shows: Cody-Waite reduction to |r| ≤ π/4 with
/// π/2 in a part of 33 bits (exact products up to 2^20 quarter turns) and its rest, then the polynomials of fdlibm's
/// `__kernel_sin` and `__kernel_cos`. Within 3e-16 up to 2^20 quarter turns, 1e-6 up to 2^32.
#[inline]
pub fn cos_sin(angle: f64) -> (f64, f64) {
    const QUARTER: f64 = 1.570_796_326_734_125_6;
    const QUARTER_REST: f64 = 6.077_100_506_506_192e-11;
    let n = (angle * std::f64::consts::FRAC_2_PI).round_ties_even();
    let r = (angle - n * QUARTER) - n * QUARTER_REST;
    let z = r * r;
    let sin = r + r
        * z
        * (-1.666_666_666_666_663_2e-1
            + z * (8.333_333_333_322_49e-3
                + z * (-1.984_126_982_985_795e-4
                    + z * (2.755_731_370_707_006_8e-6
                        + z * (-2.505_076_025_340_686_3e-8 + z * 1.589_690_995_211_55e-10)))));
    let cos = 1.0 - 0.5 * z
        + z * z
            * (4.166_666_666_666_66e-2
                + z * (-1.388_888_888_887_411e-3
                    + z * (2.480_158_728_947_673e-5
                        + z * (-2.755_731_435_139_066_3e-7
                            + z * (2.087_572_321_298_175e-9 + z * -1.135_964_755_778_819_5e-11)))));
    match n as i64 & 3 {
        0 => (cos, sin),
        1 => (-sin, cos),
        2 => (-cos, -sin),
        _ => (sin, -cos),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_as_exact_as_the_systems() {
        let mut worst = 0.0f64;
        for position in (0..1u32 << 20).step_by(97).chain([1 << 20]) {
            for freq in [1.0f32, 0.865_964, 0.1, 0.031_25, 1e-4, 1.3e-7] {
                let angle = f64::from(position) * f64::from(freq);
                let (cos, sin) = cos_sin(angle);
                worst = worst.max((cos - angle.cos()).abs()).max((sin - angle.sin()).abs());
            }
        }
        assert!(worst < 1e-15, "{worst:e}");
    }

    #[test]
    fn every_quadrant_and_the_far_positions() {
        for i in -64..64 {
            let angle = f64::from(i) * std::f64::consts::FRAC_PI_4;
            let (cos, sin) = cos_sin(angle);
            assert!((cos - angle.cos()).abs() < 1e-15 && (sin - angle.sin()).abs() < 1e-15, "{angle}");
        }
        let far = f64::from(u32::MAX);
        assert!((cos_sin(far).0 - far.cos()).abs() < 1e-5);
        assert!(cos_sin(f64::INFINITY).0.is_nan() && cos_sin(f64::NAN).1.is_nan());
    }
}
