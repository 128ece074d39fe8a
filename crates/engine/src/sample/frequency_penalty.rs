//! Frequency penalty: takes the penalty off a token's logit once for every time that the token stands in the last
//! `repeat_last_n` of the history, prompt included.

use super::{Compute, Context, SampleError, SamplerEntry};

pub(super) const ENTRY: SamplerEntry = SamplerEntry {
    name: "frequency_penalty",
    about: "lowers tokens by how often they were seen lately",
    is_active: &|p| p.frequency_penalty != 0.0 && p.repeat_last_n != 0,
    initial: None,
    compute: Compute::Adjust(&apply),
};

/// Source: OpenAI's API reference, `frequency_penalty`. It counts generated tokens only there; the prompt is
/// counted here, as in llama.cpp.
fn apply(logits: &mut [f32], context: &mut Context<'_>) -> Result<(), SampleError> {
    let penalty = context.params.frequency_penalty;
    for &(id, count) in context.recent() {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit -= penalty * count as f32;
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
    fn grows_with_the_count_inside_the_window() {
        let history = [2, 0, 0, 1, 0, 77];
        let with = |frequency_penalty, repeat_last_n| {
            let params = SamplerParams { frequency_penalty, repeat_last_n, ..Default::default() };
            adjusted(&ENTRY, &params, &[1.0, 1.0, 1.0], &history).unwrap()
        };
        assert_eq!(with(0.5, -1), [-0.5, 0.5, 0.5]);
        assert_eq!(with(0.5, 3), [0.5, 0.5, 1.0]);
        assert_eq!(with(0.5, 1), [1.0, 1.0, 1.0]);
        assert_eq!(with(-1.0, 64), [4.0, 2.0, 2.0]);
    }
}
