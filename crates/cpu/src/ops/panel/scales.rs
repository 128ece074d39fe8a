//! Scales of a panel: each field of the format's scale unit lies for sixteen rows side by side, and is decoded to f32 lanes
//! right before use. The layouts of the units are those of `reverie_tensor::form::Scales`. Knows nothing of codes.

#![allow(unsafe_op_in_unsafe_fn)] // every unsafe function states its contract once

use reverie_tensor::form::in_halves;
use reverie_tensor::{DType, Grouped, Scales};

use crate::isa::{Caches, LINE_BYTES, ReadAhead};
use crate::simd::{Dot, Kernel, LANES};

/// Widths in bytes of the fields that a unit of scale bytes is moved by.
fn fields(scales: Scales) -> &'static [usize] {
    match scales {
        Scales::Float(d) => {
            if d.size() == 4 {
                &[4]
            } else {
                &[2]
            }
        }
        Scales::FloatBias(d) => {
            if d.size() == 4 {
                &[4, 4]
            } else {
                &[2, 2]
            }
        }
        Scales::Exponent | Scales::Float8 => &[1],
        Scales::Nibbles16 => &[2, 2, 4, 4, 4, 4],
        Scales::Six16 => &[2, 4, 4, 4],
        Scales::Six8 => &[2, 2, 4, 4, 4],
        Scales::Byte16 => &[2, 4, 4, 4, 4],
    }
}

/// Sixteen rows of `SIZE`-byte elements, `row` bytes each, to `[K][16]`.
pub(super) fn interleave<const SIZE: usize>(rows: &[u8], row: usize, out: &mut [u8]) {
    for (k, out) in out.chunks_exact_mut(SIZE * LANES).enumerate() {
        for (r, out) in out.chunks_exact_mut(SIZE).enumerate() {
            out.copy_from_slice(&rows[r * row + k * SIZE..][..SIZE]);
        }
    }
}

/// Calls `f` for each field of `bytes` bytes of a row's scales: where it lies in the row's, where in the slice's, its width.
fn each_field(scales: Scales, bytes: usize, mut f: impl FnMut(usize, usize, usize)) {
    let mut at = 0;
    while at < bytes {
        for &width in fields(scales) {
            f(at, at * LANES, width);
            at += width;
        }
    }
}

/// Scale bytes of sixteen rows, `stride` from row to row, to a slice's order; as many as fill `out`.
pub(super) fn pack(g: &Grouped, rows: &[u8], stride: usize, out: &mut [u8]) {
    each_field(g.scales, out.len() / LANES, |from, to, width| {
        for r in 0..LANES {
            out[to + r * width..][..width].copy_from_slice(&rows[r * stride + from..][..width]);
        }
    });
}

/// The scale bytes of row `r` of a slice.
pub(super) fn unpack_row(g: &Grouped, slice: &[u8], r: usize, out: &mut [u8]) {
    each_field(g.scales, out.len(), |to, from, width| {
        out[to..to + width].copy_from_slice(&slice[from + r * width..][..width]);
    });
}

/// Units of 32 whose nibbles share a d and a dmin.
const NIBBLE_UNITS: usize = 8;

/// Where the scales of unit `u` of a slice lie among those that `DecodeScales` leaves as integers, and where their multiplier: in
/// vectors.
#[inline(always)]
pub(crate) fn whole_scales(u: usize) -> (usize, usize) {
    let d = u / NIBBLE_UNITS * (NIBBLE_UNITS + 1) + NIBBLE_UNITS;
    (u + u / NIBBLE_UNITS, d)
}

/// Decodes a slice's scales to f32: per block sixteen scales, and sixteen biases where the format has them.
pub(crate) struct DecodeScales {
    pub(crate) kind: Scales,
    /// Nibbles stay integers: per unit of 32 both halves' scales as the halves of an i32, and after eight units d; minima and
    /// -dmin as biases.
    pub(crate) whole: Whole,
    /// The first scale unit.
    pub(crate) bytes: *const u8,
    /// Bytes of a scale unit for sixteen rows.
    pub(crate) unit_bytes: usize,
    /// Scale units to decode.
    pub(crate) units: usize,
    /// `[blocks][16]`.
    pub(crate) scales: *mut f32,
    /// As `scales`; written only if the format has biases.
    pub(crate) biases: *mut f32,
    /// How far ahead to ask for the panel's bytes.
    pub(crate) ahead: Option<ReadAhead>,
}

/// What becomes of scales that are integers times a multiplier of many.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whole {
    /// They become f32, as all others.
    Convert,
    /// They stay integers where they are nibbles.
    Stay,
}

/// Decodes every unit by `$body`, which makes `$blocks` scales; the kind has been looked at once, and not once a unit.
macro_rules! each_unit {
    ($decode:ident, $blocks:expr, |$unit:ident, $out:ident| $body:expr) => {
        for u in 0..$decode.units {
            let at = u * ($blocks) * LANES;
            let $out = Out { scales: $decode.scales.wrapping_add(at), biases: $decode.biases.wrapping_add(at) };
            let $unit = $decode.bytes.add(u * $decode.unit_bytes);
            $body
        }
    };
}

