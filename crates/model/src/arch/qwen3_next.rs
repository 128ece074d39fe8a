//! Qwen3-Next and Qwen3.5 with experts: three gated delta layers, then one gated attention layer, a mixture with a gated shared expert
//! in each; norms stored minus one.

use super::{ArchEntry, Source, qwen2_moe};
use crate::error::{Error, Result};
use crate::mixer::delta;
use crate::plan::{FfnSpec, MixerSpec, NormWeight, Plan};

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "qwen3_next",
    aliases: &[],
    about: "Qwen3-Next: gated delta and gated attention layers, mixture of experts",
    plan,
    gguf: None,
};

fn plan(source: &Source<'_>) -> Result<Plan> {
    decoder(source, ENTRY.name, delta::Stored::ByKeyHead, |i| experts(source, i))
}

/// The mixture of this family and its successors; dense where the config says so.
pub(super) fn experts(source: &Source<'_>, layer: usize) -> Result<Box<dyn FfnSpec>> {
    let mut experts = qwen2_moe::experts(source)?;
    if !source.config.has("norm_topk_prob") {
        experts.router.normalise = Some(0.0);
    }
    experts.or_dense(&source.config, layer)
}

/// The decoder that Qwen3-Next and Qwen3.5 share.
pub(super) fn decoder(
    source: &Source<'_>,
    arch: &'static str,
    stored: delta::Stored,
    ffn: impl Fn(usize) -> Result<Box<dyn FfnSpec>>,
) -> Result<Plan> {
    let norm = NormWeight::MinusOne;
    let interval = source.config.optional_usize("full_attention_interval")?.unwrap_or(4).max(1);
    source.decoder(arch, norm, |i| {
        let kind =
            source.layer_kind(i, |i| if (i + 1) % interval == 0 { "full_attention" } else { "linear_attention" })?;
        let mixer: (&str, Box<dyn MixerSpec>) = match kind.as_str() {
            "linear_attention" => {
                let mut delta = delta::Spec::gated(&source.config)?;
                delta.stored = if source.gguf.is_some() { delta::Stored::Ggml } else { stored };
                ("linear_attn", Box::new(delta))
            }
            "full_attention" => {
                let mut attention = source.attention(i)?;
                attention.qk_norm = Some((source.eps()?, source.norm_weight(norm)));
                attention.output_gate = true;
                ("self_attn", Box::new(attention))
            }
            other => return Err(Error::config("layer_types", other, "linear_attention or full_attention")),
        };
        source.pre_norm(norm, mixer, ffn(i)?)
    })
}
