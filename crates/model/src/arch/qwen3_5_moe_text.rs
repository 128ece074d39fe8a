//! Qwen3.5 (and 3.6) with experts: Qwen3.5's layers, Qwen3-Next's mixture.

use super::{ArchEntry, Source, gguf, qwen3_next};
use crate::error::Result;
use crate::mixer::delta;
use crate::plan::Plan;

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "qwen3_5_moe_text",
    aliases: &["qwen3_5_moe"],
    about: "Qwen3.5, Qwen3.6 with a mixture of experts",
    plan,
    gguf: Some(&gguf::Dialect {
        arch: "qwen35moe",
        names: qwen3_next::NAMES,
        interleaved_rows: false,
        adapt: gguf::qwen35,
    }),
};

fn plan(source: &Source<'_>) -> Result<Plan> {
    qwen3_next::decoder(source, ENTRY.name, [delta::Stored::Joint, delta::Stored::Tiled], |i| {
        qwen3_next::experts(source, i)
    })
}
