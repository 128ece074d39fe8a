//! XTC ("exclude top choices"): with the given probability, drops all tokens at or above the threshold but the least
//! probable of them (among equals, the highest id stays). Two or more must reach the threshold, or nothing happens.

use super::candidates::by_rank;
use super::{Candidates, Compute, Context, SampleError, SamplerEntry};

pub(super) const ENTRY: SamplerEntry = SamplerEntry {
    name: "xtc",
    about: "drops the most probable choices, by chance",
    is_active: &|p| p.xtc_probability > 0.0 && p.xtc_threshold <= 0.5,
    initial: None,
    compute: Compute::Truncate(&apply),
};

/// Source: P. E. Weidmann, oobabooga/text-generation-webui pull request 6335, 2024.
fn apply(candidates: &mut Candidates<'_>, context: &mut Context<'_>) -> Result<(), SampleError> {
    // One number for every token, whatever the candidates: the stream of the generator depends on the parameters alone.
    if context.rng.unit() >= f64::from(context.params.xtc_probability) {
        return Ok(());
    }
    let threshold = context.params.xtc_threshold;
    let choices = candidates.probabilities().iter().filter(|c| c.p >= threshold);
    if let Some(&least) = choices.max_by(|a, b| by_rank(a, b)) {
        candidates.retain(|c| c.p < threshold || c.id == least.id);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{ids, logits_of, random_logits, ranked, softmax};
    use super::super::{Sampler, SamplerParams};
    use super::ENTRY;

    fn always(xtc_threshold: f32) -> SamplerParams {
        SamplerParams { xtc_probability: 1.0, xtc_threshold, ..Default::default() }
    }

    #[test]
    fn hand_computed() {
        let logits = logits_of(&[0.1, 0.4, 0.05, 0.25, 0.2]);
        assert_eq!(ids(&ENTRY, &always(0.15), &logits), [0, 2, 4]);
        assert_eq!(ids(&ENTRY, &always(0.3), &logits), [0, 1, 2, 3, 4]);
        assert_eq!(ids(&ENTRY, &always(0.5), &logits), [0, 1, 2, 3, 4]);
        for threshold in [0.2, 0.25] {
            assert_eq!(ids(&ENTRY, &always(threshold), &logits_of(&[0.25, 0.25, 0.25, 0.25])), [3]);
        }
    }

    #[test]
    fn above_a_half_no_two_choices_reach_the_threshold() {
        assert!((ENTRY.is_active)(&always(0.5)) && !(ENTRY.is_active)(&always(0.51)));
        assert_eq!(ids(&ENTRY, &always(0.5), &logits_of(&[0.5, 0.5])), [1]);
    }

    #[test]
    fn equals_the_definition() {
        for seed in 0..30 {
            let logits: Vec<f32> = random_logits(seed, 60).iter().map(|x| x * 0.5).collect();
            let p = softmax(&logits);
            for threshold in [0.02f32, 0.05, 0.1] {
                let mut order = ranked(&logits);
                let above = order.iter().filter(|&&id| p[id as usize] >= f64::from(threshold)).count();
                order.drain(..above.saturating_sub(1));
                order.sort_unstable();
                assert_eq!(ids(&ENTRY, &always(threshold), &logits), order, "seed {seed} threshold {threshold}");
            }
        }
    }

    #[test]
    fn happens_as_often_as_asked() {
        let params = SamplerParams {
            xtc_probability: 0.25,
            xtc_threshold: 0.1,
            temperature: 1.0,
            seed: Some(5),
            ..Default::default()
        };
        let mut sampler = Sampler::new(params).unwrap();
        // Two near-certain choices and none else: with XTC the second is all that is left.
        let logits = logits_of(&[0.5, 0.4999]);
        let n = 4000;
        let alone = (0..n).filter(|_| sampler.sample(&logits, &[]).unwrap().n_candidates == 1).count();
        // Five standard deviations of a binomial count with these numbers are 137.
        assert!((alone as f64 - 1000.0).abs() < 137.0, "{alone}");
    }
}
