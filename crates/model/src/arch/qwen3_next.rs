//! Qwen3-Next and Qwen3.5 with experts: three gated delta layers, then one gated attention layer, a mixture with a gated shared expert
//! in each; norms stored minus one.

use super::{ArchEntry, Source, gguf, qwen2_moe};
use crate::error::{Error, Result};
use crate::mixer::delta;
use crate::names::Leaves;
use crate::plan::{FfnSpec, MixerSpec, NormWeight, Plan};

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "qwen3_next",
    aliases: &[],
    about: "Qwen3-Next: gated delta and gated attention layers, mixture of experts",
    plan,
    gguf: Some(&gguf::Dialect { arch: "qwen3next", names: NAMES, interleaved_rows: false, adapt: gguf::qwen35 }),
};

/// GGUF's leaves of this family and its successors.
pub(super) const NAMES: Leaves = &[
    ("linear_attn.A_log", "ssm_a!"),
    ("linear_attn.conv1d", "ssm_conv1d"),
    ("linear_attn.dt_bias", "ssm_dt.bias!"),
    ("linear_attn.in_proj_a", "ssm_alpha"),
    ("linear_attn.in_proj_b", "ssm_beta"),
    ("linear_attn.in_proj_ba", "ssm_ba"),
    ("linear_attn.in_proj_qkv", "attn_qkv"),
    ("linear_attn.in_proj_z", "attn_gate"),
    ("linear_attn.norm", "ssm_norm"),
    ("linear_attn.out_proj", "ssm_out"),
    ("post_attention_layernorm", "post_attention_norm"),
];

fn plan(source: &Source<'_>) -> Result<Plan> {
    let stored = [delta::Stored::ByKeyHead, delta::Stored::JointByKeyHead];
    decoder(source, ENTRY.name, stored, |i| experts(source, i))
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
    [hugging_face, ggml]: [delta::Stored; 2],
    ffn: impl Fn(usize) -> Result<Box<dyn FfnSpec>>,
) -> Result<Plan> {
    // Like GGUF's, MLX's converter adds the one.
    let norm = if source.is_turned() { NormWeight::Plain } else { NormWeight::MinusOne };
    let interval = source.config.optional_usize("full_attention_interval")?.unwrap_or(4).max(1);
    source.decoder(arch, norm, |i| {
        let kind =
            source.layer_kind(i, |i| if (i + 1) % interval == 0 { "full_attention" } else { "linear_attention" })?;
        let mixer: (&str, Box<dyn MixerSpec>) = match kind.as_str() {
            "linear_attention" => {
                let mut delta = delta::Spec::gated(&source.config)?;
                delta.stored = if source.gguf.is_some() { ggml } else { hugging_face };
                delta.rates = source.rates();
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
