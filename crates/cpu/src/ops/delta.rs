//! The gated delta rule, token by token: lanes are elements of the value, sums over the key are four chains joined in
//! one order. The state of a head is walked in strips that stay in the first-level cache for both of a token's passes.

use std::ops::Range;

use reverie_tensor::{DeltaSpec, Error, Result, StateSegment, Tensor};

use super::{host, norm, split};
use crate::simd::{LANES, Lanes, math};
use crate::{Cpu, dispatch};

/// Tokens whose queries, keys and gates are made ready together; the gates of one group are the lanes of one vector.
const TOKENS: usize = LANES;

/// Longest key head: its queries and keys are held on the stack.
const MAX_K_DIM: usize = 1024;

/// Queries and keys made ready, in f32.
const READY: usize = 2 * MAX_K_DIM;

/// One sequence's part of a call.
struct Line<'a> {
    rows: Range<usize>,
    /// `[n_v_heads, Dk, Dv]`.
    state: split::Parts<'a, f32>,
}

/// What every task of a call reads.
#[derive(Clone, Copy)]
struct Call<'a> {
    mixed: &'a [f32],
    a: &'a [f32],
    b: &'a [f32],
    speed: &'a [f32],
    dt_bias: &'a [f32],
    spec: &'a DeltaSpec,
}

