//! Qwen3, dense: Llama's plan with a norm over each head of q and k.

use super::{ArchEntry, Source, gguf};
use crate::error::Result;
use crate::ffn::swiglu;
use crate::plan::{NormWeight, Plan};

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "qwen3",
    aliases: &[],
    about: "Qwen3, dense",
    plan,
    gguf: Some(&gguf::Dialect { arch: "qwen3", names: &[], interleaved_rows: false, adapt: gguf::as_is }),
};

fn plan(source: &Source<'_>) -> Result<Plan> {
    source.decoder(ENTRY.name, NormWeight::Plain, |i| {
        let mut attention = source.attention(i)?;
        attention.qk_norm = Some((source.eps()?, NormWeight::Plain));
        attention.reach = source.upper_window(i)?;
        let ffn = (swiglu::ENTRY.spec)(&source.config, i)?;
        source.pre_norm(NormWeight::Plain, ("self_attn", Box::new(attention)), ffn)
    })
}
