//! The real-gated linear recurrent unit, token by token: lanes are channels of one block of the gates, each gate one chain over the
//! block's inputs. Knows slots and positions and nothing else of a sequence.

use std::ops::Range;

use reverie_tensor::{Error, Result, RgLruSpec, StateSegment, Tensor};

use super::{host, split};
use crate::simd::{LANES, Lanes, math};
use crate::{Cpu, dispatch};

/// One sequence's part of a call.
struct Line<'a> {
    rows: Range<usize>,
    /// `[C]`.
    state: split::Parts<'a, f32>,
}

/// What every task of a call reads.
#[derive(Clone, Copy)]
struct Call<'a> {
    x: &'a [f32],
    positions: &'a [u32],
    rate: &'a [f32],
    /// Weight and bias.
    input_gate: (&'a [f32], &'a [f32]),
    decay_gate: (&'a [f32], &'a [f32]),
    block: usize,
    channels: usize,
}

/// See `Backend::rg_lru`.
pub(crate) fn run(
    cpu: &Cpu,
    x: &Tensor,
    positions: &[u32],
    segments: &mut [StateSegment<'_>],
    spec: &RgLruSpec,
) -> Result<Tensor> {
    const OP: &str = "rg_lru";
    let (t, channels) = (x.rows(), x.width());
    let &[heads, block, outputs] = spec.input_gate.0.dims() else {
        return Err(Error::shape(OP, spec.input_gate.0.shape(), "[H, C/H, C/H]"));
    };
    if block == 0 || block != outputs || heads * block != channels || positions.len() != t {
        return Err(Error::shape(OP, (x.shape(), positions.len()), ("T", heads * block)));
    }
    let gate = |g: &'_ (Tensor, Tensor)| -> Result<()> {
        host::f32s_of(OP, &g.0, channels * block)?;
        host::f32s_of(OP, &g.1, channels).map(drop)
    };
    gate(&spec.input_gate)?;
    gate(&spec.decay_gate)?;
    let call = Call {
        x: host::f32s(OP, x)?,
        positions,
        rate: host::f32s_of(OP, &spec.rate, channels)?,
        input_gate: (host::f32s(OP, &spec.input_gate.0)?, host::f32s(OP, &spec.input_gate.1)?),
        decay_gate: (host::f32s(OP, &spec.decay_gate.0)?, host::f32s(OP, &spec.decay_gate.1)?),
        block,
        channels,
    };
    let whole = split::covers(OP, segments.iter().map(|s| s.rows.clone()), t)?;
    let lines = segments
        .iter_mut()
        .map(|s| {
            let state = host::f32s_mut("rg_lru state", s.state)?;
            if state.len() != channels {
                return Err(Error::shape("rg_lru state", state.len(), [channels]));
            }
            Ok(Line { rows: s.rows.clone(), state: split::Parts::new(state) })
        })
        .collect::<Result<Vec<_>>>()?;
    let mut y = cpu.out(x.dims())?;
    let out = host::f32s_mut(OP, &mut y)?;
    if !whole {
        out.fill(0.0);
    }
    let out = split::Parts::new(out);
    let (vectors, longest) = (block.div_ceil(LANES), lines.iter().map(|l| l.rows.len()).max().unwrap_or(0));
    let per_line = heads * vectors;
    split::ranges(cpu, lines.len() * per_line, 2 * longest * LANES * block, &|items| {
        for i in items {
            let (line, place) = (&lines[i / per_line], i % per_line);
            let (head, within) = (place / vectors, place % vectors * LANES);
            let out = &out;
            dispatch!(
                cpu.isa,
                recur(call: Call<'_>, line: &Line<'_>, head: usize, within: usize, out: &split::Parts<'_, f32>)
            );
        }
    });
    Ok(y)
}

/// All rows of one sequence for up to sixteen channels of one block, from `within` on.
#[inline(always)]
unsafe fn recur<S: Lanes>(call: Call<'_>, line: &Line<'_>, head: usize, within: usize, out: &split::Parts<'_, f32>) {
    let Call { block, channels, .. } = call;
    let (first, n) = (head * block, (block - within).min(LANES));
    let at = first + within;
    // SAFETY: the parts are this task's alone: its channels of every row. Reads stay within the slices, whose lengths were
    // checked; the set is the caller's.
    unsafe {
        let rate = S::load_n(call.rate.as_ptr().add(at), n);
        let biases =
            [S::load_n(call.input_gate.1.as_ptr().add(at), n), S::load_n(call.decay_gate.1.as_ptr().add(at), n)];
        let weights = [call.input_gate.0, call.decay_gate.0].map(|w| w.as_ptr().add(first * block + within));
        let slot = line.state.part(at..at + n).as_mut_ptr();
        let mut state = S::load_n(slot, n);
        for row in line.rows.clone() {
            let x = &call.x[row * channels + first..row * channels + first + block];
            let mut sums = [S::splat(0.0); 2];
            for (i, &value) in x.iter().enumerate() {
                let value = S::splat(value);
                for (sum, weight) in sums.iter_mut().zip(weights) {
                    *sum = S::fma(value, S::load_n(weight.add(i * block), n), *sum);
                }
            }
            let input = math::sigmoid::<S>(S::add(sums[0], biases[0]));
            let log = S::mul(rate, math::sigmoid::<S>(S::add(sums[1], biases[1])));
            let mut gated = S::mul(S::load_n(x.as_ptr().add(within), n), input);
            if call.positions[row] != 0 {
                let square = math::exp::<S>(S::add(log, log));
                gated = S::mul(gated, S::sqrt(S::sub(S::splat(1.0), square)));
            }
            state = S::fma(math::exp::<S>(log), state, gated);
            let to = row * channels + at;
            S::store_n(out.part(to..to + n).as_mut_ptr(), n, state);
        }
        S::store_n(slot, n, state);
    }
}
