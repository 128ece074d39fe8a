//! Plain Rust lanes: what every processor has.

use super::{Dot, Kernel, LANES, Lanes};
use half::{bf16, f16};

/// No instruction set at all.
#[derive(Clone, Copy)]
pub struct Portable;

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    for (i, v) in out.iter_mut().enumerate() {
        *v = f(i);
    }
    out
}

// SAFETY: plain Rust; pointers are valid by the trait's contract.
#[allow(clippy::missing_safety_doc)]
unsafe impl Lanes for Portable {
    type F = [f32; LANES];
    type I = [i32; LANES];
    const REGISTERS: usize = if cfg!(target_arch = "aarch64") { 8 } else { 4 };

    #[inline(always)]
    unsafe fn fetch(_p: *const u8) {}
    #[inline(always)]
    unsafe fn fetch_near(_p: *const u8) {}
    #[inline(always)]
    unsafe fn fetch_past(_p: *const u8) {}

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        // SAFETY: valid for sixteen elements by contract.
        unsafe { p.cast::<Self::F>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::F) {
        // SAFETY: valid for sixteen elements by contract.
        unsafe { p.cast::<Self::F>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::F {
        // SAFETY: valid for sixteen elements by contract.
        let h = unsafe { p.cast::<[u16; LANES]>().read_unaligned() };
        each(|i| f16::from_bits(h[i]).to_f32())
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self::F {
        // SAFETY: valid for sixteen elements by contract.
        let h = unsafe { p.cast::<[u16; LANES]>().read_unaligned() };
        each(|i| f32::from_bits(u32::from(h[i]) << 16))
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, v: Self::F) {
        let h: [u16; LANES] = std::array::from_fn(|i| f16::from_f32(v[i]).to_bits());
        // SAFETY: valid for sixteen elements by contract.
        unsafe { p.cast::<[u16; LANES]>().write_unaligned(h) }
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut u16, v: Self::F) {
        let h: [u16; LANES] = std::array::from_fn(|i| bf16::from_f32(v[i]).to_bits());
        // SAFETY: valid for sixteen elements by contract.
        unsafe { p.cast::<[u16; LANES]>().write_unaligned(h) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] / b[i])
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        each(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        each(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        each(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn round(v: Self::F) -> Self::F {
        each(|i| v[i].round_ties_even())
    }
    #[inline(always)]
    unsafe fn pow2i(v: Self::F) -> Self::F {
        each(|i| f32::from_bits((((v[i] as i32) + 127) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn if_nan(x: Self::F, a: Self::F, b: Self::F) -> Self::F {
        each(|i| if x[i].is_nan() { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn select_lt(x: Self::F, y: Self::F, a: Self::F, b: Self::F) -> Self::F {
        each(|i| if x[i] < y[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn abs(v: Self::F) -> Self::F {
        each(|i| v[i].abs())
    }
    #[inline(always)]
    unsafe fn sqrt(v: Self::F) -> Self::F {
        each(|i| v[i].sqrt())
    }
    #[inline(always)]
    unsafe fn izero() -> Self::I {
        [0; LANES]
    }
    #[inline(always)]
    unsafe fn isplat(x: i32) -> Self::I {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn to_f(v: Self::I) -> Self::F {
        each(|i| v[i] as f32)
    }
    #[inline(always)]
    unsafe fn to_i(v: Self::F) -> Self::I {
        ints(|i| v[i].round_ties_even() as i32)
    }
    #[inline(always)]
    unsafe fn iload(p: *const i32) -> Self::I {
        // SAFETY: valid for sixteen elements by contract.
        unsafe { p.cast::<Self::I>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn istore(p: *mut i32, v: Self::I) {
        // SAFETY: valid for sixteen elements by contract.
        unsafe { p.cast::<Self::I>().write_unaligned(v) }
    }
}

#[inline(always)]
fn ints(f: impl Fn(usize) -> i32) -> [i32; LANES] {
    let mut out = [0; LANES];
    for (i, v) in out.iter_mut().enumerate() {
        *v = f(i);
    }
    out
}

#[inline(always)]
fn words(f: impl Fn(usize) -> u32) -> [u32; LANES] {
    let mut out = [0; LANES];
    for (i, v) in out.iter_mut().enumerate() {
        *v = f(i);
    }
    out
}

// SAFETY: plain Rust; pointers are valid by the trait's contract.
unsafe impl Dot for Portable {
    type B = [u32; LANES];
    type A = [i32; LANES];

    const COLUMNS: usize = 4;
    const FLOAT_COLUMNS: usize = 4;
    const FUSED: bool = false;
    const NARROW: bool = false;
    const WIDE_ZERO: i32 = 0;
    const PAIRS: bool = false;

    #[inline(always)]
    unsafe fn enter<K: Kernel>(kernel: K) {
        // SAFETY: the caller's contract.
        unsafe { kernel.run::<Portable>() }
    }

    #[inline(always)]
    unsafe fn bload(p: *const u8) -> Self::B {
        // SAFETY: valid for 64 bytes by contract.
        let w = unsafe { p.cast::<Self::B>().read_unaligned() };
        words(|i| u32::from_le(w[i]))
    }
    #[inline(always)]
    unsafe fn bstore(p: *mut u8, v: Self::B) {
        // SAFETY: valid for 64 bytes by contract.
        unsafe { p.cast::<Self::B>().write_unaligned(words(|i| v[i].to_le())) }
    }
    #[inline(always)]
    unsafe fn bsplat(x: u8) -> Self::B {
        [u32::from_ne_bytes([x; 4]); LANES]
    }
    #[inline(always)]
    unsafe fn band(a: Self::B, b: Self::B) -> Self::B {
        words(|i| a[i] & b[i])
    }
    #[inline(always)]
    unsafe fn bor(a: Self::B, b: Self::B) -> Self::B {
        words(|i| a[i] | b[i])
    }
    #[inline(always)]
    unsafe fn bshr(v: Self::B, n: i32) -> Self::B {
        words(|i| v[i] >> n)
    }
    #[inline(always)]
    unsafe fn bshl(v: Self::B, n: i32) -> Self::B {
        words(|i| v[i] << n)
    }
    #[inline(always)]
    unsafe fn lookup(table: *const u8, v: Self::B) -> Self::B {
        // SAFETY: the table has sixteen bytes by contract.
        let table = unsafe { &*table.cast::<[u8; 16]>() };
        words(|i| u32::from_le_bytes(v[i].to_le_bytes().map(|b| table[usize::from(b & 15)])))
    }
    #[inline(always)]
    unsafe fn rows(v: Self::B) -> Self::I {
        ints(|i| v[i] as i32)
    }

    #[inline(always)]
    unsafe fn open(sum: Self::I) -> Self::A {
        sum
    }
    #[inline(never)] // a whole tile of it, unrolled, would be thousands of instructions
    unsafe fn step(run: Self::A, codes: Self::B, x: *const i8) -> Self::A {
        // SAFETY: four activations by contract.
        let x = unsafe { x.cast::<[i8; 4]>().read_unaligned() }.map(i32::from);
        ints(|i| {
            let w = codes[i].to_le_bytes().map(i32::from);
            run[i] + (w[0] * x[0] + w[1] * x[1]) + (w[2] * x[2] + w[3] * x[3])
        })
    }
    #[inline(always)]
    unsafe fn close(_sum: Self::I, run: Self::A) -> Self::I {
        run
    }
    #[inline(always)]
    unsafe fn step_wide(sum: Self::I, codes: Self::B, x: *const i8) -> Self::I {
        // SAFETY: the caller's contract.
        unsafe { Self::step(sum, codes, x) }
    }

    #[inline(always)]
    unsafe fn iadd(a: Self::I, b: Self::I) -> Self::I {
        ints(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    unsafe fn isub(a: Self::I, b: Self::I) -> Self::I {
        ints(|i| a[i].wrapping_sub(b[i]))
    }
    #[inline(always)]
    unsafe fn halves(low: Self::I, high: Self::I) -> Self::I {
        ints(|i| low[i] & 0xffff | high[i] << 16)
    }
    #[inline(always)]
    unsafe fn dot_halves(a: Self::I, b: Self::I) -> Self::I {
        ints(|i| i32::from(a[i] as i16) * i32::from(b[i] as i16) + (a[i] >> 16) * (b[i] >> 16))
    }
    #[inline(always)]
    unsafe fn iand(a: Self::I, b: Self::I) -> Self::I {
        ints(|i| a[i] & b[i])
    }
    #[inline(always)]
    unsafe fn ior(a: Self::I, b: Self::I) -> Self::I {
        ints(|i| a[i] | b[i])
    }
    #[inline(always)]
    unsafe fn imax(a: Self::I, b: Self::I) -> Self::I {
        ints(|i| a[i].max(b[i]))
    }
    #[inline(always)]
    unsafe fn ishl(v: Self::I, n: i32) -> Self::I {
        ints(|i| v[i] << n)
    }
    #[inline(always)]
    unsafe fn ishr(v: Self::I, n: i32) -> Self::I {
        ints(|i| (v[i] as u32 >> n) as i32)
    }
    #[inline(always)]
    unsafe fn isar(v: Self::I, n: i32) -> Self::I {
        ints(|i| v[i] >> n)
    }
    #[inline(always)]
    unsafe fn isum(v: Self::I) -> i32 {
        v.into_iter().fold(0, i32::wrapping_add)
    }
    #[inline(always)]
    unsafe fn ihmax(v: Self::I) -> i32 {
        v.into_iter().fold(i32::MIN, i32::max)
    }
    #[inline(always)]
    unsafe fn iload_u8(p: *const u8) -> Self::I {
        // SAFETY: valid for sixteen bytes by contract.
        let b = unsafe { p.cast::<[u8; LANES]>().read_unaligned() };
        ints(|i| i32::from(b[i]))
    }
    #[inline(always)]
    unsafe fn istore_i8(p: *mut i8, v: Self::I) {
        // SAFETY: valid for sixteen bytes by contract.
        unsafe { p.cast::<[i8; LANES]>().write_unaligned(v.map(|x| x as i8)) }
    }
    #[inline(always)]
    unsafe fn bits(v: Self::F) -> Self::I {
        ints(|i| v[i].to_bits() as i32)
    }
}
