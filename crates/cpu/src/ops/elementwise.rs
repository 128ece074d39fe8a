//! Gated activations, sums, maps and row selection. Elementwise, so that how the work is cut cannot show. Knows no
//! shape beyond the length of a row.

use std::ops::Range;

use reverie_tensor::backend::Map;
use reverie_tensor::reference::elementwise::combined;
use reverie_tensor::{Act, Error, Result, Tensor};

use super::{host, split};
use crate::simd::{LANES, Lanes, math};
use crate::{Cpu, dispatch};

/// A function of two values, as a type: a kernel's body must be inlined whatever its size, which closures do not
/// promise.
trait Pairwise: Copy {
    /// Of sixteen pairs; unsafe as `Lanes` is.
    unsafe fn of<S: Lanes>(self, a: S::F, b: S::F) -> S::F;
}

/// `out[i] = f(a[i], b[i])`, sixteen at a time; `out` may be where `a` is.
///
/// # Safety
/// As for `Lanes`; the pointers are valid for `len` elements.
#[inline(always)]
unsafe fn zip<S: Lanes>(a: *const f32, b: *const f32, out: *mut f32, len: usize, f: impl Pairwise) {
    // SAFETY: within `len` elements by contract.
    unsafe {
        for k in (0..len).step_by(LANES) {
            let n = len - k;
            S::store_n(out.add(k), n, f.of::<S>(S::load_n(a.add(k), n), S::load_n(b.add(k), n)));
        }
    }
}

/// act(a) · b.
#[derive(Clone, Copy)]
struct Glu(Act);

impl Pairwise for Glu {
    #[inline(always)]
    unsafe fn of<S: Lanes>(self, a: S::F, b: S::F) -> S::F {
        // SAFETY: the set is the caller's.
        unsafe {
            let b = match self.0 {
                Act::Clamped { limit, .. } => {
                    // NaN stays NaN: the second operand is what either gives for it.
                    S::add(S::min(S::splat(limit), S::max(S::splat(-limit), b)), S::splat(1.0))
                }
                _ => b,
            };
            S::mul(math::activate::<S>(self.0, a), b)
        }
    }
}

/// act(a).
#[derive(Clone, Copy)]
struct Activation(Act);

impl Pairwise for Activation {
    #[inline(always)]
    unsafe fn of<S: Lanes>(self, a: S::F, _: S::F) -> S::F {
        // SAFETY: the set is the caller's.
        unsafe { math::activate::<S>(self.0, a) }
    }
}

/// a · σ(b).
#[derive(Clone, Copy)]
struct SigmoidGate;

impl Pairwise for SigmoidGate {
    #[inline(always)]
    unsafe fn of<S: Lanes>(self, a: S::F, b: S::F) -> S::F {
        // SAFETY: the set is the caller's.
        unsafe { S::mul(a, math::sigmoid::<S>(b)) }
    }
}

/// a + b.
#[derive(Clone, Copy)]
struct Sum;

impl Pairwise for Sum {
    #[inline(always)]
    unsafe fn of<S: Lanes>(self, a: S::F, b: S::F) -> S::F {
        // SAFETY: the set is the caller's.
        unsafe { S::add(a, b) }
    }
}

impl Pairwise for Map {
    #[inline(always)]
    unsafe fn of<S: Lanes>(self, a: S::F, _: S::F) -> S::F {
        // SAFETY: the set is the caller's.
        unsafe {
            match self {
                Map::Scale(s) => S::mul(a, S::splat(s)),
                Map::Softcap(cap) => math::softcap::<S>(a, cap),
            }
        }
    }
}

/// `act(gate) ⊙ up` of one row into `out`; all three of one length.
///
/// # Safety
/// As for `Lanes`.
#[inline(always)]
pub(crate) unsafe fn glu_row<S: Lanes>(gate: &[f32], up: &[f32], act: Act, out: &mut [f32]) {
    assert!(gate.len() == out.len() && up.len() == out.len(), "rows of one length");
    // SAFETY: the lengths were checked; the set is the caller's.
    unsafe { zip::<S>(gate.as_ptr(), up.as_ptr(), out.as_mut_ptr(), out.len(), Glu(act)) }
}

/// `act(x)` of one row into `out`, which is as long.
///
/// # Safety
/// As for `Lanes`.
#[inline(always)]
pub(crate) unsafe fn activate_row<S: Lanes>(x: &[f32], act: Act, out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "rows of one length");
    // SAFETY: the lengths were checked; the set is the caller's.
    unsafe { zip::<S>(x.as_ptr(), x.as_ptr(), out.as_mut_ptr(), out.len(), Activation(act)) }
}

