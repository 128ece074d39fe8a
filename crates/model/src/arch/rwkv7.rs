//! RWKV-7, as flash-linear-attention stores it.

use super::{ArchEntry, Source, flash};
use crate::error::Result;
use crate::mixer::{channel_mix, rwkv7};
use crate::plan::Plan;

/// The row.
pub const ENTRY: ArchEntry =
    ArchEntry { name: "rwkv7", aliases: &[], about: "RWKV-7: time mixing and channel mixing", plan, gguf: None };

fn plan(source: &Source<'_>) -> Result<Plan> {
    let channels = (4.0, channel_mix::Version::V7);
    flash::rwkv(source, ENTRY.name, channels, |i| Ok(Box::new(rwkv7::Spec::from_config(&source.config, i)?)))
}
