//! Elementwise maps, sums and row selection.

use super::scratch;
use crate::backend::{Act, Backend, Map};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// 1 / (1 + e^-x).
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// ln(1 + e^x); x itself above 20, as PyTorch has it.
pub fn softplus(x: f32) -> f32 {
    if x > 20.0 { x } else { x.exp().ln_1p() }
}

/// The activation of one value. The error function of `Gelu` is Abramowitz and Stegun 7.1.26 in f64 (1.5e-7).
pub fn activate(act: Act, x: f32) -> f32 {
    match act {
        Act::Silu => x * sigmoid(x),
        Act::Relu => x.max(0.0),
        Act::Identity => x,
        Act::Relu2 => x.max(0.0) * x.max(0.0),
        Act::Clamped { alpha, limit } => {
            let x = if x > limit { limit } else { x };
            x * sigmoid(alpha * x)
        }
        Act::GeluTanh => {
            // (1 + tanh u) / 2 = σ(2u): where u is far below zero, the sum would be zero before its time.
            let inner = (2.0 / std::f32::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            x * sigmoid(2.0 * inner)
        }
        Act::Gelu => {
            let z = f64::from(x) / std::f64::consts::SQRT_2;
            let t = 1.0 / (1.0 + 0.327_591_1 * z.abs());
            let poly = t
                * (0.254_829_592
                    + t * (-0.284_496_736 + t * (1.421_413_741 + t * (-1.453_152_027 + t * 1.061_405_429))));
            let erf = (1.0 - poly * (-z * z).exp()).copysign(z);
            (0.5 * f64::from(x) * (1.0 + erf)) as f32
        }
    }
}

/// What `act(gate)` lets through of `up`.
pub fn gated(act: Act, gate: f32, up: f32) -> f32 {
    let up = match act {
        Act::Clamped { limit, .. } if up > limit => limit + 1.0,
        Act::Clamped { limit, .. } if up < -limit => 1.0 - limit,
        Act::Clamped { .. } => up + 1.0,
        _ => up,
    };
    activate(act, gate) * up
}

/// act(x).
pub fn activated<B: Backend + ?Sized>(b: &B, x: &Tensor, act: Act) -> Result<Tensor> {
    let y: Vec<f32> = b.read(x)?.iter().map(|&v| activate(act, v)).collect();
    scratch(b, &y, x.dims())
}

/// See `Backend::glu`.
pub fn glu<B: Backend + ?Sized>(b: &B, gate: &Tensor, up: &Tensor, act: Act) -> Result<Tensor> {
    if gate.shape() != up.shape() {
        return Err(Error::shape("glu", up.shape(), gate.shape()));
    }
    let (g, u) = (b.read(gate)?, b.read(up)?);
    let y: Vec<f32> = g.iter().zip(&u).map(|(&g, &u)| gated(act, g, u)).collect();
    scratch(b, &y, gate.dims())
}

/// x ⊙ σ(gate).
pub fn sigmoid_gated<B: Backend + ?Sized>(b: &B, x: &Tensor, gate: &Tensor) -> Result<Tensor> {
    if gate.shape().elements() != x.shape().elements() {
        return Err(Error::shape("sigmoid gate", gate.shape(), x.shape()));
    }
    let (x0, g) = (b.read(x)?, b.read(gate)?);
    let y: Vec<f32> = x0.iter().zip(&g).map(|(&x, &g)| x * sigmoid(g)).collect();
    scratch(b, &y, x.dims())
}

/// See `Backend::add`.
pub fn add<B: Backend + ?Sized>(b: &B, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    if x.shape() != y.shape() {
        return Err(Error::shape("add", y.shape(), x.shape()));
    }
    let sum: Vec<f32> = b.read(x)?.iter().zip(&b.read(y)?).map(|(a, c)| a + c).collect();
    scratch(b, &sum, x.dims())
}

/// See `Backend::map`.
pub fn map<B: Backend + ?Sized>(b: &B, x: &Tensor, map: Map) -> Result<Tensor> {
    let y: Vec<f32> = b
        .read(x)?
        .iter()
        .map(|&v| match map {
            Map::Scale(s) => v * s,
            Map::Softcap(cap) => cap * (v / cap).tanh(),
        })
        .collect();
    scratch(b, &y, x.dims())
}

/// Rows, width and number of results of a `combine`, checked.
pub fn combined(xs: &[&Tensor], coefficients: &Tensor) -> Result<(usize, usize, usize)> {
    let Some(first) = xs.first() else { return Ok((0, 0, 0)) };
    let (t, n) = (first.dims().first().copied().unwrap_or(1), xs.len());
    let outputs = coefficients.width() / n;
    if let Some(odd) = xs.iter().find(|x| x.shape() != first.shape()) {
        return Err(Error::shape("combine", odd.shape(), first.shape()));
    }
    if coefficients.dims() != [t, outputs * n] {
        return Err(Error::shape("combine", coefficients.shape(), (t, "a multiple of", n)));
    }
    Ok((t, first.shape().elements() / t.max(1), outputs))
}

/// See `Backend::combine`.
pub fn combine<B: Backend + ?Sized>(b: &B, xs: &[&Tensor], coefficients: &Tensor) -> Result<Vec<Tensor>> {
    let (t, d, outputs) = combined(xs, coefficients)?;
    let c = b.read(coefficients)?;
    let values = xs.iter().map(|x| b.read(x)).collect::<Result<Vec<_>>>()?;
    let n = xs.len();
    let one = |i: usize| {
        let mut y = vec![0.0f32; t * d];
        for (at, y) in y.iter_mut().enumerate() {
            let row = &c[at / d * outputs * n + i * n..][..n];
            let mut terms = values.iter().zip(row).map(|(x, c)| c * x[at]);
            *y = terms.next().unwrap_or(0.0);
            terms.for_each(|term| *y += term);
        }
        scratch(b, &y, xs[0].dims())
    };
    (0..outputs).map(one).collect()
}

/// See `Backend::concat`.
pub fn concat<B: Backend + ?Sized>(b: &B, parts: &[&Tensor]) -> Result<Tensor> {
    let rows = parts.first().map_or(0, |x| x.rows());
    if let Some(other) = parts.iter().find(|x| x.rows() != rows) {
        return Err(Error::shape("concat", other.shape(), (rows, "any width")));
    }
    let values = parts.iter().map(|x| b.read(x)).collect::<Result<Vec<_>>>()?;
    let widths: Vec<usize> = parts.iter().map(|x| x.width()).collect();
    let row = |t: usize| values.iter().zip(&widths).flat_map(move |(v, w)| v[t * w..(t + 1) * w].iter().copied());
    let out: Vec<f32> = (0..rows).flat_map(row).collect();
    scratch(b, &out, &[rows, widths.iter().sum()])
}

/// See `Backend::rows`.
pub fn rows<B: Backend + ?Sized>(b: &B, x: &Tensor, rows: &[usize]) -> Result<Tensor> {
    let (values, d) = (b.read(x)?, x.width());
    let mut out = Vec::with_capacity(rows.len() * d);
    for &r in rows {
        let row = values.get(r * d..(r + 1) * d).ok_or_else(|| Error::shape("rows", r, x.shape()))?;
        out.extend_from_slice(row);
    }
    scratch(b, &out, &[rows.len(), d])
}

/// See `Backend::dot`.
pub fn dot<B: Backend + ?Sized>(b: &B, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    if x.shape() != y.shape() || x.dims().len() < 2 {
        return Err(Error::shape("dot", y.shape(), x.shape()));
    }
    let (d, dims) = (x.width().max(1), x.dims());
    let (x0, y0) = (b.read(x)?, b.read(y)?);
    let sums: Vec<f32> =
        x0.chunks(d).zip(y0.chunks(d)).map(|(x, y)| x.iter().zip(y).map(|(a, c)| a * c).sum()).collect();
    scratch(b, &sums, &dims[..dims.len() - 1])
}

/// See `Backend::softmax`.
pub fn softmax<B: Backend + ?Sized>(b: &B, x: &Tensor) -> Result<Tensor> {
    let mut values = b.read(x)?;
    for row in values.chunks_mut(x.width().max(1)) {
        let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        row.iter_mut().for_each(|v| *v = (*v - top).exp());
        let sum: f32 = row.iter().sum();
        row.iter_mut().for_each(|v| *v /= sum);
    }
    scratch(b, &values, x.dims())
}
