//! The selective scan, token by token: lanes are channels, whose states no two tasks share; a token's sum over the states is one
//! chain in their order. Knows slots and nothing else of a sequence.

use std::ops::Range;

use reverie_tensor::{Error, Result, ScanInput, ScanSpec, StateSegment, Tensor};

use super::{host, split};
use crate::simd::{LANES, Lanes, math};
use crate::{Cpu, dispatch};

/// One sequence's part of a call.
struct Line<'a> {
    rows: Range<usize>,
    /// `[N, C]`.
    state: split::Parts<'a, f32>,
}

/// What every task of a call reads.
#[derive(Clone, Copy)]
struct Call<'a> {
    x: &'a [f32],
    dt: &'a [f32],
    b: &'a [f32],
    c: &'a [f32],
    rate: &'a [f32],
    skip: &'a [f32],
    states: usize,
    channels: usize,
}

/// See `Backend::selective_scan`.
pub(crate) fn run(
    cpu: &Cpu,
    input: ScanInput<'_>,
    segments: &mut [StateSegment<'_>],
    spec: &ScanSpec,
) -> Result<Tensor> {
    const OP: &str = "selective_scan";
    let &[states, channels] = spec.rate.dims() else {
        return Err(Error::shape(OP, spec.rate.shape(), "[N, C]"));
    };
    let t = input.x.rows();
    if input.x.width() != channels || channels == 0 || states == 0 {
        return Err(Error::shape(OP, input.x.shape(), ("T", channels)));
    }
    let call = Call {
        x: host::f32s(OP, input.x)?,
        dt: host::f32s_of(OP, input.dt, t * channels)?,
        b: host::f32s_of(OP, input.b, t * states)?,
        c: host::f32s_of(OP, input.c, t * states)?,
        rate: host::f32s(OP, &spec.rate)?,
        skip: host::f32s_of(OP, &spec.skip, channels)?,
        states,
        channels,
    };
    let whole = split::covers(OP, segments.iter().map(|s| s.rows.clone()), t)?;
    let lines = segments
        .iter_mut()
        .map(|s| {
            let state = host::f32s_mut("selective_scan state", s.state)?;
            if state.len() != states * channels {
                return Err(Error::shape("selective_scan state", state.len(), [states, channels]));
            }
            Ok(Line { rows: s.rows.clone(), state: split::Parts::new(state) })
        })
        .collect::<Result<Vec<_>>>()?;
    let mut y = cpu.out(input.x.dims())?;
    let out = host::f32s_mut(OP, &mut y)?;
    if !whole {
        out.fill(0.0);
    }
    let out = split::Parts::new(out);
    let (blocks, longest) = (channels.div_ceil(LANES), lines.iter().map(|l| l.rows.len()).max().unwrap_or(0));
    // A state costs an exponential: about ten plain elements.
    split::ranges(cpu, lines.len() * blocks, 10 * longest * LANES * states, &|items| {
        for i in items {
            let (line, at) = (&lines[i / blocks], i % blocks * LANES);
            let out = &out;
            dispatch!(cpu.isa, scan(call: Call<'_>, line: &Line<'_>, at: usize, out: &split::Parts<'_, f32>));
        }
    });
    Ok(y)
}

/// All rows of one sequence for up to sixteen channels from `at` on.
#[inline(always)]
unsafe fn scan<S: Lanes>(call: Call<'_>, line: &Line<'_>, at: usize, out: &split::Parts<'_, f32>) {
    let Call { states, channels, .. } = call;
    let n = (channels - at).min(LANES);
    // SAFETY: the parts are this task's alone: its channels of every row and state. Reads stay within the slices, whose lengths
    // were checked; the set is the caller's.
    unsafe {
        let skip = S::load_n(call.skip.as_ptr().add(at), n);
        for row in line.rows.clone() {
            let x = S::load_n(call.x.as_ptr().add(row * channels + at), n);
            let delta = math::softplus::<S>(S::load_n(call.dt.as_ptr().add(row * channels + at), n));
            let written = S::mul(delta, x);
            let mut y = S::splat(0.0);
            for j in 0..states {
                let place = j * channels + at;
                let state = line.state.part(place..place + n).as_mut_ptr();
                let decay = math::exp::<S>(S::mul(delta, S::load_n(call.rate.as_ptr().add(place), n)));
                let new = S::fma(decay, S::load_n(state, n), S::mul(written, S::splat(call.b[row * states + j])));
                S::store_n(state, n, new);
                y = S::fma(S::splat(call.c[row * states + j]), new, y);
            }
            let to = row * channels + at;
            S::store_n(out.part(to..to + n).as_mut_ptr(), n, S::fma(skip, x, y));
        }
    }
}
