//! Mixtral: Mistral's plan with a mixture of experts in every layer, its weights summing to one.

use reverie_tensor::Reach;

use super::{ArchEntry, Source};
use crate::error::Result;
use crate::ffn::moe;
use crate::plan::{FfnSpec, NormWeight, Plan};

/// The row.
pub const ENTRY: ArchEntry =
    ArchEntry { name: "mixtral", aliases: &[], about: "Mixtral: mixture of experts in every layer", plan, gguf: None };

fn plan(source: &Source<'_>) -> Result<Plan> {
    let mut plan = source.decoder(ENTRY.name, NormWeight::Plain, |i| {
        let mut attention = source.attention(i)?;
        attention.reach = Reach::window(source.config.optional_usize("sliding_window")?);
        source.pre_norm(NormWeight::Plain, ("self_attn", Box::new(attention)), experts(source)?)
    })?;
    plan.names = plan.names.with_leaves(&[("mlp", "block_sparse_moe")]);
    Ok(plan)
}

/// Its mixture.
pub(super) fn experts(source: &Source<'_>) -> Result<Box<dyn FfnSpec>> {
    let mut experts = moe::Spec::from_config(&source.config)?;
    experts.router.normalise = Some(0.0);
    Ok(Box::new(experts))
}
