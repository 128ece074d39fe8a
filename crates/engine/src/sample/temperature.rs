//! Temperature: divides the logits, so that the probabilities become p^(1/T), renormalised. At T = 0 the sampler itself
//! takes the highest logit, and this step does not run.

use super::{Candidates, Compute, Context, SampleError, SamplerEntry};

pub(super) const ENTRY: SamplerEntry = SamplerEntry {
    name: "temperature",
    about: "sharpens (below 1) or flattens (above 1) the distribution; 0 is greedy",
    is_active: &|p| p.temperature != 1.0 && !p.is_greedy(),
    initial: None,
    compute: Compute::Scale(&apply),
};

/// Source: Ackley, Hinton and Sejnowski, "A learning algorithm for Boltzmann machines", 1985.
fn apply(candidates: &mut Candidates<'_>, context: &mut Context<'_>) -> Result<(), SampleError> {
    candidates.divide(context.params.temperature);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::SamplerParams;
    use super::super::tests::{logits_of, random_logits, shaped, softmax};
    use super::ENTRY;

    fn probabilities(temperature: f32, logits: &[f32]) -> Vec<f32> {
        let params = SamplerParams { temperature, ..Default::default() };
        shaped(&ENTRY, &params, logits).iter().map(|c| c.p).collect()
    }

    #[test]
    fn hand_computed() {
        // T = 1/2 squares: 1/9 and 4/9 become 1 : 16 (and 16).
        let got = probabilities(0.5, &logits_of(&[1.0 / 9.0, 4.0 / 9.0, 4.0 / 9.0]));
        for (p, expected) in got.iter().zip([1.0 / 33.0, 16.0 / 33.0, 16.0 / 33.0]) {
            assert!((p - expected).abs() < 1e-6, "{got:?}");
        }
    }

    #[test]
    fn equals_the_softmax_of_divided_logits() {
        for seed in 0..20 {
            let logits = random_logits(seed, 100);
            for t in [0.1f32, 0.7, 1.3, 10.0] {
                let divided: Vec<f32> = logits.iter().map(|x| x / t).collect();
                for (p, q) in probabilities(t, &logits).iter().zip(softmax(&divided)) {
                    assert!((f64::from(*p) - q).abs() < 1e-5, "seed {seed} T {t}");
                }
            }
        }
    }

    #[test]
    fn the_smallest_temperature_does_not_overflow() {
        let got = probabilities(f32::MIN_POSITIVE, &[10.0, 20.0, 20.0, -3.0e38]);
        assert_eq!(got.iter().filter(|&&p| p == 0.5).count(), 2);
        assert!((got.iter().sum::<f32>() - 1.0).abs() < 1e-6);
    }
}
