//! Mirostat 2.0: holds the mean surprise of the drawn tokens at τ bits. Tokens of surprise -log₂ p above μ are dropped
//! (the most probable one stays), one of the rest is drawn, and μ moves by -η times (its surprise - τ), from 2τ on.
//! The surprise is the one before the cut, whose mean is the cross-entropy that is held.

use super::{Candidate, Candidates, Compute, Context, SampleError, SamplerEntry};

pub(super) const ENTRY: SamplerEntry = SamplerEntry {
    name: "mirostat",
    about: "draws so that the mean surprise stays at a target",
    is_active: &|p| p.mirostat == 2,
    initial: Some(&|p| 2.0 * f64::from(p.mirostat_tau)),
    compute: Compute::Draw(&draw),
};

/// Source: Basu et al., "Mirostat: a neural text decoding algorithm that directly controls perplexity", ICLR 2021
/// (arXiv:2007.14966), algorithm 2. llama.cpp takes the surprise after the cut.
fn draw(candidates: &mut Candidates<'_>, context: &mut Context<'_>) -> Result<usize, SampleError> {
    let mu = *context.carried;
    let all = candidates.probabilities();
    let highest = all.iter().map(|c| c.p).fold(0.0, f32::max);
    let fits = |c: &Candidate| surprise(c.p) <= mu || c.p == highest;
    let kept: f64 = all.iter().filter(|c| fits(c)).map(|c| f64::from(c.p)).sum();
    candidates.retain(fits);
    let nothing =
        SampleError::Step { step: ENTRY.name, message: "found no candidate, expected at least one".to_owned() };
    let index = candidates.draw(context.rng.unit()).ok_or(nothing)?;
    // After the cut the probabilities are larger by 1 / kept.
    let drawn = surprise(candidates.probabilities()[index].p) - kept.log2();
    let p = context.params;
    *context.carried = mu - f64::from(p.mirostat_eta) * (drawn - f64::from(p.mirostat_tau));
    Ok(index)
}

/// Surprise of an event of probability `p`, in bits.
fn surprise(p: f32) -> f64 {
    -f64::from(p).log2()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{logits_of, softmax, zipf};
    use super::super::{Sampler, SamplerParams, SamplerState, logprobs};

    fn params(tau: f32) -> SamplerParams {
        SamplerParams { mirostat: 2, mirostat_tau: tau, temperature: 1.0, seed: Some(1), ..Default::default() }
    }

    fn mu(state: &SamplerState) -> f64 {
        state.carried()[0].1
    }

    #[test]
    fn hand_computed() {
        // τ = 1, so μ = 2: of 1/2, 1/4, 1/8, 1/8 (1, 2, 3 and 3 bits) the first two stay, at 2/3 and 1/3.
        let logits = logits_of(&[0.5, 0.25001, 0.125, 0.125]);
        let mut drawn_ids = [0, 0];
        for seed in 0..8 {
            let mut sampler = Sampler::new(SamplerParams { seed: Some(seed), ..params(1.0) }).unwrap();
            assert_eq!(mu(&sampler.state()), 2.0);
            let drawn = sampler.sample(&logits, &[]).unwrap();
            assert_eq!(drawn.n_candidates, 2);
            let (p, bits) = if drawn.id == 0 { (2.0 / 3.0, 1.0) } else { (1.0 / 3.0, 2.0) };
            assert!((drawn.p - p).abs() < 1e-4);
            // μ ← 2 - 0.1 (bits - 1)
            assert!((mu(&sampler.state()) - (2.0 - 0.1 * (bits - 1.0))).abs() < 1e-4);
            drawn_ids[drawn.id as usize] += 1;
        }
        assert!(drawn_ids.iter().all(|n| *n > 0), "{drawn_ids:?}");
    }

    #[test]
    fn a_mu_below_all_leaves_the_most_probable() {
        let mut sampler = Sampler::new(params(0.0)).unwrap();
        let logits = logits_of(&[0.2, 0.5, 0.3]);
        let drawn = sampler.sample(&logits, &[]).unwrap();
        assert_eq!((drawn.id, drawn.n_candidates), (1, 1));
        assert!((mu(&sampler.state()) + 0.1).abs() < 1e-6);
    }

    #[test]
    fn truncating_steps_stand_aside() {
        let sampler = Sampler::new(SamplerParams { temperature: 0.9, presence_penalty: 0.1, ..params(3.0) }).unwrap();
        assert_eq!(sampler.steps(), ["presence_penalty", "temperature", "mirostat"]);
    }

    #[test]
    fn mean_surprise_converges_to_the_target() {
        let logits = zipf(2000, 1.1);
        let p = softmax(&logits);
        let entropy: f64 = p.iter().map(|p| -p * p.log2()).sum();
        for tau in [3.5, 4.5, 5.5] {
            // Only what lies between the surprise of the most probable token and the entropy can be reached.
            assert!((-p[0].log2()..entropy).contains(&f64::from(tau)));
            let mut sampler = Sampler::new(params(tau)).unwrap();
            let mut bits = |n: usize| {
                let surprise = |id| -f64::from(logprobs(&logits, id, 0).unwrap().chosen.logprob) / f64::ln(2.0);
                (0..n).map(|_| surprise(sampler.sample(&logits, &[]).unwrap().id)).sum::<f64>() / n as f64
            };
            bits(200);
            let mean = bits(1500);
            assert!((mean - f64::from(tau)).abs() < 0.15, "target {tau}, found {mean}");
        }
    }
}
