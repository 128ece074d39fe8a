//! One panel, or a few, times a block of columns: slices of K are decoded on the way, fused where the columns are few, into
//! scratch on the stack where they are many. Chains live in scratch between slices. Knows no tensors and no threads.

#![allow(unsafe_op_in_unsafe_fn)] // every unsafe function states its contract once

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use reverie_tensor::DType;

use super::plan::tiles;
use super::tile::{
    Brain, Columns, Element, FloatTile, Half, Halves, IntTile, Joined, Share, Single, Slice, Units, Widen,
};
use crate::isa::ReadAhead;
use crate::ops::panel::{
    Bytes, DecodeScales, Expand, ExpandFloat, Grain, GroupedLayout, GroupedSlice, Packed, SLICE, Table, UNIT, Whole,
    Width,
};
use crate::simd::{Dot, Kernel, LANES};

/// Columns of a block: a multiple of every tile.
pub(crate) const BLOCK_COLUMNS: usize = 256;

/// Steps along K of a slice of f32 weights.
const FLOAT_SLICE: usize = 128;

/// Panels that a lone column may be multiplied with at once.
pub(crate) const MOST_PANELS: usize = 4;

/// Panels that wide integer products are made with, where the registers hold the sums.
const PAIR: usize = 2;

const _: () = assert!(FLOAT_SLICE * size_of::<f32>() >= SLICE, "a slice of bytes has room");

/// Scratch of one lane, on its stack.
#[repr(align(64))]
pub(crate) struct Scratch {
    /// Decoded scales and biases of a slice of each panel.
    scales: [MaybeUninit<[f32; SLICE / 16 * LANES]>; PAIR],
    biases: [MaybeUninit<[f32; SLICE / 16 * LANES]>; PAIR],
    /// Decoded weights of a slice: bytes of each panel, or f32.
    weights: [MaybeUninit<[f32; FLOAT_SLICE * LANES]>; PAIR],
    /// The chains: `[panels][columns][16]`.
    acc: MaybeUninit<[f32; PAIR * BLOCK_COLUMNS * LANES]>,
}

impl Scratch {
    pub(crate) fn new() -> Scratch {
        Scratch {
            scales: [MaybeUninit::uninit(); PAIR],
            biases: [MaybeUninit::uninit(); PAIR],
            weights: [MaybeUninit::uninit(); PAIR],
            acc: MaybeUninit::uninit(),
        }
    }

    fn acc(&mut self, vectors: usize) -> *mut f32 {
        assert!(vectors <= PAIR * BLOCK_COLUMNS, "a block is wider than its scratch");
        self.acc.as_mut_ptr().cast()
    }

    fn zeroed_acc(&mut self, vectors: usize) -> *mut f32 {
        let acc = self.acc(vectors);
        // SAFETY: within the array, as just checked.
        unsafe { acc.write_bytes(0, vectors * LANES) };
        acc
    }
}

/// `count` panels of grouped integers, `stride` bytes apart.
#[derive(Clone, Copy)]
pub(crate) struct GroupedPanels<'a> {
    pub(crate) layout: &'a GroupedLayout,
    pub(crate) k: usize,
    pub(crate) bytes: &'a [u8],
    pub(crate) stride: usize,
    pub(crate) count: usize,
    /// How far ahead to ask for bytes.
    pub(crate) ahead: Option<ReadAhead>,
    /// Scales stay integers where the product is of integers.
    pub(crate) whole: Whole,
}

impl<'a> GroupedPanels<'a> {
    /// The slices of the first panel, in K order.
    fn slices(&self) -> impl Iterator<Item = GroupedSlice<'a>> {
        self.layout.slices(self.k, &self.bytes[..self.stride])
    }

    /// This slice of panel `p`, and what decodes its scales; they stay until those of panel `p + PAIR`.
    unsafe fn slice(&self, slice: GroupedSlice<'_>, p: usize, scratch: &mut Scratch) -> (DecodeScales, Slice) {
        let (layout, room) = (self.layout, p % PAIR);
        let (scales, biases) = (scratch.scales[room].as_mut_ptr().cast(), scratch.biases[room].as_mut_ptr().cast());
        let decode = DecodeScales {
            kind: layout.scales,
            whole: self.whole,
            bytes: slice.scales.as_ptr().add(p * self.stride),
            unit_bytes: layout.scale_unit_bytes,
            units: slice.k / layout.scale_unit,
            scales,
            biases,
            ahead: self.ahead,
        };
        let slice = Slice {
            codes: slice.codes.as_ptr().add(p * self.stride),
            table: layout.table.as_ref().map_or(std::ptr::null(), |t| t.as_ptr()),
            zero: layout.zero,
            scales,
            biases: if layout.biased { biases } else { std::ptr::null() },
            units_per_scale_log2: (layout.block / UNIT).checked_ilog2().unwrap_or(0),
            units: slice.k / UNIT,
            ahead: self.ahead,
        };
        (decode, slice)
    }

    /// This slice of panel `p`, its scales decoded.
    unsafe fn decode<S: Dot>(&self, slice: GroupedSlice<'_>, p: usize, scratch: &mut Scratch) -> Slice {
        let (decode, slice) = self.slice(slice, p, scratch);
        S::enter(decode);
        slice
    }
}

