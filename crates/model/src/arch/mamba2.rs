//! Mamba-2: layers that are one mixer each (Mamba-Codestral among them).

use reverie_files::gguf::Metadata;
use serde_json::{Map, Value};

use super::{ArchEntry, Source, gguf};
use crate::error::Result;
use crate::plan::{NormWeight, Part, Plan};

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "mamba2",
    aliases: &[],
    about: "Mamba-2: linear recurrences (SSD) alone",
    plan,
    gguf: Some(&gguf::Dialect { arch: "mamba2", names: &[], interleaved_rows: false, adapt }),
};

fn adapt(metadata: &Metadata, map: &mut Map<String, Value>) -> Result<()> {
    gguf::state_space(metadata, map, "mamba2")
}

fn plan(source: &Source<'_>) -> Result<Plan> {
    source.decoder(ENTRY.name, NormWeight::Plain, |_| {
        Ok(vec![source.lone("mixer", Part::Mixer(Box::new(source.state_space()?)))?])
    })
}
