//! The list of candidates against full sorts and direct sums: cuts, probabilities, the draw, and the scan for the
//! highest logit. No step of the chain is known here.

use super::super::tests::{dice, random_logits, ranked, softmax};
use super::*;

#[test]
fn peak_finds_the_first_highest_and_refuses_what_is_no_number() {
    assert_eq!(peak(&[1.0, 3.0, 3.0, 2.0]), Ok(Peak { id: 1, logit: 3.0 }));
    assert_eq!(peak(&[f32::NEG_INFINITY, -5.0]), Ok(Peak { id: 1, logit: -5.0 }));
    assert_eq!(peak(&[]), Err(SampleError::NoLogits));
    assert_eq!(peak(&[f32::NEG_INFINITY; 20]), Err(SampleError::NothingAllowed { n_vocab: 20 }));
    for n in 1..70 {
        for at in 0..n {
            let mut logits = vec![0.0; n];
            logits[at] = 1.0;
            assert_eq!(peak(&logits).unwrap().id, at as u32);
            logits[at] = f32::NAN;
            assert!(matches!(peak(&logits), Err(SampleError::BadLogit { id, .. }) if id == at as u32));
        }
    }
    // Past the first block of the scan, and equal in two blocks.
    let mut logits = vec![-1.0; 5000];
    (logits[4999], logits[2500]) = (2.0, 2.0);
    assert_eq!(peak(&logits), Ok(Peak { id: 2500, logit: 2.0 }));
    logits[4100] = f32::INFINITY;
    assert_eq!(peak(&logits), Err(SampleError::BadLogit { id: 4100, value: f32::INFINITY }));
}

#[test]
fn probabilities_are_the_softmax_and_follow_every_cut() {
    let mut logits = random_logits(5, 200);
    logits[17] = f32::NEG_INFINITY;
    let mut candidates = Candidates::new(&logits, Vec::new()).unwrap();
    let expected = softmax(&logits);
    assert_eq!(candidates.items().len(), 199);
    assert_eq!(candidates.probabilities().len(), 199);
    for c in candidates.probabilities() {
        assert!((f64::from(c.p) - expected[c.id as usize]).abs() < 1e-6);
    }
    candidates.keep_top(50);
    candidates.retain(|c| c.id % 2 == 0);
    let left = candidates.probabilities().to_vec();
    let sum: f64 = left.iter().map(|c| expected[c.id as usize]).sum();
    for c in &left {
        assert!((f64::from(c.p) - expected[c.id as usize] / sum).abs() < 1e-6);
    }
    assert_eq!(candidates.max_logit(), left[0].logit);
}

#[test]
fn a_cut_is_the_same_before_and_after_weighing_and_leaves_a_softmax() {
    let logits = random_logits(8, 200);
    let cuts: [fn(&mut Candidates<'_>); 6] = [
        |c| c.keep_top(9),
        |c| c.keep_from(c.max_logit() - 2.0),
        |c| c.keep_mass(0.6),
        |c| c.keep_mass_by(0.6, |c| -c.logit),
        |c| c.retain(|c| c.id % 3 == 0),
        |c| c.divide(2.0),
    ];
    for (i, cut) in cuts.into_iter().enumerate() {
        let left = |looks: usize| {
            let mut candidates = Candidates::new(&logits, Vec::new()).unwrap();
            let looked: usize = (0..looks).map(|_| candidates.probabilities().len()).sum();
            assert_eq!(looked, looks * logits.len());
            cut(&mut candidates);
            let left: Vec<f32> = candidates.items().iter().map(|c| c.logit).collect();
            for (c, p) in candidates.probabilities().iter().zip(softmax(&left)) {
                assert!((f64::from(c.p) - p).abs() < 1e-6, "cut {i}: {} for {p}", c.p);
            }
            left
        };
        assert_eq!(left(0), left(1), "cut {i}");
    }
}

#[test]
fn the_deviation_is_of_what_is_left() {
    let mut candidates = Candidates::new(&[0.0, 4.0, 2.0, f32::NEG_INFINITY], Vec::new()).unwrap();
    assert!((candidates.logit_deviation() - (8.0f64 / 3.0).sqrt()).abs() < 1e-12);
    candidates.keep_top(2);
    assert_eq!(candidates.logit_deviation(), 1.0);
}

#[test]
fn what_a_division_takes_below_all_numbers_is_no_candidate() {
    let mut candidates = Candidates::new(&[0.0, -3.0e38, -1.0], Vec::new()).unwrap();
    candidates.divide(1.0 / 1024.0);
    assert_eq!(candidates.items().iter().map(|c| (c.id, c.logit)).collect::<Vec<_>>(), [(0, 0.0), (2, -1024.0)]);
}

#[test]
fn top_of_a_shuffled_list_equals_a_full_sort() {
    for seed in 0..20 {
        let logits: Vec<f32> = random_logits(seed, 400).iter().map(|x| x.round()).collect();
        let order = ranked(&logits);
        for k in [1, 3, 30, 250] {
            let mut candidates = Candidates::new(&logits, Vec::new()).unwrap();
            candidates.keep_mass_by(0.999, |c| (c.id as f32 * 0.37).fract());
            let mut expected: Vec<u32> = candidates.items().iter().map(|c| c.id).collect();
            expected.sort_by_key(|id| order.iter().position(|r| r == id));
            expected.truncate(k);
            candidates.keep_top(k);
            assert_eq!(candidates.items().iter().map(|c| c.id).collect::<Vec<_>>(), expected, "seed {seed} k {k}");
        }
    }
}

#[test]
fn a_prefix_past_the_first_block_equals_a_full_sort() {
    let mut next = dice(2);
    for n in [1, 63, 64, 65, 400, 2000] {
        let values: Vec<u32> = (0..n).map(|_| (next() * 1e6) as u32).collect();
        let mut sorted = values.clone();
        sorted.sort_unstable();
        for mass in [0.0, 0.01, 0.33, 0.9] {
            let mut items = values.clone();
            let kept = shortest_prefix(&mut items, |a, b| a.cmp(b), |_| 1.0 / n as f32, mass);
            let expected = ((f64::from(mass) / f64::from(1.0 / n as f32)).ceil() as usize).clamp(1, n);
            assert_eq!(items[..kept], sorted[..expected], "n {n} mass {mass}");
        }
    }
}

#[test]
fn the_draw_inverts_the_running_sum() {
    let logits: Vec<f32> = [0.25f32, 0.5, 0.25].iter().map(|p| p.ln()).collect();
    let mut candidates = Candidates::new(&logits, Vec::new()).unwrap();
    let drawn = |c: &mut Candidates<'_>, unit| c.draw(unit).unwrap();
    assert_eq!(drawn(&mut candidates, 0.0), 0);
    assert_eq!(drawn(&mut candidates, 0.2), 0);
    assert_eq!(drawn(&mut candidates, 0.3), 1);
    assert_eq!(drawn(&mut candidates, 0.7), 1);
    assert_eq!(drawn(&mut candidates, 0.8), 2);
    assert_eq!(drawn(&mut candidates, 1.0 - f64::EPSILON / 2.0), 2);
    candidates.retain(|_| false);
    assert_eq!(candidates.draw(0.5), None);
}

#[test]
fn underflowed_tokens_are_never_drawn() {
    let mut candidates = Candidates::new(&[-500.0, 0.0, -500.0], Vec::new()).unwrap();
    assert_eq!(candidates.draw(0.0), Some(1));
    assert_eq!(candidates.draw(1.0 - f64::EPSILON / 2.0), Some(1));
}
