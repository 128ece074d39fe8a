//! GLM-4.5 and its kin: partly rotated attention, sigmoid scores with a bias for the choice, shared experts; the first layers are dense.

use super::{ArchEntry, Source, gguf};
use crate::error::Result;
use crate::ffn::moe;
use crate::plan::{NormWeight, Plan};
use reverie_tensor::{GroupRank, Score};

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "glm4_moe",
    aliases: &[],
    about: "GLM-4.5, 4.6: mixture of experts with shared ones, sigmoid scores",
    plan,
    gguf: Some(&gguf::Dialect {
        arch: "glm4moe",
        names: &[("post_attention_layernorm", "post_attention_norm")],
        interleaved_rows: false,
        adapt: gguf::as_is,
    }),
};

fn plan(source: &Source<'_>) -> Result<Plan> {
    source.decoder(ENTRY.name, NormWeight::Plain, |i| {
        let mut attention = source.attention(i)?;
        let normed = match source.config.optional_bool("use_qk_norm")? {
            Some(normed) => normed,
            None => source.weights.contains("blk.0.attn_q_norm.weight"),
        };
        attention.qk_norm = normed.then_some((source.eps()?, NormWeight::Plain));
        attention.o_bias = false;
        let ffn = sigmoid_experts(source)?.or_dense(&source.config, i)?;
        source.pre_norm(NormWeight::Plain, ("self_attn", Box::new(attention)), ffn)
    })
}

/// Sigmoid scores, a bias for the choice, groups ranked by their two best, shared experts.
pub(super) fn sigmoid_experts(source: &Source<'_>) -> Result<moe::Spec> {
    let config = &source.config;
    let mut experts = moe::Spec::from_config(config)?;
    experts.router.score = Score::Sigmoid;
    experts.router.bias = Some("gate.e_score_correction_bias");
    experts.router.normalise = config.optional_bool("norm_topk_prob")?.unwrap_or(true).then_some(1e-20);
    experts.with_groups(config, GroupRank::BestTwo)?.with_shared_experts(config)
}
