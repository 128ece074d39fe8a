//! RMS norm, layer norm and the gated RMS norm, a row at a time. A row's sums are sixteen chains, one a lane, joined in
//! one fixed order, so that a row has the same bits wherever it is normalised. Knows rows only.

use reverie_tensor::{Act, Error, Norm, NormKind, Result, Tensor};

use super::{host, split};
use crate::simd::{LANES, Lanes, math, sum};
use crate::{Cpu, dispatch};

/// A norm over rows of one width, its parameters as slices of that width.
#[derive(Clone, Copy)]
pub(crate) struct RowNorm<'a> {
    kind: NormKind,
    eps: f32,
    weight: Option<&'a [f32]>,
    bias: Option<&'a [f32]>,
}

impl<'a> RowNorm<'a> {
    /// The norm of rows of `width` values; its weight and bias must have that width.
    pub(crate) fn new(norm: &'a Norm, width: usize) -> Result<RowNorm<'a>> {
        let vector = |t: &'a Option<Tensor>| t.as_ref().map(|t| host::f32s_of("norm", t, width)).transpose();
        Ok(RowNorm { kind: norm.kind, eps: norm.eps, weight: vector(&norm.weight)?, bias: vector(&norm.bias)? })
    }
}

/// The norms of rows that take turns: row r is of group r mod G.
#[derive(Clone, Copy)]
struct Turns<'a> {
    kind: NormKind,
    eps: f32,
    weight: Option<&'a [f32]>,
    bias: Option<&'a [f32]>,
    width: usize,
}

impl<'a> Turns<'a> {
    fn new(norm: &'a Norm, x: &Tensor) -> Result<Turns<'a>> {
        let width = x.width();
        let vector = |t: &'a Option<Tensor>| -> Result<Option<&'a [f32]>> {
            let Some(t) = t else { return Ok(None) };
            let n = t.shape().elements();
            if n == 0 || !n.is_multiple_of(width) || !x.rows().is_multiple_of(n / width) {
                return Err(Error::shape("norm", t.shape(), ("groups that the rows divide into", width)));
            }
            host::f32s("norm", t).map(Some)
        };
        let (weight, bias) = (vector(&norm.weight)?, vector(&norm.bias)?);
        Ok(Turns { kind: norm.kind, eps: norm.eps, weight, bias, width })
    }

    /// The norm of a row.
    fn of(&self, row: usize) -> RowNorm<'a> {
        let own = |all: &'a [f32]| {
            let from = row * self.width % all.len();
            &all[from..from + self.width]
        };
        RowNorm { kind: self.kind, eps: self.eps, weight: self.weight.map(own), bias: self.bias.map(own) }
    }
}

/// Σ f(v) of a row: lane i adds f of the elements k ≡ i mod 16 in order. `f` must leave the padding of the last vector
/// zero; it is told how many lanes hold elements.
///
/// # Safety
/// As for `Lanes`.
#[inline(always)]
pub(crate) unsafe fn row_sum<S: Lanes>(x: &[f32], f: impl Fn(S::F, S::F, usize) -> S::F) -> f32 {
    // SAFETY: every access is within `x`; the set is the caller's.
    unsafe {
        let mut acc = S::splat(0.0);
        for k in (0..x.len()).step_by(LANES) {
            let n = (x.len() - k).min(LANES);
            acc = f(acc, S::load_n(x.as_ptr().add(k), n), n);
        }
        sum::<S>(acc)
    }
}

