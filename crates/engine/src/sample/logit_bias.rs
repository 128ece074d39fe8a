//! Logit bias: adds a constant to the logits of single tokens; -inf forbids one. It refuses ids beyond the vocabulary,
//! as a bias that meets no token would be a mistake passed over in silence.

use super::{Compute, Context, SampleError, SamplerEntry};

pub(super) const ENTRY: SamplerEntry = SamplerEntry {
    name: "logit_bias",
    about: "adds to the logits of single tokens",
    is_active: &|p| !p.logit_bias.is_empty(),
    initial: None,
    compute: Compute::Adjust(&apply),
};

/// Source: the `logit_bias` field of OpenAI's completions API.
fn apply(logits: &mut [f32], context: &mut Context<'_>) -> Result<(), SampleError> {
    let n_vocab = logits.len();
    for &(id, bias) in &context.params.logit_bias {
        let logit = logits.get_mut(id as usize);
        *logit.ok_or(SampleError::TokenOutOfRange { field: "logit_bias", id, n_vocab })? += bias;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::adjusted;
    use super::super::{SampleError, SamplerParams};
    use super::ENTRY;

    #[test]
    fn adds_forbids_and_leaves_the_rest() {
        let params = SamplerParams { logit_bias: vec![(1, 2.5), (3, f32::NEG_INFINITY)], ..Default::default() };
        let got = adjusted(&ENTRY, &params, &[1.0, 1.0, 1.0, 1.0], &[]).unwrap();
        assert_eq!(got, [1.0, 3.5, 1.0, f32::NEG_INFINITY]);
    }

    #[test]
    fn an_id_beyond_the_vocabulary_is_refused() {
        let params = SamplerParams { logit_bias: vec![(4, 1.0)], ..Default::default() };
        let error = adjusted(&ENTRY, &params, &[0.0; 4], &[]).unwrap_err();
        assert_eq!(error, SampleError::TokenOutOfRange { field: "logit_bias", id: 4, n_vocab: 4 });
    }
}
