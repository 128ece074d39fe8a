//! Top-nσ: keeps tokens whose logit is at least the highest one minus n standard deviations of all logits above -inf.
//! The set does not change with the temperature.

use super::{Candidates, Compute, Context, SampleError, SamplerEntry};

pub(super) const ENTRY: SamplerEntry = SamplerEntry {
    name: "top_n_sigma",
    about: "keeps tokens within n standard deviations of the highest logit",
    is_active: &|p| p.top_n_sigma > 0.0,
    initial: None,
    compute: Compute::Truncate(&apply),
};

/// Source: Tang et al., "Top-nσ: not all logits are you need", 2024 (arXiv:2411.07641), algorithm 1.
fn apply(candidates: &mut Candidates<'_>, context: &mut Context<'_>) -> Result<(), SampleError> {
    let below = f64::from(context.params.top_n_sigma) * candidates.logit_deviation();
    candidates.keep_from((f64::from(candidates.max_logit()) - below) as f32);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::SamplerParams;
    use super::super::tests::{ids, random_logits};
    use super::ENTRY;

    /// Logits 2, 4, 4, 4, 5, 5, 7, 9: mean 5, standard deviation 2.
    #[test]
    fn hand_computed() {
        let logits = [2.0, 4.0, f32::NEG_INFINITY, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0];
        let kept = |top_n_sigma| ids(&ENTRY, &SamplerParams { top_n_sigma, ..Default::default() }, &logits);
        assert_eq!(kept(0.5), [8]);
        assert_eq!(kept(1.01), [7, 8]);
        assert_eq!(kept(2.01), [5, 6, 7, 8]);
        assert_eq!(kept(100.0), [0, 1, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn equal_logits_all_stay() {
        let params = SamplerParams { top_n_sigma: 0.1, ..Default::default() };
        assert_eq!(ids(&ENTRY, &params, &[0.1; 5]), [0, 1, 2, 3, 4]);
        assert_eq!(ids(&ENTRY, &params, &[0.1]), [0]);
    }

    #[test]
    fn equals_the_definition() {
        for seed in 0..30 {
            let logits = random_logits(seed, 400);
            let mean = logits.iter().map(|&x| f64::from(x)).sum::<f64>() / 400.0;
            let variance = logits.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / 400.0;
            let max = f64::from(logits.iter().copied().fold(f32::MIN, f32::max));
            for n in [0.3f32, 1.0, 2.2] {
                let floor = max - f64::from(n) * variance.sqrt();
                let expected: Vec<u32> = (0..400).filter(|&id| f64::from(logits[id as usize]) >= floor).collect();
                let params = SamplerParams { top_n_sigma: n, ..Default::default() };
                assert_eq!(ids(&ENTRY, &params, &logits), expected, "seed {seed} n {n}");
            }
        }
    }
}
