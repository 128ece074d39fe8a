//! Top-k: keeps the k highest logits, found in one scan without sorting the vocabulary. Equal logits go by lower id, so
//! the k are always the same ones.

use super::{Candidates, Compute, Context, SampleError, SamplerEntry};

pub(super) const ENTRY: SamplerEntry = SamplerEntry {
    name: "top_k",
    about: "keeps the k most probable tokens",
    is_active: &|p| p.top_k > 0,
    initial: None,
    compute: Compute::Truncate(&apply),
};

/// Source: Fan, Lewis and Dauphin, "Hierarchical neural story generation", 2018 (arXiv:1805.04833), section 5.4.
fn apply(candidates: &mut Candidates<'_>, context: &mut Context<'_>) -> Result<(), SampleError> {
    candidates.keep_top(context.params.top_k.unsigned_abs() as usize);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::SamplerParams;
    use super::super::tests::{ids, random_logits, ranked};
    use super::ENTRY;

    #[test]
    fn equals_a_full_sort() {
        for seed in 0..40 {
            let logits = random_logits(seed, 500);
            for k in [1, 2, 7, 40, 499, 500, 501, i32::MAX] {
                let params = SamplerParams { top_k: k, ..Default::default() };
                let expected: Vec<u32> = ranked(&logits).into_iter().take(k as usize).collect();
                assert_eq!(ids(&ENTRY, &params, &logits), expected, "seed {seed} k {k}");
            }
        }
    }

    #[test]
    fn ties_go_to_lower_ids() {
        let params = SamplerParams { top_k: 3, ..Default::default() };
        assert_eq!(ids(&ENTRY, &params, &[1.0, 2.0, 1.0, 1.0, 2.0, 1.0]), [1, 4, 0]);
        assert_eq!(ids(&ENTRY, &params, &[-0.0, 0.0, -0.0, 0.0]), [0, 1, 2]);
        let ascending: Vec<f32> = (0..1000).map(|i| (i / 2) as f32).collect();
        assert_eq!(ids(&ENTRY, &params, &ascending), [998, 999, 996]);
    }
}
