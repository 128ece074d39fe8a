//! Mixture of block attention: a model of flash-linear-attention.

use super::{ArchEntry, Source, flash};
use crate::error::Result;
use crate::mixer::moba;
use crate::plan::Plan;

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "moba",
    aliases: &[],
    about: "Mixture of block attention (flash-linear-attention)",
    plan,
    gguf: None,
};

fn plan(source: &Source<'_>) -> Result<Plan> {
    flash::decoder(source, ENTRY.name, |_| Ok(Box::new(moba::spec(&source.config)?)))
}
