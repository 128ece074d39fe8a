//! Mistral: Llama's plan with a sliding window over every layer where the config has one.

use reverie_tensor::Reach;

use super::{ArchEntry, Source};
use crate::error::Result;
use crate::ffn::swiglu;
use crate::plan::{NormWeight, Plan};

/// The row. GGUF files of this family say "llama" and have lost the window.
pub const ENTRY: ArchEntry =
    ArchEntry { name: "mistral", aliases: &[], about: "Mistral 7B and its successors", plan, gguf: None };

fn plan(source: &Source<'_>) -> Result<Plan> {
    let window = source.config.optional_usize("sliding_window")?;
    source.decoder(ENTRY.name, NormWeight::Plain, |i| {
        let mut attention = source.attention(i)?;
        attention.reach = Reach::window(window);
        let ffn = (swiglu::ENTRY.spec)(&source.config, i)?;
        source.pre_norm(NormWeight::Plain, ("self_attn", Box::new(attention)), ffn)
    })
}
