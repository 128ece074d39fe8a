//! Min-p: keeps tokens at least `min_p` times as probable as the most probable one. As a ratio of probabilities is a
//! difference of logits, no softmax is needed: logit ≥ max + ln(min_p).

use super::{Candidates, Compute, Context, SampleError, SamplerEntry};

pub(super) const ENTRY: SamplerEntry = SamplerEntry {
    name: "min_p",
    about: "drops tokens below a share of the highest probability",
    is_active: &|p| p.min_p > 0.0,
    initial: None,
    compute: Compute::Truncate(&apply),
};

/// Source: Nguyen et al., "Turning up the heat: min-p sampling for creative and coherent LLM outputs", 2024
/// (arXiv:2407.01082), section 3.
fn apply(candidates: &mut Candidates<'_>, context: &mut Context<'_>) -> Result<(), SampleError> {
    candidates.keep_from(candidates.max_logit() + context.params.min_p.ln());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::SamplerParams;
    use super::super::tests::{ids, logits_of, random_logits, softmax};
    use super::ENTRY;

    #[test]
    fn hand_computed() {
        let logits = logits_of(&[0.1, 0.5, 0.05, 0.3, 0.05]);
        let kept = |min_p| ids(&ENTRY, &SamplerParams { min_p, ..Default::default() }, &logits);
        assert_eq!(kept(1.0), [1]);
        assert_eq!(kept(0.55), [1, 3]);
        assert_eq!(kept(0.15), [0, 1, 3]);
        assert_eq!(kept(0.05), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn equals_the_ratio_of_probabilities() {
        for seed in 0..30 {
            let logits = random_logits(seed, 300);
            let p = softmax(&logits);
            let max = p.iter().copied().fold(0.0, f64::max);
            for min_p in [0.013f32, 0.1, 0.31, 0.9] {
                let expected: Vec<u32> = (0..300).filter(|&i| p[i as usize] >= f64::from(min_p) * max).collect();
                let params = SamplerParams { min_p, ..Default::default() };
                assert_eq!(ids(&ENTRY, &params, &logits), expected, "seed {seed} min_p {min_p}");
            }
        }
    }
}
