//! DeltaNet: a model of flash-linear-attention.

use super::{ArchEntry, Source, flash};
use crate::error::Result;
use crate::mixer::deltanet;
use crate::plan::Plan;

/// The row.
pub const ENTRY: ArchEntry =
    ArchEntry { name: "delta_net", aliases: &[], about: "DeltaNet (flash-linear-attention)", plan, gguf: None };

fn plan(source: &Source<'_>) -> Result<Plan> {
    flash::decoder(source, ENTRY.name, |_| Ok(Box::new(deltanet::spec(&source.config)?)))
}
