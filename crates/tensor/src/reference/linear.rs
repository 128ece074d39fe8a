//! Matrix products, with f32 activations and with int8 activations, and the int8 quantiser.

use super::{elementwise, norm, scratch};
use crate::backend::{ACT_BLOCK, Backend, Input, Numerics, Weight};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::form::{Form, Grouped, Scales, WeightSource, in_halves};
use crate::tensor::Tensor;

/// The input of a product as a plain `[T, K]` tensor.
pub fn materialise<B: Backend + ?Sized>(b: &B, input: Input<'_>) -> Result<Tensor> {
    match input {
        Input::Plain(x) => Ok(x.clone()),
        Input::Normed(x, n) => norm::run(b, x, n),
        Input::Glu(gate, up, act) => elementwise::glu(b, gate, up, act),
        Input::Activated(x, act) => elementwise::activated(b, x, act),
        Input::SigmoidGated(x, gate) => elementwise::sigmoid_gated(b, x, gate),
    }
}

/// See `Backend::linear`.
pub fn run<B: Backend + ?Sized>(b: &B, input: Input<'_>, weights: &[&Weight]) -> Result<Vec<Tensor>> {
    let x = materialise(b, input)?;
    let values = b.read(&x)?;
    weights.iter().map(|w| one(b, &x, &values, w)).collect()
}

fn one<B: Backend + ?Sized>(b: &B, x: &Tensor, values: &[f32], w: &Weight) -> Result<Tensor> {
    let elements = x.shape().elements();
    if !elements.is_multiple_of(w.k) {
        return Err(Error::shape("linear", x.shape(), ("T", w.k)));
    }
    let (t, n) = (elements / w.k, w.n);
    let source = b.unpack(w)?;
    let mut y = match (&w.form, b.numerics()) {
        (Form::Grouped(_), Numerics::Int8) => int8(values, t, source.as_ref())?,
        _ => exact(values, t, source.as_ref()),
    };
    if let Some(bias) = &w.bias {
        let bias = b.read(bias)?;
        y.chunks_mut(n).for_each(|row| row.iter_mut().zip(&bias).for_each(|(v, b)| *v += b));
    }
    scratch(b, &y, &[t, n])
}

/// Every output is one chain of fused multiply-adds along K. x `[T, K]` → `[T, N]`.
pub fn exact(x: &[f32], t: usize, source: &dyn WeightSource) -> Vec<f32> {
    let (n, k) = source.shape();
    let (mut y, mut row) = (vec![0.0; t * n], vec![0.0; k]);
    for r in 0..n {
        source.row_f32(r, &mut row);
        for c in 0..t {
            y[c * n + r] = row.iter().zip(&x[c * k..]).fold(0.0, |acc, (w, x)| w.mul_add(*x, acc));
        }
    }
    y
}

/// One activation row as int8: codes `[K]`, one scale per 32.
pub fn quantise(x: &[f32]) -> (Vec<i8>, Vec<f32>) {
    let mut codes = Vec::with_capacity(x.len());
    let mut scales = Vec::with_capacity(x.len().div_ceil(ACT_BLOCK));
    for block in x.chunks(ACT_BLOCK) {
        let (scale, inverse) = block_scale(block);
        scales.push(scale);
        codes.extend(block.iter().map(|&v| (v * inverse).round_ties_even() as i8));
    }
    (codes, scales)
}

/// Scale and inverse of one block: amax/127 and 127/amax; (0, 0) for a block so small that its inverse overflows; a block with NaN or infinity has the
/// scale NaN, so that what is not finite stays visible.
pub fn block_scale(block: &[f32]) -> (f32, f32) {
    let amax = block.iter().fold(0.0f32, |m, v| if v.abs() > m || v.is_nan() { v.abs() } else { m });
    if !block.iter().all(|v| v.is_finite()) {
        (f32::NAN, 0.0)
    } else if (127.0 / amax).is_infinite() {
        (0.0, 0.0)
    } else {
        (amax / 127.0, 127.0 / amax)
    }
}

/// The int8 product: per block exact integer sums, then one chain of f32 additions along K:
/// `acc ← Σ level·q · (w_scale·x_scale) + acc`, then `acc ← w_bias · (x_scale·Σq) + acc` where the format has a bias.
/// A block is 32 weights, or 16 where the format's scales serve 16. Where those are nibbles of one d and dmin, 32 weights make one
/// step, and its integers are whole: `acc ← x_scale · (d·Σ scale·(Σ level·q) - dmin·Σ minimum·(Σq)) + acc`, each Σ outside over the
/// two halves, the difference by one fused multiply-add.
pub fn int8(x: &[f32], t: usize, source: &dyn WeightSource) -> Result<Vec<f32>> {
    let Form::Grouped(g) = source.form() else {
        return Err(Error::value("int8 product", "a dense weight", "grouped integers"));
    };
    let (n, k) = source.shape();
    let step = g.block.min(ACT_BLOCK);
    let quantised: Vec<_> = x.chunks(k).map(quantise).collect();
    let mut y = vec![0.0; t * n];
    let (mut codes, mut bytes) = (vec![0; k], vec![0; g.row_scale_bytes(k)]);
    let (mut scales, mut biases) = (vec![0.0; k / g.block], vec![0.0; k / g.block]);
    for r in 0..n {
        source.row_codes(r, &mut codes);
        source.row_scales(r, &mut bytes);
        if g.scales == Scales::Nibbles16 {
            let rows = quantised.iter().map(|(q, x_scales)| nibbles(&g, (&codes, &bytes), (q, x_scales)));
            rows.enumerate().for_each(|(c, v)| y[c * n + r] = v);
            continue;
        }
        g.decode_scales(&bytes, &mut scales, &mut biases);
        for (c, (q, x_scales)) in quantised.iter().enumerate() {
            let mut acc = 0.0f32;
            for at in (0..k).step_by(step) {
                let span = at..at + step;
                let sum: i32 =
                    codes[span.clone()].iter().zip(&q[span.clone()]).map(|(&w, &q)| g.level(w) * i32::from(q)).sum();
                let (ws, xs) = (scales[at / g.block], x_scales[at / ACT_BLOCK]);
                acc = (sum as f32).mul_add(ws * xs, acc);
                if g.scales.has_bias() {
                    let total: i32 = q[span].iter().map(|&q| i32::from(q)).sum();
                    acc = biases[at / g.block].mul_add(xs * total as f32, acc);
                }
            }
            y[c * n + r] = acc;
        }
    }
    Ok(y)
}

/// One output of `int8` where the scales are `Scales::Nibbles16`.
fn nibbles(g: &Grouped, (codes, bytes): (&[u8], &[u8]), (q, x_scales): (&[i8], &[f32])) -> f32 {
    let of_halves = g.scales.unit_weights(g.block) / g.block;
    let mut acc = 0.0f32;
    for (i, x_scale) in x_scales.iter().enumerate() {
        let half = ACT_BLOCK / g.block * i;
        let unit = &bytes[half / of_halves * g.scales.unit_bytes()..];
        let (mut sum, mut least) = (0, 0);
        for half in half..half + ACT_BLOCK / g.block {
            let byte = i32::from(unit[4 + in_halves(half % of_halves)]);
            for at in half * g.block..(half + 1) * g.block {
                sum += (byte & 15) * g.level(codes[at]) * i32::from(q[at]);
                least += (byte >> 4) * i32::from(q[at]);
            }
        }
        let (d, dmin) = (DType::F16.read(unit, 0), DType::F16.read(unit, 1));
        acc = x_scale.mul_add((-dmin).mul_add(least as f32, d * sum as f32), acc);
    }
    acc
}
