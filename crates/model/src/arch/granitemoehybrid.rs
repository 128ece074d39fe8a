//! Granite 4: Mamba-2 and attention layers, usually without positions, Granite's four multipliers, and a feed-forward that serves every
//! token, beside experts or alone.

use reverie_tensor::Act;

use super::{ArchEntry, Source, granite};
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
    gguf: None,
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

fn plan(source: &Source<'_>) -> Result<Plan> {
    let config = &source.config;
    let sparse = config.optional_usize("num_local_experts")?.unwrap_or(0) > 0;
    let rotates = config.optional_text("position_embedding_type")? == Some("rope");
    let mut plan = source.decoder(ENTRY.name, NormWeight::Plain, |i| {
        let kind = source.layer_kind(i, |_| "mamba")?;
        let mixer: (&str, Box<dyn MixerSpec>) = match kind.as_str() {
            "mamba" | "linear_attention" => ("mamba", Box::new(source.state_space()?)),
            "attention" | "full_attention" => {
                let mut attention = source.attention(i)?;
                attention.scale = source.factor("attention_multiplier")?;
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
