//! Gated slot attention: a model of flash-linear-attention.

use super::{ArchEntry, Source, flash};
use crate::error::Result;
use crate::mixer::gsa;
use crate::plan::Plan;

/// The row.
pub const ENTRY: ArchEntry =
    ArchEntry { name: "gsa", aliases: &[], about: "Gated slot attention (flash-linear-attention)", plan, gguf: None };

fn plan(source: &Source<'_>) -> Result<Plan> {
    flash::decoder(source, ENTRY.name, |_| Ok(Box::new(gsa::Spec::from_config(&source.config)?)))
}
