//! Top-p, or nucleus sampling: keeps the fewest most probable tokens whose probabilities sum to at least p. Sorts only
//! as far as the nucleus reaches.

use super::{Candidates, Compute, Context, SampleError, SamplerEntry};

pub(super) const ENTRY: SamplerEntry = SamplerEntry {
    name: "top_p",
    about: "keeps the most probable tokens up to a sum of probability",
    is_active: &|p| p.top_p < 1.0,
    initial: None,
    compute: Compute::Truncate(&apply),
};

/// Source: Holtzman et al., "The curious case of neural text degeneration", 2020 (arXiv:1904.09751), section 3.1.
fn apply(candidates: &mut Candidates<'_>, context: &mut Context<'_>) -> Result<(), SampleError> {
    candidates.keep_mass(context.params.top_p);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::SamplerParams;
    use super::super::tests::{ids, logits_of, random_logits, ranked, softmax};
    use super::ENTRY;

    #[test]
    fn hand_computed() {
        let logits = logits_of(&[0.1, 0.5, 0.05, 0.3, 0.05]);
        let kept = |top_p| ids(&ENTRY, &SamplerParams { top_p, ..Default::default() }, &logits);
        assert_eq!(kept(0.0), [1]);
        assert_eq!(kept(0.49), [1]);
        assert_eq!(kept(0.6), [1, 3]);
        assert_eq!(kept(0.85), [1, 3, 0]);
        assert_eq!(kept(0.92), [1, 3, 0, 2]);
    }

    #[test]
    fn equals_a_full_sort() {
        for seed in 0..30 {
            let logits = random_logits(seed, 700);
            let p = softmax(&logits);
            for top_p in [0.1, 0.5, 0.9, 0.99, 0.999] {
                let mut sum = 0.0;
                let expected: Vec<u32> = ranked(&logits)
                    .into_iter()
                    .take_while(|&id| {
                        let short = sum < f64::from(top_p);
                        sum += p[id as usize];
                        short
                    })
                    .collect();
                let params = SamplerParams { top_p, ..Default::default() };
                assert_eq!(ids(&ENTRY, &params, &logits), expected, "seed {seed} p {top_p}");
            }
        }
    }
}