/// Calls `$go::<W>` with the width of packed codes.
macro_rules! with_width {
    ($S:ident, $layout:expr, $go:ident ( $($arg:expr),* )) => {
        match ($layout.table, $layout.bits) {
            (Some(_), _) if $S::NARROW && $layout.run >= 4 => $go::<$S, Table<4>>($($arg),*),
            (Some(_), _) => $go::<$S, Table<1>>($($arg),*),
            (None, 2) => $go::<$S, Packed<2>>($($arg),*),
            (None, 3) => $go::<$S, Packed<3>>($($arg),*),
            (None, 4) => $go::<$S, Packed<4>>($($arg),*),
            (None, 5) => $go::<$S, Packed<5>>($($arg),*),
            (None, 6) => $go::<$S, Packed<6>>($($arg),*),
            (None, _) => $go::<$S, Packed<8>>($($arg),*),
        }
    };
}

/// Panels of grouped integers times int8 columns `from..to`; gives the chains, `[panels][columns][16]`. At most
/// `most_int_panels`.
///
/// # Safety
/// As for `Lanes`; `x` holds the prepared columns of the whole input.
pub(crate) unsafe fn int_panels<S: Dot>(
    panels: GroupedPanels<'_>,
    x: Columns,
    (from, to): (usize, usize),
    scratch: &mut Scratch,
) -> *const f32 {
    let (layout, all) = (panels.layout, panels.k / UNIT);
    if fused::<S>(to - from) {
        let acc = scratch.acc(panels.count * (to - from));
        with_width!(S, layout, few_columns((panels, x.at_column(from, all), acc), to - from, scratch));
        return acc;
    }
    let acc = scratch.zeroed_acc(panels.count * (to - from));
    for slice in panels.slices() {
        let u = slice.at / UNIT;
        let mut slices = [panels.decode::<S>(slice, 0, scratch); PAIR];
        for (p, own) in slices.iter_mut().enumerate().take(panels.count) {
            if p > 0 {
                *own = panels.decode::<S>(slice, p, scratch);
            }
            if layout.table.is_some() || layout.bits != 8 {
                let out = scratch.weights[p].as_mut_ptr().cast();
                with_width!(S, layout, expand(*own, out));
                // These were asked for when they were packed.
                (own.codes, own.ahead) = (out, None);
            }
        }
        for (first, width) in tiles(from, to, S::COLUMNS) {
            let x = x.at_column(first, all).at_unit(u, width);
            let acc = [0, to - from].map(|panel| acc.wrapping_add((panel + first - from) * LANES));
            let (args, grain) = ((&slices[..panels.count], x, acc), layout.grain);
            match if S::NARROW { layout.run } else { 1 } {
                8 if S::NARROW => columns::<S, Bytes<8>>(args, width, grain),
                4 if S::NARROW => columns::<S, Bytes<4>>(args, width, grain),
                2 if S::NARROW => columns::<S, Bytes<2>>(args, width, grain),
                _ => columns::<S, Bytes<1>>(args, width, grain),
            }
        }
    }
    acc
}

/// True if codes are taken apart in registers: for a token, and the few of a small batch.
fn fused<S: Dot>(columns: usize) -> bool {
    S::FUSED && matches!(columns, 1 | 4)
}

/// Panels of integers that one call may be given with so many columns.
pub(crate) fn most_int_panels<S: Dot>(columns: usize) -> usize {
    if fused::<S>(columns) { PAIR * BLOCK_COLUMNS / columns } else { int_panels_at_once::<S>(columns) }
}

/// Panels of integers that are multiplied at once with so many columns.
pub(crate) fn int_panels_at_once<S: Dot>(columns: usize) -> usize {
    if S::PAIRS && columns > S::COLUMNS { PAIR } else { 1 }
}

unsafe fn expand<S: Dot, W: Width>(s: Slice, out: *mut u8) {
    S::enter(Expand::<W> { codes: s.codes, table: s.table, out, units: s.units, ahead: s.ahead, width: PhantomData });
}

/// `$body` with the type `$G` for the grain of codes of width `$W`.
macro_rules! with_grain {
    ($W:ident, $grain:expr, $G:ident, $body:expr) => {
        match $grain {
            Grain::Units => {
                type $G = Units;
                $body
            }
            Grain::Halves => {
                type $G = Halves;
                $body
            }
            Grain::Joined => {
                if const { $W::JOINS } {
                    type $G = Joined;
                    $body
                } else {
                    unreachable!("`pack` takes nibbles for scales with codes of 2 bits only")
                }
            }
        }
    };
}