/// `$body` with the constant `$D` for the float type `$d`.
macro_rules! with_float {
    ($d:expr, $D:ident, $body:expr) => {
        match $d {
            DType::F16 => {
                const $D: DType = DType::F16;
                $body
            }
            DType::BF16 => {
                const $D: DType = DType::BF16;
                $body
            }
            _ => {
                const $D: DType = DType::F32;
                $body
            }
        }
    };
}

impl Kernel for DecodeScales {
    #[inline(always)]
    unsafe fn run<S: Dot>(self) {
        fetch_ahead::<S>(self.bytes, self.units * self.unit_bytes, self.ahead);
        match self.kind {
            Scales::Float(d) => {
                with_float!(d, D, each_unit!(self, 1, |unit, out| out.scale::<S>(0, float::<S>(D, unit))))
            }
            Scales::FloatBias(d) => with_float!(
                d,
                D,
                each_unit!(self, 1, |unit, out| {
                    out.scale::<S>(0, float::<S>(D, unit));
                    out.bias::<S>(0, float::<S>(D, unit.add(LANES * D.size())));
                })
            ),
            Scales::Exponent => {
                each_unit!(self, 1, |unit, out| out.scale::<S>(0, exponent::<S>(S::iload_u8(unit))))
            }
            Scales::Float8 => {
                each_unit!(self, 1, |unit, out| out.scale::<S>(0, half_float8::<S>(S::iload_u8(unit))))
            }
            Scales::Nibbles16 if self.whole == Whole::Stay => {
                each_unit!(self, NIBBLE_UNITS + 1, |unit, out| whole_nibbles::<S>(unit, out))
            }
            Scales::Nibbles16 => each_unit!(self, 16, |unit, out| nibbles16::<S>(unit, out)),
            Scales::Six16 => each_unit!(self, 16, |unit, out| six16::<S>(unit, out)),
            Scales::Six8 => each_unit!(self, 8, |unit, out| six8::<S>(unit, out)),
            Scales::Byte16 => each_unit!(self, 16, |unit, out| byte16::<S>(unit, out)),
        }
    }
}

