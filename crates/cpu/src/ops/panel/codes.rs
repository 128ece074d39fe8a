//! Codes in planes: how sixteen rows of codes become planes of bits, and how a quad (sixteen rows of four k) is read back,
//! one way for each width. Knows nothing of scales.

#![allow(unsafe_op_in_unsafe_fn)] // every unsafe function states its contract once

use std::marker::PhantomData;

use super::scales::fetch_ahead;
use super::{PLANE, UNIT};
use crate::isa::ReadAhead;
use crate::simd::{Dot, Kernel, LANES};

/// Quads of a unit.
pub(crate) const QUADS: usize = 8;

/// Bytes of a quad.
const QUAD: usize = 64;

/// One way in which a unit's codes lie in memory.
pub(crate) trait Width {
    /// Bytes of a unit.
    const BYTES: usize;
    /// Quads that a narrow run may hold; 1: the codes are too wide for any.
    const RUN: usize;
    /// True if their scales may be nibbles: no others are compiled to join halves.
    const JOINS: bool;

    /// Quad `Q` of the unit at `unit`, one code a byte; `table` has sixteen bytes and is read by `Table` only.
    ///
    /// # Safety
    /// As for `Lanes`; `unit` is valid for `BYTES`.
    unsafe fn quad<S: Dot, const Q: usize>(unit: *const u8, table: *const u8) -> S::B;
}

/// Codes of `BITS` bits in planes.
pub(crate) struct Packed<const BITS: usize>;

/// Codes of four bits that stand for bytes of a table; `RUN` as the bytes allow.
pub(crate) struct Table<const RUN: usize>;

/// Expanded codes, one a byte; `RUN` as their size allows.
pub(crate) struct Bytes<const RUN: usize>;

impl<const BITS: usize> Width for Packed<BITS> {
    const BYTES: usize = BITS * PLANE;
    const RUN: usize = match BITS {
        2..=4 => 8,
        5 => 4,
        6 => 2,
        _ => 1,
    };
    const JOINS: bool = BITS == 2;

    #[inline(always)]
    unsafe fn quad<S: Dot, const Q: usize>(unit: *const u8, _table: *const u8) -> S::B {
        match BITS {
            2 => two::<S, Q>(unit, 0),
            3 => S::bor(two::<S, Q>(unit, 0), one::<S, Q>(unit.add(2 * PLANE), 2)),
            4 => four::<S, Q>(unit),
            5 => S::bor(four::<S, Q>(unit), one::<S, Q>(unit.add(4 * PLANE), 4)),
            6 => S::bor(four::<S, Q>(unit), two::<S, Q>(unit.add(4 * PLANE), 4)),
            _ => S::bload(unit.add(Q * QUAD)),
        }
    }
}

impl<const RUN: usize> Width for Table<RUN> {
    const BYTES: usize = 4 * PLANE;
    const RUN: usize = RUN;
    const JOINS: bool = false;

    #[inline(always)]
    unsafe fn quad<S: Dot, const Q: usize>(unit: *const u8, table: *const u8) -> S::B {
        S::lookup(table, four::<S, Q>(unit))
    }
}

impl<const RUN: usize> Width for Bytes<RUN> {
    const BYTES: usize = 8 * PLANE;
    const RUN: usize = RUN;
    const JOINS: bool = matches!(RUN, 1 | 8);

    #[inline(always)]
    unsafe fn quad<S: Dot, const Q: usize>(unit: *const u8, _table: *const u8) -> S::B {
        S::bload(unit.add(Q * QUAD))
    }
}

/// A quad's four bits: even quads in low nibbles, odd ones in high nibbles.
#[inline(always)]
unsafe fn four<S: Dot, const Q: usize>(plane: *const u8) -> S::B {
    let v = S::bload(plane.add(Q / 2 * QUAD));
    S::band(if Q.is_multiple_of(2) { v } else { S::bshr(v, 4) }, S::bsplat(15))
}

