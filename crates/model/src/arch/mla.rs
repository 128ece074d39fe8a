//! Latent attention alone: a model of flash-linear-attention.

use super::{ArchEntry, Source, flash};
use crate::error::Result;
use crate::mixer::mla;
use crate::names::Leaves;
use crate::plan::Plan;

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "mla",
    aliases: &[],
    about: "Multi-head latent attention (flash-linear-attention)",
    plan,
    gguf: None,
};

/// Its projections are numbered in the order of their use.
const LEAVES: Leaves = &[
    ("self_attn.q_a_proj", "attn.q_proj.0"),
    ("self_attn.q_a_layernorm", "attn.q_proj.1"),
    ("self_attn.q_b_proj", "attn.q_proj.2"),
    ("self_attn.kv_a_proj", "attn.kv_proj.0"),
    ("self_attn.kv_a_layernorm", "attn.kv_proj.1"),
    ("self_attn.kv_b_proj", "attn.kv_proj.2"),
    ("self_attn", "attn"),
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "mlp_norm"),
];

fn plan(source: &Source<'_>) -> Result<Plan> {
    let mut plan = flash::decoder(source, ENTRY.name, |_| Ok(Box::new(mla::Spec::flash(&source.config)?)))?;
    plan.names = plan.names.with_leaves(LEAVES);
    Ok(plan)
}
