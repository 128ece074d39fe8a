//! What matrix products need beyond `Lanes`: sixteen rows of four bytes as one value, their products with four int8
//! activations, and the integer steps that take packed bits apart. All sums are exact, so every set gives the same numbers.

use super::{LANES, Lanes};

/// Work that is compiled once per instruction set. `Dot::enter` runs it where the set is enabled.
pub trait Kernel {
    /// Does the work.
    ///
    /// # Safety
    /// As for `Lanes`; an implementor may ask for more.
    unsafe fn run<S: Dot>(self);
}

/// Byte products of one instruction set.
///
/// A *quad* is 64 bytes: for each of sixteen rows the codes (u8) of four consecutive k. A *run* is a row of quads whose
/// products may be added before they are widened; `open`, `step`, `close` bracket it. So that sums of pairs stay within i16, a
/// run has at most 8 quads of 4-bit codes, 4 of 5-bit, 2 of 6-bit. Wider codes go through `step_wide`.
///
/// # Safety
/// As for `Lanes`.
#[allow(missing_docs, clippy::missing_safety_doc)] // most methods are one machine operation and say so by their names
pub unsafe trait Dot: Lanes {
    /// A quad.
    type B: Copy;
    /// The sum of a run.
    type A: Copy;

    /// Widest tile of an integer product, in columns: a power of two.
    const COLUMNS: usize;
    /// Widest tile of a float product, in columns: a power of two.
    const FLOAT_COLUMNS: usize;
    /// True if narrow products take packed codes apart in registers; otherwise all products are of expanded bytes.
    const FUSED: bool;
    /// True if a run holds sums narrower than i32, so that the width of the codes matters.
    const NARROW: bool;
    /// `step_wide` multiplies by code minus this.
    const WIDE_ZERO: i32;
    /// True if the registers hold the sums of two panels and the widest tile.
    const PAIRS: bool;

    /// Runs `kernel` inside a function that enables the set.
    unsafe fn enter<K: Kernel>(kernel: K);

    unsafe fn bload(p: *const u8) -> Self::B;
    unsafe fn bstore(p: *mut u8, v: Self::B);
    unsafe fn bsplat(x: u8) -> Self::B;
    unsafe fn band(a: Self::B, b: Self::B) -> Self::B;
    unsafe fn bor(a: Self::B, b: Self::B) -> Self::B;
    /// Shifts each row's 32 bits right: bits cross from byte to byte, callers mask.
    unsafe fn bshr(v: Self::B, n: i32) -> Self::B;
    /// Shifts each row's 32 bits left.
    unsafe fn bshl(v: Self::B, n: i32) -> Self::B;
    /// `table[i]` for each byte i below 16; the table has sixteen bytes.
    unsafe fn lookup(table: *const u8, v: Self::B) -> Self::B;
    /// The 32 bits of each row as one integer: byte j is k = j.
    unsafe fn rows(v: Self::B) -> Self::I;

    unsafe fn open(sum: Self::I) -> Self::A;
    /// Adds the products of a quad with the four int8 at `x`.
    unsafe fn step(run: Self::A, codes: Self::B, x: *const i8) -> Self::A;
    /// `sum` plus the run. `sum` is what `open` was given.
    unsafe fn close(sum: Self::I, run: Self::A) -> Self::I;
    /// `sum` plus the products of (code - `WIDE_ZERO`), for codes of any width and x in -127..=127.
    unsafe fn step_wide(sum: Self::I, codes: Self::B, x: *const i8) -> Self::I;

    unsafe fn iadd(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn isub(a: Self::I, b: Self::I) -> Self::I;
    /// Two numbers that fit 16 bits as the halves of one: `low` and, above it, `high`.
    unsafe fn halves(low: Self::I, high: Self::I) -> Self::I;
    /// The sum of the products of the signed 16-bit halves.
    unsafe fn dot_halves(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn iand(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn ior(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn imax(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn ishl(v: Self::I, n: i32) -> Self::I;
    /// Shifts zeros in.
    unsafe fn ishr(v: Self::I, n: i32) -> Self::I;
    /// Shifts the sign in.
    unsafe fn isar(v: Self::I, n: i32) -> Self::I;
    /// Sum of the lanes.
    unsafe fn isum(v: Self::I) -> i32;
    /// Largest lane.
    unsafe fn ihmax(v: Self::I) -> i32;
    /// Sixteen u8 widened.
    unsafe fn iload_u8(p: *const u8) -> Self::I;
    /// Narrowed to i8; lanes must fit.
    unsafe fn istore_i8(p: *mut i8, v: Self::I);
    /// Both narrowed to i8, one behind the other; gives the sum of each.
    #[inline(always)]
    unsafe fn istore_pair(p: *mut i8, a: Self::I, b: Self::I) -> (i32, i32) {
        // SAFETY: `p` is valid for both by contract.
        unsafe {
            Self::istore_i8(p, a);
            Self::istore_i8(p.add(LANES), b);
            (Self::isum(a), Self::isum(b))
        }
    }
    /// The bits of the floats.
    unsafe fn bits(v: Self::F) -> Self::I;
}
