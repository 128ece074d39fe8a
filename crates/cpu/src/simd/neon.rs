//! NEON: four registers of four lanes, and products of bytes with or without the dot product extension. What the stable
//! intrinsics lack (f16, byte products) is one instruction of assembly each.

use std::arch::aarch64::*;
use std::arch::asm;

use super::{Dot, Kernel, Lanes};

/// NEON, with byte products of one kind.
#[derive(Clone, Copy)]
pub struct Neon<P>(std::marker::PhantomData<P>);

/// How sixteen codes meet sixteen int8.
///
/// # Safety
/// As for `Lanes`.
pub unsafe trait Products: Copy {
    /// `sum` plus the products of four bytes for each of four rows; a pair of products has to fit an i16.
    ///
    /// # Safety
    /// As for `Lanes`.
    unsafe fn quad(sum: int32x4_t, codes: int8x16_t, x: int8x16_t) -> int32x4_t;

    /// Runs `kernel` inside a function that enables the set.
    ///
    /// # Safety
    /// As for `Lanes`.
    unsafe fn enter<K: Kernel>(kernel: K);
}

/// Products as i16, summed in pairs.
#[derive(Clone, Copy)]
pub struct Widening;

/// `sdot`.
#[derive(Clone, Copy)]
pub struct DotProduct;

// SAFETY: callers run these only where the set was detected.
#[allow(unused_unsafe)]
unsafe impl Products for Widening {
    #[inline(always)]
    unsafe fn quad(sum: int32x4_t, codes: int8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: the set was detected.
        unsafe {
            let low = vmull_s8(vget_low_s8(codes), vget_low_s8(x));
            vpadalq_s16(sum, vpaddq_s16(low, vmull_high_s8(codes, x)))
        }
    }
    #[inline(always)]
    unsafe fn enter<K: Kernel>(kernel: K) {
        #[inline(never)]
        #[target_feature(enable = "neon")]
        unsafe fn enabled<K: Kernel>(kernel: K) {
            // SAFETY: the caller's contract.
            unsafe { kernel.run::<Neon<Widening>>() }
        }
        // SAFETY: the set was detected.
        unsafe { enabled(kernel) }
    }
}