/// `x ⊙ σ(gate)` of one row into `out`; all three of one length.
///
/// # Safety
/// As for `Lanes`.
#[inline(always)]
pub(crate) unsafe fn sigmoid_gate_row<S: Lanes>(x: &[f32], gate: &[f32], out: &mut [f32]) {
    assert!(gate.len() == out.len() && x.len() == out.len(), "rows of one length");
    // SAFETY: the lengths were checked; the set is the caller's.
    unsafe { zip::<S>(x.as_ptr(), gate.as_ptr(), out.as_mut_ptr(), out.len(), SigmoidGate) }
}

/// See `Backend::glu`.
pub(crate) fn glu(cpu: &Cpu, gate: &Tensor, up: &Tensor, act: Act) -> Result<Tensor> {
    if gate.shape() != up.shape() {
        return Err(Error::shape("glu", up.shape(), gate.shape()));
    }
    let (g, u) = (host::f32s("glu", gate)?, host::f32s("glu", up)?);
    let mut y = cpu.out(gate.dims())?;
    let out = split::Parts::new(host::f32s_mut("glu", &mut y)?);
    // An activation costs about eight plain elements.
    split::ranges(cpu, g.len().div_ceil(LANES), 8 * LANES, &|blocks| {
        let span = blocks.start * LANES..(blocks.end * LANES).min(g.len());
        let (g, u) = (&g[span.clone()], &u[span.clone()]);
        // SAFETY: the spans are disjoint.
        let part = unsafe { out.part(span) };
        dispatch!(cpu.isa, glu_row(g: &[f32], u: &[f32], act: Act, part: &mut [f32]));
    });
    Ok(y)
}

/// See `Backend::add`.
pub(crate) fn add(cpu: &Cpu, a: Tensor, b: &Tensor) -> Result<Tensor> {
    if a.shape() != b.shape() {
        return Err(Error::shape("add", b.shape(), a.shape()));
    }
    let addend = host::f32s("add", b)?;
    into_first(cpu, "add", a, 1, &|span, from, to| {
        let (b, n) = (addend[span.clone()].as_ptr(), span.len());
        dispatch!(cpu.isa, add_span(from: *const f32, b: *const f32, to: *mut f32, n: usize));
    })
}

#[inline(always)]
unsafe fn add_span<S: Lanes>(x: *const f32, b: *const f32, y: *mut f32, n: usize) {
    // SAFETY: all three are valid for `n` elements.
    unsafe { zip::<S>(x, b, y, n, Sum) }
}

/// See `Backend::map`.
pub(crate) fn map(cpu: &Cpu, x: Tensor, map: Map) -> Result<Tensor> {
    let cost = if matches!(map, Map::Scale(_)) { 1 } else { 8 };
    into_first(cpu, "map", x, cost, &|span, from, to| {
        let n = span.len();
        dispatch!(cpu.isa, map_span(from: *const f32, to: *mut f32, n: usize, map: Map));
    })
}

#[inline(always)]
unsafe fn map_span<S: Lanes>(x: *const f32, y: *mut f32, n: usize, map: Map) {
    // SAFETY: both are valid for `n` elements.
    unsafe { zip::<S>(x, x, y, n, map) }
}

/// What `into_first` calls for a span: the span, where its input starts and where its output goes.
type Span<'a> = dyn Fn(Range<usize>, *const f32, *mut f32) + Sync + 'a;

/// An elementwise operation whose result takes `x`'s storage if no other handle shares it. `cost` is in plain elements.
fn into_first(cpu: &Cpu, op: &'static str, mut x: Tensor, cost: usize, body: &Span<'_>) -> Result<Tensor> {
    let n = x.shape().elements();
    let mut fresh = if x.is_unique() { None } else { Some(cpu.out(x.dims())?) };
    let (from, to) = match &mut fresh {
        Some(y) => (host::f32s(op, &x)?.as_ptr(), host::f32s_mut(op, y)?.as_mut_ptr()),
        None => {
            let p = host::f32s_mut(op, &mut x)?.as_mut_ptr();
            (p.cast_const(), p)
        }
    };
    let ends = Ends { from, to };
    split::ranges(cpu, n.div_ceil(LANES), cost * LANES, &|blocks| {
        let span = blocks.start * LANES..(blocks.end * LANES).min(n);
        let (from, to) = ends.at(span.start);
        body(span, from, to);
    });
    Ok(fresh.unwrap_or(x))
}

/// Where an operation reads and writes; both ends may be one place.
struct Ends {
    from: *const f32,
    to: *mut f32,
}

// SAFETY: tasks use disjoint spans of both ends, which outlive the call that shares them.
unsafe impl Sync for Ends {}

impl Ends {
    fn at(&self, i: usize) -> (*const f32, *mut f32) {
        (self.from.wrapping_add(i), self.to.wrapping_add(i))
    }
}

