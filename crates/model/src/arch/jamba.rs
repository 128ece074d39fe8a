//! Jamba: Mamba layers with norms on step, input and output, a few attention layers without positions, experts in every second layer.

use reverie_files::gguf::Metadata;
use serde_json::{Map, Value};

use super::{ArchEntry, FEED_FORWARD, Source, gguf};
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
    gguf: Some(&gguf::Dialect {
        arch: "jamba",
        names: &[("mlp.router", "ffn_gate_inp")],
        interleaved_rows: false,
        adapt,
    }),
};

fn adapt(metadata: &Metadata, map: &mut Map<String, Value>) -> Result<()> {
    gguf::layer_types(map, "mamba");
    gguf::counts(metadata, map, "jamba", &[("ssm.time_step_rank", "mamba_dt_rank")])?;
    let sizes =
        [("ssm.conv_kernel", "mamba_d_conv"), ("ssm.inner_size", "mamba_d_ssm"), ("ssm.state_size", "mamba_d_state")];
    gguf::counts(metadata, map, "jamba", &sizes)
}

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
        let period = if falls(i, "attn_layer", (8, 4))? { "full_attention" } else { "mamba" };
        let mixer: (&str, Box<dyn MixerSpec>) = if source.layer_kind(i, |_| period)? == "full_attention" {
            let mut attention = source.attention(i)?;
            attention.rope = None;
            ("self_attn", Box::new(attention))
        } else {
            let mut scan = mamba::Spec::from_config(config)?;
            scan.norms = InnerNorms::Weighted(source.eps()?);
            scan.rates = source.rates();
            ("mamba", Box::new(scan))
        };
        let sparse = match source.gguf {
            Some(_) => source.weights.contains(&format!("blk.{i}.ffn_gate_inp.weight")),
            None => config.usize_or("num_experts", 16)? > 1 && falls(i, "expert_layer", (2, 1))?,
        };
        let ffn: Box<dyn FfnSpec> = if sparse {
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
