//! Locally typical sampling: keeps the tokens whose surprise, -ln p, is nearest to the expected one (the entropy), as
//! few as together reach probability p. The most probable token may well be dropped.

use super::{Candidates, Compute, Context, SampleError, SamplerEntry};

pub(super) const ENTRY: SamplerEntry = SamplerEntry {
    name: "typical_p",
    about: "keeps the tokens of typical surprise up to a sum of probability",
    is_active: &|p| p.typical_p < 1.0,
    initial: None,
    compute: Compute::Truncate(&apply),
};

/// Source: Meister et al., "Locally typical sampling", TACL 2023 (arXiv:2202.00666), section 5, equation 8.
fn apply(candidates: &mut Candidates<'_>, context: &mut Context<'_>) -> Result<(), SampleError> {
    // A probability that has underflowed to 0 adds nothing to the entropy, and its surprise puts it last.
    let surprise = |p: f32| if p > 0.0 { -p.ln() } else { f32::INFINITY };
    let visible = candidates.probabilities().iter().filter(|c| c.p > 0.0);
    let entropy = visible.map(|c| f64::from(c.p * surprise(c.p))).sum::<f64>() as f32;
    candidates.keep_mass_by(context.params.typical_p, |c| (surprise(c.p) - entropy).abs());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::SamplerParams;
    use super::super::tests::{ids, logits_of, random_logits, softmax};
    use super::ENTRY;

    /// p = 0.5, 0.25, 0.125, 0.125: entropy 1.75 bits, surprises 1, 2, 3, 3 bits, distances 0.75, 0.25, 1.25, 1.25.
    #[test]
    fn hand_computed() {
        let logits = logits_of(&[0.5, 0.25, 0.125, 0.125]);
        let kept = |typical_p| ids(&ENTRY, &SamplerParams { typical_p, ..Default::default() }, &logits);
        assert_eq!(kept(0.2), [1]);
        assert_eq!(kept(0.3), [1, 0]);
        assert_eq!(kept(0.8), [1, 0, 2]);
        assert_eq!(kept(0.9), [1, 0, 2, 3]);
    }

    #[test]
    fn a_probability_of_nothing_changes_nothing() {
        let mut logits = logits_of(&[0.5, 0.25, 0.125, 0.125]);
        logits.push(-500.0);
        assert_eq!(ids(&ENTRY, &SamplerParams { typical_p: 0.2, ..Default::default() }, &logits), [1]);
    }

    #[test]
    fn equals_a_full_sort() {
        for seed in 0..30 {
            let logits = random_logits(seed, 300);
            let p = softmax(&logits);
            let surprise = |id: u32| -p[id as usize].ln();
            let entropy: f64 = (0..300).map(|id| p[id as usize] * surprise(id)).sum();
            let mut order: Vec<u32> = (0..300).collect();
            order.sort_by(|&a, &b| (surprise(a) - entropy).abs().total_cmp(&(surprise(b) - entropy).abs()));
            for typical_p in [0.2f32, 0.5, 0.9] {
                let mut sum = 0.0;
                let mut expected: Vec<u32> = order
                    .iter()
                    .copied()
                    .take_while(|&id| {
                        let short = sum < f64::from(typical_p);
                        sum += p[id as usize];
                        short
                    })
                    .collect();
                let params = SamplerParams { typical_p, ..Default::default() };
                let mut got = ids(&ENTRY, &params, &logits);
                // Distances that differ by less than f32 resolves may trade places inside the set.
                got.sort_unstable();
                expected.sort_unstable();
                assert_eq!(got, expected, "seed {seed} p {typical_p}");
            }
        }
    }

    #[test]
    fn underflowed_probabilities_do_no_harm() {
        let params = SamplerParams { typical_p: 0.5, ..Default::default() };
        assert_eq!(ids(&ENTRY, &params, &[0.0, -500.0, -1000.0]), [0]);
    }
}
