//! AVX2 with FMA and F16C: two registers of eight lanes.

use super::{Dot, Kernel, Lanes};
use std::arch::x86_64::*;

/// AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub struct Avx2;

// SAFETY: callers run these only where the set was detected; pointers are valid by the trait's contract.
#[allow(clippy::missing_safety_doc, unused_unsafe)]
unsafe impl Lanes for Avx2 {
    type F = [__m256; 2];
    type I = [__m256i; 2];
    const REGISTERS: usize = 8;

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
        unsafe { [_mm256_set1_ps(x); 2] }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { [_mm256_loadu_ps(p.add(0)), _mm256_loadu_ps(p.add(8))] }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::F) {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe {
            _mm256_storeu_ps(p, v[0]);
            _mm256_storeu_ps(p.add(8), v[1])
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe {
            [_mm256_cvtph_ps(_mm_loadu_si128(p.add(0).cast())), _mm256_cvtph_ps(_mm_loadu_si128(p.add(8).cast()))]
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe {
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(0).cast())))),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(8).cast())))),
            ]
        }
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, v: Self::F) {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe {
            _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v[0]));
            _mm_storeu_si128(p.add(8).cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v[1]))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut u16, v: Self::F) {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe {
            for (i, v) in v.into_iter().enumerate() {
                let bits = _mm256_castps_si256(v);
                let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
                let up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
                let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
                let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
                let top = _mm256_srli_epi32::<16>(_mm256_blendv_epi8(up, quiet, nan));
                let packed = _mm256_permute4x64_epi64::<0b1000>(_mm256_packus_epi32(top, top));
                _mm_storeu_si128(p.add(8 * i).cast(), _mm256_castsi256_si128(packed));
            }
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    unsafe fn round(v: Self::F) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe {
            [
                _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v[0]),
                _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v[1]),
            ]
        }
    }
    #[inline(always)]
    unsafe fn pow2i(v: Self::F) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe {
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(
                    _mm256_cvtps_epi32(v[0]),
                    _mm256_set1_epi32(127),
                ))),
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(
                    _mm256_cvtps_epi32(v[1]),
                    _mm256_set1_epi32(127),
                ))),
            ]
        }
    }
    #[inline(always)]
    unsafe fn if_nan(x: Self::F, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe {
            [
                _mm256_blendv_ps(b[0], a[0], _mm256_cmp_ps::<_CMP_UNORD_Q>(x[0], x[0])),
                _mm256_blendv_ps(b[1], a[1], _mm256_cmp_ps::<_CMP_UNORD_Q>(x[1], x[1])),
            ]
        }
    }
    #[inline(always)]
    unsafe fn select_lt(x: Self::F, y: Self::F, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the set was detected.
        unsafe {
            [
                _mm256_blendv_ps(b[0], a[0], _mm256_cmp_ps::<_CMP_LT_OQ>(x[0], y[0])),
                _mm256_blendv_ps(b[1], a[1], _mm256_cmp_ps::<_CMP_LT_OQ>(x[1], y[1])),
            ]
        }
    }

    #[inline(always)]
    unsafe fn abs(v: Self::F) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { [_mm256_andnot_ps(_mm256_set1_ps(-0.0), v[0]), _mm256_andnot_ps(_mm256_set1_ps(-0.0), v[1])] }
    }
    #[inline(always)]
    unsafe fn sqrt(v: Self::F) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { [_mm256_sqrt_ps(v[0]), _mm256_sqrt_ps(v[1])] }
    }
    #[inline(always)]
    unsafe fn izero() -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { [_mm256_setzero_si256(); 2] }
    }
    #[inline(always)]
    unsafe fn isplat(x: i32) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { [_mm256_set1_epi32(x); 2] }
    }
    #[inline(always)]
    unsafe fn to_f(v: Self::I) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { [_mm256_cvtepi32_ps(v[0]), _mm256_cvtepi32_ps(v[1])] }
    }
    #[inline(always)]
    unsafe fn to_i(v: Self::F) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { [_mm256_cvtps_epi32(v[0]), _mm256_cvtps_epi32(v[1])] }
    }
    #[inline(always)]
    unsafe fn iload(p: *const i32) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { [_mm256_loadu_si256(p.add(0).cast()), _mm256_loadu_si256(p.add(8).cast())] }
    }
    #[inline(always)]
    unsafe fn istore(p: *mut i32, v: Self::I) {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe {
            _mm256_storeu_si256(p.cast(), v[0]);
            _mm256_storeu_si256(p.add(8).cast(), v[1])
        }
    }
}

