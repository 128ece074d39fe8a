//! One page of keys and values against a few queries: scores, softmax weights, weighted values. Knows one page of one
//! head at a time, and nothing of sequences or threads.
//!
//! A *pair* is one position and one query head. Its numbers never depend on which other pairs share its group.

use std::ops::Range;

use reverie_tensor::backend::PAGE_TOKENS;

use super::super::kv::Element;
use crate::isa::{Caches, LINE_BYTES};
use crate::simd::{LANES, Lanes, hmax, math, sum};

/// Vectors of a page's tokens.
const TILES: usize = PAGE_TOKENS / LANES;

/// The running softmax of one pair: `[Dv up to whole vectors]` weighted values, then sixteen partial sums of weights,
/// then the largest score.
#[derive(Clone, Copy)]
pub(super) struct Running {
    values: *mut f32,
    /// Length of the value part.
    width: usize,
}

impl Running {
    /// f32 that a running softmax takes.
    pub(super) const fn len(v_dim: usize) -> usize {
        v_dim.next_multiple_of(LANES) + 2 * LANES
    }

    /// At `place`, which must be valid for `len(v_dim)` elements as long as this lives.
    pub(super) fn at(place: *mut f32, v_dim: usize) -> Running {
        Running { values: place, width: v_dim.next_multiple_of(LANES) }
    }

    fn sums(self) -> *mut f32 {
        self.values.wrapping_add(self.width)
    }

    fn max(self) -> *mut f32 {
        self.values.wrapping_add(self.width + LANES)
    }

    /// No key seen.
    #[inline(always)]
    pub(super) unsafe fn open<S: Lanes>(self) {
        // SAFETY: within the place; the set is the caller's.
        unsafe {
            for i in (0..self.width + LANES).step_by(LANES) {
                S::store(self.values.add(i), S::splat(0.0));
            }
            *self.max() = f32::NEG_INFINITY;
        }
    }

    /// The partial sums become one, in lane 0.
    #[inline(always)]
    pub(super) unsafe fn close<S: Lanes>(self) {
        // SAFETY: within the place; the set is the caller's.
        unsafe { *self.sums() = sum::<S>(S::load(self.sums())) }
    }

    /// Multiplies the values.
    #[inline(always)]
    unsafe fn scale<S: Lanes>(self, by: S::F) {
        // SAFETY: within the place; the set is the caller's.
        unsafe {
            for i in (0..self.width).step_by(LANES) {
                let p = self.values.add(i);
                S::store(p, S::mul(S::load(p), by));
            }
        }
    }

    /// Joins a later closed chain to this closed one:
    /// M' = max(M, m), L' = L·e^(M-M') + l·e^(m-M'), A' = A·e^(M-M') + a·e^(m-M').
    #[inline(always)]
    pub(super) unsafe fn merge<S: Lanes>(self, later: Running) {
        // SAFETY: within both places; the set is the caller's.
        unsafe {
            let (old, new) = (*self.max(), *later.max());
            let max = larger(old, new);
            let keep = math::exp::<S>(S::splat(old - base(max)));
            let gain = math::exp::<S>(S::splat(new - base(max)));
            for i in (0..self.width + LANES).step_by(LANES) {
                let p = self.values.add(i);
                S::store(p, S::fma(S::load(later.values.add(i)), gain, S::mul(S::load(p), keep)));
            }
            *self.max() = max;
        }
    }

    /// The attention of a closed chain into `out`, which has Dv elements. A sink joins here, as a chain of its own
    /// after the last: its score is the largest, its sum of weights 1, its values 0.
    #[inline(always)]
    pub(super) unsafe fn finish<S: Lanes>(self, sink: Option<f32>, out: &mut [f32]) {
        // SAFETY: within the place and `out`; the set is the caller's.
        unsafe {
            let (mut keep, mut total) = (S::splat(1.0), S::splat(*self.sums()));
            if let Some(sink) = sink {
                let max = larger(*self.max(), sink);
                keep = math::exp::<S>(S::splat(*self.max() - base(max)));
                total = S::fma(total, keep, math::exp::<S>(S::splat(sink - base(max))));
            }
            let share = S::div(S::splat(1.0), total);
            for i in (0..out.len()).step_by(LANES) {
                let v = S::mul(S::mul(S::load(self.values.add(i)), keep), share);
                S::store_n(out.as_mut_ptr().add(i), out.len() - i, v);
            }
        }
    }
}

/// The larger score; the first where the second is NaN (its weight is NaN then, which is enough).
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// What is subtracted under the exponential: the largest score, and 0 while every score is -∞, which then weighs
/// nothing.
#[inline(always)]
fn base(max: f32) -> f32 {
    if max == f32::NEG_INFINITY { 0.0 } else { max }
}

