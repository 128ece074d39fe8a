//! RWKV-4, in transformers' names: layer norms, a norm after the embedding, time mixing and channel mixing.

use super::{ArchEntry, Source, rwkv_own};
use crate::error::{Error, Result};
use crate::mixer::{channel_mix, rwkv4};
use crate::names::Leaves;
use crate::plan::{Block, NormSpec, NormWeight, Part, Plan};
use crate::rewrite::affine;

/// The row.
pub const ENTRY: ArchEntry =
    ArchEntry { name: "rwkv", aliases: &[], about: "RWKV-4: time mixing and channel mixing", plan, gguf: None };

/// What it calls the parts of a layer.
const LEAVES: Leaves = &[("self_attn", "attention"), ("mlp", "feed_forward")];

fn plan(source: &Source<'_>) -> Result<Plan> {
    let config = &source.config;
    let eps = config.f64_or("layer_norm_epsilon", 1e-5)? as f32;
    let width = config.usize("hidden_size")?;
    let inner = config.optional_usize("intermediate_size")?.unwrap_or_else(|| width.saturating_mul(4));
    let every = config.usize_or("rescale_every", 6)?;
    let mut plan = source.decoder(ENTRY.name, NormWeight::Plain, |i| {
        let norm = |name: &str| Some(NormSpec::layer(name, eps));
        let channels = channel_mix::Spec::new((width, inner), channel_mix::Version::V4)?;
        let mut blocks = vec![
            Block::new("self_attn", norm("ln1"), Part::Mixer(Box::new(rwkv4::Spec::from_config(config)?))),
            Block::new("mlp", norm("ln2"), Part::Mixer(Box::new(channels))),
        ];
        rwkv_own::rescale(&mut blocks, i, every);
        if i == 0 {
            blocks.insert(0, Block::new("", norm("pre_ln"), Part::Rewrite(Box::new(affine::Spec { factor: 1.0 }))));
        }
        Ok(blocks)
    })?;
    if !source.weights.contains("head.weight") && !config.flag("tie_word_embeddings")? {
        return Err(Error::config("head.weight", "no such tensor", "the head, or tie_word_embeddings"));
    }
    plan.names = plan.names.with_leaves(LEAVES);
    plan.final_norm = NormSpec::layer("model.norm", eps);
    plan.context = config.usize_or("context_length", plan.context)?.max(1);
    plan.head.name = plan.head.name.map(|_| "head".into());
    Ok(plan)
}
