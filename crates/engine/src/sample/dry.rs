//! DRY ("don't repeat yourself"): lowers each token that would prolong a repeat. If the last n tokens also stand
//! earlier, followed by t, and n ≥ `dry_allowed_length`, then t loses
//! `dry_multiplier · dry_base^(n - dry_allowed_length)` for the longest such n. No repeat reaches back across a sequence
//! breaker, and a one-token breaker loses nothing.

use std::collections::BTreeMap;

use super::{Compute, Context, SampleError, SamplerEntry, last_n};

pub(super) const ENTRY: SamplerEntry = SamplerEntry {
    name: "dry",
    about: "lowers tokens that would prolong a repeated sequence",
    is_active: &|p| p.dry_multiplier != 0.0 && p.dry_penalty_last_n != 0,
    initial: None,
    compute: Compute::Adjust(&apply),
};

/// Source: P. E. Weidmann, oobabooga/text-generation-webui pull request 5677, 2024; the search for repeats in linear
/// time by Z-values follows LostRuins/koboldcpp pull request 982.
fn apply(logits: &mut [f32], context: &mut Context<'_>) -> Result<(), SampleError> {
    let p = context.params;
    let allowed = p.dry_allowed_length.unsigned_abs() as usize;
    let tokens = last_n(context.history, p.dry_penalty_last_n);
    let repeats = repeats(tokens);
    let longest = repeats.iter().copied().max().unwrap_or(0);
    let limit = unbroken(tokens, &p.dry_sequence_breakers, longest);
    if limit < allowed {
        return Ok(());
    }
    let mut prolonged: BTreeMap<u32, usize> = BTreeMap::new(); // token → longest repeat that it would prolong
    for (back, &repeat) in repeats.iter().enumerate().skip(1) {
        let repeat = repeat.min(limit);
        if repeat >= allowed {
            let n = prolonged.entry(tokens[tokens.len() - back]).or_default();
            *n = repeat.max(*n);
        }
    }
    for (id, n) in prolonged {
        let Some(logit) = logits.get_mut(id as usize) else { continue };
        if !p.dry_sequence_breakers.iter().any(|breaker| breaker[..] == [id]) {
            let penalty = f64::from(p.dry_multiplier) * f64::from(p.dry_base).powf((n - allowed) as f64);
            // A long repeat overflows: held finite, so that the token ranks last but is not forbidden.
            *logit = (f64::from(*logit) - penalty).max(f64::from(f32::MIN).min(f64::from(*logit))) as f32;
        }
    }
    Ok(())
}

/// For each distance `back` from the end: how many tokens before `tokens[len - back]` equal the last tokens of all.
/// These are the Z-values of the reversed sequence (Gusfield, "Algorithms on Strings, Trees and Sequences", 1997, chapter 1);
/// index 0 is left at 0.
fn repeats(tokens: &[u32]) -> Vec<usize> {
    let n = tokens.len();
    let from_end = |i: usize| tokens[n - 1 - i];
    let mut z = vec![0; n];
    let (mut left, mut right) = (0, 0); // the match found so far that reaches furthest: left..right
    for i in 1..n {
        let known = if i < right { z[i - left].min(right - i) } else { 0 };
        let more = (known..n - i).take_while(|&m| from_end(m) == from_end(i + m)).count();
        z[i] = known + more;
        if i + z[i] > right {
            (left, right) = (i, i + z[i]);
        }
    }
    z
}

/// Number of tokens after the last sequence breaker; `enough` if there is none among the last `enough` tokens.
fn unbroken(tokens: &[u32], breakers: &[Vec<u32>], enough: usize) -> usize {
    let broken_at = |after: &usize| breakers.iter().any(|breaker| tokens[..tokens.len() - after].ends_with(breaker));
    (0..enough.min(tokens.len())).find(broken_at).unwrap_or(enough)
}

#[cfg(test)]
mod tests {
    use super::super::SamplerParams;
    use super::super::tests::{adjusted, dice};
    use super::{ENTRY, repeats, unbroken};

