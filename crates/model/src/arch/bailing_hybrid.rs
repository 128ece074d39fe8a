//! Ling and Ring, hybrid: Kimi delta attention with a bounded decay, every few layers latent attention with a gate a head; a mixture in
//! all layers but the first ones.

use reverie_files::gguf::Metadata;
use serde_json::{Map, Value};

use super::{ArchEntry, Source, gguf, glm4_moe, kimi_linear};
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
    gguf: Some(&gguf::Dialect {
        arch: "bailingmoe3",
        names: &[
            ("mlp.gate.expert_bias", "exp_probs_b.bias!"),
            ("self_attn.f_proj", "ssm_f_a"),
            ("self_attn.g_proj", "ssm_g_a"),
            ("self_attn.head_gate", "attn_gate"),
        ],
        interleaved_rows: false,
        adapt,
    }),
};

/// What it calls the parts of a layer.
const LEAVES: Leaves =
    &[("self_attn.head_gate", "attention.g_proj"), ("self_attn.o_proj", "attention.dense"), ("self_attn", "attention")];

/// Its words for what Kimi Linear has fields of its own for.
const FIELDS: &[(&str, &str)] = &[
    ("linear_conv_kernel_dim", "short_conv_kernel_size"),
    ("linear_head_dim", "head_dim"),
    ("linear_num_heads", "num_attention_heads"),
];

fn adapt(metadata: &Metadata, map: &mut Map<String, Value>) -> Result<()> {
    for key in ["swiglu_clamp_exp", "swiglu_clamp_shexp"].map(|leaf| format!("bailingmoe3.{leaf}")) {
        if metadata.optional_f64s(&key)?.is_some_and(|limits| limits.iter().any(|l| *l != 0.0)) {
            return Err(Error::config(key, "limits", "none: experts whose activations are clamped are not computed"));
        }
    }
    let safe = metadata.optional_bool("bailingmoe3.kda.safe_gate")?.unwrap_or(true);
    map.insert("kda_safe_gate".into(), safe.into());
    gguf::numbers(metadata, map, &[("bailingmoe3.kda.gate_lower_bound", "kda_lower_bound")])?;
    gguf::kimi(metadata, map)
}

fn plan(source: &Source<'_>) -> Result<Plan> {
    let source = source.renamed(kimi_linear::FIELDS).renamed(FIELDS);
    let source = source.with_default("first_k_dense_replace", 2).with_default("linear_conv_kernel_dim", 4);
    let config = &source.config;
    let group = config.usize_or("layer_group_size", 6)?.max(1);
    let names = source.names().with_leaves(LEAVES);
    let mut plan = source.decoder(ENTRY.name, NormWeight::Plain, |i| {
        let kind =
            source.layer_kind(i, |i| if (i + 1) % group == 0 { "full_attention" } else { "linear_attention" })?;
        let mixer: Box<dyn MixerSpec> = match kind.as_str() {
            "linear_attention" => {
                let mut mixer = delta::Spec { rates: source.rates(), ..kda::hugging_face(config)? };
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
                // Where the checkpoint has no latent of queries, `q_lora_rank` means nothing.
                let down = names.spell(&format!("model.layers.{i}.self_attn.q_a_proj.weight"), source.weights);
                mixer.q_rank = mixer.q_rank.filter(|_| source.weights.contains(&down));
                mixer.head_gate = Some("head_gate");
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
