//! Scores of experts and weighted sums of rows. The choice itself is the reference's: it has no arithmetic that a set of
//! instructions could change. Knows nothing of the experts' weights.

use reverie_tensor::{Error, Result, RouteSpec, Routes, Score, Tensor, Term, reference};

use super::norm::row_sum;
use super::{host, split};
use crate::simd::{LANES, Lanes, hmax, math};
use crate::{Cpu, dispatch};

/// See `Backend::route`.
pub(crate) fn route(cpu: &Cpu, logits: &Tensor, spec: &RouteSpec) -> Result<Routes> {
    let (x, e) = (host::f32s("route", logits)?, spec.n_experts);
    if e == 0 || !x.len().is_multiple_of(e) {
        return Err(Error::shape("route", logits.shape(), ("T", e)));
    }
    let mut scores = vec![0.0; x.len()];
    let parts = split::Parts::new(&mut scores);
    // An exponential costs about eight plain elements.
    split::ranges(cpu, x.len() / e, 8 * e, &|rows| {
        for row in rows {
            let (span, score) = (row * e..(row + 1) * e, spec.score);
            // SAFETY: every row is one task's.
            let (x, out) = (&x[span.clone()], unsafe { parts.part(span) });
            dispatch!(cpu.isa, scores_of(x: &[f32], out: &mut [f32], score: Score));
        }
    });
    reference::experts::choose(cpu, &scores, spec)
}

#[inline(always)]
unsafe fn scores_of<S: Lanes>(x: &[f32], out: &mut [f32], score: Score) {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    x.iter().enumerate().for_each(|(k, v)| lanes[k % LANES] = lanes[k % LANES].max(*v));
    // SAFETY: every access is within the two rows, which have one length; the set is the caller's.
    unsafe {
        let max = S::splat(hmax::<S>(S::load(lanes.as_ptr())));
        for k in (0..x.len()).step_by(LANES) {
            let (n, v) = (x.len() - k, S::load_n(x.as_ptr().add(k), x.len() - k));
            let v = match score {
                Score::Sigmoid => math::sigmoid::<S>(v),
                Score::Softmax => math::exp::<S>(S::sub(v, max)),
            };
            S::store_n(out.as_mut_ptr().add(k), n, v);
        }
        if score == Score::Softmax {
            let sum = row_sum::<S>(out, |acc, v, _| S::add(acc, v));
            out.iter_mut().for_each(|v| *v /= sum);
        }
    }
}

/// See `Backend::add_weighted`.
pub(crate) fn add_weighted(cpu: &Cpu, mut base: Tensor, x: &Tensor, terms: &[Term]) -> Result<Tensor> {
    let (d, rows) = (x.width(), base.rows());
    let values = host::f32s("add_weighted", x)?;
    let fits = |t: &Term| (t.to as usize) < rows && (t.from as usize) < values.len() / d.max(1);
    if base.width() != d || !terms.iter().all(fits) {
        return Err(Error::shape("add_weighted", (x.shape(), terms.len()), base.shape()));
    }
    if !terms.is_sorted_by_key(|t| t.to) {
        return Err(Error::value("add_weighted: terms", "out of order", "ascending rows of the sum"));
    }
    if !base.is_unique() {
        let mut own = cpu.out(base.dims())?;
        host::f32s_mut("add_weighted", &mut own)?.copy_from_slice(host::f32s("add_weighted", &base)?);
        base = own;
    }
    let out = split::Parts::new(host::f32s_mut("add_weighted", &mut base)?);
    let per_row = d * terms.len().div_ceil(rows.max(1)).max(1);
    split::ranges(cpu, rows, per_row, &|own| {
        let first = terms.partition_point(|t| (t.to as usize) < own.start);
        for term in terms[first..].iter().take_while(|t| (t.to as usize) < own.end) {
            let (to, from, weight) = (term.to as usize * d, term.from as usize * d, term.weight);
            // SAFETY: every row of the sum is one task's.
            let (y, x) = (unsafe { out.part(to..to + d) }, &values[from..from + d]);
            dispatch!(cpu.isa, add_row(x: &[f32], weight: f32, y: &mut [f32]));
        }
    });
    Ok(base)
}

#[inline(always)]
unsafe fn add_row<S: Lanes>(x: &[f32], weight: f32, y: &mut [f32]) {
    let (p, o) = (x.as_ptr(), y.as_mut_ptr());
    for k in (0..x.len()).step_by(LANES) {
        let n = x.len() - k;
        // SAFETY: within both rows, which have one length; the set is the caller's.
        unsafe { S::store_n(o.add(k), n, S::fma(S::load_n(p.add(k), n), S::splat(weight), S::load_n(o.add(k), n))) };
    }
}
