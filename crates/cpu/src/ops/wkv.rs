//! RWKV-4's weighted mean: lanes are channels, tokens go one after another. Knows no layer.

use std::ops::Range;

use reverie_tensor::{Error, Result, StateSegment, Tensor};

use super::{host, split};
use crate::simd::{LANES, Lanes, math};
use crate::{Cpu, dispatch};

/// One sequence's part of a call.
struct Line<'a> {
    rows: Range<usize>,
    /// `[3, C]`: weighted values, weights, the exponent that both are kept over.
    state: split::Parts<'a, f32>,
}

/// What every task of a call reads.
#[derive(Clone, Copy)]
struct Call<'a> {
    k: &'a [f32],
    v: &'a [f32],
    decay: &'a [f32],
    first: &'a [f32],
}

/// See `Backend::wkv`.
pub(crate) fn run(
    cpu: &Cpu,
    (k, v): (&Tensor, &Tensor),
    (decay, first): (&Tensor, &Tensor),
    segments: &mut [StateSegment<'_>],
) -> Result<Tensor> {
    let c = reverie_tensor::reference::wkv::check(k, v, decay, first)?;
    let call = Call {
        k: host::f32s("wkv", k)?,
        v: host::f32s("wkv", v)?,
        decay: host::f32s("wkv", decay)?,
        first: host::f32s("wkv", first)?,
    };
    let whole = split::covers("wkv", segments.iter().map(|s| s.rows.clone()), k.rows())?;
    let lines = segments
        .iter_mut()
        .map(|s| {
            let state = host::f32s_mut("wkv state", s.state)?;
            if state.len() != 3 * c {
                return Err(Error::shape("wkv state", state.len(), [3, c]));
            }
            Ok(Line { rows: s.rows.clone(), state: split::Parts::new(state) })
        })
        .collect::<Result<Vec<_>>>()?;
    let mut y = cpu.out(k.dims())?;
    let out = host::f32s_mut("wkv", &mut y)?;
    if !whole {
        out.fill(0.0);
    }
    let out = split::Parts::new(out);
    for line in lines.iter().filter(|l| !l.rows.is_empty()) {
        // Four exponentials and a division.
        split::ranges(cpu, c.div_ceil(LANES), 40 * LANES * line.rows.len(), &|blocks| {
            let (call, out) = (&call, &out);
            let span = blocks.start * LANES..(blocks.end * LANES).min(c);
            dispatch!(
                cpu.isa,
                channels(call: &Call<'_>, line: &Line<'_>, span: Range<usize>, out: &split::Parts<'_, f32>)
            );
        });
    }
    Ok(y)
}

/// All rows of one sequence for some of the channels, whose part of the slot no other task touches.
#[inline(always)]
unsafe fn channels<S: Lanes>(call: &Call<'_>, line: &Line<'_>, span: Range<usize>, out: &split::Parts<'_, f32>) {
    let c = call.decay.len();
    // SAFETY: the parts are this task's alone, its channels of every row; reads stay within the operands.
    unsafe {
        for at in span.clone().step_by(LANES) {
            let n = (span.end - at).min(LANES);
            let slot = |i: usize| line.state.part(i * c + at..i * c + at + n).as_mut_ptr();
            let (mut above, mut below) = (S::load_n(slot(0), n), S::load_n(slot(1), n));
            let nothing = S::splat(-1e38);
            let kept = S::load_n(slot(2), n);
            let mut top = S::if_nan(below, kept, S::select_lt(S::splat(0.0), below, kept, nothing));
            let (decay, first) = (S::load_n(call.decay.as_ptr().add(at), n), S::load_n(call.first.as_ptr().add(at), n));
            for row in line.rows.clone() {
                let k = S::load_n(call.k.as_ptr().add(row * c + at), n);
                let v = S::load_n(call.v.as_ptr().add(row * c + at), n);
                let fresh = S::add(k, first);
                let most = S::max(top, fresh);
                let (old, new) = (math::exp::<S>(S::sub(top, most)), math::exp::<S>(S::sub(fresh, most)));
                let y = S::div(S::fma(old, above, S::mul(new, v)), S::fma(old, below, new));
                S::store_n(out.part(row * c + at..row * c + at + n).as_mut_ptr(), n, y);
                let faded = S::add(top, decay);
                let most = S::max(faded, k);
                let (old, new) = (math::exp::<S>(S::sub(faded, most)), math::exp::<S>(S::sub(k, most)));
                above = S::fma(old, above, S::mul(new, v));
                below = S::fma(old, below, new);
                top = most;
            }
            S::store_n(slot(0), n, above);
            S::store_n(slot(1), n, below);
            S::store_n(slot(2), n, top);
        }
    }
}