/// One page of one head.
pub(super) struct Tile<E> {
    /// `[Dk, P]`.
    pub keys: *const E,
    /// `[P, Dv]`.
    pub values: *const E,
    pub k_dim: usize,
    pub v_dim: usize,
    pub scale: f32,
    pub softcap: Option<f32>,
    /// Where the page that comes next has its keys: they are asked for while these are worked on, a little at every
    /// step and in the order in which they lie. Any address will do.
    pub next_keys: *const E,
    /// The same of its values.
    pub next_values: *const E,
    /// Whether pages are wanted again soon.
    pub caches: Caches,
}

impl<E> Tile<E> {
    /// Asks for these elements of the next page.
    #[inline(always)]
    unsafe fn ask<S: Lanes>(&self, from: *const E, elements: usize) {
        for line in (0..elements * size_of::<E>()).step_by(LINE_BYTES) {
            let p = from.cast::<u8>().wrapping_add(line);
            // SAFETY: any address will do.
            unsafe {
                match self.caches {
                    Caches::Fill => S::fetch(p),
                    Caches::Pass => S::fetch_past(p),
                }
            }
        }
    }
}

/// A query and what of the page it sees.
#[derive(Clone, Copy)]
pub(super) struct Pair {
    /// Dk elements.
    pub query: *const f32,
    pub running: Running,
    /// First slot seen, and the end.
    pub from: usize,
    pub to: usize,
    /// Of these, the slots that it sees, one a bit.
    pub kept: u64,
}

/// Pairs that one call of `absorb` takes at most.
pub(super) const PAIRS: usize = 12;

/// Takes a page into the running softmax of `pairs`, which all see at least one slot.
#[inline(always)]
pub(super) unsafe fn absorb<S: Lanes, E: Element>(tile: &Tile<E>, pairs: &[Pair]) {
    let mut weights = [[0.0f32; PAGE_TOKENS]; PAIRS];
    let weights = &mut weights[..pairs.len()];
    // SAFETY: the caller's.
    unsafe {
        let mut at = 0;
        while at < pairs.len() {
            let group = at..at + group_len::<S>(pairs.len() - at);
            score::<S, E>(tile, &pairs[group.clone()], &mut weights[group.clone()]);
            at = group.end;
        }
        for (pair, w) in pairs.iter().zip(&mut *weights) {
            weigh::<S, E>(tile, pair, w);
        }
        let mut at = 0;
        while at < pairs.len() {
            let group = at..at + group_len::<S>(pairs.len() - at);
            at = group.end;
            let seen = &pairs[group.clone()];
            // What only some pairs see is added one pair at a time, before and after what all see: slots stay in order.
            let mut from = seen.iter().map(|p| p.from).max().unwrap_or(0);
            let mut to = seen.iter().map(|p| p.to).min().unwrap_or(0);
            if from >= to {
                (from, to) = (PAGE_TOKENS, PAGE_TOKENS);
            }
            for stage in 0..2 * seen.len() + 1 {
                let (part, slots) = if stage == seen.len() {
                    (group.clone(), from..to)
                } else if let Some(pair) = seen.get(stage) {
                    let i = group.start + stage;
                    (i..i + 1, pair.from..from.min(pair.to))
                } else {
                    let i = group.start + stage - seen.len() - 1;
                    (i..i + 1, to..pairs[i].to)
                };
                if !slots.is_empty() {
                    add::<S, E>(tile, &pairs[part.clone()], &weights[part], slots);
                }
            }
        }
    }
}

/// Length of the next group where `left` pairs are left: as many as the registers hold accumulators for.
#[inline(always)]
fn group_len<S: Lanes>(left: usize) -> usize {
    match left {
        _ if S::REGISTERS < 8 => 1,
        6 | 10.. => 6,
        4.. => 4,
        2.. => 2,
        _ => 1,
    }
}

/// `scores` of a group.
#[inline(always)]
unsafe fn score<S: Lanes, E: Element>(tile: &Tile<E>, pairs: &[Pair], out: &mut [[f32; PAGE_TOKENS]]) {
    // SAFETY: the caller's.
    unsafe {
        if const { S::REGISTERS >= 32 } {
            match *pairs {
                [a] => scores::<S, E, 1, TILES>(tile, &[a], out),
                [a, b] => scores::<S, E, 2, TILES>(tile, &[a, b], out),
                [a, b, c, d] => scores::<S, E, 4, TILES>(tile, &[a, b, c, d], out),
                [a, b, c, d, e, f] => scores::<S, E, 6, TILES>(tile, &[a, b, c, d, e, f], out),
                _ => unreachable!("a group has 1, 2, 4 or 6 pairs"),
            }
        } else if const { S::REGISTERS >= 8 } {
            match *pairs {
                [a] => scores::<S, E, 1, 2>(tile, &[a], out),
                [a, b] => scores::<S, E, 2, 2>(tile, &[a, b], out),
                [a, b, c, d] => scores::<S, E, 4, 1>(tile, &[a, b, c, d], out),
                [a, b, c, d, e, f] => scores::<S, E, 6, 1>(tile, &[a, b, c, d, e, f], out),
                _ => unreachable!("a group has 1, 2, 4 or 6 pairs"),
            }
        } else {
            scores::<S, E, 1, 1>(tile, &[pairs[0]], out);
        }
    }
}

