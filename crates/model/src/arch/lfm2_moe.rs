//! LFM2 with experts: LFM2's plan; after some dense layers, sigmoid scores with a bias for the choice.

use reverie_files::gguf::Metadata;
use reverie_tensor::Score;
use serde_json::{Map, Value};

use super::{ArchEntry, Source, gguf, lfm2};
use crate::error::Result;
use crate::ffn::{moe, swiglu};
use crate::plan::Plan;

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "lfm2_moe",
    aliases: &[],
    about: "LFM2 with experts: gated short convolutions and attention",
    plan,
    gguf: Some(&gguf::Dialect { arch: "lfm2moe", names: lfm2::GGUF_LEAVES, interleaved_rows: false, adapt }),
};

fn adapt(metadata: &Metadata, map: &mut Map<String, Value>) -> Result<()> {
    gguf::counts(metadata, map, "lfm2moe", &[("leading_dense_block_count", "num_dense_layers")])?;
    lfm2::words(metadata, map, "lfm2moe")
}

fn plan(source: &Source<'_>) -> Result<Plan> {
    let config = &source.config;
    let dense = config.usize_or("num_dense_layers", 2)?;
    let biased = config.optional_bool("use_expert_bias")?.unwrap_or(true);
    lfm2::with_ffn(source, ENTRY.name, |i| {
        if i < dense {
            return (swiglu::ENTRY.spec)(config, i);
        }
        let mut experts = moe::Spec::from_config(config)?;
        experts.router.score = Score::Sigmoid;
        experts.router.bias = biased.then_some("expert_bias");
        experts.router.normalise = config.optional_bool("norm_topk_prob")?.unwrap_or(true).then_some(1e-6);
        Ok(Box::new(experts))
    })
}
