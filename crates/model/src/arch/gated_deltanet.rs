//! Gated DeltaNet: a model of flash-linear-attention.

use super::{ArchEntry, Source, flash};
use crate::error::Result;
use crate::mixer::gated_delta;
use crate::plan::Plan;

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "gated_deltanet",
    aliases: &[],
    about: "Gated DeltaNet (flash-linear-attention)",
    plan,
    gguf: None,
};

fn plan(source: &Source<'_>) -> Result<Plan> {
    flash::decoder(source, ENTRY.name, |_| Ok(Box::new(gated_delta::flash(&source.config)?)))
}
