//! DeepSeek-V3 and R1: latent attention, sigmoid scores with a bias for the choice, shared experts.

use super::{ArchEntry, Source, glm4_moe};
use crate::error::Result;
use crate::mixer::mla;
use crate::plan::{NormWeight, Plan};

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "deepseek_v3",
    aliases: &[],
    about: "DeepSeek-V3, R1: latent attention, mixture of experts with sigmoid scores",
    plan,
    gguf: None,
};

pub(super) fn plan(source: &Source<'_>) -> Result<Plan> {
    source.decoder(ENTRY.name, NormWeight::Plain, |i| {
        let attention = mla::Spec::from_config(&source.config)?;
        let ffn = glm4_moe::sigmoid_experts(source)?.or_dense(&source.config, i)?;
        source.pre_norm(NormWeight::Plain, ("self_attn", Box::new(attention)), ffn)
    })
}
