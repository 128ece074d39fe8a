//! MiniMax M2: partly rotated attention with norms over all heads at once, sigmoid scores with a bias for the choice.

use super::{ArchEntry, Source, gguf};
use crate::error::Result;
use crate::ffn::moe;
use crate::plan::{NormWeight, Plan};
use reverie_tensor::Score;

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "minimax_m2",
    aliases: &[],
    about: "MiniMax M2: mixture of experts, sigmoid scores with a bias",
    plan,
    gguf: Some(&gguf::Dialect { arch: "minimax-m2", names: &[], interleaved_rows: false, adapt: gguf::as_is }),
};

fn plan(source: &Source<'_>) -> Result<Plan> {
    let mut plan = source.decoder(ENTRY.name, NormWeight::Plain, |i| {
        let mut attention = source.attention(i)?;
        if source.config.optional_bool("use_qk_norm")?.unwrap_or(true) {
            attention.qk_norm = Some((source.eps()?, NormWeight::Plain));
            attention.flat_qk_norm = true;
        }
        let mut experts = moe::Spec::from_config(&source.config)?;
        experts.router.score = Score::Sigmoid;
        experts.router.bias =
            source.config.optional_bool("use_routing_bias")?.unwrap_or(true).then_some("e_score_correction_bias");
        experts.router.normalise = Some(0.0);
        source.pre_norm(NormWeight::Plain, ("self_attn", Box::new(attention)), Box::new(experts))
    })?;
    plan.names = plan.names.with_leaves(&[("mlp", "block_sparse_moe")]);
    Ok(plan)
}
