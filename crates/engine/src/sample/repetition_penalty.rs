//! Repetition penalty: the logits of tokens seen in the last `repeat_last_n` of the history, prompt included, are
//! divided by the penalty where positive and multiplied by it where not.

use super::{Compute, Context, SampleError, SamplerEntry};

pub(super) const ENTRY: SamplerEntry = SamplerEntry {
    name: "repetition_penalty",
    about: "shrinks the logits of tokens seen lately",
    is_active: &|p| p.repetition_penalty != 1.0 && p.repeat_last_n != 0,
    initial: None,
    compute: Compute::Adjust(&apply),
};

/// Source: Keskar et al., "CTRL", 2019 (arXiv:1909.05858), section 4.1, which only divides; the split by sign, without
/// which a negative logit would be raised, is the form in common use (Hugging Face transformers, llama.cpp).
fn apply(logits: &mut [f32], context: &mut Context<'_>) -> Result<(), SampleError> {
    let penalty = context.params.repetition_penalty;
    for &(id, _) in context.recent() {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::SamplerParams;
    use super::super::tests::adjusted;
    use super::ENTRY;

    #[test]
    fn divides_positive_and_multiplies_negative_once_each() {
        let params = SamplerParams { repetition_penalty: 2.0, ..Default::default() };
        let got = adjusted(&ENTRY, &params, &[4.0, -4.0, 0.0, 4.0, 0.25], &[0, 1, 0, 2, 4, 900]).unwrap();
        assert_eq!(got, [2.0, -8.0, 0.0, 4.0, 0.125]);
    }

    #[test]
    fn looks_back_no_further_than_asked() {
        let history = [0, 1, 2];
        let with = |repeat_last_n| {
            let params = SamplerParams { repetition_penalty: 2.0, repeat_last_n, ..Default::default() };
            (ENTRY.is_active)(&params).then(|| adjusted(&ENTRY, &params, &[1.0, 1.0, 1.0], &history).unwrap())
        };
        assert_eq!(with(2).unwrap(), [1.0, 0.5, 0.5]);
        assert_eq!(with(-1).unwrap(), [0.5, 0.5, 0.5]);
        assert_eq!(with(99).unwrap(), [0.5, 0.5, 0.5]);
        assert_eq!(with(0), None);
    }
}
