//! Presence penalty: takes the penalty once off the logit of every token that stands in the last `repeat_last_n` of the
//! history, prompt included.

use super::{Compute, Context, SampleError, SamplerEntry};

pub(super) const ENTRY: SamplerEntry = SamplerEntry {
    name: "presence_penalty",
    about: "lowers tokens that were seen lately",
    is_active: &|p| p.presence_penalty != 0.0 && p.repeat_last_n != 0,
    initial: None,
    compute: Compute::Adjust(&apply),
};

/// Source: OpenAI's API reference, `presence_penalty`. It counts generated tokens only there; the prompt is
/// counted here, as in llama.cpp.
fn apply(logits: &mut [f32], context: &mut Context<'_>) -> Result<(), SampleError> {
    let penalty = context.params.presence_penalty;
    for &(id, _) in context.recent() {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit -= penalty;
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
    fn counts_a_token_once() {
        let history = [2, 0, 0, 1, 0];
        let with = |presence_penalty, repeat_last_n| {
            let params = SamplerParams { presence_penalty, repeat_last_n, ..Default::default() };
            adjusted(&ENTRY, &params, &[1.0, 1.0, 1.0, 1.0], &history).unwrap()
        };
        assert_eq!(with(0.5, -1), [0.5, 0.5, 0.5, 1.0]);
        assert_eq!(with(2.0, 2), [-1.0, -1.0, 1.0, 1.0]);
        assert_eq!(with(2.0, 1), [-1.0, 1.0, 1.0, 1.0]);
    }
}
