//! Gemma 2: norms before and after each part, stored minus one; a scaled embedding; GeGLU; sliding and full layers in turn;
//! soft-capped scores and logits.

use reverie_files::gguf::Metadata;
use serde_json::{Map, Value};

use super::{ArchEntry, Source, gemma3_text, gguf};
use crate::error::Result;
use crate::plan::Plan;

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "gemma2",
    aliases: &[],
    about: "Gemma 2: sliding and full layers in turn, soft-capped scores",
    plan,
    gguf: Some(&gguf::Dialect { arch: "gemma2", names: gemma3_text::GGUF_NAMES, interleaved_rows: false, adapt }),
};

fn adapt(metadata: &Metadata, map: &mut Map<String, Value>) -> Result<()> {
    let pairs = [
        ("gemma2.attn_logit_softcapping", "attn_logit_softcapping"),
        ("gemma2.final_logit_softcapping", "final_logit_softcapping"),
    ];
    gguf::numbers(metadata, map, &pairs)
}

fn plan(source: &Source<'_>) -> Result<Plan> {
    let config = &source.config;
    let cap = config.optional_f64("attn_logit_softcapping")?.map(|c| c as f32);
    let kind = |i: usize| if i.is_multiple_of(2) { "sliding_attention" } else { "full_attention" };
    gemma3_text::decoder(source, ENTRY.name, kind, |attention, _| {
        attention.softcap = cap;
        Ok(())
    })
}
