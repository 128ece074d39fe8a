//! Ministral 3: Llama's plan with YaRN and queries that grow with their position.

use reverie_files::gguf::Metadata;
use reverie_tensor::Reach;
use serde_json::{Map, Value};

use super::{ArchEntry, Source, gguf};
use crate::error::Result;
use crate::ffn::swiglu;
use crate::plan::{NormWeight, Plan};
use crate::rope;

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "ministral3",
    aliases: &["mistral3"],
    about: "Ministral 3 (text): queries that grow with their position",
    plan,
    gguf: Some(&gguf::Dialect { arch: "mistral3", names: &[], interleaved_rows: true, adapt }),
};

/// What the file says of the frequencies' scaling beside its kind.
fn adapt(metadata: &Metadata, map: &mut Map<String, Value>) -> Result<()> {
    let pairs = [
        ("mistral3.attention.temperature_scale", "llama_4_scaling_beta"),
        ("mistral3.rope.scaling.yarn_log_multiplier", "mscale_all_dim"),
        ("mistral3.rope.scaling.yarn_log_multiplier", "mscale"),
    ];
    match map.get_mut("rope_scaling").and_then(Value::as_object_mut) {
        Some(scaling) => gguf::numbers(metadata, scaling, &pairs),
        None => Ok(()),
    }
}

fn plan(source: &Source<'_>) -> Result<Plan> {
    let window = source.config.optional_usize("sliding_window")?;
    source.decoder(ENTRY.name, NormWeight::Plain, |i| {
        let mut attention = source.attention(i)?;
        attention.reach = Reach::window(window);
        attention.growth = rope::growth(&source.config)?;
        let ffn = (swiglu::ENTRY.spec)(&source.config, i)?;
        source.pre_norm(NormWeight::Plain, ("self_attn", Box::new(attention)), ffn)
    })
}