unsafe fn int_tile<S: Dot, W: Width, const P: usize, const C: usize>(
    slices: [Slice; P],
    x: Columns,
    acc: [*mut f32; P],
    grain: Grain,
) {
    with_grain!(W, grain, G, S::enter(IntTile::<W, G, P, C> { slices, x, acc, codes: PhantomData }));
}

/// Panels of grouped integers times `C` columns, their codes taken apart in registers. Panels and their slices follow one another
/// in one call, so that none waits for the memory of the one before.
struct FewColumns<'a, W, G, const C: usize> {
    panels: GroupedPanels<'a>,
    /// All of the input.
    x: Columns,
    /// `[panels][C][16]`.
    acc: *mut f32,
    scratch: &'a mut Scratch,
    codes: PhantomData<(W, G)>,
}

impl<W: Width, G: Share, const C: usize> Kernel for FewColumns<'_, W, G, C> {
    #[inline(always)]
    unsafe fn run<S: Dot>(self) {
        for p in 0..self.panels.count {
            let acc = [self.acc.add(p * C * LANES)];
            for c in 0..C {
                S::store(acc[0].add(c * LANES), S::splat(0.0));
            }
            for slice in self.panels.slices() {
                let x = self.x.at_unit(slice.at / UNIT, C);
                let (decode, slice) = self.panels.slice(slice, p, self.scratch);
                decode.run::<S>();
                IntTile::<W, G, 1, C> { slices: [slice], x, acc, codes: PhantomData }.run::<S>();
            }
        }
    }
}

unsafe fn few_columns<S: Dot, W: Width>(
    (panels, x, acc): (GroupedPanels<'_>, Columns, *mut f32),
    columns: usize,
    scratch: &mut Scratch,
) {
    if !S::FUSED {
        return;
    }
    with_grain!(
        W,
        panels.layout.grain,
        G,
        match columns {
            1 => S::enter(FewColumns::<W, G, 1> { panels, x, acc, scratch, codes: PhantomData }),
            _ => S::enter(FewColumns::<W, G, 4> { panels, x, acc, scratch, codes: PhantomData }),
        }
    );
}

unsafe fn columns<S: Dot, W: Width>(
    (slices, x, acc): (&[Slice], Columns, [*mut f32; PAIR]),
    width: usize,
    grain: Grain,
) {
    match (slices, width) {
        (&[a, b], 4) if S::PAIRS => int_tile::<S, W, 2, 4>([a, b], x, acc, grain),
        _ => {
            for (&slice, acc) in slices.iter().zip(acc) {
                match width {
                    8 if S::COLUMNS >= 8 => int_tile::<S, W, 1, 8>([slice], x, [acc], grain),
                    4 => int_tile::<S, W, 1, 4>([slice], x, [acc], grain),
                    2 => int_tile::<S, W, 1, 2>([slice], x, [acc], grain),
                    _ => int_tile::<S, W, 1, 1>([slice], x, [acc], grain),
                }
            }
        }
    }
}

/// One panel of grouped integers times f32 columns `from..to`; gives the chains, `[columns][16]`.
///
/// # Safety
/// As for `Lanes`; `x` holds the prepared columns of the whole input.
pub(crate) unsafe fn exact_panel<S: Dot>(
    panel: GroupedPanels<'_>,
    x: *const f32,
    (from, to): (usize, usize),
    scratch: &mut Scratch,
) -> *const f32 {
    let (k, block) = (panel.k, panel.layout.block);
    let acc = scratch.zeroed_acc(to - from);
    let out: *mut f32 = scratch.weights[0].as_mut_ptr().cast();
    for slice in panel.slices() {
        let at = slice.at;
        let slice = panel.decode::<S>(slice, 0, scratch);
        for part in (0..slice.units).step_by(FLOAT_SLICE / UNIT) {
            let steps = (slice.units - part).min(FLOAT_SLICE / UNIT) * UNIT;
            with_width!(S, panel.layout, expand_float(slice, (part, steps), block, out));
            float_tiles::<S>((out, steps), (x, k, at + part * UNIT), (from, to), acc);
        }
    }
    acc
}

unsafe fn expand_float<S: Dot, W: Width>(s: Slice, (part, steps): (usize, usize), block: usize, out: *mut f32) {
    let at = part * UNIT / block * LANES;
    S::enter(ExpandFloat::<W> {
        codes: s.codes.add(part * W::BYTES),
        table: s.table,
        zero: s.zero,
        scales: s.scales.add(at),
        biases: if s.biases.is_null() { s.biases } else { s.biases.add(at) },
        block,
        out,
        units: steps / UNIT,
        width: PhantomData,
    });
}

/// A slice of f32 weights `[steps][16]` times the tiles of columns `from..to`, at step `at` of `k`.
unsafe fn float_tiles<S: Dot>(
    (weights, steps): (*const f32, usize),
    (x, k, at): (*const f32, usize, usize),
    (from, to): (usize, usize),
    acc: *mut f32,
) {
    for (first, width) in tiles(from, to, S::FLOAT_COLUMNS) {
        let x = x.add(first * k + at * width);
        let acc = acc.add((first - from) * LANES);
        let args = FloatArgs { weights: weights.cast(), stride: 0, x, k: steps, acc, ahead: None };
        match width {
            8 if S::FLOAT_COLUMNS >= 8 => float_tile::<S, Single, 1, 8>(args),
            4 => float_tile::<S, Single, 1, 4>(args),
            2 => float_tile::<S, Single, 1, 2>(args),
            _ => float_tile::<S, Single, 1, 1>(args),
        }
    }
}

#[derive(Clone, Copy)]
struct FloatArgs {
    weights: *const u8,
    stride: usize,
    x: *const f32,
    k: usize,
    acc: *mut f32,
    ahead: Option<ReadAhead>,
}

unsafe fn float_tile<S: Dot, E: Element, const P: usize, const C: usize>(a: FloatArgs) {
    let FloatArgs { weights, stride, x, k, acc, ahead } = a;
    S::enter(FloatTile::<E, P, C> { weights, stride, x, k, acc, ahead, element: PhantomData });
}

/// `count` dense panels, `stride` bytes apart.
#[derive(Clone, Copy)]
pub(crate) struct DensePanels<'a> {
    pub(crate) dtype: DType,
    pub(crate) bytes: &'a [u8],
    pub(crate) stride: usize,
    pub(crate) count: usize,
    /// How far ahead to ask for bytes.
    pub(crate) ahead: Option<ReadAhead>,
}

