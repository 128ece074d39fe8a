//! DeepSeek-V2 and V2-Lite: latent attention, softmax scores over groups ranked by their best expert, shared experts.

use super::{ArchEntry, Source, deepseek_v3, gguf};
use crate::error::{Error, Result};
use crate::ffn::moe;
use crate::mixer::mla;
use crate::plan::{NormWeight, Plan};
use reverie_tensor::GroupRank;

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "deepseek_v2",
    aliases: &[],
    about: "DeepSeek-V2, V2-Lite: latent attention, mixture of experts",
    plan,
    gguf: Some(&gguf::Dialect { arch: "deepseek2", names: &[], interleaved_rows: false, adapt: gguf::latent }),
};

fn plan(source: &Source<'_>) -> Result<Plan> {
    let config = &source.config;
    // GGUF has one word for this family and the next, which alone has biases for the choice.
    let last = config.usize("num_hidden_layers")?.saturating_sub(1);
    if source.gguf.is_some() && source.weights.contains(&format!("blk.{last}.exp_probs_b.bias")) {
        return deepseek_v3::plan(source);
    }
    source.decoder(ENTRY.name, NormWeight::Plain, |i| {
        let mut experts = moe::Spec::from_config(config)?.with_shared_experts(config)?;
        match config.optional_text("topk_method")?.unwrap_or("greedy") {
            "greedy" => {}
            "group_limited_greedy" => experts = experts.with_groups(config, GroupRank::Best)?,
            other => return Err(Error::config("topk_method", other, "greedy or group_limited_greedy")),
        }
        let attention = mla::Spec::from_config(config)?;
        source.pre_norm(NormWeight::Plain, ("self_attn", Box::new(attention)), experts.or_dense(config, i)?)
    })
}