// SAFETY: callers run these only where the set was detected.
#[allow(unused_unsafe)]
unsafe impl Products for DotProduct {
    #[inline(always)]
    unsafe fn quad(mut sum: int32x4_t, codes: int8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: the set was detected; registers only.
        unsafe {
            asm!(
                ".arch_extension dotprod",
                "sdot {0:v}.4s, {1:v}.16b, {2:v}.16b",
                inout(vreg) sum, in(vreg) codes, in(vreg) x,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        sum
    }
    #[inline(always)]
    unsafe fn enter<K: Kernel>(kernel: K) {
        #[inline(never)]
        #[target_feature(enable = "neon,dotprod")]
        unsafe fn enabled<K: Kernel>(kernel: K) {
            // SAFETY: the caller's contract.
            unsafe { kernel.run::<Neon<DotProduct>>() }
        }
        // SAFETY: the set was detected.
        unsafe { enabled(kernel) }
    }
}

/// Four f16 as f32.
#[inline(always)]
unsafe fn widen(h: uint16x4_t) -> float32x4_t {
    let v: float32x4_t;
    // SAFETY: registers only.
    unsafe {
        asm!("fcvtl {0:v}.4s, {1:v}.4h", out(vreg) v, in(vreg) h, options(pure, nomem, nostack, preserves_flags));
    }
    v
}

/// Four f32 as f16, to nearest even.
#[inline(always)]
unsafe fn narrow(v: float32x4_t) -> uint16x4_t {
    let h: uint16x4_t;
    // SAFETY: registers only.
    unsafe {
        asm!("fcvtn {0:v}.4h, {1:v}.4s", out(vreg) h, in(vreg) v, options(pure, nomem, nostack, preserves_flags));
    }
    h
}

/// A value of each of four registers.
#[inline(always)]
fn four<T>(of: impl FnMut(usize) -> T) -> [T; 4] {
    std::array::from_fn(of)
}

// SAFETY: callers run these only where the set was detected; pointers are valid by the trait's contract.
#[allow(clippy::missing_safety_doc, unused_unsafe)]
unsafe impl<P: Products> Lanes for Neon<P> {
    type F = [float32x4_t; 4];
    type I = [int32x4_t; 4];
    const REGISTERS: usize = 8;

    #[inline(always)]
    unsafe fn fetch(p: *const u8) {
        // SAFETY: a prefetch never faults.
        unsafe { asm!("prfm pldl2keep, [{0}]", in(reg) p, options(readonly, nostack, preserves_flags)) }
    }
    #[inline(always)]
    unsafe fn fetch_near(p: *const u8) {
        // SAFETY: a prefetch never faults.
        unsafe { asm!("prfm pldl1keep, [{0}]", in(reg) p, options(readonly, nostack, preserves_flags)) }
    }
    #[inline(always)]
    unsafe fn fetch_past(p: *const u8) {
        // SAFETY: a prefetch never faults.
        unsafe { asm!("prfm pldl1strm, [{0}]", in(reg) p, options(readonly, nostack, preserves_flags)) }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { [vdupq_n_f32(x); 4] }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { four(|i| vld1q_f32(p.add(4 * i))) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::F) {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { (0..4).for_each(|i| vst1q_f32(p.add(4 * i), v[i])) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { four(|i| widen(vld1_u16(p.add(4 * i)))) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { four(|i| vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(p.add(4 * i))))) }
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, v: Self::F) {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { (0..4).for_each(|i| vst1_u16(p.add(4 * i), narrow(v[i]))) }
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut u16, v: Self::F) {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe {
            for (i, v) in v.into_iter().enumerate() {
                let bits = vreinterpretq_u32_f32(v);
                let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
                let up = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
                let quiet = vorrq_u32(bits, vdupq_n_u32(0x40_0000));
                vst1_u16(p.add(4 * i), vshrn_n_u32::<16>(vbslq_u32(vceqq_f32(v, v), up, quiet)));
            }
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { four(|i| vaddq_f32(a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { four(|i| vsubq_f32(a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { four(|i| vmulq_f32(a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { four(|i| vdivq_f32(a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { four(|i| vfmaq_f32(c[i], a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { four(|i| vbslq_f32(vcgtq_f32(a[i], b[i]), a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { four(|i| vbslq_f32(vcltq_f32(a[i], b[i]), a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn round(v: Self::F) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { four(|i| vrndnq_f32(v[i])) }
    }
    #[inline(always)]
    unsafe fn pow2i(v: Self::F) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { four(|i| vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(vcvtnq_s32_f32(v[i]), vdupq_n_s32(127))))) }
    }
    #[inline(always)]
    unsafe fn if_nan(x: Self::F, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { four(|i| vbslq_f32(vceqq_f32(x[i], x[i]), b[i], a[i])) }
    }
    #[inline(always)]
    unsafe fn select_lt(x: Self::F, y: Self::F, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { four(|i| vbslq_f32(vcltq_f32(x[i], y[i]), a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn abs(v: Self::F) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { four(|i| vabsq_f32(v[i])) }
    }
    #[inline(always)]
    unsafe fn sqrt(v: Self::F) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { four(|i| vsqrtq_f32(v[i])) }
    }
    #[inline(always)]
    unsafe fn izero() -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { [vdupq_n_s32(0); 4] }
    }
    #[inline(always)]
    unsafe fn isplat(x: i32) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { [vdupq_n_s32(x); 4] }
    }
    #[inline(always)]
    unsafe fn to_f(v: Self::I) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { four(|i| vcvtq_f32_s32(v[i])) }
    }
    #[inline(always)]
    unsafe fn to_i(v: Self::F) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { four(|i| vcvtnq_s32_f32(v[i])) }
    }
    #[inline(always)]
    unsafe fn iload(p: *const i32) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { four(|i| vld1q_s32(p.add(4 * i))) }
    }
    #[inline(always)]
    unsafe fn istore(p: *mut i32, v: Self::I) {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { (0..4).for_each(|i| vst1q_s32(p.add(4 * i), v[i])) }
    }
}

// SAFETY: callers run these only where the set was detected; pointers are valid by the trait's contract.
#[allow(unused_unsafe)]
unsafe impl<P: Products> Dot for Neon<P> {
    type B = [uint32x4_t; 4];
    type A = [int32x4_t; 4];

    const COLUMNS: usize = 4;
    const FLOAT_COLUMNS: usize = 4;
    const FUSED: bool = true;
    const NARROW: bool = false;
    const WIDE_ZERO: i32 = 128;
    const PAIRS: bool = false;

    #[inline(always)]
    unsafe fn enter<K: Kernel>(kernel: K) {
        // SAFETY: the caller's contract.
        unsafe { P::enter(kernel) }
    }
    #[inline(always)]
    unsafe fn bload(p: *const u8) -> Self::B {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { four(|i| vreinterpretq_u32_u8(vld1q_u8(p.add(16 * i)))) }
    }
    #[inline(always)]
    unsafe fn bstore(p: *mut u8, v: Self::B) {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { (0..4).for_each(|i| vst1q_u8(p.add(16 * i), vreinterpretq_u8_u32(v[i]))) }
    }
    #[inline(always)]
    unsafe fn bsplat(x: u8) -> Self::B {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { [vreinterpretq_u32_u8(vdupq_n_u8(x)); 4] }
    }
    #[inline(always)]
    unsafe fn band(a: Self::B, b: Self::B) -> Self::B {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { four(|i| vandq_u32(a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn bor(a: Self::B, b: Self::B) -> Self::B {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { four(|i| vorrq_u32(a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn bshr(v: Self::B, n: i32) -> Self::B {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { four(|i| vshlq_u32(v[i], vdupq_n_s32(-n))) }
    }
    #[inline(always)]
    unsafe fn bshl(v: Self::B, n: i32) -> Self::B {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { four(|i| vshlq_u32(v[i], vdupq_n_s32(n))) }
    }
    #[inline(always)]
    unsafe fn lookup(table: *const u8, v: Self::B) -> Self::B {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe {
            let table = vld1q_u8(table);
            four(|i| vreinterpretq_u32_u8(vqtbl1q_u8(table, vreinterpretq_u8_u32(v[i]))))
        }
    }
    #[inline(always)]
    unsafe fn rows(v: Self::B) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { four(|i| vreinterpretq_s32_u32(v[i])) }
    }
    #[inline(always)]
    unsafe fn open(sum: Self::I) -> Self::A {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { sum }
    }
    #[inline(always)]
    unsafe fn step(run: Self::A, codes: Self::B, x: *const i8) -> Self::A {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe {
            let x = vreinterpretq_s8_s32(vdupq_n_s32(x.cast::<i32>().read_unaligned()));
            four(|i| P::quad(run[i], vreinterpretq_s8_u32(codes[i]), x))
        }
    }
    #[inline(always)]
    unsafe fn close(_sum: Self::I, run: Self::A) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { run }
    }
    #[inline(always)]
    unsafe fn step_wide(sum: Self::I, codes: Self::B, x: *const i8) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe {
            // Codes less 128 are the codes with their highest bit turned, as i8.
            let turn = vdupq_n_u32(0x8080_8080);
            Self::step(sum, four(|i| veorq_u32(codes[i], turn)), x)
        }
    }
    #[inline(always)]
    unsafe fn iadd(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { four(|i| vaddq_s32(a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn isub(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { four(|i| vsubq_s32(a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn halves(low: Self::I, high: Self::I) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { four(|i| vsliq_n_s32::<16>(low[i], high[i])) }
    }
    #[inline(always)]
    unsafe fn dot_halves(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe {
            four(|i| {
                let (a, b) = (vreinterpretq_s16_s32(a[i]), vreinterpretq_s16_s32(b[i]));
                vpaddq_s32(vmull_s16(vget_low_s16(a), vget_low_s16(b)), vmull_high_s16(a, b))
            })
        }
    }
    #[inline(always)]
    unsafe fn iand(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { four(|i| vandq_s32(a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn ior(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { four(|i| vorrq_s32(a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn imax(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { four(|i| vmaxq_s32(a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn ishl(v: Self::I, n: i32) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { four(|i| vshlq_s32(v[i], vdupq_n_s32(n))) }
    }
    #[inline(always)]
    unsafe fn ishr(v: Self::I, n: i32) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { four(|i| vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(v[i]), vdupq_n_s32(-n)))) }
    }
    #[inline(always)]
    unsafe fn isar(v: Self::I, n: i32) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { four(|i| vshlq_s32(v[i], vdupq_n_s32(-n))) }
    }
    #[inline(always)]
    unsafe fn isum(v: Self::I) -> i32 {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { vaddvq_s32(vaddq_s32(vaddq_s32(v[0], v[1]), vaddq_s32(v[2], v[3]))) }
    }
    #[inline(always)]
    unsafe fn ihmax(v: Self::I) -> i32 {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { vmaxvq_s32(vmaxq_s32(vmaxq_s32(v[0], v[1]), vmaxq_s32(v[2], v[3]))) }
    }
    #[inline(always)]
    unsafe fn iload_u8(p: *const u8) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe {
            let v = vld1q_u8(p);
            let (low, high) = (vmovl_u8(vget_low_u8(v)), vmovl_high_u8(v));
            let all = [
                vmovl_u16(vget_low_u16(low)),
                vmovl_high_u16(low),
                vmovl_u16(vget_low_u16(high)),
                vmovl_high_u16(high),
            ];
            all.map(|v| vreinterpretq_s32_u32(v))
        }
    }
    #[inline(always)]
    unsafe fn istore_i8(p: *mut i8, v: Self::I) {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe {
            let low = vcombine_s16(vmovn_s32(v[0]), vmovn_s32(v[1]));
            let high = vcombine_s16(vmovn_s32(v[2]), vmovn_s32(v[3]));
            vst1q_s8(p, vcombine_s8(vmovn_s16(low), vmovn_s16(high)))
        }
    }
    #[inline(always)]
    unsafe fn bits(v: Self::F) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { four(|i| vreinterpretq_s32_f32(v[i])) }
    }
}
