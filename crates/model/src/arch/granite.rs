//! Granite: Llama's plan with a factor on the embedding, on the scores, on what each block adds, and on the logits.

use reverie_files::gguf::Metadata;
use serde_json::{Map, Value};

use super::{ArchEntry, Source, gguf};
use crate::error::{Error, Result};
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
    let pairs = [
        ("granite.attention.scale", "attention_multiplier"),
        ("granite.embedding_scale", "embedding_multiplier"),
        ("granite.logit_scale", "logits_scaling"),
        ("granite.residual_scale", "residual_multiplier"),
    ];
    gguf::numbers(metadata, map, &pairs)
}

fn plan(source: &Source<'_>) -> Result<Plan> {
    let factor = |field: &str| -> Result<f32> {
        match source.config.optional_f64(field)?.unwrap_or(1.0) {
            f if f.is_finite() && f != 0.0 => Ok(f as f32),
            f => Err(Error::config(field, f, "a finite number other than 0")),
        }
    };
    let residual = factor("residual_multiplier")?;
    let mut plan = source.decoder(ENTRY.name, NormWeight::Plain, |i| {
        let mut attention = source.attention(i)?;
        attention.scale = factor("attention_multiplier")?;
        let ffn = (swiglu::ENTRY.spec)(&source.config, i)?;
        let mut blocks = source.pre_norm(NormWeight::Plain, ("self_attn", Box::new(attention)), ffn)?;
        blocks.iter_mut().for_each(|b| b.scale = residual);
        Ok(blocks)
    })?;
    plan.embed_scale = factor("embedding_multiplier")?;
    plan.head.scale = factor("logits_scaling")?.recip();
    Ok(plan)
}
