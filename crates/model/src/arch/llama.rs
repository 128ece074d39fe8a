//! Llama 2, 3, 3.1 and what follows their plan: pre-norm, grouped queries, SwiGLU.

use super::{ArchEntry, Source, gguf, mixtral};
use crate::error::Result;
use crate::ffn::swiglu;
use crate::plan::{NormWeight, Plan};

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "llama",
    aliases: &[],
    about: "Llama 2, 3, 3.1, 3.2 (text) and models of their plan",
    plan,
    gguf: Some(&gguf::Dialect { arch: "llama", names: &[], interleaved_rows: true, adapt: gguf::as_is }),
};

fn plan(source: &Source<'_>) -> Result<Plan> {
    source.decoder(ENTRY.name, NormWeight::Plain, |i| {
        // GGUF has no word of its own for Mixtral.
        let ffn = match source.gguf.is_some() && source.config.has("num_experts") {
            true => mixtral::experts(source)?,
            false => (swiglu::ENTRY.spec)(&source.config, i)?,
        };
        source.pre_norm(NormWeight::Plain, ("self_attn", Box::new(source.attention(i)?)), ffn)
    })
}
