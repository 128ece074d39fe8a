//! exp, tanh, sigmoid and the activations over lanes: one sequence of IEEE operations for every instruction set.

use reverie_tensor::Act;

use super::Lanes;

/// e^x. Cody-Waite reduction to |r| ≤ ln2/2, degree-6 polynomial (Cephes' expf coefficients), within 2 ulp; below -87.3
/// it gives 0, above 88.7 infinity; NaN stays NaN.
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
        for c in [2.063_909e-2, -5.373_971_5e-2, 1.333_144_2e-1, -3.333_328e-1] {
            p = S::fma(p, z, S::splat(c));
        }
        let small = S::fma(S::mul(p, z), x, x);
        S::select_lt(S::abs(x), S::splat(0.625), small, big)
    }
}

/// ln(1 + e^x) as max(x, 0) + ln(1 + t) with t = e^-|x| ≤ 1, and ln(1 + t) = 2 artanh(t / (2 + t)) as its series: the
/// argument is at most 1/3, so nine terms leave less than 1e-9.
///
/// # Safety
/// As for `Lanes`.
#[inline(always)]
pub unsafe fn softplus<S: Lanes>(x: S::F) -> S::F {
    // SAFETY: the set is the caller's.
    unsafe {
        let t = exp::<S>(S::sub(S::splat(0.0), S::abs(x)));
        let s = S::div(t, S::add(t, S::splat(2.0)));
        let z = S::mul(s, s);
        let mut p = S::splat(1.0 / 17.0);
        for n in [15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0] {
            p = S::fma(p, z, S::splat(1.0 / n));
        }
        let log = S::fma(S::mul(p, z), s, s);
        // The order of the operands lets NaN through.
        S::add(S::max(S::splat(0.0), x), S::add(log, log))
    }
}

/// Φ(x) = (1 + erf(x / √2)) / 2 by Abramowitz and Stegun 7.1.26 (1.5e-7), the small tail computed as itself and not as
/// a difference.
///
/// # Safety
/// As for `Lanes`.
#[inline(always)]
unsafe fn normal_share<S: Lanes>(x: S::F) -> S::F {
    // SAFETY: the set is the caller's.
    unsafe {
        let z = S::mul(S::abs(x), S::splat(std::f32::consts::FRAC_1_SQRT_2));
        let t = S::div(S::splat(1.0), S::fma(S::splat(0.327_591_1), z, S::splat(1.0)));
        let mut p = S::splat(1.061_405_4);
        for c in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
            p = S::fma(p, t, S::splat(c));
        }
        let tail = S::mul(S::mul(p, t), exp::<S>(S::sub(S::splat(0.0), S::mul(z, z))));
        let half = S::mul(tail, S::splat(0.5));
        S::select_lt(x, S::splat(0.0), half, S::sub(S::splat(1.0), half))
    }
}

/// The activation of sixteen values.
///
/// # Safety
/// As for `Lanes`.
#[inline(always)]
pub unsafe fn activate<S: Lanes>(act: Act, x: S::F) -> S::F {
    // SAFETY: the set is the caller's.
    unsafe {
        match act {
            Act::Silu => S::mul(x, sigmoid::<S>(x)),
            Act::Relu => S::max(x, S::splat(0.0)),
            Act::Identity => x,
            Act::Relu2 => {
                let x = S::max(x, S::splat(0.0));
                S::mul(x, x)
            }
            Act::Clamped { alpha, limit } => {
                // NaN stays NaN: `min` gives its second operand where either is.
                let x = S::min(S::splat(limit), x);
                S::mul(x, sigmoid::<S>(S::mul(S::splat(alpha), x)))
            }
            Act::Gelu => S::mul(x, normal_share::<S>(x)),
            Act::GeluTanh => {
                // (1 + tanh u) / 2 = σ(2u), which keeps the digits of the small side.
                let cube = S::mul(S::mul(x, x), x);
                let u = S::fma(S::splat(0.044_715), cube, x);
                S::mul(x, sigmoid::<S>(S::mul(u, S::splat(1.595_769))))
            }
        }
    }
}

/// cap · tanh(x / cap).
///
/// # Safety
/// As for `Lanes`.
#[inline(always)]
pub unsafe fn softcap<S: Lanes>(x: S::F, cap: f32) -> S::F {
    // SAFETY: the set is the caller's.
    unsafe { S::mul(S::splat(cap), tanh::<S>(S::div(x, S::splat(cap)))) }
}

#[cfg(test)]
mod tests {
    use super::super::{LANES, Portable};
    use super::*;

    fn of(f: unsafe fn([f32; LANES]) -> [f32; LANES], x: f32) -> f32 {
        // SAFETY: `Portable` runs anywhere.
        unsafe { f([x; LANES])[7] }
    }

    /// Largest error against f64, relative to the result and at least `floor`.
    fn worst(
        f: unsafe fn([f32; LANES]) -> [f32; LANES],
        truth: impl Fn(f64) -> f64,
        range: (f32, f32),
        floor: f64,
    ) -> f64 {
        let steps = 200_000;
        let at = |i| range.0 + (range.1 - range.0) * i as f32 / steps as f32;
        let error = |x| (f64::from(of(f, x)) - truth(f64::from(x))).abs() / truth(f64::from(x)).abs().max(floor);
        (0..=steps).map(at).map(error).fold(0.0, f64::max)
    }

    #[test]
    fn within_the_stated_errors() {
        let sigmoid_of = |x: f64| 1.0 / (1.0 + (-x).exp());
        let ulp = f64::from(f32::EPSILON);
        assert!(worst(exp::<Portable>, f64::exp, (-87.0, 88.5), 1e-37) < 2.0 * ulp);
        assert!(worst(sigmoid::<Portable>, sigmoid_of, (-80.0, 80.0), 1e-37) < 4.0 * ulp);
        assert!(worst(tanh::<Portable>, f64::tanh, (-10.0, 10.0), 1e-30) < 4.0 * ulp);
        assert!(worst(softplus::<Portable>, |x| x.exp().ln_1p(), (-80.0, 30.0), 1e-37) < 6.0 * ulp);
    }

    #[test]
    fn the_ends() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        for (f, ends) in [
            (exp::<Portable> as unsafe fn([f32; LANES]) -> [f32; LANES], [0.0, inf]),
            (sigmoid::<Portable>, [0.0, 1.0]),
            (tanh::<Portable>, [-1.0, 1.0]),
            (softplus::<Portable>, [0.0, inf]),
        ] {
            assert_eq!([of(f, -inf), of(f, inf)], ends);
            assert!(of(f, nan).is_nan());
        }
        assert_eq!(of(exp::<Portable>, 0.0), 1.0, "attention skips a rescale by e^0");
        assert_eq!(of(softplus::<Portable>, 30.0), 30.0);
    }
}
