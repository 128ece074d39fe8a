//! Kimi Linear: three layers of Kimi delta attention, then one of latent attention without positions; a mixture in all layers but the
//! first.

use super::{ArchEntry, Source, gguf, glm4_moe};
use crate::error::{Error, Result};
use crate::mixer::{delta, kda, mla};
use crate::names::Leaves;
use crate::plan::{MixerSpec, NormWeight, Plan};

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "kimi_linear",
    aliases: &[],
    about: "Kimi Linear: Kimi delta attention and latent attention, mixture of experts",
    plan,
    gguf: Some(&gguf::Dialect { arch: "kimi-linear", names: &[], interleaved_rows: false, adapt: gguf::kimi }),
};

/// Its words for fields that others share.
pub(super) const FIELDS: &[(&str, &str)] = &[
    ("max_position_embeddings", "model_max_length"),
    ("n_group", "num_expert_group"),
    ("n_shared_experts", "num_shared_experts"),
    ("norm_topk_prob", "moe_renormalize"),
    ("num_experts_per_tok", "num_experts_per_token"),
];

/// Fields that the checkpoint of its makers keeps in `linear_attn_config`.
const LINEAR: &[(&str, &str)] = &[
    ("linear_conv_kernel_dim", "short_conv_kernel_size"),
    ("linear_head_dim", "head_dim"),
    ("linear_num_heads", "num_heads"),
];

/// Its own words, and MLX's.
const LEAVES: Leaves = &[
    ("mlp.gate.e_score_correction_bias", "mlp.e_score_correction_bias"),
    ("mlp", "block_sparse_moe"),
    ("self_attn.k_conv1d", "self_attn.k_conv.conv"),
    ("self_attn.q_conv1d", "self_attn.q_conv.conv"),
    ("self_attn.v_conv1d", "self_attn.v_conv.conv"),
];

fn plan(source: &Source<'_>) -> Result<Plan> {
    let linear = source.config.section("linear_attn_config")?;
    let mut source = source.renamed(FIELDS);
    if let Some(linear) = &linear {
        source = source.joined(linear, LINEAR);
    }
    for (field, count) in [
        ("first_k_dense_replace", 1),
        ("linear_conv_kernel_dim", 4),
        ("linear_head_dim", 128),
        ("linear_num_heads", 32),
    ] {
        source = source.with_default(field, count);
    }
    let config = &source.config;
    let full = linear.map(|l| l.optional_usizes("full_attn_layers")).transpose()?.flatten();
    let mut plan = source.decoder(ENTRY.name, NormWeight::Plain, |i| {
        // The list counts from one.
        let kind = source.layer_kind(i, |i| match &full {
            Some(full) if full.contains(&(i + 1)) => "full_attention",
            None if i > 0 && i % 4 == 0 => "full_attention",
            _ => "linear_attention",
        })?;
        let mixer: Box<dyn MixerSpec> = match kind.as_str() {
            "linear_attention" => Box::new(delta::Spec { rates: source.rates(), ..kda::hugging_face(config)? }),
            "full_attention" => Box::new(mla::Spec { rope: None, ..mla::Spec::from_config(config)? }),
            other => return Err(Error::config("layer_types", other, "linear_attention or full_attention")),
        };
        let ffn = glm4_moe::sigmoid_experts(&source)?.or_dense(config, i)?;
        source.pre_norm(NormWeight::Plain, ("self_attn", mixer), ffn)
    })?;
    plan.names = plan.names.with_leaves(LEAVES);
    Ok(plan)
}