/// `strip` after `strip` of a group or of one pair.
#[inline(always)]
unsafe fn add<S: Lanes, E: Element>(tile: &Tile<E>, pairs: &[Pair], w: &[[f32; PAGE_TOKENS]], slots: Range<usize>) {
    let whole = tile.v_dim / LANES;
    let mut i = 0;
    // SAFETY: the caller's.
    unsafe {
        while i * LANES < tile.v_dim {
            let (left, at) = (whole - i.min(whole), (slots.clone(), i * LANES));
            i += if const { S::REGISTERS >= 32 } {
                match *pairs {
                    [a] if left >= 8 => strip::<S, E, 1, 8>(tile, &[a], w, at),
                    [a] => strip::<S, E, 1, 1>(tile, &[a], w, at),
                    [a, b] if left >= 8 => strip::<S, E, 2, 8>(tile, &[a, b], w, at),
                    [a, b] => strip::<S, E, 2, 1>(tile, &[a, b], w, at),
                    [a, b, c, d] if left >= 4 => strip::<S, E, 4, 4>(tile, &[a, b, c, d], w, at),
                    [a, b, c, d] => strip::<S, E, 4, 1>(tile, &[a, b, c, d], w, at),
                    [a, b, c, d, e, f] if left >= 4 => strip::<S, E, 6, 4>(tile, &[a, b, c, d, e, f], w, at),
                    [a, b, c, d, e, f] => strip::<S, E, 6, 1>(tile, &[a, b, c, d, e, f], w, at),
                    _ => unreachable!("a group has 1, 2, 4 or 6 pairs"),
                }
            } else if const { S::REGISTERS >= 8 } {
                match *pairs {
                    [a] if left >= 4 => strip::<S, E, 1, 4>(tile, &[a], w, at),
                    [a] => strip::<S, E, 1, 1>(tile, &[a], w, at),
                    [a, b] if left >= 2 => strip::<S, E, 2, 2>(tile, &[a, b], w, at),
                    [a, b] => strip::<S, E, 2, 1>(tile, &[a, b], w, at),
                    [a, b, c, d] => strip::<S, E, 4, 1>(tile, &[a, b, c, d], w, at),
                    [a, b, c, d, e, f] => strip::<S, E, 6, 1>(tile, &[a, b, c, d, e, f], w, at),
                    _ => unreachable!("a group has 1, 2, 4 or 6 pairs"),
                }
            } else {
                strip::<S, E, 1, 1>(tile, &[pairs[0]], w, at)
            };
        }
    }
}

/// q·k of every slot, one chain over the elements of the key. Slots that hold nothing yet give anything.
#[inline(always)]
unsafe fn scores<S: Lanes, E: Element, const R: usize, const V: usize>(
    tile: &Tile<E>,
    pairs: &[Pair; R],
    out: &mut [[f32; PAGE_TOKENS]],
) {
    // SAFETY: the key block holds `[Dk, P]`, the queries Dk elements; V divides the vectors of a page.
    unsafe {
        for block in (0..PAGE_TOKENS).step_by(V * LANES) {
            let mut acc = [[S::splat(0.0); V]; R];
            let mut column = tile.keys.add(block);
            let mut ahead = tile.next_keys.wrapping_add(block * tile.k_dim);
            for d in 0..tile.k_dim {
                let mut keys = [S::splat(0.0); V];
                for (v, key) in keys.iter_mut().enumerate() {
                    *key = E::load::<S>(column.add(v * LANES));
                }
                tile.ask::<S>(ahead, V * LANES);
                ahead = ahead.wrapping_add(V * LANES);
                for (pair, acc) in pairs.iter().zip(&mut acc) {
                    let q = S::splat(*pair.query.add(d));
                    for (a, &key) in acc.iter_mut().zip(&keys) {
                        *a = S::fma(q, key, *a);
                    }
                }
                column = column.add(PAGE_TOKENS);
            }
            for (out, acc) in out.iter_mut().zip(&acc) {
                for (v, &a) in acc.iter().enumerate() {
                    S::store(out.as_mut_ptr().add(block + v * LANES), a);
                }
            }
        }
    }
}

