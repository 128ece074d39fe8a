//! What one matrix product takes before it starts: which forms the input is needed in, how many lanes of work there are, and
//! where everything lies in its one workspace. Shapes only: the same numbers serve the run and its prediction.

use reverie_tensor::{Form, Numerics, Weight};

use super::tile::Columns;
use crate::Cpu;
use crate::isa::LINE_BYTES;
use crate::ops::panel::UNIT;

/// Multiply-adds from which on waking the pool saves more than it costs.
const WORTH_WAKING: usize = 96 * 1024;

/// And bytes of weights: what these take to read.
const WORTH_WAKING_BYTES: usize = 128 * 1024;

/// Up to so many rows every lane prepares the input for itself: cheaper than a second barrier.
const OWN_COPY_ROWS: usize = 2;

/// True if this product is of integers.
pub(crate) fn is_int(numerics: Numerics, form: &Form) -> bool {
    numerics == Numerics::Int8 && matches!(form, Form::Grouped(_))
}

/// The workspace of one product.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) rows: usize,
    pub(crate) k: usize,
    /// Lanes of work, at most one a thread.
    pub(crate) lanes: usize,
    /// True if each lane has a prepared input of its own.
    pub(crate) own_copies: bool,
    /// Wanted as int8.
    pub(crate) int: bool,
    /// Wanted as f32.
    pub(crate) float: bool,
    /// Bytes of the workspace before its columns.
    at: usize,
}

fn lines(bytes: usize) -> usize {
    bytes.next_multiple_of(LINE_BYTES)
}

impl Plan {
    pub(crate) fn new(cpu: &Cpu, rows: usize, weights: &[&Weight]) -> Plan {
        let k = weights.first().map_or(0, |w| w.k);
        let work = weights.iter().map(|w| w.n).sum::<usize>().saturating_mul(k).saturating_mul(rows);
        let bytes: usize = weights.iter().map(|w| w.n.saturating_mul(w.form.row_bytes(k))).sum();
        let lanes = if work < WORTH_WAKING && bytes < WORTH_WAKING_BYTES { 1 } else { cpu.threads() };
        let int = weights.iter().any(|w| is_int(cpu.numerics, &w.form));
        let float = weights.iter().any(|w| !is_int(cpu.numerics, &w.form));
        let plan = Plan { rows, k, lanes, own_copies: rows <= OWN_COPY_ROWS, int, float, at: 0 };
        Plan { at: lanes * plan.row_bytes(), ..plan }
    }

    /// The plan of all groups of a call as if they were one: its lanes and its copies are those of each.
    pub(crate) fn of_groups(cpu: &Cpu, (rows, picked): (usize, usize), weights: &[&Weight]) -> Plan {
        Plan { own_copies: rows <= OWN_COPY_ROWS, ..Plan::new(cpu, picked, weights) }
    }

    /// With the input in the forms that these weights want, too.
    pub(crate) fn serving(&self, cpu: &Cpu, weights: &[&Weight]) -> Plan {
        let wanted = |int| weights.iter().any(|w| is_int(cpu.numerics, &w.form) == int);
        Plan { int: self.int || wanted(true), float: self.float || wanted(false), ..*self }
    }

    /// The plan of one group, whose columns lie at `at`.
    pub(crate) fn group(&self, rows: usize, at: usize) -> Plan {
        Plan { rows, at, ..*self }
    }

    /// Where the columns lie.
    pub(crate) fn first_column(&self) -> usize {
        self.at
    }

    /// Where the columns of the next group lie.
    pub(crate) fn end(&self) -> usize {
        self.at + self.copies() * (self.int_bytes() + self.float_bytes())
    }

    /// Bytes for any groups of these rows in all: each row alone is the worst that lines can cost.
    pub(crate) fn bytes_of_groups(&self) -> usize {
        let one = Plan { rows: 1, ..*self };
        self.at + self.copies() * self.rows * (one.int_bytes() + one.float_bytes())
    }

    fn units(&self) -> usize {
        self.k / UNIT
    }

    /// Bytes of the f32 row that a lane prepares.
    fn row_bytes(&self) -> usize {
        lines(self.k * 4)
    }

    /// Bytes of the sums and scales of all columns, one number a unit.
    fn per_unit_bytes(&self) -> usize {
        lines(self.rows * self.units() * 4)
    }

    fn int_bytes(&self) -> usize {
        if self.int { lines(self.rows * self.k) + 6 * self.per_unit_bytes() } else { 0 }
    }

    fn float_bytes(&self) -> usize {
        if self.float { lines(self.rows * self.k * 4) } else { 0 }
    }

    fn copies(&self) -> usize {
        if self.own_copies { self.lanes } else { 1 }
    }

    /// Bytes in all.
    pub(crate) fn bytes(&self) -> usize {
        self.end()
    }

    /// The row of lane `lane`.
    pub(crate) fn row(&self, base: *mut u8, lane: usize) -> *mut f32 {
        base.wrapping_add(lane * self.row_bytes()).cast()
    }

    fn copy(&self, base: *mut u8, lane: usize) -> *mut u8 {
        let copy = if self.own_copies { lane } else { 0 };
        base.wrapping_add(self.at + copy * (self.int_bytes() + self.float_bytes()))
    }

    /// The int8 columns that lane `lane` reads, if any weight wants them.
    pub(crate) fn int_columns(&self, base: *mut u8, lane: usize) -> Option<Columns> {
        let per_unit = self.per_unit_bytes();
        self.int.then(|| {
            let q = self.copy(base, lane);
            let at = |i: usize| q.wrapping_add(lines(self.rows * self.k) + i * per_unit);
            Columns {
                q: q.cast(),
                scale: at(0).cast(),
                sum: at(1).cast(),
                half_sum: at(2).cast(),
                scaled: at(4).cast(),
                halves: at(5).cast(),
            }
        })
    }

    /// The f32 columns, tiles of `[K][C]`, that lane `lane` reads, if any weight wants them.
    pub(crate) fn float_columns(&self, base: *mut u8, lane: usize) -> Option<*mut f32> {
        self.float.then(|| self.copy(base, lane).wrapping_add(self.int_bytes()).cast())
    }
}

/// Cuts columns `from..to` into tiles of at most `widest` (a power of two): (first column, width), widths being powers of two.
pub(crate) fn tiles(from: usize, to: usize, widest: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut at = from;
    std::iter::from_fn(move || {
        let width = match to - at {
            0 => return None,
            left if left >= widest => widest,
            left => 1 << left.ilog2(),
        };
        at += width;
        Some((at - width, width))
    })
}
