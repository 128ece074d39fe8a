//! Native sparse attention: a model of flash-linear-attention.

use super::{ArchEntry, Source, flash};
use crate::error::Result;
use crate::mixer::nsa;
use crate::plan::Plan;

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "nsa",
    aliases: &[],
    about: "Native sparse attention (flash-linear-attention)",
    plan,
    gguf: None,
};

fn plan(source: &Source<'_>) -> Result<Plan> {
    flash::decoder(source, ENTRY.name, |_| Ok(Box::new(nsa::spec(&source.config)?)))
}