/// One row normalised into `out`, which is as long as `x`.
///
/// # Safety
/// As for `Lanes`.
#[inline(always)]
pub(crate) unsafe fn normalise_row<S: Lanes>(x: &[f32], norm: &RowNorm<'_>, out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "a row and its norm");
    // SAFETY: every access is within slices of one length (`RowNorm::new` checked the parameters'); the set is the
    // caller's.
    unsafe {
        let d = x.len() as f32;
        let mean = match norm.kind {
            NormKind::Rms => 0.0,
            NormKind::Layer => row_sum::<S>(x, |acc, v, _| S::add(acc, v)) / d,
        };
        let mean_v = S::splat(mean);
        let squares = match norm.kind {
            NormKind::Rms => row_sum::<S>(x, |acc, v, _| S::fma(v, v, acc)),
            NormKind::Layer => row_sum::<S>(x, |acc, v, n| {
                let mut c = S::sub(v, mean_v);
                if n < LANES {
                    let mut kept = [0.0; LANES];
                    S::store_n(kept.as_mut_ptr(), n, c);
                    c = S::load(kept.as_ptr());
                }
                S::fma(c, c, acc)
            }),
        };
        let inverse = S::splat(1.0 / (squares / d + norm.eps).sqrt());
        let (p, o) = (x.as_ptr(), out.as_mut_ptr());
        for k in (0..x.len()).step_by(LANES) {
            let n = x.len() - k;
            let mut y = S::load_n(p.add(k), n);
            if norm.kind == NormKind::Layer {
                y = S::sub(y, mean_v);
            }
            y = S::mul(y, inverse);
            if let Some(w) = norm.weight {
                y = S::mul(y, S::load_n(w.as_ptr().add(k), n));
            }
            if let Some(b) = norm.bias {
                y = S::add(y, S::load_n(b.as_ptr().add(k), n));
            }
            S::store_n(o.add(k), n, y);
        }
    }
}

/// See `Backend::norm`.
pub(crate) fn run(cpu: &Cpu, x: &Tensor, norm: &Norm) -> Result<Tensor> {
    over_rows(cpu, x, None, norm)
}

/// See `Backend::gated_norm`.
pub(crate) fn run_gated(cpu: &Cpu, x: &Tensor, z: &Tensor, norm: &Norm) -> Result<Tensor> {
    if x.shape().elements() != z.shape().elements() {
        return Err(Error::shape("gated_norm", z.shape(), x.shape()));
    }
    over_rows(cpu, x, Some(z), norm)
}

fn over_rows(cpu: &Cpu, x: &Tensor, gate: Option<&Tensor>, norm: &Norm) -> Result<Tensor> {
    let d = x.width();
    if d == 0 {
        return Err(Error::shape("norm", x.shape(), "rows of at least one value"));
    }
    let turns = Turns::new(norm, x)?;
    let values = host::f32s("norm", x)?;
    let gate = gate.map(|z| host::f32s("gated_norm", z)).transpose()?;
    let mut y = cpu.out(x.dims())?;
    let out = split::Parts::new(host::f32s_mut("norm", &mut y)?);
    split::ranges(cpu, x.rows(), d, &|rows| {
        let span = rows.start * d..rows.end * d;
        // SAFETY: the ranges of rows are disjoint.
        let part = unsafe { out.part(span.clone()) };
        let task = Rows { turns, first: rows.start, x: &values[span.clone()], gate: gate.map(|z| &z[span]) };
        dispatch!(cpu.isa, normalise_rows(task: Rows<'_>, part: &mut [f32]));
    });
    Ok(y)
}

struct Rows<'a> {
    turns: Turns<'a>,
    /// Number of the first row.
    first: usize,
    x: &'a [f32],
    gate: Option<&'a [f32]>,
}

#[inline(always)]
unsafe fn normalise_rows<S: Lanes>(task: Rows<'_>, out: &mut [f32]) {
    let d = task.turns.width;
    for (i, (x, y)) in task.x.chunks_exact(d).zip(out.chunks_exact_mut(d)).enumerate() {
        // SAFETY: the set is the caller's; the gate is as long as x.
        unsafe {
            normalise_row::<S>(x, &task.turns.of(task.first + i), y);
            if let Some(gate) = task.gate {
                let (g, p) = (gate[i * d..(i + 1) * d].as_ptr(), y.as_mut_ptr());
                for k in (0..d).step_by(LANES) {
                    let n = d - k;
                    let z = math::activate::<S>(Act::Silu, S::load_n(g.add(k), n));
                    S::store_n(p.add(k), n, S::mul(S::load_n(p.add(k), n), z));
                }
            }
        }
    }
}
