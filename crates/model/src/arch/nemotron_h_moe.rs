//! Nemotron 3 as GGUF calls it. Hugging Face calls it as Nemotron-H, whose plan it is.

use reverie_files::gguf::Metadata;
use serde_json::{Map, Value};

use super::{ArchEntry, gguf, nemotron_h};
use crate::error::Result;

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "nemotron_h_moe",
    aliases: &[],
    about: "Nemotron 3 in GGUF files",
    plan: nemotron_h::plan,
    gguf: Some(&gguf::Dialect {
        arch: "nemotron_h_moe",
        names: nemotron_h::GGUF_LEAVES,
        interleaved_rows: false,
        adapt,
    }),
};

fn adapt(metadata: &Metadata, map: &mut Map<String, Value>) -> Result<()> {
    let arch = "nemotron_h_moe";
    let shared = [("expert_shared_feed_forward_length", "moe_shared_expert_intermediate_size")];
    gguf::counts(metadata, map, arch, &shared)?;
    if let Some(width) = metadata.optional_usize("nemotron_h_moe.moe_latent_size")? {
        map.insert("moe_latent_size".into(), width.into());
    }
    gguf::state_space(metadata, map, arch)
}
