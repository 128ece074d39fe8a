//! Jamba: Mamba layers with norms on step, input and output, a few attention layers without positions, experts in every second layer.

use super::{ArchEntry, FEED_FORWARD, Source};
use crate::error::{Error, Result};
use crate::ffn::{moe, swiglu};
use crate::mixer::mamba::{self, InnerNorms};
use crate::plan::{FfnSpec, MixerSpec, NormWeight, Plan};

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "jamba",
    aliases: &[],
    about: "Jamba: Mamba and attention layers, experts in some",
    plan,
    gguf: None,
};

fn plan(source: &Source<'_>) -> Result<Plan> {
    let config = &source.config;
    let falls = |i: usize, what: &str, (period, offset): (usize, usize)| -> Result<bool> {
        let field = format!("{what}_period");
        match (config.usize_or(&field, period)?, config.usize_or(&format!("{what}_offset"), offset)?) {
            (0, _) => Err(Error::config(field, 0, "at least 1")),
            (period, offset) => Ok(i % period == offset),
        }
    };
    let mut plan = source.decoder(ENTRY.name, NormWeight::Plain, |i| {
        let mixer: (&str, Box<dyn MixerSpec>) = if falls(i, "attn_layer", (8, 4))? {
            let mut attention = source.attention(i)?;
            attention.rope = None;
            ("self_attn", Box::new(attention))
        } else {
            let mut scan = mamba::Spec::from_config(config)?;
            scan.norms = InnerNorms::Weighted(source.eps()?);
            scan.rates = source.rates();
            ("mamba", Box::new(scan))
        };
        let ffn: Box<dyn FfnSpec> = if config.usize_or("num_experts", 16)? > 1 && falls(i, "expert_layer", (2, 1))? {
            let mut experts = moe::Spec::from_config(config)?;
            experts.router.leaf = "router";
            experts.router.normalise = None;
            Box::new(experts)
        } else {
            (swiglu::ENTRY.spec)(config, i)?
        };
        source.pre_norm(NormWeight::Plain, mixer, ffn)
    })?;
    plan.names = plan.names.with_leaves(FEED_FORWARD);
    Ok(plan)
}