/// Asks for the cache lines `ahead` of these bytes.
#[inline(always)]
pub(crate) unsafe fn fetch_ahead<S: Dot>(p: *const u8, bytes: usize, ahead: Option<ReadAhead>) {
    if let Some(ahead) = ahead {
        for line in (0..bytes).step_by(LINE_BYTES) {
            let p = p.wrapping_add(ahead.bytes + line);
            match ahead.caches {
                Caches::Fill => S::fetch_near(p),
                Caches::Pass => S::fetch_past(p),
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Out {
    scales: *mut f32,
    biases: *mut f32,
}

impl Out {
    #[inline(always)]
    unsafe fn scale<S: Dot>(self, block: usize, v: S::F) {
        S::store(self.scales.add(block * LANES), v);
    }
    #[inline(always)]
    unsafe fn bias<S: Dot>(self, block: usize, v: S::F) {
        S::store(self.biases.add(block * LANES), v);
    }
}

#[inline(always)]
unsafe fn float<S: Dot>(d: DType, p: *const u8) -> S::F {
    match d {
        DType::F16 => S::load_f16(p.cast()),
        DType::BF16 => S::load_bf16(p.cast()),
        _ => S::load(p.cast()),
    }
}

/// 2^(e - 128) as a product of two powers in the normal range, so that the two subnormal ones come out too.
#[inline(always)]
unsafe fn exponent<S: Dot>(e: S::I) -> S::F {
    let low = S::ishr(e, 1);
    S::mul(power::<S>(low), power::<S>(S::isub(e, low)))
}

/// Half of an e4m3 float: mantissa · 2^(e - 11) with the hidden one, mantissa · 2^-10 without (e = 0); NaN where all ones.
#[inline(always)]
unsafe fn half_float8<S: Dot>(byte: S::I) -> S::F {
    let (e, ones) = (field::<S>(byte, 3, 4), field::<S>(byte, 0, 7));
    // One where e is not 0.
    let hidden = S::ishr(S::isub(e, S::isplat(-15)), 4);
    let mantissa = S::to_f(S::ior(field::<S>(byte, 0, 3), S::ishl(hidden, 3)));
    let power = S::pow2i(S::to_f(S::isub(S::isub(e, hidden), S::isplat(10))));
    let sign = S::sub(S::splat(1.0), S::to_f(S::ishl(S::ishr(byte, 7), 1)));
    // 2^128 is infinite, and its difference from itself NaN, where 0 stays 0.
    let huge = S::mul(S::to_f(S::ishr(S::isub(ones, S::isplat(-1)), 7)), S::splat(f32::MAX));
    let huge = S::mul(huge, S::splat(2.0));
    let whole = S::add(S::splat(1.0), S::sub(huge, huge));
    S::mul(S::mul(mantissa, power), S::mul(sign, whole))
}

/// 2^(e - 64).
#[inline(always)]
unsafe fn power<S: Dot>(e: S::I) -> S::F {
    S::pow2i(S::sub(S::to_f(e), S::splat(64.0)))
}

/// `bits` bits of each lane, from bit `at`.
#[inline(always)]
unsafe fn field<S: Dot>(v: S::I, at: i32, bits: i32) -> S::I {
    S::iand(S::ishr(v, at), S::isplat((1 << bits) - 1))
}

/// Word `i` of a unit whose words begin after `head` bytes of each row.
#[inline(always)]
unsafe fn word<S: Dot>(unit: *const u8, head: usize, i: usize) -> S::I {
    S::iload(unit.add(LANES * (head + 4 * i)).cast())
}

/// d and -dmin, the first two fields: -(dmin·m) and (-dmin)·m are the same number.
#[inline(always)]
unsafe fn two_heads<S: Dot>(unit: *const u8) -> (S::F, S::F) {
    let dmin = S::load_f16(unit.add(2 * LANES).cast());
    (S::load_f16(unit.cast()), S::mul(dmin, S::splat(-1.0)))
}

#[inline(always)]
unsafe fn nibbles16<S: Dot>(unit: *const u8, out: Out) {
    let (d, minus) = two_heads::<S>(unit);
    for i in 0..4 {
        let w = word::<S>(unit, 4, i);
        for j in 0..4 {
            let (at, block) = (8 * j as i32, in_halves(4 * i + j));
            out.scale::<S>(block, S::mul(d, S::to_f(field::<S>(w, at, 4))));
            out.bias::<S>(block, S::mul(minus, S::to_f(field::<S>(w, at + 4, 4))));
        }
    }
}

#[inline(always)]
unsafe fn whole_nibbles<S: Dot>(unit: *const u8, out: Out) {
    let (d, minus) = two_heads::<S>(unit);
    let mask = S::isplat(0x000f_000f);
    for u in 0..NIBBLE_UNITS {
        let (w, at) = (word::<S>(unit, 4, u / 2), 8 * (u % 2) as i32);
        S::istore(out.scales.add(u * LANES).cast(), S::iand(S::ishr(w, at), mask));
        S::istore(out.biases.add(u * LANES).cast(), S::iand(S::ishr(w, at + 4), mask));
    }
    out.scale::<S>(NIBBLE_UNITS, d);
    out.bias::<S>(NIBBLE_UNITS, minus);
}

#[inline(always)]
unsafe fn six16<S: Dot>(unit: *const u8, out: Out) {
    let d = S::load_f16(unit.cast());
    let high = word::<S>(unit, 2, 2);
    for i in 0..2 {
        let low = word::<S>(unit, 2, i);
        for j in 0..4 {
            for half in 0..2 {
                // Scale i·4 + j has its low bits in the low nibble, scale i·4 + j + 8 in the high one.
                let s = 8 * half + 4 * i + j;
                let v = field::<S>(low, (8 * j + 4 * half) as i32, 4);
                let h = field::<S>(high, (8 * (s % 4) + 2 * (s / 4)) as i32, 2);
                let v = S::isub(S::ior(v, S::ishl(h, 4)), S::isplat(32));
                out.scale::<S>(s, S::mul(d, S::to_f(v)));
            }
        }
    }
}

#[inline(always)]
unsafe fn six8<S: Dot>(unit: *const u8, out: Out) {
    let (d, minus) = two_heads::<S>(unit);
    let (a, b, c) = (word::<S>(unit, 4, 0), word::<S>(unit, 4, 1), word::<S>(unit, 4, 2));
    for j in 0..4 {
        let at = 8 * j as i32;
        out.scale::<S>(j, S::mul(d, S::to_f(field::<S>(a, at, 6))));
        out.bias::<S>(j, S::mul(minus, S::to_f(field::<S>(b, at, 6))));
        let scale = S::ior(field::<S>(c, at, 4), S::ishl(field::<S>(a, at + 6, 2), 4));
        let least = S::ior(field::<S>(c, at + 4, 4), S::ishl(field::<S>(b, at + 6, 2), 4));
        out.scale::<S>(j + 4, S::mul(d, S::to_f(scale)));
        out.bias::<S>(j + 4, S::mul(minus, S::to_f(least)));
    }
}

#[inline(always)]
unsafe fn byte16<S: Dot>(unit: *const u8, out: Out) {
    let d = S::load_f16(unit.cast());
    for i in 0..4 {
        let w = word::<S>(unit, 2, i);
        for j in 0..4 {
            let v = S::isar(S::ishl(w, 24 - 8 * j as i32), 24);
            out.scale::<S>(4 * i + j, S::mul(d, S::to_f(v)));
        }
    }
}
