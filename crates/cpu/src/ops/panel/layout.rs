//! How a matrix of one form lies in panels, worked out once when it is packed: sizes, and how its codes are multiplied.

use reverie_tensor::{DType, Form, Grouped, Levels, Scales};

use super::{SLICE, UNIT};
use crate::simd::LANES;

/// The layout of a matrix.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Layout {
    /// `[K][16]` of this type.
    Dense(DType),
    /// Slices of scales and codes.
    Grouped(GroupedLayout),
}

/// What a scale serves, and how a unit's sums meet it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grain {
    /// One unit or more of 32.
    Units,
    /// Half a unit.
    Halves,
    /// Half a unit, and both halves' integers become one number before they leave the integers.
    Joined,
}

/// The layout of grouped integers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GroupedLayout {
    /// Bits of a packed code.
    pub(crate) bits: u8,
    /// Bytes by code, for levels that are a table.
    pub(crate) table: Option<[u8; 16]>,
    /// The level is the code's byte minus this.
    pub(crate) zero: i32,
    /// Quads whose products a narrow run may hold: 8, 4, 2, or 1 for none.
    pub(crate) run: usize,
    /// How the scales are stored.
    pub(crate) scales: Scales,
    /// What one serves.
    pub(crate) grain: Grain,
    /// True if they come with biases.
    pub(crate) biased: bool,
    /// Weights along K that share a scale.
    pub(crate) block: usize,
    /// Weights along K that a unit of scales serves.
    pub(crate) scale_unit: usize,
    /// Bytes of such a unit for sixteen rows.
    pub(crate) scale_unit_bytes: usize,
    /// Bytes of a whole slice.
    pub(crate) slice_bytes: usize,
}

/// A slice of a panel of grouped integers: `k` weights of sixteen rows.
#[derive(Clone, Copy)]
pub(crate) struct GroupedSlice<'a> {
    /// First weight along K.
    pub(crate) at: usize,
    pub(crate) k: usize,
    pub(crate) scales: &'a [u8],
    pub(crate) codes: &'a [u8],
}

impl Layout {
    pub(crate) fn of(form: &Form) -> Layout {
        match form {
            Form::Dense(d) => Layout::Dense(*d),
            Form::Grouped(g) => Layout::Grouped(GroupedLayout::of(g)),
        }
    }
}

impl GroupedLayout {
    fn of(g: &Grouped) -> GroupedLayout {
        let (table, zero, largest) = match g.levels {
            Levels::Offset(zero) => (None, zero, (1 << g.bits) - 1),
            Levels::Table(levels) => {
                let least = levels.iter().copied().min().map_or(0, i32::from);
                // At most 255, as both ends are i8.
                let table = levels.map(|l| (i32::from(l) - least) as u8);
                (Some(table), -least, table.iter().copied().max().map_or(0, i32::from))
            }
        };
        let run = match largest {
            0..=15 => 8,
            16..=31 => 4,
            32..=63 => 2,
            _ => 1,
        };
        GroupedLayout {
            bits: g.bits,
            table,
            zero,
            run,
            scales: g.scales,
            grain: match g.scales {
                Scales::Nibbles16 => Grain::Joined,
                _ if g.block < UNIT => Grain::Halves,
                _ => Grain::Units,
            },
            biased: g.scales.has_bias(),
            block: g.block,
            scale_unit: g.scales.unit_weights(g.block),
            scale_unit_bytes: LANES * g.scales.unit_bytes(),
            slice_bytes: LANES * g.row_bytes(SLICE),
        }
    }

    /// Bytes of the scales of `k` weights of sixteen rows.
    pub(crate) fn scale_bytes(&self, k: usize) -> usize {
        k / self.scale_unit * self.scale_unit_bytes
    }

    /// The slices of a panel of rows of `k` weights, in K order.
    pub(crate) fn slices<'a>(&self, k: usize, panel: &'a [u8]) -> impl Iterator<Item = GroupedSlice<'a>> {
        let layout = *self;
        panel.chunks(layout.slice_bytes).enumerate().map(move |(i, bytes)| {
            let (at, len) = (i * SLICE, (k - i * SLICE).min(SLICE));
            let (scales, codes) = bytes.split_at(layout.scale_bytes(len));
            GroupedSlice { at, k: len, scales, codes }
        })
    }
}