/// See `Backend::gated_delta`.
pub(crate) fn run(
    cpu: &Cpu,
    mixed: &Tensor,
    gates: (&Tensor, &Tensor),
    segments: &mut [StateSegment<'_>],
    spec: &DeltaSpec,
) -> Result<Tensor> {
    let (hk, hv, dk, dv) = (spec.n_k_heads, spec.n_v_heads, spec.k_dim, spec.v_dim);
    if hk == 0 || hv == 0 || hv % hk != 0 || dv == 0 || dk == 0 || dk > MAX_K_DIM {
        let expected = format!("value heads in a multiple of the key heads, key width 1 to {MAX_K_DIM}");
        return Err(Error::shape("gated_delta", (hk, hv, dk, dv), expected));
    }
    let (width, t) = (2 * hk * dk + hv * dv, mixed.rows());
    if mixed.width() != width {
        return Err(Error::shape("gated_delta", mixed.shape(), ("T", width)));
    }
    let call = Call {
        mixed: host::f32s("gated_delta", mixed)?,
        a: host::f32s_of("gated_delta a", gates.0, t * hv)?,
        b: host::f32s_of("gated_delta b", gates.1, t * hv)?,
        speed: host::f32s_of("gated_delta rate", &spec.rate, hv)?,
        dt_bias: host::f32s_of("gated_delta dt_bias", &spec.dt_bias, hv)?,
        spec,
    };
    let whole = split::covers("gated_delta", segments.iter().map(|s| s.rows.clone()), t)?;
    let lines = segments
        .iter_mut()
        .map(|s| {
            let state = host::f32s_mut("gated_delta state", s.state)?;
            if state.len() != hv * dk * dv {
                return Err(Error::shape("gated_delta state", state.len(), [hv, dk, dv]));
            }
            Ok(Line { rows: s.rows.clone(), state: split::Parts::new(state) })
        })
        .collect::<Result<Vec<_>>>()?;
    let mut y = cpu.out(&[t, hv, dv])?;
    let out = host::f32s_mut("gated_delta", &mut y)?;
    if !whole {
        out.fill(0.0);
    }
    let out = split::Parts::new(out);
    let longest = lines.iter().map(|l| l.rows.len()).max().unwrap_or(0);
    split::ranges(cpu, lines.len() * hv, 4 * longest * dk * dv, &|heads| {
        for i in heads {
            let (line, head) = (&lines[i / hv], i % hv);
            let out = &out;
            dispatch!(cpu.isa, one_head(call: Call<'_>, line: &Line<'_>, head: usize, out: &split::Parts<'_, f32>));
        }
    });
    Ok(y)
}

/// All rows of one sequence for one value head, whose part of the state no other task touches.
#[inline(always)]
unsafe fn one_head<S: Lanes>(call: Call<'_>, line: &Line<'_>, head: usize, out: &split::Parts<'_, f32>) {
    let spec = call.spec;
    let (hk, hv, dk, dv) = (spec.n_k_heads, spec.n_v_heads, spec.k_dim, spec.v_dim);
    let (width, k_head) = (2 * hk * dk + hv * dv, spec.order.key_head(head, hk, hv));
    let mut ready = [0.0f32; READY];
    let tokens = (READY / (2 * dk)).min(TOKENS);
    // SAFETY: the state's part and the results' parts are this task's alone; the set is the caller's.
    unsafe {
        let state = line.state.part(head * dk * dv..(head + 1) * dk * dv);
        for first in line.rows.clone().step_by(tokens) {
            let rows = first..line.rows.end.min(first + tokens);
            let (decays, writes) = gates::<S>(call, rows.clone(), head);
            let (queries, keys) = ready.split_at_mut(tokens * dk);
            for (i, row) in rows.clone().enumerate() {
                let x = &call.mixed[row * width..(row + 1) * width];
                let place = i * dk..(i + 1) * dk;
                unit::<S>(&x[k_head * dk..(k_head + 1) * dk], spec.norm_eps, spec.q_scale, &mut queries[place.clone()]);
                unit::<S>(&x[(hk + k_head) * dk..(hk + k_head + 1) * dk], spec.norm_eps, 1.0, &mut keys[place]);
            }
            let mut at = 0;
            while at < dv {
                let wide = dv - at >= 2 * LANES;
                for (i, row) in rows.clone().enumerate() {
                    let v = &call.mixed[row * width + 2 * hk * dk + head * dv..][..dv];
                    let token = Token {
                        query: &queries[i * dk..(i + 1) * dk],
                        key: &keys[i * dk..(i + 1) * dk],
                        value: &v[at..],
                        decay: decays[i],
                        write: writes[i],
                    };
                    let o = out.part((row * hv + head) * dv + at..(row * hv + head + 1) * dv);
                    let strip = &mut state[at..];
                    if wide { step::<S, 2>(token, strip, dv, o) } else { step::<S, 1>(token, strip, dv, o) }
                }
                at += if wide { 2 * LANES } else { LANES };
            }
        }
    }
}

/// Of up to sixteen tokens, what of the state stays and how strongly the token writes: exp(rate · softplus(a +
/// dt_bias)), σ(b).
#[inline(always)]
unsafe fn gates<S: Lanes>(call: Call<'_>, rows: Range<usize>, head: usize) -> ([f32; TOKENS], [f32; TOKENS]) {
    let hv = call.spec.n_v_heads;
    let (mut a, mut b) = ([0.0; TOKENS], [0.0; TOKENS]);
    for ((a, b), row) in a.iter_mut().zip(&mut b).zip(rows) {
        (*a, *b) = (call.a[row * hv + head] + call.dt_bias[head], call.b[row * hv + head]);
    }
    // SAFETY: sixteen elements each; the set is the caller's.
    unsafe {
        let g = S::mul(S::splat(call.speed[head]), math::softplus::<S>(S::load(a.as_ptr())));
        S::store(a.as_mut_ptr(), math::exp::<S>(g));
        S::store(b.as_mut_ptr(), math::sigmoid::<S>(S::load(b.as_ptr())));
    }
    (a, b)
}

/// x / sqrt(Σx² + eps), times scale.
#[inline(always)]
unsafe fn unit<S: Lanes>(x: &[f32], eps: f32, scale: f32, out: &mut [f32]) {
    // SAFETY: both have one length; the set is the caller's.
    unsafe {
        let squares = norm::row_sum::<S>(x, |acc, v, _| S::fma(v, v, acc));
        let inverse = S::splat(1.0 / (squares + eps).sqrt());
        for k in (0..x.len()).step_by(LANES) {
            let v = S::mul(S::mul(S::load_n(x.as_ptr().add(k), x.len() - k), inverse), S::splat(scale));
            S::store_n(out.as_mut_ptr().add(k), x.len() - k, v);
        }
    }
}

/// One token of one head, its value from the strip's first element on.
struct Token<'a> {
    query: &'a [f32],
    key: &'a [f32],
    value: &'a [f32],
    decay: f32,
    write: f32,
}

/// U vectors of the state advanced by one token: kᵀS in a first pass, decay, update and qᵀS in a second. Both sums are
/// four chains, of the elements k ≡ 0, 1, 2, 3 mod 4, joined as (0 + 1) + (2 + 3). `strip` starts at the strip's first
/// element; rows are `stride` apart.
#[inline(always)]
unsafe fn step<S: Lanes, const U: usize>(token: Token<'_>, strip: &mut [f32], stride: usize, out: &mut [f32]) {
    let n = if U == 1 { out.len() } else { LANES };
    let (q, k, dk) = (token.query.as_ptr(), token.key.as_ptr(), token.key.len());
    let s = strip.as_mut_ptr();
    // SAFETY: the strip holds Dk rows, each with at least U vectors (or `n` elements of one); the set is the caller's.
    unsafe {
        let mut seen = [[S::splat(0.0); 4]; U];
        for i in 0..dk / 4 {
            for chain in 0..4 {
                let key = S::splat(*k.add(4 * i + chain));
                let row = s.add((4 * i + chain) * stride);
                for (u, seen) in seen.iter_mut().enumerate() {
                    seen[chain] = S::fma(key, S::load_n(row.add(u * LANES), n), seen[chain]);
                }
            }
        }
        for i in dk / 4 * 4..dk {
            for (u, seen) in seen.iter_mut().enumerate() {
                let old = S::load_n(s.add(i * stride + u * LANES), n);
                seen[i % 4] = S::fma(S::splat(*k.add(i)), old, seen[i % 4]);
            }
        }
        let decay = S::splat(token.decay);
        let mut gain = [S::splat(0.0); U];
        for (u, (gain, seen)) in gain.iter_mut().zip(&seen).enumerate() {
            let seen = S::mul(decay, S::add(S::add(seen[0], seen[1]), S::add(seen[2], seen[3])));
            let value = S::load_n(token.value.as_ptr().add(u * LANES), n);
            *gain = S::mul(S::splat(token.write), S::sub(value, seen));
        }
        let mut read = [[S::splat(0.0); 4]; U];
        for i in 0..dk / 4 {
            for chain in 0..4 {
                let (key, query) = (S::splat(*k.add(4 * i + chain)), S::splat(*q.add(4 * i + chain)));
                let row = s.add((4 * i + chain) * stride);
                for (u, read) in read.iter_mut().enumerate() {
                    let p = row.add(u * LANES);
                    let new = S::fma(key, gain[u], S::mul(S::load_n(p, n), decay));
                    S::store_n(p, n, new);
                    read[chain] = S::fma(query, new, read[chain]);
                }
            }
        }
        for i in dk / 4 * 4..dk {
            for (u, read) in read.iter_mut().enumerate() {
                let p = s.add(i * stride + u * LANES);
                let new = S::fma(S::splat(*k.add(i)), gain[u], S::mul(S::load_n(p, n), decay));
                S::store_n(p, n, new);
                read[i % 4] = S::fma(S::splat(*q.add(i)), new, read[i % 4]);
            }
        }
        for (u, read) in read.iter().enumerate() {
            let o = S::add(S::add(read[0], read[1]), S::add(read[2], read[3]));
            S::store_n(out.as_mut_ptr().add(u * LANES), n, o);
        }
    }
}

#[cfg(test)]
mod tests;
