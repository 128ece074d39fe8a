//! RWKV-6, as flash-linear-attention stores it.

use super::{ArchEntry, Source, flash};
use crate::error::Result;
use crate::mixer::{channel_mix, rwkv6};
use crate::plan::Plan;

/// The row.
pub const ENTRY: ArchEntry =
    ArchEntry { name: "rwkv6", aliases: &[], about: "RWKV-6: time mixing and channel mixing", plan, gguf: None };

fn plan(source: &Source<'_>) -> Result<Plan> {
    let channels = (3.5, channel_mix::Version::V6);
    flash::rwkv(source, ENTRY.name, channels, |_| Ok(Box::new(rwkv6::Spec::from_config(&source.config)?)))
}
