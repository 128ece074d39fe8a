//! AVX-512 (F, BW, DQ, VL): one register of sixteen lanes.

use super::{Dot, Kernel, LANES, Lanes};
use std::arch::x86_64::*;

/// AVX-512 F, BW, DQ and VL.
#[derive(Clone, Copy)]
pub struct Avx512;

/// The value as it is, computed here: the compiler would else reorder the exact sums of a tile into one long chain after
/// another and keep what they share in memory.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn pinned(mut v: __m512i) -> __m512i {
    // SAFETY: no instruction at all.
    unsafe { std::arch::asm!("/* {0} */", inout(zmm_reg) v, options(nomem, nostack, preserves_flags)) };
    v
}

// SAFETY: callers run these only where the set was detected; pointers are valid by the trait's contract.
#[allow(clippy::missing_safety_doc, unused_unsafe)]
unsafe impl Lanes for Avx512 {
    type F = __m512;
    type I = __m512i;
    const REGISTERS: usize = 32;

    #[inline(always)]
    unsafe fn fetch(p: *const u8) {
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn fetch_near(p: *const u8) {
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn fetch_past(p: *const u8) {
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_NTA>(p.cast()) }
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::F) {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast())))) }
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, v: Self::F) {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { _mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) }
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut u16, v: Self::F) {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe {
            let bits = _mm512_castps_si512(v);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let up = _mm512_srli_epi32::<16>(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))));
            let quiet = _mm512_or_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(0x40));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
            _mm256_storeu_si256(p.cast(), _mm512_cvtepi32_epi16(_mm512_mask_blend_epi32(nan, up, quiet)))
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn round(v: Self::F) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { _mm512_roundscale_ps::<_MM_FROUND_TO_NEAREST_INT>(v) }
    }
    #[inline(always)]
    unsafe fn pow2i(v: Self::F) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe {
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_add_epi32(
                _mm512_cvtps_epi32(v),
                _mm512_set1_epi32(127),
            )))
        }
    }
    #[inline(always)]
    unsafe fn if_nan(x: Self::F, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x), b, a) }
    }
    #[inline(always)]
    unsafe fn select_lt(x: Self::F, y: Self::F, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the set was detected.
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(x, y), b, a) }
    }

    #[inline(always)]
    unsafe fn abs(v: Self::F) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { _mm512_abs_ps(v) }
    }
    #[inline(always)]
    unsafe fn sqrt(v: Self::F) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { _mm512_sqrt_ps(v) }
    }
    #[inline(always)]
    unsafe fn izero() -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    unsafe fn isplat(x: i32) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    unsafe fn to_f(v: Self::I) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { _mm512_cvtepi32_ps(v) }
    }
    #[inline(always)]
    unsafe fn to_i(v: Self::F) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { _mm512_cvtps_epi32(v) }
    }
    #[inline(always)]
    unsafe fn iload(p: *const i32) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn istore(p: *mut i32, v: Self::I) {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { _mm512_storeu_si512(p.cast(), v) }
    }
}

// SAFETY: callers run these only where the set was detected; pointers are valid by the trait's contract.
#[allow(unused_unsafe)]
unsafe impl Dot for Avx512 {
    type B = __m512i;
    type A = __m512i;

    const COLUMNS: usize = 4;
    const FLOAT_COLUMNS: usize = 8;
    const FUSED: bool = true;
    const NARROW: bool = false;
    const WIDE_ZERO: i32 = 0;
    const PAIRS: bool = true;

