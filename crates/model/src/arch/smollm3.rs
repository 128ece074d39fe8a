//! SmolLM3: Llama's plan; some layers have no positions.

use super::{ArchEntry, Source, gguf};
use crate::error::{Error, Result};
use crate::ffn::swiglu;
use crate::plan::{NormWeight, Plan};

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "smollm3",
    aliases: &[],
    about: "SmolLM3: every fourth layer without positions",
    plan,
    gguf: Some(&gguf::Dialect { arch: "smollm3", names: &[], interleaved_rows: true, adapt: gguf::as_is }),
};

fn plan(source: &Source<'_>) -> Result<Plan> {
    let config = &source.config;
    let listed = config.optional_usizes("no_rope_layers")?;
    let n_layers = config.usize("num_hidden_layers")?;
    if let Some(listed) = &listed
        && listed.len() != n_layers
    {
        return Err(Error::config(
            "no_rope_layers",
            format!("{} entries", listed.len()),
            format!("num_hidden_layers = {n_layers}"),
        ));
    }
    let interval = config.optional_usize("no_rope_layer_interval")?.unwrap_or(4).max(1);
    source.decoder(ENTRY.name, NormWeight::Plain, |i| {
        let mut attention = source.attention(i)?;
        // Despite its name the list has 1 where a layer does rotate.
        let rotates = listed.as_ref().map_or((i + 1) % interval != 0, |l| l[i] != 0);
        if !rotates {
            attention.rope = None;
        }
        let ffn = (swiglu::ENTRY.spec)(config, i)?;
        source.pre_norm(NormWeight::Plain, ("self_attn", Box::new(attention)), ffn)
    })
}
