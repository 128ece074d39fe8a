//! RMS norm (arXiv 1910.07467), layer norm (arXiv 1607.06450) and the gated RMS norm of Mamba-2 and gated delta layers.

use super::elementwise::activate;
use super::scratch;
use crate::backend::{Act, Backend, Norm, NormKind};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// See `Backend::norm`.
pub fn run<B: Backend + ?Sized>(b: &B, x: &Tensor, norm: &Norm) -> Result<Tensor> {
    let y = normalised(b, x, norm)?;
    scratch(b, &y, x.dims())
}

/// See `Backend::gated_norm`.
pub fn run_gated<B: Backend + ?Sized>(b: &B, x: &Tensor, z: &Tensor, norm: &Norm) -> Result<Tensor> {
    if x.shape().elements() != z.shape().elements() {
        return Err(Error::shape("gated_norm", z.shape(), x.shape()));
    }
    let z = b.read(z)?;
    let y: Vec<f32> = normalised(b, x, norm)?.iter().zip(&z).map(|(&v, &z)| v * activate(Act::Silu, z)).collect();
    scratch(b, &y, x.dims())
}

fn normalised<B: Backend + ?Sized>(b: &B, x: &Tensor, norm: &Norm) -> Result<Vec<f32>> {
    let d = x.width();
    let mut values = b.read(x)?;
    let vector = |t: &Option<Tensor>| -> Result<Option<Vec<f32>>> {
        let Some(t) = t else { return Ok(None) };
        let n = t.shape().elements();
        if n == 0 || !n.is_multiple_of(d) || !(x.rows() * d).is_multiple_of(n) {
            return Err(Error::shape("norm", t.shape(), ("groups that the rows divide into", d)));
        }
        b.read(t).map(Some)
    };
    let (weight, bias) = (vector(&norm.weight)?, vector(&norm.bias)?);
    for (r, row) in values.chunks_mut(d).enumerate() {
        let mean = match norm.kind {
            NormKind::Rms => 0.0,
            NormKind::Layer => (row.iter().map(|&v| f64::from(v)).sum::<f64>() / d as f64) as f32,
        };
        row.iter_mut().for_each(|v| *v -= mean);
        let var = (row.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>() / d as f64) as f32;
        let inv = 1.0 / (var + norm.eps).sqrt();
        for (i, v) in row.iter_mut().enumerate() {
            *v *= inv;
            if let Some(w) = &weight {
                *v *= w[(r * d + i) % w.len()];
            }
            if let Some(c) = &bias {
                *v += c[(r * d + i) % c.len()];
            }
        }
    }
    Ok(values)
}
