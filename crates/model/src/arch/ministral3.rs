//! Ministral 3: Llama's plan with YaRN and queries that grow with their position.

use super::{ArchEntry, Source, gguf};
use crate::error::Result;
use crate::ffn::swiglu;
use crate::plan::{NormWeight, Plan};
use crate::rope;

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "ministral3",
    aliases: &["mistral3"],
    about: "Ministral 3 (text): queries that grow with their position",
    plan,
    gguf: Some(&gguf::Dialect { arch: "mistral3", names: &[], interleaved_rows: true, adapt: gguf::as_is }),
};

fn plan(source: &Source<'_>) -> Result<Plan> {
    let window = source.config.optional_usize("sliding_window")?;
    source.decoder(ENTRY.name, NormWeight::Plain, |i| {
        let mut attention = source.attention(i)?;
        attention.window = window;
        attention.growth = rope::growth(&source.config)?;
        let ffn = (swiglu::ENTRY.spec)(&source.config, i)?;
        source.pre_norm(NormWeight::Plain, ("self_attn", Box::new(attention)), ffn)
    })
}
