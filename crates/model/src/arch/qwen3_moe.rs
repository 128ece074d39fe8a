//! Qwen3 with experts: Qwen3's attention, a mixture without a shared expert.

use super::{ArchEntry, Source, gguf};
use crate::error::Result;
use crate::ffn::moe;
use crate::plan::{NormWeight, Plan};

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "qwen3_moe",
    aliases: &[],
    about: "Qwen3-MoE: Qwen3 with a mixture of experts",
    plan,
    gguf: Some(&gguf::Dialect { arch: "qwen3moe", names: &[], interleaved_rows: false, adapt: gguf::normalised }),
};

fn plan(source: &Source<'_>) -> Result<Plan> {
    source.decoder(ENTRY.name, NormWeight::Plain, |i| {
        let mut attention = source.attention(i)?;
        attention.qk_norm = Some((source.eps()?, NormWeight::Plain));
        attention.reach = source.upper_window(i)?;
        let ffn = moe::Spec::from_config(&source.config)?.or_dense(&source.config, i)?;
        source.pre_norm(NormWeight::Plain, ("self_attn", Box::new(attention)), ffn)
    })
}