/// A quad's two bits, moved to bit `at` of each byte: quads 4i..4i+4 share a byte.
#[inline(always)]
unsafe fn two<S: Dot, const Q: usize>(plane: *const u8, at: i32) -> S::B {
    let from = 2 * (Q as i32 % 4);
    S::band(moved::<S>(S::bload(plane.add(Q / 4 * QUAD)), from, at), S::bsplat(3 << at))
}

/// A quad's one bit, moved to bit `at` of each byte: all eight quads share a byte.
#[inline(always)]
unsafe fn one<S: Dot, const Q: usize>(plane: *const u8, at: i32) -> S::B {
    S::band(moved::<S>(S::bload(plane), Q as i32, at), S::bsplat(1 << at))
}

#[inline(always)]
unsafe fn moved<S: Dot>(v: S::B, from: i32, at: i32) -> S::B {
    match from - at {
        0 => v,
        n if n > 0 => S::bshr(v, n),
        n => S::bshl(v, -n),
    }
}

/// Does `$body` for each quad of a unit, `$at` being the constant that numbers it.
macro_rules! each_quad {
    (|$at:ident| $body:expr) => {
        $crate::ops::panel::each_quad!(@ $at, $body, 0 1 2 3 4 5 6 7)
    };
    (@ $at:ident, $body:expr, $($n:literal)*) => {
        $({
            const $at: usize = $n;
            $body
        })*
    };
}

pub(crate) use each_quad;

/// Expands units of codes to bytes, 512 a unit.
pub(crate) struct Expand<W> {
    pub(crate) codes: *const u8,
    pub(crate) table: *const u8,
    pub(crate) out: *mut u8,
    pub(crate) units: usize,
    /// How far ahead to ask for codes.
    pub(crate) ahead: Option<ReadAhead>,
    pub(crate) width: PhantomData<W>,
}

impl<W: Width> Kernel for Expand<W> {
    #[inline(always)]
    unsafe fn run<S: Dot>(self) {
        for u in 0..self.units {
            let (unit, out) = (self.codes.add(u * W::BYTES), self.out.add(u * UNIT * LANES));
            fetch_ahead::<S>(unit, W::BYTES, self.ahead);
            each_quad!(|AT| S::bstore(out.add(AT * QUAD), W::quad::<S, AT>(unit, self.table)));
        }
    }
}

/// Expands units of codes to f32 weights `[K][16]`: level · scale, then + bias where there is one.
pub(crate) struct ExpandFloat<W> {
    pub(crate) codes: *const u8,
    pub(crate) table: *const u8,
    pub(crate) zero: i32,
    /// `[K / block][16]`.
    pub(crate) scales: *const f32,
    /// As `scales`, or null.
    pub(crate) biases: *const f32,
    pub(crate) block: usize,
    pub(crate) out: *mut f32,
    pub(crate) units: usize,
    pub(crate) width: PhantomData<W>,
}

impl<W: Width> Kernel for ExpandFloat<W> {
    #[inline(always)]
    unsafe fn run<S: Dot>(self) {
        let zero = S::isplat(self.zero);
        for u in 0..self.units {
            let unit = self.codes.add(u * W::BYTES);
            each_quad!(|AT| {
                let q = W::quad::<S, AT>(unit, self.table);
                let k = u * UNIT + AT * 4;
                let at = k / self.block * LANES;
                let (rows, scale) = (S::rows(q), S::load(self.scales.add(at)));
                for j in 0..4 {
                    let code = S::iand(S::ishr(rows, 8 * j), S::isplat(255));
                    let mut w = S::mul(S::to_f(S::isub(code, zero)), scale);
                    if !self.biases.is_null() {
                        w = S::add(w, S::load(self.biases.add(at)));
                    }
                    S::store(self.out.add((k + j as usize) * LANES), w);
                }
            });
        }
    }
}

