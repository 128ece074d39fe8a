//! Depthwise causal convolution over time: lanes are channels, each sum one chain over the taps, oldest first. Knows a
//! slot of the last inputs and nothing else of the sequence.

use std::ops::Range;

use reverie_tensor::{Act, ConvSpec, Error, Result, StateSegment, Tensor};

use super::{host, split};
use crate::simd::{LANES, Lanes, math};
use crate::{Cpu, dispatch};

/// Longest kernel: where its inputs lie is held on the stack.
const MOST_TAPS: usize = 16;

/// One sequence's part of a call.
struct Line<'a> {
    rows: Range<usize>,
    /// `[kernel-1, C]`.
    state: split::Parts<'a, f32>,
}

/// What every task of a call reads.
#[derive(Clone, Copy)]
struct Call<'a> {
    x: &'a [f32],
    taps: &'a [f32],
    bias: Option<&'a [f32]>,
    act: Option<Act>,
    kernel: usize,
    channels: usize,
}

/// See `Backend::conv`.
pub(crate) fn run(cpu: &Cpu, x: &Tensor, segments: &mut [StateSegment<'_>], spec: &ConvSpec) -> Result<Tensor> {
    let &[kernel, channels] = spec.taps.dims() else {
        return Err(Error::shape("conv", spec.taps.shape(), "[kernel, C]"));
    };
    if x.width() != channels || channels == 0 || kernel == 0 || kernel > MOST_TAPS {
        let expected = format!("x [T, C] and taps [1 to {MOST_TAPS}, C]");
        return Err(Error::shape("conv", (x.shape(), spec.taps.shape()), expected));
    }
    let values = host::f32s("conv", x)?;
    let taps = host::f32s("conv", &spec.taps)?;
    let bias = spec.bias.as_ref().map(|b| host::f32s_of("conv bias", b, channels)).transpose()?;
    let whole = split::covers("conv", segments.iter().map(|s| s.rows.clone()), x.rows())?;
    let lines = segments
        .iter_mut()
        .map(|s| {
            let state = host::f32s_mut("conv state", s.state)?;
            if state.len() != (kernel - 1) * channels {
                return Err(Error::shape("conv state", state.len(), [kernel - 1, channels]));
            }
            Ok(Line { rows: s.rows.clone(), state: split::Parts::new(state) })
        })
        .collect::<Result<Vec<_>>>()?;
    let mut y = cpu.out(x.dims())?;
    let out = host::f32s_mut("conv", &mut y)?;
    if !whole {
        out.fill(0.0);
    }
    let out = split::Parts::new(out);
    let call = Call { x: values, taps, bias, act: spec.act, kernel, channels };
    for line in lines.iter().filter(|l| !l.rows.is_empty()) {
        // An output costs a multiply-add a tap and an activation.
        let weight = line.rows.len() * LANES * (kernel + 8);
        split::ranges(cpu, channels.div_ceil(LANES), weight, &|blocks| {
            let span = blocks.start * LANES..(blocks.end * LANES).min(channels);
            let out = &out;
            dispatch!(
                cpu.isa,
                convolve(call: Call<'_>, line: &Line<'_>, span: Range<usize>, out: &split::Parts<'_, f32>)
            );
        });
    }
    Ok(y)
}

/// All rows of one sequence for some of the channels, whose part of the slot no other task touches.
#[inline(always)]
unsafe fn convolve<S: Lanes>(call: Call<'_>, line: &Line<'_>, span: Range<usize>, out: &split::Parts<'_, f32>) {
    let Call { x, taps, bias, act, kernel, channels } = call;
    let (past, rows) = (kernel - 1, line.rows.clone());
    let width = span.len();
    // SAFETY: the parts are this task's alone: its channels of every row. Reads stay within x, the taps and the slot.
    unsafe {
        for (t, row) in rows.clone().enumerate() {
            let y = out.part(row * channels + span.start..row * channels + span.end);
            let mut inputs = [x.as_ptr(); MOST_TAPS];
            for (tap, input) in inputs.iter_mut().enumerate().take(kernel) {
                *input = if t + tap < past {
                    let from = (t + tap) * channels;
                    line.state.part(from + span.start..from + span.end).as_ptr()
                } else {
                    x.as_ptr().add((rows.start + t + tap - past) * channels + span.start)
                };
            }
            for c in (0..width).step_by(LANES) {
                let (at, n) = (span.start + c, width - c);
                let (mut acc, mut tap) = (S::splat(0.0), taps.as_ptr().add(at));
                for input in &inputs[..kernel] {
                    acc = S::fma(S::load_n(tap, n), S::load_n(input.add(c), n), acc);
                    tap = tap.wrapping_add(channels);
                }
                if let Some(bias) = bias {
                    acc = S::add(acc, S::load_n(bias.as_ptr().add(at), n));
                }
                if let Some(act) = act {
                    acc = math::activate::<S>(act, acc);
                }
                S::store_n(y.as_mut_ptr().add(c), n, acc);
            }
        }
        for i in 0..past {
            let place = i * channels + span.start..i * channels + span.end;
            // Entry i of the new slot is entry i + T of the old slot and the rows, one after another.
            if i + rows.len() < past {
                let old = (i + rows.len()) * channels + span.start;
                let from = line.state.part(old..old + width).as_ptr();
                std::ptr::copy_nonoverlapping(from, line.state.part(place).as_mut_ptr(), width);
            } else {
                let from = (rows.start + i + rows.len() - past) * channels + span.start;
                line.state.part(place).copy_from_slice(&x[from..from + width]);
            }
        }
    }
}
