//! Ling and Ring, hybrid: Kimi delta attention with a bounded decay, every few layers latent attention with a gate a head; a mixture in
//! all layers but the first ones.

use super::{ArchEntry, Source, glm4_moe, kimi_linear};
use crate::error::{Error, Result};
use crate::mixer::{delta, kda, mla};
use crate::names::Leaves;
use crate::plan::{MixerSpec, NormWeight, Plan};

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "bailing_hybrid",
    aliases: &[],
    about: "Ling, Ring (hybrid): bounded Kimi delta attention and latent attention, mixture of experts",
    plan,
    gguf: None,
};

/// What it calls the parts of a layer.
const LEAVES: Leaves = &[("self_attn.o_proj", "attention.dense"), ("self_attn", "attention")];

/// Its words for what Kimi Linear has fields of its own for.
const FIELDS: &[(&str, &str)] = &[
    ("linear_conv_kernel_dim", "short_conv_kernel_size"),
    ("linear_head_dim", "head_dim"),
    ("linear_num_heads", "num_attention_heads"),
];

fn plan(source: &Source<'_>) -> Result<Plan> {
    let source = source.renamed(kimi_linear::FIELDS).renamed(FIELDS);
    let source = source.with_default("first_k_dense_replace", 2).with_default("linear_conv_kernel_dim", 4);
    let config = &source.config;
    let group = config.usize_or("layer_group_size", 6)?.max(1);
    let mut plan = source.decoder(ENTRY.name, NormWeight::Plain, |i| {
        let kind =
            source.layer_kind(i, |i| if (i + 1) % group == 0 { "full_attention" } else { "linear_attention" })?;
        let mixer: Box<dyn MixerSpec> = match kind.as_str() {
            "linear_attention" => {
                let mut mixer = kda::hugging_face(config)?;
                if config.optional_bool("kda_safe_gate")?.unwrap_or(true) {
                    mixer.decay = match kda::decay(config, "kda_lower_bound")? {
                        delta::Forget::ByKey => delta::Forget::Bounded(-5.0),
                        bounded => bounded,
                    };
                }
                Box::new(mixer)
            }
            "full_attention" => {
                let mut mixer = mla::Spec::from_config(config)?;
                // Queries come from the stream, whatever `q_lora_rank` says.
                mixer.q_rank = None;
                mixer.head_gate = Some("g_proj");
                Box::new(mixer)
            }
            other => return Err(Error::config("layer_types", other, "linear_attention or full_attention")),
        };
        let mut experts = glm4_moe::sigmoid_experts(&source)?;
        experts.router.bias = Some("gate.expert_bias");
        source.pre_norm(NormWeight::Plain, ("self_attn", mixer), experts.or_dense(config, i)?)
    })?;
    plan.names = plan.names.with_leaves(LEAVES);
    Ok(plan)
}
