//! Exponential gates kept from overflowing: lanes are heads, tokens go one after another. A few values a token, so one task does it.

use std::ops::Range;

use reverie_tensor::{Error, Result, StateSegment, Tensor};

use super::{host, split};
use crate::simd::{LANES, Lanes, math};
use crate::{Cpu, dispatch};

/// Where the three results go.
struct Results<'a> {
    kept: &'a mut [f32],
    written: &'a mut [f32],
    top: &'a mut [f32],
}

/// See `Backend::exp_gates`.
pub(crate) fn run(
    cpu: &Cpu,
    input: &Tensor,
    forget: &Tensor,
    segments: &mut [StateSegment<'_>],
) -> Result<[Tensor; 3]> {
    if input.shape() != forget.shape() {
        return Err(Error::shape("exp_gates", forget.shape(), input.shape()));
    }
    let (i, f) = (host::f32s("exp_gates", input)?, host::f32s("exp_gates", forget)?);
    let whole = split::covers("exp_gates", segments.iter().map(|s| s.rows.clone()), input.rows())?;
    let mut out = [cpu.out(input.dims())?, cpu.out(input.dims())?, cpu.out(input.dims())?];
    let [kept, written, top] = &mut out;
    let mut results = Results {
        kept: host::f32s_mut("exp_gates", kept)?,
        written: host::f32s_mut("exp_gates", written)?,
        top: host::f32s_mut("exp_gates", top)?,
    };
    if !whole {
        [&mut results.kept, &mut results.written, &mut results.top].into_iter().for_each(|r| r.fill(0.0));
    }
    for segment in segments {
        let m = host::f32s_mut("exp_gates state", segment.state)?;
        if m.len() != input.width() {
            return Err(Error::shape("exp_gates state", m.len(), [input.width()]));
        }
        let (rows, results) = (segment.rows.clone(), &mut results);
        dispatch!(
            cpu.isa,
            gates(i: &[f32], f: &[f32], rows: Range<usize>, m: &mut [f32], results: &mut Results<'_>)
        );
    }
    Ok(out)
}

#[inline(always)]
unsafe fn gates<S: Lanes>(i: &[f32], f: &[f32], rows: Range<usize>, m: &mut [f32], out: &mut Results<'_>) {
    let h = m.len();
    // SAFETY: every access is within a row of `h` values of slices of one length; the set is the caller's.
    unsafe {
        for at in (0..h).step_by(LANES) {
            let n = (h - at).min(LANES);
            let mut top = S::load_n(m.as_ptr().add(at), n);
            for row in rows.clone() {
                let place = row * h + at;
                let (input, forget) = (S::load_n(i.as_ptr().add(place), n), S::load_n(f.as_ptr().add(place), n));
                let faded = S::add(forget, top);
                top = S::max(faded, input);
                S::store_n(out.kept.as_mut_ptr().add(place), n, math::exp::<S>(S::sub(faded, top)));
                S::store_n(out.written.as_mut_ptr().add(place), n, math::exp::<S>(S::sub(input, top)));
                S::store_n(out.top.as_mut_ptr().add(place), n, top);
            }
            S::store_n(m.as_mut_ptr().add(at), n, top);
        }
    }
}
