//! gpt-oss: sliding and full layers in turn, biases and sinks, a mixture of experts with clamped SwiGLU and biases.

use super::{ArchEntry, Source, gguf};
use crate::error::Result;
use crate::ffn::moe::{self, Fused};
use crate::mixer::full_attention;
use crate::plan::{NormWeight, Plan};
use reverie_tensor::Act;

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "gpt_oss",
    aliases: &[],
    about: "gpt-oss: sinks, sliding and full layers, mixture of experts with clamped SwiGLU",
    plan,
    gguf: Some(&gguf::Dialect {
        arch: "gpt-oss",
        names: &[("post_attention_layernorm", "post_attention_norm")],
        interleaved_rows: false,
        adapt: gguf::gpt_oss,
    }),
};

fn plan(source: &Source<'_>) -> Result<Plan> {
    let config = &source.config;
    let (alpha, limit) = (config.f64_or("swiglu_alpha", 1.702)? as f32, config.f64_or("swiglu_limit", 7.0)? as f32);
    source.decoder(ENTRY.name, NormWeight::Plain, |i| {
        let kind = source.layer_kind(i, |i| if i % 2 == 0 { "sliding_attention" } else { "full_attention" })?;
        let mut attention = source.attention(i)?;
        attention.reach = full_attention::reach(config, &kind)?;
        (attention.qkv_bias, attention.o_bias, attention.sinks) = (true, true, true);
        let mut experts = moe::Spec::from_config(config)?;
        experts.router.leaf = "router";
        experts.router.normalise = Some(0.0);
        experts.act = Act::Clamped { alpha, limit };
        (experts.fused, experts.mlx_folder) = (Fused::TurnedPairs, "experts");
        source.pre_norm(NormWeight::Plain, ("self_attn", Box::new(attention)), Box::new(experts))
    })
}