/// Panels that are multiplied at once with so many columns: enough chains to hide the latency of one.
pub(crate) fn panels_at_once(columns: usize) -> usize {
    match columns {
        1 => MOST_PANELS,
        2 | 3 => 2,
        _ => 1,
    }
}

/// Dense panels times f32 columns `from..to`; gives the chains, `[panels][columns][16]`. Of panels a power of two, at most
/// `panels_at_once`.
///
/// # Safety
/// As for `Lanes`; `x` holds the prepared columns of the whole input.
pub(crate) unsafe fn dense_panels<S: Dot>(
    panels: DensePanels<'_>,
    x: *const f32,
    span: (usize, usize),
    scratch: &mut Scratch,
) -> *const f32 {
    match panels.dtype {
        DType::F16 => dense::<S, Half>(panels, x, span, scratch),
        DType::BF16 => dense::<S, Brain>(panels, x, span, scratch),
        _ => dense::<S, Single>(panels, x, span, scratch),
    }
}

unsafe fn dense<S: Dot, E: Element>(
    panels: DensePanels<'_>,
    x: *const f32,
    (from, to): (usize, usize),
    scratch: &mut Scratch,
) -> *const f32 {
    let (k, columns) = (panels.stride / (E::SIZE * LANES), to - from);
    let acc = scratch.zeroed_acc(panels.count * columns);
    let weights = panels.bytes.as_ptr();
    let ahead = panels.ahead;
    let args = FloatArgs { weights, stride: panels.stride, x: x.add(from * k), k, acc, ahead };
    match (panels.count, columns) {
        (4, 1) => float_tile::<S, E, 4, 1>(args),
        (2, 1) => float_tile::<S, E, 2, 1>(args),
        (2, 2) => float_tile::<S, E, 2, 2>(args),
        (1, 1) => float_tile::<S, E, 1, 1>(args),
        (1, 2) => float_tile::<S, E, 1, 2>(args),
        (1, 4) => float_tile::<S, E, 1, 4>(args),
        (1, 8) if S::FLOAT_COLUMNS >= 8 => float_tile::<S, E, 1, 8>(args),
        (count, _) => {
            for p in 0..count {
                let panel = panels.bytes[p * panels.stride..].as_ptr();
                let acc = acc.add(p * columns * LANES);
                for at in (0..k).step_by(FLOAT_SLICE) {
                    let steps = (k - at).min(FLOAT_SLICE);
                    let out: *mut f32 = scratch.weights[0].as_mut_ptr().cast();
                    let from_k = panel.add(at * LANES * E::SIZE);
                    S::enter(Widen::<E> { from: from_k, to: out, count: steps, element: PhantomData });
                    float_tiles::<S>((out, steps), (x, k, at), (from, to), acc);
                }
            }
        }
    }
    acc
}
