//! DeepSeek-V3.2: DeepSeek-V3 whose rows see the tokens that a lightning indexer chooses.

use super::{ArchEntry, Source, glm4_moe};
use crate::error::Result;
use crate::mixer::mla;
use crate::plan::{NormWeight, Plan};

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "deepseek_v32",
    aliases: &[],
    about: "DeepSeek-V3.2: DeepSeek-V3 with a lightning indexer",
    plan,
    gguf: None,
};

fn plan(source: &Source<'_>) -> Result<Plan> {
    source.decoder(ENTRY.name, NormWeight::Plain, |i| {
        let attention = mla::Spec::from_config(&source.config)?.indexed(&source.config)?;
        let ffn = glm4_moe::sigmoid_experts(source)?.or_dense(&source.config, i)?;
        source.pre_norm(NormWeight::Plain, ("self_attn", Box::new(attention)), ffn)
    })
}
