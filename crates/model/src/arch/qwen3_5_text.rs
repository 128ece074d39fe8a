//! Qwen3.5 (and 3.6), dense text model: three gated delta layers, then one gated attention layer; norms stored minus one.

use super::{ArchEntry, Source, gguf};
use crate::error::{Error, Result};
use crate::ffn::swiglu;
use crate::mixer::delta;
use crate::plan::{MixerSpec, NormWeight, Plan};

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "qwen3_5_text",
    aliases: &["qwen3_5"],
    about: "Qwen3.5, Qwen3.6: gated delta and gated attention layers",
    plan,
    gguf: Some(&gguf::Dialect {
        arch: "qwen35",
        names: &[
            ("linear_attn.A_log", "ssm_a!"),
            ("linear_attn.conv1d", "ssm_conv1d"),
            ("linear_attn.dt_bias", "ssm_dt.bias!"),
            ("linear_attn.in_proj_a", "ssm_alpha"),
            ("linear_attn.in_proj_b", "ssm_beta"),
            ("linear_attn.in_proj_qkv", "attn_qkv"),
            ("linear_attn.in_proj_z", "attn_gate"),
            ("linear_attn.norm", "ssm_norm"),
            ("linear_attn.out_proj", "ssm_out"),
            ("post_attention_layernorm", "post_attention_norm"),
        ],
        interleaved_rows: false,
        adapt: gguf::qwen35,
    }),
};

fn plan(source: &Source<'_>) -> Result<Plan> {
    let norm = NormWeight::MinusOne;
    let interval = source.config.optional_usize("full_attention_interval")?.unwrap_or(4).max(1);
    source.decoder(ENTRY.name, norm, |i| {
        let kind =
            source.layer_kind(i, |i| if (i + 1) % interval == 0 { "full_attention" } else { "linear_attention" })?;
        let mixer: (&str, Box<dyn MixerSpec>) = match kind.as_str() {
            "linear_attention" => {
                let mut delta = delta::Spec::gated(&source.config)?;
                delta.stored = if source.gguf.is_some() { delta::Stored::Ggml } else { delta::Stored::Joint };
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
        source.pre_norm(norm, mixer, (swiglu::ENTRY.spec)(&source.config, i)?)
    })
}
