//! OLMoE: norms over all heads of q and k at once, a mixture of experts in every layer.

use super::{ArchEntry, Source, gguf};
use crate::error::{Error, Result};
use crate::ffn::moe;
use crate::plan::{NormWeight, Plan};

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "olmoe",
    aliases: &[],
    about: "OLMoE: mixture of experts, flat norms on q and k",
    plan,
    gguf: Some(&gguf::Dialect { arch: "olmoe", names: &[], interleaved_rows: false, adapt: gguf::as_is }),
};

fn plan(source: &Source<'_>) -> Result<Plan> {
    let clip = match source.config.optional_f64("clip_qkv")? {
        Some(clip) if !(clip > 0.0 && clip.is_finite()) => {
            return Err(Error::config("clip_qkv", clip, "a positive number, or null"));
        }
        clip => clip.map(|clip| clip as f32),
    };
    source.decoder(ENTRY.name, NormWeight::Plain, |i| {
        let mut attention = source.attention(i)?;
        attention.qk_norm = Some((source.eps()?, NormWeight::Plain));
        attention.flat_qk_norm = true;
        attention.clip = clip;
        let experts = Box::new(moe::Spec::from_config(&source.config)?);
        source.pre_norm(NormWeight::Plain, ("self_attn", Box::new(attention)), experts)
    })
}
