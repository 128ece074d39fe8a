//! Kimi delta attention: a model of flash-linear-attention.

use super::{ArchEntry, Source, flash};
use crate::error::Result;
use crate::mixer::kda;
use crate::plan::Plan;

/// The row.
pub const ENTRY: ArchEntry =
    ArchEntry { name: "kda", aliases: &[], about: "Kimi delta attention (flash-linear-attention)", plan, gguf: None };

fn plan(source: &Source<'_>) -> Result<Plan> {
    flash::decoder(source, ENTRY.name, |_| Ok(Box::new(kda::spec(&source.config)?)))
}
