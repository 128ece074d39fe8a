//! Log-probabilities of the model's own distribution, before any step of the chain has touched it. They describe the
//! model, not the draw.

use super::SampleError;
use super::candidates::{Candidates, peak};

/// A token and its natural log-probability.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenLogprob {
    /// Token id.
    pub id: u32,
    /// ln p, at most 0; -inf for a token at -inf.
    pub logprob: f32,
}

/// The chosen token and the most probable ones.
#[derive(Debug, Clone, PartialEq)]
pub struct Logprobs {
    /// The token asked about.
    pub chosen: TokenLogprob,
    /// The `top_n` most probable tokens above -inf, best first, lower ids first among equals; fewer if there are fewer.
    pub top: Vec<TokenLogprob>,
}

/// Log-softmax of raw `logits` \[V\] at `chosen` and at the `top_n` highest: `x - max - ln Σ exp(x - max)`, summed in
/// f64 in the order of the ids.
pub fn logprobs(logits: &[f32], chosen: u32, top_n: usize) -> Result<Logprobs, SampleError> {
    let peak = peak(logits)?;
    let Some(&chosen_logit) = logits.get(chosen as usize) else {
        return Err(SampleError::TokenOutOfRange { field: "logprobs", id: chosen, n_vocab: logits.len() });
    };
    let max = f64::from(peak.logit);
    let ln_sum = logits.iter().map(|&x| (f64::from(x) - max).exp()).sum::<f64>().ln();
    let at = |id: u32, logit: f32| TokenLogprob { id, logprob: (f64::from(logit) - max - ln_sum) as f32 };
    let top = if top_n == 0 {
        Vec::new()
    } else {
        let mut candidates = Candidates::with_peak(logits, peak, Vec::new());
        candidates.keep_top(top_n);
        candidates.items().iter().map(|c| at(c.id, c.logit)).collect()
    };
    Ok(Logprobs { chosen: at(chosen, chosen_logit), top })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hand_computed_and_ordered() {
        // Probabilities 1/8, 1/2, 1/8, 1/4.
        let logits: Vec<f32> = [1.0f32, 4.0, 1.0, 2.0].iter().map(|w| w.ln()).collect();
        let got = logprobs(&logits, 3, 3).unwrap();
        assert!((got.chosen.logprob - 0.25f32.ln()).abs() < 1e-6);
        let ids: Vec<u32> = got.top.iter().map(|t| t.id).collect();
        assert_eq!(ids, [1, 3, 0]);
        assert!((got.top[0].logprob - 0.5f32.ln()).abs() < 1e-6);
        assert!((got.top[2].logprob - 0.125f32.ln()).abs() < 1e-6);
        assert!(logprobs(&logits, 0, 0).unwrap().top.is_empty());
        assert_eq!(logprobs(&logits, 0, 99).unwrap().top.len(), 4);
    }

    #[test]
    fn far_logits_neither_overflow_nor_vanish() {
        let got = logprobs(&[3.0e38, 3.0e38, -3.0e38, f32::NEG_INFINITY], 0, 2).unwrap();
        assert!((got.chosen.logprob + 2.0f32.ln()).abs() < 1e-6);
        let minus = logprobs(&[-1000.0, -1001.0], 1, 1).unwrap();
        let expected = -1.0 - (1.0 + (-1.0f64).exp()).ln();
        assert!((f64::from(minus.chosen.logprob) - expected).abs() < 1e-6);
        let banned = logprobs(&[0.0, f32::NEG_INFINITY], 1, 5).unwrap();
        assert_eq!(banned.chosen.logprob, f32::NEG_INFINITY);
        assert_eq!(banned.top, [TokenLogprob { id: 0, logprob: 0.0 }]);
    }

    #[test]
    fn unknown_token_and_bad_logit_are_refused() {
        assert_eq!(
            logprobs(&[0.0, 1.0], 2, 1),
            Err(SampleError::TokenOutOfRange { field: "logprobs", id: 2, n_vocab: 2 })
        );
        assert!(matches!(logprobs(&[0.0, f32::NAN], 0, 1), Err(SampleError::BadLogit { id: 1, .. })));
    }
}