    fn params(allowed: i32, breakers: &[&[u32]]) -> SamplerParams {
        SamplerParams {
            dry_multiplier: 0.5,
            dry_base: 2.0,
            dry_allowed_length: allowed,
            dry_sequence_breakers: breakers.iter().map(|b| b.to_vec()).collect(),
            ..SamplerParams::default()
        }
    }

    fn lowered(params: &SamplerParams, history: &[u32]) -> Vec<f32> {
        adjusted(&ENTRY, params, &[0.0; 8], history).unwrap()
    }

    /// a b c c b c y a b c: c would prolong "a b c" (3), b would prolong "c" (1), y would prolong "b c" (2).
    const HISTORY: [u32; 10] = [1, 2, 3, 3, 2, 3, 7, 1, 2, 3];

    #[test]
    fn hand_computed() {
        // Allowed 2: c loses 0.5·2^(3-2), y loses 0.5·2^(2-2), b is free.
        assert_eq!(lowered(&params(2, &[]), &HISTORY), [0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, -0.5]);
        // Allowed 1: c 0.5·2², y 0.5·2, b 0.5.
        assert_eq!(lowered(&params(1, &[]), &HISTORY), [0.0, 0.0, -0.5, -2.0, 0.0, 0.0, 0.0, -1.0]);
        assert_eq!(lowered(&params(4, &[]), &HISTORY), [0.0; 8]);
        assert_eq!(lowered(&params(2, &[]), &[]), [0.0; 8]);
    }

    #[test]
    fn breakers_cut_the_repeat() {
        // After the breaker "a" only "b c" counts: c and y would both prolong 2.
        assert_eq!(lowered(&params(2, &[&[1]]), &HISTORY), [0.0, 0.0, 0.0, -0.5, 0.0, 0.0, 0.0, -0.5]);
        // After "a b" only "c" counts, which is allowed.
        assert_eq!(lowered(&params(2, &[&[1, 2]]), &HISTORY), [0.0; 8]);
        // A breaker that is the latest token leaves nothing.
        assert_eq!(lowered(&params(1, &[&[3]]), &HISTORY), [0.0; 8]);
        // The latest end counts, also of a breaker inside another one.
        assert_eq!(unbroken(&HISTORY, &[vec![7, 1, 2, 3], vec![1, 2]], 10), 0);
        assert_eq!(unbroken(&HISTORY, &[vec![6], vec![1, 2]], 10), 1);
        assert_eq!(unbroken(&HISTORY, &[vec![7]], 3), 3);
        // y is a breaker itself, so it loses nothing; as it lies before the repeat, c still does.
        assert_eq!(lowered(&params(2, &[&[7]]), &HISTORY), [0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn the_window_limits_the_search() {
        let windowed = SamplerParams { dry_penalty_last_n: 7, ..params(2, &[]) };
        // c b c y a b c: only "b c" repeats, before y.
        assert_eq!(lowered(&windowed, &HISTORY), [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -0.5]);
    }

    #[test]
    fn one_token_over_and_over_stays_finite() {
        let history = vec![5; 4000];
        let got = lowered(&params(2, &[]), &history);
        assert_eq!(got[5], f32::MIN);
        assert!(got.iter().enumerate().all(|(id, x)| id == 5 || *x == 0.0));
        let banned = adjusted(&ENTRY, &params(2, &[]), &[f32::NEG_INFINITY; 8], &history).unwrap();
        assert_eq!(banned[5], f32::NEG_INFINITY);
    }

    #[test]
    fn repeats_equal_the_direct_count() {
        let mut next = dice(11);
        for round in 0..200 {
            let n = (next() * 40.0) as usize;
            let tokens: Vec<u32> = (0..n).map(|_| (next() * (2 + round % 3) as f64) as u32).collect();
            let direct =
                |back: usize| (0..n - back).take_while(|&m| tokens[n - 1 - m] == tokens[n - 1 - back - m]).count();
            let expected: Vec<usize> = (0..n).map(|back| if back == 0 { 0 } else { direct(back) }).collect();
            assert_eq!(repeats(&tokens), expected, "{tokens:?}");
        }
    }
}
