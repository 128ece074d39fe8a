//! HGRN2: a model of flash-linear-attention.

use super::{ArchEntry, Source, flash};
use crate::error::Result;
use crate::mixer::hgrn2;
use crate::plan::Plan;

/// The row.
pub const ENTRY: ArchEntry =
    ArchEntry { name: "hgrn2", aliases: &[], about: "HGRN2 (flash-linear-attention)", plan, gguf: None };

fn plan(source: &Source<'_>) -> Result<Plan> {
    flash::decoder(source, ENTRY.name, |i| Ok(Box::new(hgrn2::spec(&source.config, i)?)))
}
