//! Qwen2 and Qwen2.5: Llama's plan with biases on q, k and v.

use super::{ArchEntry, Source, gguf};
use crate::error::Result;
use crate::ffn::swiglu;
use crate::plan::{NormWeight, Plan};

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "qwen2",
    aliases: &[],
    about: "Qwen2, Qwen2.5",
    plan,
    gguf: Some(&gguf::Dialect { arch: "qwen2", names: &[], interleaved_rows: false, adapt: gguf::as_is }),
};

fn plan(source: &Source<'_>) -> Result<Plan> {
    source.decoder(ENTRY.name, NormWeight::Plain, |i| {
        let mut attention = source.attention(i)?;
        attention.qkv_bias = true;
        attention.reach = source.upper_window(i)?;
        let ffn = (swiglu::ENTRY.spec)(&source.config, i)?;
        source.pre_norm(NormWeight::Plain, ("self_attn", Box::new(attention)), ffn)
    })
}