/// See `Backend::combine`.
pub(crate) fn combine(cpu: &Cpu, xs: &[&Tensor], coefficients: &Tensor) -> Result<Vec<Tensor>> {
    let (t, d, outputs) = combined(xs, coefficients)?;
    let n = xs.len();
    let c = host::f32s("combine", coefficients)?;
    let inputs = xs.iter().map(|x| host::f32s("combine", x)).collect::<Result<Vec<_>>>()?;
    let mut results = Vec::with_capacity(outputs);
    for i in 0..outputs {
        let mut y = cpu.out(xs[0].dims())?;
        let out = split::Parts::new(host::f32s_mut("combine", &mut y)?);
        split::ranges(cpu, t, n * d, &|rows| {
            for row in rows {
                // SAFETY: the rows are disjoint.
                let part = unsafe { out.part(row * d..(row + 1) * d) };
                for (j, x) in inputs.iter().enumerate() {
                    let (x, factor) = (&x[row * d..(row + 1) * d], c[(row * outputs + i) * n + j]);
                    dispatch!(cpu.isa, combine_row(x: &[f32], factor: f32, j: usize, part: &mut [f32]));
                }
            }
        });
        results.push(y);
    }
    Ok(results)
}

/// `out = factor · x` for the first term, `out + factor · x` for the others.
#[inline(always)]
unsafe fn combine_row<S: Lanes>(x: &[f32], factor: f32, term: usize, out: &mut [f32]) {
    assert!(x.len() == out.len(), "rows of one length");
    // SAFETY: the lengths were checked; the set is the caller's.
    unsafe {
        let c = S::splat(factor);
        for k in (0..x.len()).step_by(LANES) {
            let (n, to) = (x.len() - k, out.as_mut_ptr().add(k));
            let y = S::mul(c, S::load_n(x.as_ptr().add(k), n));
            S::store_n(to, n, if term == 0 { y } else { S::add(S::load_n(to, n), y) });
        }
    }
}

/// See `Backend::concat`.
pub(crate) fn concat(cpu: &Cpu, parts: &[&Tensor]) -> Result<Tensor> {
    let t = parts.first().map_or(0, |x| x.rows());
    if let Some(other) = parts.iter().find(|x| x.rows() != t) {
        return Err(Error::shape("concat", other.shape(), (t, "any width")));
    }
    let width: usize = parts.iter().map(|x| x.width()).sum();
    let mut y = cpu.out(&[t, width])?;
    let out = host::f32s_mut("concat", &mut y)?;
    let mut at = 0;
    for part in parts {
        let w = part.width();
        for (row, from) in out.chunks_exact_mut(width.max(1)).zip(host::f32s("concat", part)?.chunks_exact(w.max(1))) {
            row[at..at + w].copy_from_slice(from);
        }
        at += w;
    }
    Ok(y)
}

/// See `Backend::rows`.
pub(crate) fn rows(cpu: &Cpu, x: &Tensor, rows: &[usize]) -> Result<Tensor> {
    let (values, d) = (host::f32s("rows", x)?, x.width());
    let mut y = cpu.out(&[rows.len(), d])?;
    for (out, &r) in host::f32s_mut("rows", &mut y)?.chunks_exact_mut(d.max(1)).zip(rows) {
        if r >= x.rows() {
            return Err(Error::shape("rows", r, x.shape()));
        }
        out.copy_from_slice(&values[r * d..(r + 1) * d]);
    }
    Ok(y)
}

/// See `Backend::dot`.
pub(crate) fn dot(cpu: &Cpu, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.shape() != b.shape() || a.dims().len() < 2 || a.width() == 0 {
        return Err(Error::shape("dot", b.shape(), a.shape()));
    }
    let (x, y, d) = (host::f32s("dot", a)?, host::f32s("dot", b)?, a.width());
    let mut sums = cpu.out(&a.dims()[..a.dims().len() - 1])?;
    let out = split::Parts::new(host::f32s_mut("dot", &mut sums)?);
    split::ranges(cpu, a.rows(), d, &|rows| {
        let (x, y) = (&x[rows.start * d..rows.end * d], &y[rows.start * d..rows.end * d]);
        // SAFETY: the ranges of rows are disjoint.
        let part = unsafe { out.part(rows) };
        dispatch!(cpu.isa, dot_rows(x: &[f32], y: &[f32], part: &mut [f32]));
    });
    Ok(sums)
}

/// Each sum as `norm::row_sum` has it: sixteen chains, joined in one order.
#[inline(always)]
unsafe fn dot_rows<S: Lanes>(x: &[f32], y: &[f32], out: &mut [f32]) {
    let d = x.len() / out.len().max(1);
    for (i, sum) in out.iter_mut().enumerate() {
        let (x, y) = (&x[i * d..(i + 1) * d], &y[i * d..(i + 1) * d]);
        // SAFETY: both rows hold `d` elements; the set is the caller's.
        unsafe {
            let mut acc = S::splat(0.0);
            for k in (0..d).step_by(LANES) {
                acc = S::fma(S::load_n(x.as_ptr().add(k), d - k), S::load_n(y.as_ptr().add(k), d - k), acc);
            }
            *sum = crate::simd::sum::<S>(acc);
        }
    }
}