/// Writes codes of sixteen rows, one a byte and `stride` from row to row, as planes that fill `out`.
pub(super) fn pack(bits: u8, rows: &[u8], stride: usize, out: &mut [u8]) {
    for (u, unit) in out.chunks_exact_mut(PLANE * usize::from(bits)).enumerate() {
        for r in 0..LANES {
            let mut quads = [0u32; QUADS];
            let row = &rows[r * stride + u * UNIT..][..UNIT];
            for (q, four) in quads.iter_mut().zip(row.chunks_exact(4)) {
                *q = u32::from_le_bytes([four[0], four[1], four[2], four[3]]);
            }
            let put = |plane: &mut [u8], i: usize, word: u32| {
                plane[i * QUAD + r * 4..][..4].copy_from_slice(&word.to_le_bytes());
            };
            match bits {
                2 => pack_two(quads, 0, unit, put),
                3 => {
                    let (a, b) = unit.split_at_mut(2 * PLANE);
                    pack_two(quads, 0, a, put);
                    put(b, 0, gather_one(quads, 2));
                }
                4 => pack_four(quads, unit, put),
                5 => {
                    let (a, b) = unit.split_at_mut(4 * PLANE);
                    pack_four(quads, a, put);
                    put(b, 0, gather_one(quads, 4));
                }
                6 => {
                    let (a, b) = unit.split_at_mut(4 * PLANE);
                    pack_four(quads, a, put);
                    pack_two(quads, 4, b, put);
                }
                _ => quads.iter().enumerate().for_each(|(i, &q)| put(unit, i, q)),
            }
        }
    }
}

#[inline(always)]
fn pack_four(quads: [u32; QUADS], plane: &mut [u8], put: impl Fn(&mut [u8], usize, u32)) {
    for i in 0..4 {
        put(plane, i, (quads[2 * i] & 0x0f0f_0f0f) | ((quads[2 * i + 1] & 0x0f0f_0f0f) << 4));
    }
}

#[inline(always)]
fn pack_two(quads: [u32; QUADS], from: u32, plane: &mut [u8], put: impl Fn(&mut [u8], usize, u32)) {
    for i in 0..2 {
        let bits = |j: usize| (quads[4 * i + j] >> from) & 0x0303_0303;
        put(plane, i, bits(0) | (bits(1) << 2) | (bits(2) << 4) | (bits(3) << 6));
    }
}

#[inline(always)]
fn gather_one(quads: [u32; QUADS], from: u32) -> u32 {
    quads.iter().enumerate().fold(0, |word, (i, q)| word | (((q >> from) & 0x0101_0101) << i))
}

/// The codes of row `r` of a slice, one a byte.
pub(super) fn unpack_row(bits: u8, codes: &[u8], r: usize, out: &mut [u8]) {
    for (unit, out) in codes.chunks_exact(PLANE * usize::from(bits)).zip(out.chunks_exact_mut(UNIT)) {
        let word = |at: usize| {
            let b = &unit[at + r * 4..];
            u32::from_le_bytes([b[0], b[1], b[2], b[3]])
        };
        for (q, out) in out.chunks_exact_mut(4).enumerate() {
            let four = |at: usize| (word(at + q / 2 * QUAD) >> (4 * (q % 2))) & 0x0f0f_0f0f;
            let two = |at: usize| (word(at + q / 4 * QUAD) >> (2 * (q % 4))) & 0x0303_0303;
            let one = |at: usize| (word(at) >> q) & 0x0101_0101;
            let quad = match bits {
                2 => two(0),
                3 => two(0) | (one(2 * PLANE) << 2),
                4 => four(0),
                5 => four(0) | (one(4 * PLANE) << 4),
                6 => four(0) | (two(4 * PLANE) << 4),
                _ => word(q * QUAD),
            };
            out.copy_from_slice(&quad.to_le_bytes());
        }
    }
}
