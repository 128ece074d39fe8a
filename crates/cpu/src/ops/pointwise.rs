//! Formulas over lanes: a stack of vectors, one term after another for sixteen values at a time. Elementwise, so that how the work
//! is cut cannot show. Knows no formula.

#![allow(clippy::needless_range_loop)] // lanes of several arrays go by one index

use std::ops::Range;

use reverie_tensor::formula::{Function, MOST_DEPTH, Operator, Term};
use reverie_tensor::{Formula, Operand, Result, Tensor};

use super::{host, split};
use crate::simd::{LANES, Lanes, math};
use crate::{Cpu, dispatch};

/// An input's values and where those of a row lie.
#[derive(Clone, Copy)]
struct Source<'a> {
    x: &'a [f32],
    /// From one row's values to the next's.
    pitch: usize,
    at: usize,
    /// Values of the result that meet one of these.
    stretch: usize,
}

impl Source<'_> {
    /// Up to sixteen values from column `col` of `row` on.
    #[inline(always)]
    unsafe fn load<S: Lanes>(&self, row: usize, col: usize, n: usize) -> S::F {
        // SAFETY: `check` has seen that every row has its columns; the set is the caller's.
        unsafe {
            let from = row * self.pitch + self.at;
            if self.stretch == 1 {
                return S::load_n(self.x.as_ptr().add(from + col), n);
            }
            let first = col / self.stretch;
            if (col + n.min(LANES) - 1) / self.stretch == first {
                return S::splat(*self.x.as_ptr().add(from + first));
            }
            let mut values = [0.0f32; LANES];
            for (i, v) in values.iter_mut().enumerate().take(n) {
                *v = *self.x.as_ptr().add(from + (col + i) / self.stretch);
            }
            S::load(values.as_ptr())
        }
    }
}

/// What every task of a call reads.
#[derive(Clone, Copy)]
struct Call<'a> {
    sources: &'a [Source<'a>],
    terms: &'a [Term],
    width: usize,
}

/// See `Backend::pointwise`.
pub(crate) fn run(cpu: &Cpu, shape: &[usize], inputs: &[Operand<'_>], formula: &Formula) -> Result<Tensor> {
    let (rows, width) = reverie_tensor::reference::pointwise::check(shape, inputs, formula)?;
    let sources = inputs
        .iter()
        .map(|input| {
            let x = host::f32s("pointwise", input.tensor())?;
            let pitch = x.len() / rows.max(1);
            Ok(match input {
                Operand::Each(_) => Source { x, pitch, at: 0, stretch: 1 },
                Operand::Columns(_, at) => Source { x, pitch, at: *at, stretch: 1 },
                Operand::Row(_) => Source { x, pitch: 0, at: 0, stretch: 1 },
                Operand::Stretch(_) => Source { x, pitch, at: 0, stretch: width / pitch.max(1) },
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let mut y = cpu.out(shape)?;
    if rows * width == 0 {
        return Ok(y);
    }
    let out = split::Parts::new(host::f32s_mut("pointwise", &mut y)?);
    let call = Call { sources: &sources, terms: formula.terms(), width };
    let blocks = width.div_ceil(LANES);
    // A term costs a few plain elements.
    split::ranges(cpu, rows * blocks, 3 * LANES * call.terms.len(), &|range| {
        let out = &out;
        dispatch!(cpu.isa, compute(call: Call<'_>, range: Range<usize>, out: &split::Parts<'_, f32>));
    });
    Ok(y)
}

/// Blocks that a term is looked at for at once.
const BLOCKS: usize = 4;

/// Blocks of sixteen columns, numbered row by row.
#[inline(always)]
unsafe fn compute<S: Lanes>(call: Call<'_>, mut blocks: Range<usize>, out: &split::Parts<'_, f32>) {
    let per_row = call.width.div_ceil(LANES);
    while !blocks.is_empty() {
        let (row, col) = (blocks.start / per_row, blocks.start % per_row * LANES);
        let whole = blocks.len().min((call.width - col) / LANES);
        let n = (call.width - col).min(if whole >= BLOCKS { BLOCKS * LANES } else { LANES });
        // SAFETY: blocks of the result are disjoint; the rest is the caller's contract.
        unsafe {
            let y = out.part(row * call.width + col..row * call.width + col + n).as_mut_ptr();
            if whole >= BLOCKS {
                evaluate::<S, BLOCKS>(&call, (row, col, LANES), y);
            } else {
                evaluate::<S, 1>(&call, (row, col, n), y);
            }
        }
        blocks.start += n.div_ceil(LANES);
    }
}

/// `N` blocks from column `col` of `row` on, `n` columns of each.
#[inline(always)]
unsafe fn evaluate<S: Lanes, const N: usize>(call: &Call<'_>, (row, col, n): (usize, usize, usize), y: *mut f32) {
    // SAFETY: `check` has seen the depth and the inputs; the set is the caller's.
    unsafe {
        let mut stack = [[S::splat(0.0); N]; MOST_DEPTH];
        let mut top = 0;
        for term in call.terms {
            match *term {
                Term::Input(i) => {
                    for b in 0..N {
                        stack[top][b] = call.sources[i].load::<S>(row, col + b * LANES, n);
                    }
                    top += 1;
                }
                Term::Value(v) => {
                    stack[top] = [S::splat(v); N];
                    top += 1;
                }
                Term::Of(f) => {
                    for b in 0..N {
                        stack[top - 1][b] = one::<S>(f, stack[top - 1][b]);
                    }
                }
                Term::Join(op) => {
                    top -= 1;
                    for b in 0..N {
                        stack[top - 1][b] = two::<S>(op, stack[top - 1][b], stack[top][b]);
                    }
                }
            }
        }
        for b in 0..N {
            S::store_n(y.add(b * LANES), n, stack[0][b]);
        }
    }
}

#[inline(always)]
unsafe fn one<S: Lanes>(function: Function, x: S::F) -> S::F {
    // SAFETY: the set is the caller's.
    unsafe {
        match function {
            Function::Exp => math::exp::<S>(x),
            Function::Sigmoid => math::sigmoid::<S>(x),
            Function::Tanh => math::tanh::<S>(x),
            Function::Softplus => math::softplus::<S>(x),
            Function::Sqrt => each::<S>(x, f32::sqrt),
            Function::Abs => S::abs(x),
            Function::Act(act) => math::activate::<S>(act, x),
        }
    }
}

#[inline(always)]
unsafe fn each<S: Lanes>(x: S::F, f: fn(f32) -> f32) -> S::F {
    let mut values = [0.0f32; LANES];
    // SAFETY: sixteen elements; the set is the caller's.
    unsafe {
        S::store(values.as_mut_ptr(), x);
        values.iter_mut().for_each(|v| *v = f(*v));
        S::load(values.as_ptr())
    }
}

#[inline(always)]
unsafe fn two<S: Lanes>(operator: Operator, a: S::F, b: S::F) -> S::F {
    // SAFETY: the set is the caller's.
    unsafe {
        match operator {
            Operator::Add => S::add(a, b),
            Operator::Sub => S::sub(a, b),
            Operator::Mul => S::mul(a, b),
            Operator::Div => S::div(a, b),
            Operator::Max => S::max(a, b),
            Operator::Min => S::min(a, b),
        }
    }
}
