//! The input of a product on its way in: normalised or gated a row at a time, then laid out in tiles of columns, as f32 and as
//! int8 with one scale per 32. A row's numbers depend on that row alone. Knows no weights.

#![allow(unsafe_op_in_unsafe_fn)] // every unsafe function states its contract once

use reverie_tensor::{Act, Error, Input, Result};

use super::tile::Columns;
use crate::ops::elementwise::{activate_row, glu_row, sigmoid_gate_row};
use crate::ops::host;
use crate::ops::norm::{RowNorm, normalise_row};
use crate::ops::panel::UNIT;
use crate::simd::{Dot, Kernel, LANES};

/// The input as rows of K values.
#[derive(Clone, Copy)]
pub(crate) enum RowInput<'a> {
    Plain(&'a [f32]),
    Normed(&'a [f32], RowNorm<'a>),
    Glu(&'a [f32], &'a [f32], Act),
    Activated(&'a [f32], Act),
    SigmoidGated(&'a [f32], &'a [f32]),
}

impl<'a> RowInput<'a> {
    /// Checks the shapes; gives the number of rows too.
    pub(crate) fn new(input: Input<'a>, k: usize) -> Result<(usize, RowInput<'a>)> {
        let lead = input.lead();
        let elements = lead.shape().elements();
        if !elements.is_multiple_of(k) {
            return Err(Error::shape("linear", lead.shape(), ("T", k)));
        }
        let pair = |a, b| Ok((host::f32s("linear", a)?, host::f32s_of("linear", b, elements)?));
        let rows = match input {
            Input::Plain(x) => RowInput::Plain(host::f32s("linear", x)?),
            Input::Normed(x, norm) => {
                if x.width() != k {
                    return Err(Error::shape("linear over a norm", x.shape(), ("T", k)));
                }
                RowInput::Normed(host::f32s("linear", x)?, RowNorm::new(norm, k)?)
            }
            Input::Glu(gate, up, act) => pair(gate, up).map(|(g, u)| RowInput::Glu(g, u, act))?,
            Input::Activated(x, act) => RowInput::Activated(host::f32s("linear", x)?, act),
            Input::SigmoidGated(x, gate) => pair(x, gate).map(|(x, g)| RowInput::SigmoidGated(x, g))?,
        };
        Ok((elements / k, rows))
    }
}

/// Prepares one tile of columns.
pub(crate) struct Prepare<'a> {
    pub(crate) input: RowInput<'a>,
    pub(crate) k: usize,
    /// The input's row of each column; none where they are the same.
    pub(crate) rows: Option<&'a [u32]>,
    /// First column and number of columns of the tile.
    pub(crate) first: usize,
    pub(crate) columns: usize,
    /// K values of scratch.
    pub(crate) row: *mut f32,
    /// The tile, as int8.
    pub(crate) int: Option<Columns>,
    /// The tile, as f32 `[K][C]`.
    pub(crate) float: Option<*mut f32>,
}

impl Kernel for Prepare<'_> {
    #[inline(always)]
    unsafe fn run<S: Dot>(self) {
        for c in 0..self.columns {
            let row = self.rows.map_or(self.first + c, |rows| rows[self.first + c] as usize);
            let span = row * self.k..(row + 1) * self.k;
            let scratch = std::slice::from_raw_parts_mut(self.row, self.k);
            let row: &[f32] = match &self.input {
                RowInput::Plain(x) => &x[span],
                RowInput::Normed(x, norm) => {
                    normalise_row::<S>(&x[span], norm, scratch);
                    scratch
                }
                RowInput::Glu(gate, up, act) => {
                    glu_row::<S>(&gate[span.clone()], &up[span], *act, scratch);
                    scratch
                }
                RowInput::Activated(x, act) => {
                    activate_row::<S>(&x[span], *act, scratch);
                    scratch
                }
                RowInput::SigmoidGated(x, gate) => {
                    sigmoid_gate_row::<S>(&x[span.clone()], &gate[span], scratch);
                    scratch
                }
            };
            if let Some(to) = self.float {
                for (k, &v) in row.iter().enumerate() {
                    *to.add(k * self.columns + c) = v;
                }
            }
            if let Some(to) = self.int {
                for (u, block) in row.chunks_exact(UNIT).enumerate() {
                    quantise::<S>(block, to.at_unit(u, self.columns), (c, self.columns));
                }
            }
        }
    }
}

/// Column `c` of `of` of one unit. The rule of `reference::linear::quantise`: to nearest even by 127 / amax; a block of zeros has
/// the scale 0, a block with NaN or infinity the scale NaN and zeros.
#[inline(always)]
unsafe fn quantise<S: Dot>(block: &[f32], to: Columns, (c, of): (usize, usize)) {
    let (a, b) = (S::load(block.as_ptr()), S::load(block.as_ptr().add(LANES)));
    // Among absolute values the order of the bits is the order of the numbers, with infinity and NaN on top.
    let bits = S::ihmax(S::imax(S::bits(S::abs(a)), S::bits(S::abs(b))));
    let amax = f32::from_bits(bits as u32);
    let inverse = 127.0 / amax;
    let (scale, inverse) = if !amax.is_finite() {
        (f32::NAN, 0.0)
    } else if amax < f32::MIN_POSITIVE || !inverse.is_finite() {
        (0.0, 0.0)
    } else {
        (amax / 127.0, inverse)
    };
    let (a, b) = (code::<S>(a, inverse), code::<S>(b, inverse));
    let (low, high) = S::istore_pair(to.q.add(c * UNIT), a, b);
    *to.scale.add(c) = scale;
    *to.sum.add(c) = low + high;
    *to.half_sum.add(c) = low;
    *to.half_sum.add(of + c) = high;
    *to.scaled.add(c) = scale * (low + high) as f32;
    *to.halves.add(c) = low & 0xffff | high << 16;
}

/// `v · inverse` to the nearest integer, 0 for NaN: what is not finite becomes NaN where the inverse is 0.
#[inline(always)]
unsafe fn code<S: Dot>(v: S::F, inverse: f32) -> S::I {
    let y = S::mul(v, S::splat(inverse));
    S::to_i(S::if_nan(y, S::splat(0.0), y))
}
