//! exp, tanh, sigmoid and the activations over lanes: one sequence of IEEE operations for every instruction set.

use super::Lanes;

/// e^x. Cody-Waite reduction to |r| ≤ ln2/2, degree-6 polynomial (Cephes' expf coefficients), within 2 ulp; below -87.3 it
/// gives 0, above 88.7 infinity; NaN stays NaN.
///
/// # Safety
/// As for `Lanes`.
#[inline(always)]
pub unsafe fn exp<S: Lanes>(x: S::F) -> S::F {
    // SAFETY: the set is the caller's.
    unsafe {
        let clamped = S::min(S::max(x, S::splat(-87.336_54)), S::splat(88.722_83));
        let n = S::round(S::mul(clamped, S::splat(std::f32::consts::LOG2_E)));
        // 2^n for n = 128 would overflow: split off one factor of two.
        let n1 = S::min(n, S::splat(127.0));
        let r = S::fma(n, S::splat(-0.693_359_4), clamped);
        let r = S::fma(n, S::splat(2.121_944_4e-4), r);
        let mut p = S::splat(1.987_569_2e-4);
        for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            p = S::fma(p, r, S::splat(c));
        }
        let p = S::add(S::fma(p, S::mul(r, r), r), S::splat(1.0));
        let y = S::mul(S::mul(p, S::pow2i(n1)), S::add(S::splat(1.0), S::sub(n, n1)));
        let y = S::select_lt(x, S::splat(-87.336_54), S::splat(0.0), y);
        let y = S::select_lt(S::splat(88.722_83), x, S::splat(f32::INFINITY), y);
        S::if_nan(x, x, y)
    }
}

/// 1 / (1 + e^-x).
///
/// # Safety
/// As for `Lanes`.
#[inline(always)]
pub unsafe fn sigmoid<S: Lanes>(x: S::F) -> S::F {
    // SAFETY: the set is the caller's.
    unsafe { S::div(S::splat(1.0), S::add(S::splat(1.0), exp::<S>(S::sub(S::splat(0.0), x)))) }
}

/// tanh x = 1 - 2 / (e^2x + 1), and x itself where |x| is so small that this would lose digits.
///
/// # Safety
/// As for `Lanes`.
#[inline(always)]
pub unsafe fn tanh<S: Lanes>(x: S::F) -> S::F {
    // SAFETY: the set is the caller's.
    unsafe {
        let e = exp::<S>(S::add(x, x));
        let big = S::sub(S::splat(1.0), S::div(S::splat(2.0), S::add(e, S::splat(1.0))));
        // Odd polynomial for |x| < 0.625 (Cephes' tanhf).
        let z = S::mul(x, x);
        let mut p = S::splat(-5.704_988_7e-3);
        for c in [2.063_908_9e-2, -5.373_971_5e-2, 1.333_144_2e-1, -3.333_328e-1] {
            p = S::fma(p, z, S::splat(c));
        }
        let small = S::fma(S::mul(p, z), x, x);
        S::select_lt(S::abs(x), S::splat(0.625), small, big)
    }
}
