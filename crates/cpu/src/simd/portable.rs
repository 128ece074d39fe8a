//! Plain Rust lanes: what every processor has.

use super::{LANES, Lanes};
use half::{bf16, f16};

/// No instruction set at all.
#[derive(Clone, Copy)]
pub struct Portable;

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> [f32; LANES] {
    std::array::from_fn(f)
}

// SAFETY: plain Rust; pointers are valid by the trait's contract.
#[allow(clippy::missing_safety_doc)]
unsafe impl Lanes for Portable {
    type F = [f32; LANES];
    type I = [i32; LANES];

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
        std::array::from_fn(|i| v[i].round_ties_even() as i32)
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
