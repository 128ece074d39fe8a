//! Granite 4: Mamba-2 and attention layers, usually without positions, Granite's four multipliers, and a feed-forward that serves every
//! token, beside experts or alone.

use reverie_files::gguf::Metadata;
use reverie_tensor::Act;
use serde_json::{Map, Value, json};

use super::{ArchEntry, Source, gguf, granite};
use crate::error::{Error, Result};
use crate::ffn::{glu, moe, swiglu};
use crate::names::Leaves;
use crate::plan::{FfnSpec, MixerSpec, NormWeight, Plan};

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "granitemoehybrid",
    aliases: &[],
    about: "Granite 4: Mamba-2 and attention layers, dense or with experts",
    plan,
    gguf: Some(&gguf::Dialect {
        arch: "granitehybrid",
        names: &[
            ("mlp.shared.down_proj", "ffn_down_shexp"),
            ("mlp.shared.gate_proj", "ffn_gate_shexp"),
            ("mlp.shared.up_proj", "ffn_up_shexp"),
        ],
        interleaved_rows: true,
        adapt,
    }),
};

/// Its words. The feed-forward that serves every token is `mlp` where it is alone.
const DENSE: Leaves = &[
    ("mlp.down_proj", "shared_mlp.output_linear"),
    ("mlp.gate_up_proj", "shared_mlp.input_linear"),
    ("mlp", "shared_mlp"),
];

/// The same beside experts.
const SPARSE: Leaves = &[
    ("mlp.gate", "block_sparse_moe.router.layer"),
    ("mlp.shared.down_proj", "shared_mlp.output_linear"),
    ("mlp.shared.gate_up_proj", "shared_mlp.input_linear"),
    ("mlp.shared", "shared_mlp"),
    ("mlp", "block_sparse_moe"),
];

/// Bamba is written under this word too, without factors and with positions.
fn adapt(metadata: &Metadata, map: &mut Map<String, Value>) -> Result<()> {
    let arch = "granitehybrid";
    granite::words(metadata, map, arch)?;
    gguf::layer_types(map, "mamba");
    let shared = metadata.optional_usize(&format!("{arch}.expert_shared_feed_forward_length"))?;
    let inner = shared.map(Value::from).or_else(|| map.get("intermediate_size").cloned());
    map.insert("shared_intermediate_size".into(), inner.unwrap_or_default());
    if metadata.optional_bool(&format!("{arch}.rope.scaling.finetuned"))?.unwrap_or(false) {
        map.insert("position_embedding_type".into(), json!("rope"));
    }
    gguf::state_space(metadata, map, arch)
}

fn plan(source: &Source<'_>) -> Result<Plan> {
    let config = &source.config;
    let sparse = config.usize_or(config.spelling(&["num_local_experts", "num_experts"]), 0)? > 0;
    let rotates = config.optional_text("position_embedding_type")? == Some("rope");
    let mut plan = source.decoder(ENTRY.name, NormWeight::Plain, |i| {
        let kind = source.layer_kind(i, |_| "mamba")?;
        let mixer: (&str, Box<dyn MixerSpec>) = match kind.as_str() {
            "mamba" | "linear_attention" => ("mamba", Box::new(source.state_space()?)),
            "attention" | "full_attention" => {
                let mut attention = source.attention(i)?;
                if source.gguf.is_none() || config.has("attention_multiplier") {
                    attention.scale = source.factor("attention_multiplier")?;
                }
                attention.rope = attention.rope.filter(|_| rotates);
                ("self_attn", Box::new(attention))
            }
            other => return Err(Error::config("layer_types", other, "mamba or attention")),
        };
        let shared = glu::width(config, "shared_intermediate_size")?;
        let ffn: Box<dyn FfnSpec> = if sparse {
            let mut experts = moe::Spec::from_config(config)?.with_shared("shared", shared);
            experts.router.normalise = Some(0.0);
            Box::new(experts)
        } else {
            Box::new(glu::Spec::of_width(swiglu::ENTRY.name, Act::Silu, config, "shared_intermediate_size")?)
        };
        source.pre_norm(NormWeight::Plain, mixer, ffn)
    })?;
    plan.names = plan.names.with_leaves(if sparse { SPARSE } else { DENSE });
    granite::multiply(source, &mut plan)?;
    Ok(plan)
}
