//! Linear recurrences, token by token: lanes are elements of the value, sums over the key are four chains joined in one order.
//! The state of a head is walked in strips that stay in the first-level cache for both of a token's passes. Knows no gate.

use std::ops::Range;

use reverie_tensor::{Decay, Error, Heads, Read, Recurrence, RecurrenceSpec, Result, Rule, StateSegment, Tensor};

use super::{host, norm, split};
use crate::simd::{LANES, Lanes};
use crate::{Cpu, dispatch};

/// Tokens whose queries and keys are made ready together.
const TOKENS: usize = 16;

/// Longest key head: its queries and keys are held on the stack.
const MAX_K_DIM: usize = 1024;

/// Queries and keys made ready, in f32.
const READY: usize = 2 * MAX_K_DIM;

/// What a step does: kinds of `step`.
const ADD: u8 = 0;
const BEFORE: u8 = 1;
const DELTA: u8 = 2;
const LOW_RANK: u8 = 3;

/// What a step's decay is: one factor, one a row, one a column.
const HEAD: u8 = 0;
const KEY: u8 = 1;
const VALUE: u8 = 2;

/// One sequence's part of a call.
struct Line<'a> {
    rows: Range<usize>,
    /// `[H, Dk, Dv]`.
    state: split::Parts<'a, f32>,
}

/// An operand's values and how its heads lie.
#[derive(Clone, Copy)]
struct Rows<'a> {
    x: &'a [f32],
    pitch: usize,
    at: usize,
    n: usize,
}

impl<'a> Rows<'a> {
    fn of(heads: &Heads<'a>, rows: usize) -> Result<Rows<'a>> {
        let x = host::f32s("recurrence", heads.x)?;
        Ok(Rows { x, pitch: x.len() / rows.max(1), at: heads.at, n: heads.n })
    }

    /// The `dim` values that state head `head` reads at `row`.
    #[inline(always)]
    fn head(&self, row: usize, head: usize, dim: usize, spec: &RecurrenceSpec) -> &'a [f32] {
        let own = spec.order.shared_head(head, self.n, spec.n_heads);
        &self.x[row * self.pitch + self.at + own * dim..][..dim]
    }
}

/// A value a head: the same for all rows where `pitch` is zero.
#[derive(Clone, Copy)]
struct Scalars<'a> {
    x: &'a [f32],
    pitch: usize,
}

impl Scalars<'_> {
    #[inline(always)]
    fn at(&self, row: usize, head: usize) -> f32 {
        if self.x.is_empty() { 1.0 } else { self.x[row * self.pitch + head] }
    }
}

/// What every task of a call reads.
#[derive(Clone, Copy)]
struct Call<'a> {
    q: Rows<'a>,
    k: Rows<'a>,
    v: Rows<'a>,
    kind: u8,
    decay_kind: u8,
    decay: Scalars<'a>,
    wide_decay: Rows<'a>,
    strength: Scalars<'a>,
    low: (Rows<'a>, Rows<'a>),
    /// `[H, Dk]`.
    bonus: &'a [f32],
    skip: Scalars<'a>,
    spec: &'a RecurrenceSpec,
}

impl<'a> Call<'a> {
    fn new(x: &Recurrence<'a>, t: usize, spec: &'a RecurrenceSpec) -> Result<Call<'a>> {
        let h = spec.n_heads;
        let none = Scalars { x: &[], pitch: 0 };
        let no_rows = Rows { x: &[], pitch: 0, at: 0, n: 1 };
        let scalars = |x: Option<&'a Tensor>, pitch: usize| -> Result<Scalars<'a>> {
            x.map_or(Ok(none), |x| Ok(Scalars { x: host::f32s("recurrence", x)?, pitch }))
        };
        let (decay_kind, decay, wide_decay) = match &x.decay {
            Decay::None => (HEAD, none, no_rows),
            Decay::Fixed(d) => (HEAD, scalars(Some(d), 0)?, no_rows),
            Decay::Head(d) => (HEAD, scalars(Some(d), h)?, no_rows),
            Decay::Key(d) => (KEY, none, Rows::of(d, t)?),
            Decay::Value(d) => (VALUE, none, Rows::of(d, t)?),
        };
        let (kind, strength, low) = match (&x.rule, &spec.read) {
            (Rule::Add(s), Read::After) => (ADD, scalars(*s, h)?, (no_rows, no_rows)),
            (Rule::Add(s), Read::Before(_)) => (BEFORE, scalars(*s, h)?, (no_rows, no_rows)),
            (Rule::Delta(s), _) => (DELTA, scalars(*s, h)?, (no_rows, no_rows)),
            (Rule::LowRank(a, b), _) => (LOW_RANK, none, (Rows::of(a, t)?, Rows::of(b, t)?)),
        };
        let bonus = match &spec.read {
            Read::After => &[],
            Read::Before(bonus) => host::f32s("recurrence bonus", bonus)?,
        };
        let (q, k, v) = (Rows::of(&x.q, t)?, Rows::of(&x.k, t)?, Rows::of(&x.v, t)?);
        let skip = scalars(spec.skip.as_ref(), 0)?;
        Ok(Call { q, k, v, kind, decay_kind, decay, wide_decay, strength, low, bonus, skip, spec })
    }
}

