//! Qwen3.5 (and 3.6), dense text model: three gated delta layers, then one gated attention layer; norms stored minus one.

use super::{ArchEntry, Source, gguf, qwen3_next};
use crate::error::Result;
use crate::ffn::swiglu;
use crate::mixer::delta;
use crate::plan::Plan;

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "qwen3_5_text",
    aliases: &["qwen3_5"],
    about: "Qwen3.5, Qwen3.6: gated delta and gated attention layers",
    plan,
    gguf: Some(&gguf::Dialect {
        arch: "qwen35",
        names: qwen3_next::NAMES,
        interleaved_rows: false,
        adapt: gguf::qwen35,
    }),
};

fn plan(source: &Source<'_>) -> Result<Plan> {
    let ffn = |i: usize| (swiglu::ENTRY.spec)(&source.config, i);
    qwen3_next::decoder(source, ENTRY.name, [delta::Stored::Joint, delta::Stored::Tiled], ffn)
}
