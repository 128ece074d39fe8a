//! Qwen1.5 and Qwen2 with experts: Qwen2's attention, and a shared expert behind a gate of its own beside the chosen ones.

use super::{ArchEntry, Source, gguf};
use crate::error::Result;
use crate::ffn::{glu, moe};
use crate::plan::{NormWeight, Plan};

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "qwen2_moe",
    aliases: &[],
    about: "Qwen2-MoE: mixture of experts with a gated shared one",
    plan,
    gguf: Some(&gguf::Dialect { arch: "qwen2moe", names: &[], interleaved_rows: false, adapt: gguf::as_is }),
};

fn plan(source: &Source<'_>) -> Result<Plan> {
    source.decoder(ENTRY.name, NormWeight::Plain, |i| {
        let mut attention = source.attention(i)?;
        attention.qkv_bias = source.config.optional_bool("qkv_bias")?.unwrap_or(true);
        attention.reach = source.upper_window(i)?;
        let ffn = experts(source)?.or_dense(&source.config, i)?;
        source.pre_norm(NormWeight::Plain, ("self_attn", Box::new(attention)), ffn)
    })
}

/// The mixture that this family and its successors share.
pub(super) fn experts(source: &Source<'_>) -> Result<moe::Spec> {
    let experts = moe::Spec::from_config(&source.config)?;
    let inner = glu::width(&source.config, "shared_expert_intermediate_size")?;
    let mut experts = experts.with_shared("shared_expert", inner);
    if let Some(shared) = &mut experts.shared {
        shared.gate = Some("shared_expert_gate");
    }
    Ok(experts)
}
