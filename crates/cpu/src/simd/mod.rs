//! Sixteen f32 lanes, written once per instruction set. Kernels are generic over `Lanes` and compiled for each set inside a
//! function that enables it; every method rounds as IEEE says, so that all sets give the same bits.
//! Knows no operation of a model.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod dot;
pub mod math;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;
pub use dot::{Dot, Kernel};
#[cfg(target_arch = "aarch64")]
pub use neon::{DotProduct, Neon, Widening};
pub use portable::Portable;

/// Lanes of the vector type; also the rows of a weight panel.
pub const LANES: usize = 16;

/// Sixteen f32 lanes of one instruction set.
///
/// # Safety
/// The methods may run only on a processor that has the instruction set; pointers must be valid for sixteen elements and need
/// no alignment.
#[allow(missing_docs, clippy::missing_safety_doc)] // most methods are one machine operation and say so by their names
pub unsafe trait Lanes: Copy {
    /// Sixteen f32.
    type F: Copy;
    /// Sixteen i32.
    type I: Copy;

    unsafe fn splat(x: f32) -> Self::F;
    unsafe fn load(p: *const f32) -> Self::F;
    unsafe fn store(p: *mut f32, v: Self::F);
    /// Sixteen f16 widened.
    unsafe fn load_f16(p: *const u16) -> Self::F;
    /// Sixteen bf16 widened.
    unsafe fn load_bf16(p: *const u16) -> Self::F;
    /// Narrowed to f16, to nearest even.
    unsafe fn store_f16(p: *mut u16, v: Self::F);
    /// Narrowed to bf16, to nearest even; NaN stays NaN.
    unsafe fn store_bf16(p: *mut u16, v: Self::F);
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// a·b + c with one rounding.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The larger of each lane; `b` where either is NaN (the rule of x86's maxps).
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// The smaller of each lane; `b` where either is NaN.
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    /// To nearest even integer, as f32.
    unsafe fn round(v: Self::F) -> Self::F;
    /// 2^n for lanes that hold integers in -126..=127.
    unsafe fn pow2i(v: Self::F) -> Self::F;
    /// `a` where `x` is NaN, else `b`.
    unsafe fn if_nan(x: Self::F, a: Self::F, b: Self::F) -> Self::F;
    /// `a` where x < y, else `b`.
    unsafe fn select_lt(x: Self::F, y: Self::F, a: Self::F, b: Self::F) -> Self::F;
    /// |v|.
    unsafe fn abs(v: Self::F) -> Self::F;
    /// √v, correctly rounded.
    unsafe fn sqrt(v: Self::F) -> Self::F;

    unsafe fn izero() -> Self::I;
    unsafe fn isplat(x: i32) -> Self::I;
    unsafe fn to_f(v: Self::I) -> Self::F;
    /// Rounded to nearest even; lanes must fit in i32.
    unsafe fn to_i(v: Self::F) -> Self::I;
    unsafe fn iload(p: *const i32) -> Self::I;
    unsafe fn istore(p: *mut i32, v: Self::I);

    /// Values of type `F` that the registers hold.
    const REGISTERS: usize;
    /// Asks for the cache line at `p`, which may be any address, to come to the second-level cache.
    unsafe fn fetch(p: *const u8);
    /// As `fetch`, to the first-level cache.
    unsafe fn fetch_near(p: *const u8);
    /// As `fetch_near`, past the other caches where the processor can.
    unsafe fn fetch_past(p: *const u8);
    /// The first `n` lanes, the others zero; all sixteen from sixteen on. `p` is valid for as many elements.
    #[inline(always)]
    unsafe fn load_n(p: *const f32, n: usize) -> Self::F {
        // SAFETY: `p` is valid for `n` elements by contract.
        unsafe {
            if n >= LANES {
                return Self::load(p);
            }
            let mut a = [0.0f32; LANES];
            std::ptr::copy_nonoverlapping(p, a.as_mut_ptr(), n);
            Self::load(a.as_ptr())
        }
    }
    /// Stores the first `n` lanes; all sixteen from sixteen on. `p` is valid for as many elements.
    #[inline(always)]
    unsafe fn store_n(p: *mut f32, n: usize, v: Self::F) {
        // SAFETY: `p` is valid for `n` elements by contract.
        unsafe {
            if n >= LANES {
                return Self::store(p, v);
            }
            let mut a = [0.0f32; LANES];
            Self::store(a.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(a.as_ptr(), p, n);
        }
    }
}

/// Lane sums in one fixed order: 8 + 8, then 4 + 4, 2 + 2, 1 + 1.
///
/// # Safety
/// As for `Lanes`.
#[inline(always)]
pub unsafe fn sum<S: Lanes>(v: S::F) -> f32 {
    let mut a = [0.0f32; LANES];
    // SAFETY: `a` holds sixteen elements; the set is the caller's.
    unsafe { S::store(a.as_mut_ptr(), v) };
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            a[i] += a[i + half];
        }
    }
    a[0]
}

/// Largest lane; NaN lanes are passed over unless all are.
///
/// # Safety
/// As for `Lanes`.
#[inline(always)]
pub unsafe fn hmax<S: Lanes>(v: S::F) -> f32 {
    let mut a = [0.0f32; LANES];
    // SAFETY: `a` holds sixteen elements; the set is the caller's.
    unsafe { S::store(a.as_mut_ptr(), v) };
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            a[i] = a[i].max(a[i + half]);
        }
    }
    a[0]
}