/// Scores to weights, in place; the running sums and values are rescaled to the new largest score.
#[inline(always)]
unsafe fn weigh<S: Lanes, E>(tile: &Tile<E>, pair: &Pair, w: &mut [f32; PAGE_TOKENS]) {
    // SAFETY: `w` holds a page of scores; the set is the caller's.
    unsafe {
        let mut s = [S::splat(0.0); TILES];
        for (i, s) in s.iter_mut().enumerate() {
            *s = S::mul(S::load(w.as_ptr().add(i * LANES)), S::splat(tile.scale));
            if let Some(cap) = tile.softcap {
                *s = math::softcap::<S>(*s, cap);
            }
        }
        if pair.from > 0 || pair.to < PAGE_TOKENS {
            // By the slot's number alone: an unwritten slot may hold NaN.
            let (from, to, nothing) = (pair.from as f32, pair.to as f32, S::splat(f32::NEG_INFINITY));
            for (i, s) in s.iter_mut().enumerate() {
                let slot = S::add(S::load(SLOTS.as_ptr()), S::splat((i * LANES) as f32));
                *s = S::select_lt(slot, S::splat(to), *s, nothing);
                *s = S::select_lt(slot, S::splat(from), nothing, *s);
            }
        }
        if pair.kept != !0 {
            let nothing = S::splat(f32::NEG_INFINITY);
            for (i, s) in s.iter_mut().enumerate() {
                let bit = |l: usize| if pair.kept >> (i * LANES + l) & 1 == 0 { 0.0 } else { 1.0 };
                let seen: [f32; LANES] = std::array::from_fn(bit);
                *s = S::select_lt(S::load(seen.as_ptr()), S::splat(0.5), nothing, *s);
            }
        }
        let mut top = s[0];
        for &s in &s[1..] {
            top = S::max(top, s);
        }
        let old = *pair.running.max();
        let max = larger(old, hmax::<S>(top));
        let by = S::splat(base(max));
        let mut total = S::splat(0.0);
        for (i, &s) in s.iter().enumerate() {
            let e = math::exp::<S>(S::sub(s, by));
            S::store(w.as_mut_ptr().add(i * LANES), e);
            total = S::add(total, e);
        }
        let sums = pair.running.sums();
        if max == old {
            // e^0 is 1 exactly: rescaling would change nothing.
            S::store(sums, S::add(S::load(sums), total));
        } else {
            let keep = math::exp::<S>(S::splat(old - base(max)));
            S::store(sums, S::fma(S::load(sums), keep, total));
            pair.running.scale::<S>(keep);
            *pair.running.max() = max;
        }
    }
}

/// The numbers of sixteen slots.
const SLOTS: [f32; LANES] = {
    let mut slots = [0.0; LANES];
    let mut i = 0;
    while i < LANES {
        slots[i] = i as f32;
        i += 1;
    }
    slots
};

/// Adds weight times value of the given slots, in order, to U vectors from element `first` on: one chain per element of
/// the output. Gives U.
#[inline(always)]
unsafe fn strip<S: Lanes, E: Element, const R: usize, const U: usize>(
    tile: &Tile<E>,
    pairs: &[Pair; R],
    weights: &[[f32; PAGE_TOKENS]],
    (slots, first): (Range<usize>, usize),
) -> usize {
    // Only the last strip can be less than a whole vector, and it has one.
    let n = if U == 1 { tile.v_dim - first } else { LANES };
    // SAFETY: the value block holds `[P, Dv]`, each running softmax Dv values up to whole vectors.
    unsafe {
        // As an array of known length, or the accumulators would live in memory.
        let weights: [*const f32; R] = std::array::from_fn(|r| weights[r].as_ptr());
        let mut acc = [[S::splat(0.0); U]; R];
        for (pair, acc) in pairs.iter().zip(&mut acc) {
            for (u, a) in acc.iter_mut().enumerate() {
                *a = S::load(pair.running.values.add(first + u * LANES));
            }
        }
        let mut ahead = tile.next_values.wrapping_add(first * PAGE_TOKENS);
        for slot in slots {
            let row = tile.values.add(slot * tile.v_dim + first);
            let mut values = [S::splat(0.0); U];
            for (u, value) in values.iter_mut().enumerate() {
                *value = E::load_n::<S>(row.add(u * LANES), n);
            }
            tile.ask::<S>(ahead, U * LANES);
            ahead = ahead.wrapping_add(U * LANES);
            for (w, acc) in weights.iter().zip(&mut acc) {
                let w = S::splat(*w.add(slot));
                for (a, &value) in acc.iter_mut().zip(&values) {
                    *a = S::fma(w, value, *a);
                }
            }
        }
        for (pair, acc) in pairs.iter().zip(&acc) {
            for (u, &a) in acc.iter().enumerate() {
                S::store(pair.running.values.add(first + u * LANES), a);
            }
        }
    }
    U
}