/// The value as it is, computed here: the compiler would else reorder the exact sums of a tile into one long chain after
/// another and keep what they share in memory.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn pinned(mut v: __m256i) -> __m256i {
    // SAFETY: no instruction at all.
    unsafe { std::arch::asm!("/* {0} */", inout(ymm_reg) v, options(nomem, nostack, preserves_flags)) };
    v
}

/// `sum` plus products of eight rows: |w|·(x with w's sign) is at most 128·127, so that a pair fits an i16.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn wide(sum: __m256i, codes: __m256i, x: __m256i) -> __m256i {
    let w = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
    let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
    // SAFETY: the set is enabled.
    unsafe { pinned(_mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))) }
}

// SAFETY: callers run these only where the set was detected; pointers are valid by the trait's contract.
#[allow(unused_unsafe)]
unsafe impl Dot for Avx2 {
    type B = [__m256i; 2];
    /// Sums of pairs as i16.
    type A = [__m256i; 2];

    const COLUMNS: usize = 4;
    const FLOAT_COLUMNS: usize = 4;
    const FUSED: bool = true;
    const NARROW: bool = true;
    const WIDE_ZERO: i32 = 128;
    const PAIRS: bool = false;

    #[inline(always)]
    unsafe fn enter<K: Kernel>(kernel: K) {
        #[inline(never)]
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn enabled<K: Kernel>(kernel: K) {
            // SAFETY: the caller's contract.
            unsafe { kernel.run::<Avx2>() }
        }
        // SAFETY: the set was detected.
        unsafe { enabled(kernel) }
    }
    #[inline(always)]
    unsafe fn bload(p: *const u8) -> Self::B {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast())] }
    }
    #[inline(always)]
    unsafe fn bstore(p: *mut u8, v: Self::B) {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe {
            _mm256_storeu_si256(p.cast(), v[0]);
            _mm256_storeu_si256(p.add(32).cast(), v[1])
        }
    }
    #[inline(always)]
    unsafe fn bsplat(x: u8) -> Self::B {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { [_mm256_set1_epi8(x as i8); 2] }
    }
    #[inline(always)]
    unsafe fn band(a: Self::B, b: Self::B) -> Self::B {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { [_mm256_and_si256(a[0], b[0]), _mm256_and_si256(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn bor(a: Self::B, b: Self::B) -> Self::B {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { [_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn bshr(v: Self::B, n: i32) -> Self::B {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe {
            let n = _mm_cvtsi32_si128(n);
            [_mm256_srl_epi32(v[0], n), _mm256_srl_epi32(v[1], n)]
        }
    }
    #[inline(always)]
    unsafe fn bshl(v: Self::B, n: i32) -> Self::B {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe {
            let n = _mm_cvtsi32_si128(n);
            [_mm256_sll_epi32(v[0], n), _mm256_sll_epi32(v[1], n)]
        }
    }
    #[inline(always)]
    unsafe fn lookup(table: *const u8, v: Self::B) -> Self::B {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe {
            let t = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.cast()));
            [_mm256_shuffle_epi8(t, v[0]), _mm256_shuffle_epi8(t, v[1])]
        }
    }
    #[inline(always)]
    unsafe fn rows(v: Self::B) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { v }
    }
    #[inline(always)]
    unsafe fn open(_sum: Self::I) -> Self::A {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { [_mm256_setzero_si256(); 2] }
    }
    #[inline(always)]
    unsafe fn step(run: Self::A, codes: Self::B, x: *const i8) -> Self::A {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe {
            let x = _mm256_set1_epi32(x.cast::<i32>().read_unaligned());
            [
                pinned(_mm256_add_epi16(run[0], _mm256_maddubs_epi16(codes[0], x))),
                pinned(_mm256_add_epi16(run[1], _mm256_maddubs_epi16(codes[1], x))),
            ]
        }
    }
    #[inline(always)]
    unsafe fn close(sum: Self::I, run: Self::A) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe {
            let one = _mm256_set1_epi16(1);
            [
                _mm256_add_epi32(sum[0], _mm256_madd_epi16(run[0], one)),
                _mm256_add_epi32(sum[1], _mm256_madd_epi16(run[1], one)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn step_wide(sum: Self::I, codes: Self::B, x: *const i8) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe {
            let x = _mm256_set1_epi32(x.cast::<i32>().read_unaligned());
            [wide(sum[0], codes[0], x), wide(sum[1], codes[1], x)]
        }
    }
    #[inline(always)]
    unsafe fn iadd(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn isub(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { [_mm256_sub_epi32(a[0], b[0]), _mm256_sub_epi32(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn halves(low: Self::I, high: Self::I) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe {
            [
                _mm256_blend_epi16::<0xaa>(low[0], _mm256_slli_epi32::<16>(high[0])),
                _mm256_blend_epi16::<0xaa>(low[1], _mm256_slli_epi32::<16>(high[1])),
            ]
        }
    }
    #[inline(always)]
    unsafe fn dot_halves(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { [_mm256_madd_epi16(a[0], b[0]), _mm256_madd_epi16(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn iand(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { [_mm256_and_si256(a[0], b[0]), _mm256_and_si256(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn ior(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { [_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn imax(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { [_mm256_max_epi32(a[0], b[0]), _mm256_max_epi32(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn ishl(v: Self::I, n: i32) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe {
            let n = _mm_cvtsi32_si128(n);
            [_mm256_sll_epi32(v[0], n), _mm256_sll_epi32(v[1], n)]
        }
    }
    #[inline(always)]
    unsafe fn ishr(v: Self::I, n: i32) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe {
            let n = _mm_cvtsi32_si128(n);
            [_mm256_srl_epi32(v[0], n), _mm256_srl_epi32(v[1], n)]
        }
    }
    #[inline(always)]
    unsafe fn isar(v: Self::I, n: i32) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe {
            let n = _mm_cvtsi32_si128(n);
            [_mm256_sra_epi32(v[0], n), _mm256_sra_epi32(v[1], n)]
        }
    }
    #[inline(always)]
    unsafe fn isum(v: Self::I) -> i32 {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe {
            let v = _mm256_add_epi32(v[0], v[1]);
            let v = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
            let v = _mm_add_epi32(v, _mm_shuffle_epi32::<0b01_00_11_10>(v));
            _mm_cvtsi128_si32(_mm_add_epi32(v, _mm_shuffle_epi32::<0b10_11_00_01>(v)))
        }
    }
    #[inline(always)]
    unsafe fn ihmax(v: Self::I) -> i32 {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe {
            let v = _mm256_max_epi32(v[0], v[1]);
            let v = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
            let v = _mm_max_epi32(v, _mm_shuffle_epi32::<0b01_00_11_10>(v));
            _mm_cvtsi128_si32(_mm_max_epi32(v, _mm_shuffle_epi32::<0b10_11_00_01>(v)))
        }
    }
    #[inline(always)]
    unsafe fn iload_u8(p: *const u8) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe {
            let v = _mm_loadu_si128(p.cast());
            [_mm256_cvtepu8_epi32(v), _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(v))]
        }
    }
    #[inline(always)]
    unsafe fn istore_i8(p: *mut i8, v: Self::I) {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe {
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(v[0], v[1]));
            let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(p.cast(), bytes)
        }
    }
    #[inline(always)]
    unsafe fn bits(v: Self::F) -> Self::I {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { [_mm256_castps_si256(v[0]), _mm256_castps_si256(v[1])] }
    }
}
