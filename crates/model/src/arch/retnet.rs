//! RetNet: a model of flash-linear-attention.

use super::{ArchEntry, Source, flash};
use crate::error::Result;
use crate::mixer::retnet;
use crate::plan::Plan;

/// The row.
pub const ENTRY: ArchEntry =
    ArchEntry { name: "retnet", aliases: &[], about: "RetNet (flash-linear-attention)", plan, gguf: None };

fn plan(source: &Source<'_>) -> Result<Plan> {
    flash::decoder(source, ENTRY.name, |_| Ok(Box::new(retnet::spec(&source.config)?)))
}