    #[inline(always)]
    unsafe fn enter<K: Kernel>(kernel: K) {
        #[inline(never)]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
        unsafe fn enabled<K: Kernel>(kernel: K) {
            // SAFETY: the caller's contract.
            unsafe { kernel.run::<Avx512>() }
        }
        // SAFETY: the set was detected.
        unsafe { enabled(kernel) }
    }
    #[inline(always)]
    unsafe fn bload(p: *const u8) -> Self::B {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn bstore(p: *mut u8, v: Self::B) {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { _mm512_storeu_si512(p.cast(), v) }
    }
    #[inline(always)]
    unsafe fn bsplat(x: u8) -> Self::B {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { _mm512_set1_epi8(x as i8) }
    }
    #[inline(always)]
    unsafe fn band(a: Self::B, b: Self::B) -> Self::B {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { _mm512_and_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn bor(a: Self::B, b: Self::B) -> Self::B {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn bshr(v: Self::B, n: i32) -> Self::B {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { _mm512_srl_epi32(v, _mm_cvtsi32_si128(n)) }
    }
    #[inline(always)]
    unsafe fn bshl(v: Self::B, n: i32) -> Self::B {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { _mm512_sll_epi32(v, _mm_cvtsi32_si128(n)) }
    }
    #[inline(always)]
    unsafe fn lookup(table: *const u8, v: Self::B) -> Self::B {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(table.cast())), v) }
    }
    #[inline(always)]
    unsafe fn rows(v: Self::B) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { v }
    }
    #[inline(always)]
    unsafe fn open(sum: Self::I) -> Self::A {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { sum }
    }
    #[inline(always)]
    unsafe fn step(run: Self::A, codes: Self::B, x: *const i8) -> Self::A {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { pinned(_mm512_dpbusd_epi32(run, codes, _mm512_set1_epi32(x.cast::<i32>().read_unaligned()))) }
    }
    #[inline(always)]
    unsafe fn close(_sum: Self::I, run: Self::A) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { run }
    }
    #[inline(always)]
    unsafe fn step_wide(sum: Self::I, codes: Self::B, x: *const i8) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { Self::step(sum, codes, x) }
    }
    #[inline(always)]
    unsafe fn iadd(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn isub(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { _mm512_sub_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn halves(low: Self::I, high: Self::I) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { _mm512_mask_blend_epi16(0xaaaa_aaaa, low, _mm512_slli_epi32::<16>(high)) }
    }
    #[inline(always)]
    unsafe fn dot_halves(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { _mm512_madd_epi16(a, b) }
    }
    #[inline(always)]
    unsafe fn iand(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { _mm512_and_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn ior(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn imax(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { _mm512_max_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn ishl(v: Self::I, n: i32) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { _mm512_sll_epi32(v, _mm_cvtsi32_si128(n)) }
    }
    #[inline(always)]
    unsafe fn ishr(v: Self::I, n: i32) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { _mm512_srl_epi32(v, _mm_cvtsi32_si128(n)) }
    }
    #[inline(always)]
    unsafe fn isar(v: Self::I, n: i32) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { _mm512_sra_epi32(v, _mm_cvtsi32_si128(n)) }
    }
    #[inline(always)]
    unsafe fn isum(v: Self::I) -> i32 {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { _mm512_reduce_add_epi32(v) }
    }
    #[inline(always)]
    unsafe fn ihmax(v: Self::I) -> i32 {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { _mm512_reduce_max_epi32(v) }
    }
    #[inline(always)]
    unsafe fn iload_u8(p: *const u8) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn istore_i8(p: *mut i8, v: Self::I) {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { _mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(v)) }
    }
    #[inline(always)]
    unsafe fn istore_pair(p: *mut i8, a: Self::I, b: Self::I) -> (i32, i32) {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe {
            let both = _mm256_set_m128i(_mm512_cvtepi32_epi8(b), _mm512_cvtepi32_epi8(a));
            _mm256_storeu_si256(p.cast(), both);
            // Sums of eight bytes each, which are above zero by 128 each.
            let above = _mm256_xor_si256(both, _mm256_set1_epi8(i8::MIN));
            let eights = _mm256_sad_epu8(above, _mm256_setzero_si256());
            let sums = _mm256_add_epi32(eights, _mm256_unpackhi_epi64(eights, eights));
            let (low, high) = (_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
            (_mm_cvtsi128_si32(low) - 128 * LANES as i32, _mm_cvtsi128_si32(high) - 128 * LANES as i32)
        }
    }
    #[inline(always)]
    unsafe fn bits(v: Self::F) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { _mm512_castps_si512(v) }
    }
}
