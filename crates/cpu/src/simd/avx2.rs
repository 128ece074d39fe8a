//! AVX2 with FMA and F16C: two registers of eight lanes.

use super::Lanes;
use std::arch::x86_64::*;

/// AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub struct Avx2;

// SAFETY: callers run these only where the set was detected; pointers are valid by the trait's contract.
#[allow(clippy::missing_safety_doc, unused_unsafe)]
unsafe impl Lanes for Avx2 {
    type F = [__m256; 2];
    type I = [__m256i; 2];

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
        unsafe { _mm256_storeu_ps(p, v[0]);
            _mm256_storeu_ps(p.add(8), v[1]) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { [_mm256_cvtph_ps(_mm_loadu_si128(p.add(0).cast())), _mm256_cvtph_ps(_mm_loadu_si128(p.add(8).cast()))] }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(0).cast())))), _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(8).cast()))))] }
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, v: Self::F) {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v[0]));
            _mm_storeu_si128(p.add(8).cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v[1])) }
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut u16, v: Self::F) {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { for (i, v) in v.into_iter().enumerate() {
                let bits = _mm256_castps_si256(v);
                let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
                let up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
                let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
                let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
                let top = _mm256_srli_epi32::<16>(_mm256_blendv_epi8(up, quiet, nan));
                let packed = _mm256_permute4x64_epi64::<0b1000>(_mm256_packus_epi32(top, top));
                _mm_storeu_si128(p.add(8 * i).cast(), _mm256_castsi256_si128(packed));
            } }
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
        unsafe { [_mm256_round_ps::<{_MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC}>(v[0]), _mm256_round_ps::<{_MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC}>(v[1])] }
    }
    #[inline(always)]
    unsafe fn pow2i(v: Self::F) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { [_mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(v[0]), _mm256_set1_epi32(127)))), _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(v[1]), _mm256_set1_epi32(127))))] }
    }
    #[inline(always)]
    unsafe fn if_nan(x: Self::F, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { [_mm256_blendv_ps(b[0], a[0], _mm256_cmp_ps::<_CMP_UNORD_Q>(x[0], x[0])), _mm256_blendv_ps(b[1], a[1], _mm256_cmp_ps::<_CMP_UNORD_Q>(x[1], x[1]))] }
    }
    #[inline(always)]
    unsafe fn select_lt(x: Self::F, y: Self::F, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the set was detected.
        unsafe { [_mm256_blendv_ps(b[0], a[0], _mm256_cmp_ps::<_CMP_LT_OQ>(x[0], y[0])), _mm256_blendv_ps(b[1], a[1], _mm256_cmp_ps::<_CMP_LT_OQ>(x[1], y[1]))] }
    }

    #[inline(always)]
    unsafe fn abs(v: Self::F) -> Self::F {
        // SAFETY: the set was detected; pointers are valid by contract.
        unsafe { [_mm256_andnot_ps(_mm256_set1_ps(-0.0), v[0]), _mm256_andnot_ps(_mm256_set1_ps(-0.0), v[1])] }
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
        unsafe { _mm256_storeu_si256(p.cast(), v[0]);
            _mm256_storeu_si256(p.add(8).cast(), v[1]) }
    }
}
