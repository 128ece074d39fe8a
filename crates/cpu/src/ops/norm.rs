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

#[cfg(test)]
mod tests {
    use super::super::trial::{Seeded, close, cpus, reference, same, tensor};
    use super::*;
    use reverie_tensor::Backend;

    /// Sixteen f32 chains against one f64 sum, over at most some thousand terms.
    const TOLERANCE: f32 = 2e-6;

    fn all(
        b: &dyn Backend,
        values: &[f32],
        shape: &[usize],
        (kind, eps, both): (NormKind, f32, bool),
    ) -> Vec<Vec<f32>> {
        let d = shape[shape.len() - 1];
        let mut seeded = Seeded::new(d as u64);
        let (w, c, z) = (seeded.values(d, 2.0), seeded.values(d, 1.0), seeded.values(values.len(), 3.0));
        let (weight, bias) = (Some(tensor(b, &w, &[d])), both.then(|| tensor(b, &c, &[d])));
        let norm = Norm { kind, weight, bias, eps };
        let plain = Norm { weight: None, ..norm.clone() };
        let (x, z) = (tensor(b, values, shape), tensor(b, &z, shape));
        let results = [b.norm(&x, &norm), b.norm(&x, &plain), b.gated_norm(&x, &z, &norm)];
        results.into_iter().map(|y| b.read(&y.unwrap()).unwrap()).collect()
    }

    #[test]
    fn as_the_reference_in_every_way_to_run() {
        let cpus = cpus();
        for (seed, d) in [1, 2, 7, 15, 16, 17, 64, 100, 128, 1000, 1024, 4096].into_iter().enumerate() {
            let mut seeded = Seeded::new(seed as u64);
            let (t, h) = (seeded.pick(&[1, 3, 40]), seeded.pick(&[1, 4]));
            let mut values = seeded.values(t * h * d, 5.0);
            if seed % 3 == 2 {
                values[d / 2] = f32::NAN;
                values[(t * h - 1) * d] = f32::INFINITY;
            }
            for how in [(NormKind::Rms, 1e-6, false), (NormKind::Rms, 0.1, true), (NormKind::Layer, 1e-5, true)] {
                let expected = all(&reference(), &values, &[t, h, d], how);
                let first = all(&cpus[0], &values, &[t, h, d], how);
                for ((e, f), what) in expected.iter().zip(&first).zip(["norm", "plain", "gated"]) {
                    // One element less its own mean: whatever rounding left, over √eps.
                    if d > 1 || how.0 == NormKind::Rms {
                        close(&format!("{what} {how:?} {d}"), f, e, TOLERANCE * if d < 3 { 20.0 } else { 1.0 });
                    }
                }
                for cpu in &cpus[1..] {
                    let found = all(cpu, &values, &[t, h, d], how);
                    found.iter().zip(&first).for_each(|(f, e)| same("norm", f, e));
                }
                let last = all(&cpus[0], &values[(t * h - 1) * d..], &[1, d], how);
                same("a row alone", &last[0], &first[0][(t * h - 1) * d..]);
            }
        }
    }

    #[test]
    fn groups_of_rows_have_weights_of_their_own() {
        let (t, g) = (70, 3);
        for d in [5, 16, 100] {
            let mut seeded = Seeded::new(d as u64);
            let (x, w, c) = (seeded.values(t * g * d, 4.0), seeded.values(g * d, 2.0), seeded.values(g * d, 1.0));
            let run = |b: &dyn Backend| {
                let norm = Norm {
                    kind: NormKind::Rms,
                    weight: Some(tensor(b, &w, &[g, d])),
                    bias: Some(tensor(b, &c, &[g, d])),
                    eps: 1e-5,
                };
                b.read(&b.norm(&tensor(b, &x, &[t, g, d]), &norm).unwrap()).unwrap()
            };
            let expected = run(&reference());
            let apart = |i: usize, b: &dyn Backend| {
                let (r, own) = (i / d, i / d % g * d..(i / d % g + 1) * d);
                let norm = Norm {
                    kind: NormKind::Rms,
                    weight: Some(tensor(b, &w[own.clone()], &[d])),
                    bias: Some(tensor(b, &c[own], &[d])),
                    eps: 1e-5,
                };
                b.read(&b.norm(&tensor(b, &x[r * d..(r + 1) * d], &[1, d]), &norm).unwrap()).unwrap()[i % d]
            };
            for i in [0, d, 2 * d, 4 * d + 1, t * g * d - 1] {
                assert_eq!(expected[i].to_bits(), apart(i, &reference()).to_bits());
            }
            for cpu in cpus() {
                let found = run(&cpu);
                close("groups", &found, &expected, TOLERANCE);
                assert_eq!(found[4 * d + 1].to_bits(), apart(4 * d + 1, &cpu).to_bits());
            }
        }
    }

    #[test]
    fn a_weight_of_another_width_is_refused() {
        let cpu = &cpus()[0];
        let norm = Norm { kind: NormKind::Rms, weight: Some(tensor(cpu, &[1.0; 8], &[8])), bias: None, eps: 1e-6 };
        assert!(cpu.norm(&tensor(cpu, &[1.0; 9], &[1, 9]), &norm).unwrap_err().to_string().contains("[8]"));
    }
}
