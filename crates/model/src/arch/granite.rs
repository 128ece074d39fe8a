//! Granite: Llama's plan with a factor on the embedding, on the scores, on what each block adds, and on the logits.

use reverie_files::gguf::Metadata;
use serde_json::{Map, Value};

use super::{ArchEntry, Source, gguf};
use crate::error::Result;
use crate::ffn::swiglu;
use crate::plan::{NormWeight, Plan};

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "granite",
    aliases: &[],
    about: "Granite 3 and 4, dense: Llama's plan with four multipliers",
    plan,
    gguf: Some(&gguf::Dialect { arch: "granite", names: &[], interleaved_rows: true, adapt }),
};

fn adapt(metadata: &Metadata, map: &mut Map<String, Value>) -> Result<()> {
    words(metadata, map, "granite")
}

/// Granite's factors in a GGUF file.
pub(super) fn words(metadata: &Metadata, map: &mut Map<String, Value>, arch: &str) -> Result<()> {
    for (leaf, field) in [
        ("attention.scale", "attention_multiplier"),
        ("embedding_scale", "embedding_multiplier"),
        ("logit_scale", "logits_scaling"),
        ("residual_scale", "residual_multiplier"),
    ] {
        gguf::numbers(metadata, map, &[(&format!("{arch}.{leaf}"), field)])?;
    }
    Ok(())
}

fn plan(source: &Source<'_>) -> Result<Plan> {
    let mut plan = source.decoder(ENTRY.name, NormWeight::Plain, |i| {
        let mut attention = source.attention(i)?;
        attention.scale = source.factor("attention_multiplier")?;
        let ffn = (swiglu::ENTRY.spec)(&source.config, i)?;
        source.pre_norm(NormWeight::Plain, ("self_attn", Box::new(attention)), ffn)
    })?;
    multiply(source, &mut plan)?;
    Ok(plan)
}

/// Granite's factors on what blocks add, on the embedding and on the logits.
pub(super) fn multiply(source: &Source<'_>, plan: &mut Plan) -> Result<()> {
    let residual = source.factor("residual_multiplier")?;
    plan.layers.iter_mut().flat_map(|l| &mut l.blocks).for_each(|b| b.scale = residual);
    plan.embed_scale = source.factor("embedding_multiplier")?;
    plan.head.scale = source.factor("logits_scaling")?.recip();
    Ok(())
}