/// See `Backend::recurrence`.
pub(crate) fn run(
    cpu: &Cpu,
    x: &Recurrence<'_>,
    segments: &mut [StateSegment<'_>],
    spec: &RecurrenceSpec,
) -> Result<Tensor> {
    let t = reverie_tensor::reference::recurrence::check(x, spec)?;
    let (h, dk, dv) = (spec.n_heads, spec.k_dim, spec.v_dim);
    if dk > MAX_K_DIM {
        return Err(Error::shape("recurrence", (h, dk, dv), format!("keys of at most {MAX_K_DIM} values")));
    }
    let call = Call::new(x, t, spec)?;
    let whole = split::covers("recurrence", segments.iter().map(|s| s.rows.clone()), t)?;
    let lines = segments
        .iter_mut()
        .map(|s| {
            let state = host::f32s_mut("recurrence state", s.state)?;
            if state.len() != h * dk * dv {
                return Err(Error::shape("recurrence state", state.len(), [h, dk, dv]));
            }
            Ok(Line { rows: s.rows.clone(), state: split::Parts::new(state) })
        })
        .collect::<Result<Vec<_>>>()?;
    let mut y = cpu.out(&[t, h, dv])?;
    let out = host::f32s_mut("recurrence", &mut y)?;
    if !whole {
        out.fill(0.0);
    }
    let out = split::Parts::new(out);
    let longest = lines.iter().map(|l| l.rows.len()).max().unwrap_or(0);
    split::ranges(cpu, lines.len() * h, 4 * longest * dk * dv, &|heads| {
        for i in heads {
            let (line, head) = (&lines[i / h], i % h);
            let (call, out) = (&call, &out);
            dispatch!(cpu.isa, one_head(call: &Call<'_>, line: &Line<'_>, head: usize, out: &split::Parts<'_, f32>));
        }
    });
    Ok(y)
}

/// All rows of one sequence for one head, whose part of the state no other task touches.
#[inline(always)]
unsafe fn one_head<S: Lanes>(call: &Call<'_>, line: &Line<'_>, head: usize, out: &split::Parts<'_, f32>) {
    // SAFETY: the set is the caller's.
    unsafe {
        match (call.kind, call.decay_kind) {
            (ADD, HEAD) => tokens::<S, ADD, HEAD>(call, line, head, out),
            (ADD, KEY) => tokens::<S, ADD, KEY>(call, line, head, out),
            (ADD, _) => tokens::<S, ADD, VALUE>(call, line, head, out),
            (BEFORE, HEAD) => tokens::<S, BEFORE, HEAD>(call, line, head, out),
            (BEFORE, KEY) => tokens::<S, BEFORE, KEY>(call, line, head, out),
            (BEFORE, _) => tokens::<S, BEFORE, VALUE>(call, line, head, out),
            (DELTA, HEAD) => tokens::<S, DELTA, HEAD>(call, line, head, out),
            (DELTA, _) => tokens::<S, DELTA, KEY>(call, line, head, out),
            _ => tokens::<S, LOW_RANK, KEY>(call, line, head, out),
        }
    }
}

/// As `one_head`, for one kind of step.
#[inline(always)]
unsafe fn tokens<S: Lanes, const KIND: u8, const DECAY: u8>(
    call: &Call<'_>,
    line: &Line<'_>,
    head: usize,
    out: &split::Parts<'_, f32>,
) {
    let spec = call.spec;
    let (h, dk, dv) = (spec.n_heads, spec.k_dim, spec.v_dim);
    let mut ready = [0.0f32; READY];
    let group = (READY / (2 * dk)).min(TOKENS);
    // SAFETY: the state's part and the results' parts are this task's alone; the set is the caller's.
    unsafe {
        let state = line.state.part(head * dk * dv..(head + 1) * dk * dv);
        for first in line.rows.clone().step_by(group) {
            let rows = first..line.rows.end.min(first + group);
            let (queries, keys) = ready.split_at_mut(group * dk);
            let mut bonus = [0.0f32; TOKENS];
            for (i, row) in rows.clone().enumerate() {
                let place = i * dk..(i + 1) * dk;
                unit::<S>(call.q.head(row, head, dk, spec), spec.unit_eps, spec.q_scale, &mut queries[place.clone()]);
                unit::<S>(call.k.head(row, head, dk, spec), spec.unit_eps, 1.0, &mut keys[place.clone()]);
                if KIND == BEFORE {
                    let weights = &call.bonus[head * dk..(head + 1) * dk];
                    bonus[i] = weighted::<S>(&queries[place.clone()], weights, &keys[place]);
                }
            }
            let mut at = 0;
            while at < dv {
                let wide = dv - at >= 2 * LANES;
                for (i, row) in rows.clone().enumerate() {
                    let (query, key) = (&queries[i * dk..(i + 1) * dk], &keys[i * dk..(i + 1) * dk]);
                    let token = Token {
                        query,
                        key,
                        value: &call.v.head(row, head, dv, spec)[at..],
                        decay: if DECAY == HEAD { call.decay.at(row, head) } else { 1.0 },
                        decays: match DECAY {
                            KEY => call.wide_decay.head(row, head, dk, spec),
                            VALUE => &call.wide_decay.head(row, head, dv, spec)[at..],
                            _ => &[],
                        },
                        strength: call.strength.at(row, head),
                        low: match KIND {
                            LOW_RANK => (call.low.0.head(row, head, dk, spec), call.low.1.head(row, head, dk, spec)),
                            _ => (&[], &[]),
                        },
                        bonus: bonus[i],
                        skip: if call.skip.x.is_empty() { 0.0 } else { call.skip.at(row, head) },
                    };
                    let o = out.part((row * h + head) * dv + at..(row * h + head + 1) * dv);
                    let strip = &mut state[at..];
                    if wide {
                        step::<S, 2, KIND, DECAY>(token, strip, dv, o);
                    } else {
                        step::<S, 1, KIND, DECAY>(token, strip, dv, o);
                    }
                }
                at += if wide { 2 * LANES } else { LANES };
            }
        }
    }
}

/// x, or x / √(Σx² + eps), times scale.
#[inline(always)]
unsafe fn unit<S: Lanes>(x: &[f32], eps: Option<f32>, scale: f32, out: &mut [f32]) {
    // SAFETY: both have one length; the set is the caller's.
    unsafe {
        let inverse = match eps {
            Some(eps) => S::splat(1.0 / (norm::row_sum::<S>(x, |acc, v, _| S::fma(v, v, acc)) + eps).sqrt()),
            None => S::splat(1.0),
        };
        for k in (0..x.len()).step_by(LANES) {
            let v = S::mul(S::mul(S::load_n(x.as_ptr().add(k), x.len() - k), inverse), S::splat(scale));
            S::store_n(out.as_mut_ptr().add(k), x.len() - k, v);
        }
    }
}

/// Σ a ⊙ w ⊙ b, in the order of `norm::row_sum`.
#[inline(always)]
unsafe fn weighted<S: Lanes>(a: &[f32], w: &[f32], b: &[f32]) -> f32 {
    // SAFETY: all three have one length; the set is the caller's.
    unsafe {
        let mut acc = S::splat(0.0);
        for k in (0..a.len()).step_by(LANES) {
            let of = |x: &[f32]| S::load_n(x.as_ptr().add(k), x.len() - k);
            acc = S::fma(S::mul(of(a), of(w)), of(b), acc);
        }
        crate::simd::sum::<S>(acc)
    }
}

/// One token of one head; what goes by columns starts at the strip's first.
struct Token<'a> {
    query: &'a [f32],
    key: &'a [f32],
    value: &'a [f32],
    decay: f32,
    decays: &'a [f32],
    strength: f32,
    low: (&'a [f32], &'a [f32]),
    bonus: f32,
    skip: f32,
}

/// What meets row `i` of the old state in the first pass.
#[inline(always)]
unsafe fn early<const KIND: u8, const DECAY: u8>(token: &Token<'_>, i: usize) -> f32 {
    // SAFETY: `i` is below Dk, which these hold.
    unsafe {
        match KIND {
            DELTA if DECAY == KEY => token.key.get_unchecked(i) * token.decays.get_unchecked(i),
            DELTA => *token.key.get_unchecked(i),
            LOW_RANK => *token.low.0.get_unchecked(i),
            _ => *token.query.get_unchecked(i),
        }
    }
}

/// The vector of row `i` at `p` decayed and written to; what it has become. It is given the gain, the decay of its columns and what
/// the first pass has seen.
#[inline(always)]
unsafe fn advance<S: Lanes, const KIND: u8, const DECAY: u8>(
    token: &Token<'_>,
    i: usize,
    (p, n): (*mut f32, usize),
    (gain, columns, seen): (S::F, S::F, S::F),
) -> S::F {
    // SAFETY: `i` is below Dk, which these hold; `p` is valid for `n` elements; the set is the caller's.
    unsafe {
        let kept = if DECAY == KEY { S::splat(*token.decays.get_unchecked(i)) } else { columns };
        let mut new = S::fma(S::splat(*token.key.get_unchecked(i)), gain, S::mul(S::load_n(p, n), kept));
        if KIND == LOW_RANK {
            new = S::fma(S::splat(*token.low.1.get_unchecked(i)), seen, new);
        }
        S::store_n(p, n, new);
        new
    }
}

/// U vectors of the state advanced by one token. A first pass sums what the rule or an early read needs of the old state, a second
/// decays, writes and reads. Sums are four chains, of the rows i ≡ 0, 1, 2, 3 mod 4, joined as (0 + 1) + (2 + 3). `strip` starts at
/// the strip's first element; rows are `stride` apart.
#[inline(always)]
unsafe fn step<S: Lanes, const U: usize, const KIND: u8, const DECAY: u8>(
    token: Token<'_>,
    strip: &mut [f32],
    stride: usize,
    out: &mut [f32],
) {
    let n = if U == 1 { out.len() } else { LANES };
    let (q, dk) = (token.query.as_ptr(), token.key.len());
    let s = strip.as_mut_ptr();
    // SAFETY: the strip holds Dk rows, each with at least U vectors (or `n` elements of one); the operands hold Dk values, or as
    // many columns as the strip; the set is the caller's.
    unsafe {
        let mut seen = [S::splat(0.0); U];
        if KIND != ADD {
            let mut chains = [[S::splat(0.0); 4]; U];
            for i in 0..dk / 4 {
                for chain in 0..4 {
                    let by = S::splat(early::<KIND, DECAY>(&token, 4 * i + chain));
                    let row = s.add((4 * i + chain) * stride);
                    for (u, chains) in chains.iter_mut().enumerate() {
                        chains[chain] = S::fma(by, S::load_n(row.add(u * LANES), n), chains[chain]);
                    }
                }
            }
            for i in dk / 4 * 4..dk {
                for (u, chains) in chains.iter_mut().enumerate() {
                    let old = S::load_n(s.add(i * stride + u * LANES), n);
                    chains[i % 4] = S::fma(S::splat(early::<KIND, DECAY>(&token, i)), old, chains[i % 4]);
                }
            }
            for (seen, c) in seen.iter_mut().zip(&chains) {
                *seen = S::add(S::add(c[0], c[1]), S::add(c[2], c[3]));
            }
        }
        let decay = S::splat(token.decay);
        let strength = S::splat(token.strength);
        let mut gain = [S::splat(0.0); U];
        let mut columns = [decay; U];
        for (u, (gain, seen)) in gain.iter_mut().zip(&seen).enumerate() {
            let value = S::load_n(token.value.as_ptr().add(u * LANES), n);
            *gain = match KIND {
                DELTA if DECAY == HEAD => S::mul(strength, S::sub(value, S::mul(decay, *seen))),
                DELTA => S::mul(strength, S::sub(value, *seen)),
                LOW_RANK => value,
                _ => S::mul(strength, value),
            };
            if DECAY == VALUE {
                columns[u] = S::load_n(token.decays.as_ptr().add(u * LANES), n);
            }
        }
        let mut read = [[S::splat(0.0); 4]; U];
        for i in 0..dk / 4 {
            for chain in 0..4 {
                let row = 4 * i + chain;
                let query = S::splat(*q.add(row));
                for (u, read) in read.iter_mut().enumerate() {
                    let p = s.add(row * stride + u * LANES);
                    let new = advance::<S, KIND, DECAY>(&token, row, (p, n), (gain[u], columns[u], seen[u]));
                    if KIND != BEFORE {
                        read[chain] = S::fma(query, new, read[chain]);
                    }
                }
            }
        }
        for i in dk / 4 * 4..dk {
            for (u, read) in read.iter_mut().enumerate() {
                let p = s.add(i * stride + u * LANES);
                let new = advance::<S, KIND, DECAY>(&token, i, (p, n), (gain[u], columns[u], seen[u]));
                if KIND != BEFORE {
                    read[i % 4] = S::fma(S::splat(*q.add(i)), new, read[i % 4]);
                }
            }
        }
        for (u, read) in read.iter().enumerate() {
            let value = S::load_n(token.value.as_ptr().add(u * LANES), n);
            let mut o = match KIND {
                BEFORE => S::fma(S::splat(token.bonus), value, seen[u]),
                _ => S::add(S::add(read[0], read[1]), S::add(read[2], read[3])),
            };
            if token.skip != 0.0 {
                o = S::fma(S::splat(token.skip), value, o);
            }
            S::store_n(out.as_mut_ptr().add(u * LANES), n, o);
        }
    }
}
