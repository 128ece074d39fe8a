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
        let biases = [call.input_gate.1, call.decay_gate.1].map(|b| S::load_n(b.as_ptr().add(at), n));
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

#[cfg(test)]
mod tests {
    use super::super::trial::{Seeded, close, cpus, in_pieces, reference, same, tensor};
    use super::*;
    use reverie_tensor::Backend;

    /// √(1 - a²) loses digits where a is near 1; over up to 40 tokens here.
    const TOLERANCE: f32 = 5e-5;

    struct Case {
        heads: usize,
        block: usize,
        lengths: Vec<usize>,
        x: Vec<f32>,
        positions: Vec<u32>,
        slots: Vec<f32>,
        rate: Vec<f32>,
        gates: [(Vec<f32>, Vec<f32>); 2],
    }

    impl Case {
        fn new(seed: u64) -> Case {
            let mut s = Seeded::new(seed);
            let (heads, block) = (s.pick(&[1, 2, 5]), s.pick(&[1, 7, 16, 40, 64]));
            let lengths: Vec<usize> = (0..3).map(|_| s.pick(&[1, 2, 5, 17, 40])).collect();
            let (t, c) = (lengths.iter().sum::<usize>(), heads * block);
            let start = s.pick(&[0u32, 9]);
            Case {
                x: s.values(t * c, 2.0),
                positions: lengths.iter().flat_map(|&n| start..start + n as u32).collect(),
                slots: s.values(3 * c, 1.0),
                rate: s.values(c, 4.0).iter().map(|r| -r.abs() - 0.05).collect(),
                gates: [(); 2].map(|()| (s.values(c * block, 0.5), s.values(c, 1.0))),
                heads,
                block,
                lengths,
            }
        }

        fn run(&self, be: &dyn Backend, cut: usize) -> (Vec<f32>, Vec<f32>) {
            let (h, d) = (self.heads, self.block);
            let gate = |i: usize| (tensor(be, &self.gates[i].0, &[h, d, d]), tensor(be, &self.gates[i].1, &[h * d]));
            let spec = RgLruSpec { rate: tensor(be, &self.rate, &[h * d]), input_gate: gate(0), decay_gate: gate(1) };
            in_pieces(be, (&self.slots, &[h * d]), (&self.lengths, cut), h * d, |places, segments| {
                let w = h * d;
                let rows: Vec<f32> = places.iter().flat_map(|&t| &self.x[t * w..(t + 1) * w]).copied().collect();
                let positions: Vec<u32> = places.iter().map(|&t| self.positions[t]).collect();
                be.rg_lru(&tensor(be, &rows, &[places.len(), w]), &positions, segments, &spec).unwrap()
            })
        }
    }

    #[test]
    fn as_the_reference_whole_and_in_pieces() {
        let cpus = cpus();
        for seed in 0..24 {
            let case = Case::new(seed);
            let expected = case.run(&reference(), usize::MAX);
            let first = case.run(&cpus[0], usize::MAX);
            let what = format!("seed {seed}, {} blocks of {}", case.heads, case.block);
            close(&what, &first.0, &expected.0, TOLERANCE);
            close("the slots", &first.1, &expected.1, TOLERANCE);
            for cpu in &cpus {
                for cut in [usize::MAX, 1, 7] {
                    let found = case.run(cpu, cut);
                    same(&format!("{what}, cut at {cut}, {}", cpu.isa().name()), &found.0, &first.0);
                    same("the slots", &found.1, &first.1);
                }
            }
        }
    }
}
