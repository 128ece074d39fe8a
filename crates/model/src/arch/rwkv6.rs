//! RWKV-6, as flash-linear-attention or its makers store it.

use reverie_files::gguf::Metadata;
use serde_json::{Map, Value, json};

use super::{ArchEntry, Source, flash, gguf, rwkv_own};
use crate::error::Result;
use crate::mixer::{channel_mix, rwkv6};
use crate::plan::Plan;

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "rwkv6",
    aliases: &[],
    about: "RWKV-6: time mixing and channel mixing",
    plan,
    gguf: Some(&gguf::Dialect {
        arch: "rwkv6",
        names: &[
            ("attn.bonus", "time_mix_first.weight!"),
            ("attn.g_norm", "time_mix_ln"),
            ("attn.g_proj.linear", "time_mix_gate"),
            ("attn.k_proj.linear", "time_mix_key"),
            ("attn.o_proj", "time_mix_output"),
            ("attn.r_proj.linear", "time_mix_receptance"),
            ("attn.v_proj.linear", "time_mix_value"),
            ("attn.w_proj.linear.lora.0", "time_mix_decay_w1"),
            ("attn.w_proj.linear.lora.2", "time_mix_decay_w2"),
            ("attn.w_proj.linear.lora.2.bias", "time_mix_decay.weight!"),
            ("attn.x_bias", "time_mix_lerp_fused.weight!"),
            ("attn.x_proj.0.linear", "time_mix_w1"),
            ("attn.x_proj.0.mu", "time_mix_lerp_x.weight!"),
            ("attn.x_proj.2", "time_mix_w2"),
            ("attn_norm", "attn_norm"),
            ("ffn.key.linear", "channel_mix_key"),
            ("ffn.key.mu", "channel_mix_lerp_k.weight!"),
            ("ffn.receptance.linear", "channel_mix_receptance"),
            ("ffn.receptance.mu", "channel_mix_lerp_r.weight!"),
            ("ffn.value", "channel_mix_value"),
            ("ffn_norm", "attn_norm_2"),
            ("model.layers.0.pre_norm", "token_embd_norm"),
        ],
        interleaved_rows: false,
        adapt,
    }),
};

/// Keys and values are as wide as the stream, and the norm of a head's output has the epsilon of the published models, whatever that
/// of the others.
fn adapt(metadata: &Metadata, map: &mut Map<String, Value>) -> Result<()> {
    gguf::counts(
        metadata,
        map,
        "rwkv6",
        &[("rescale_every_n_layers", "rescale_every"), ("wkv.head_size", "head_dim")],
    )?;
    gguf::numbers(metadata, map, &[("rwkv6.attention.layer_norm_epsilon", "norm_eps")])?;
    let size = |field: &str| map.get(field).and_then(Value::as_u64);
    let heads = size("hidden_size").unwrap_or(0).checked_div(size("head_dim").unwrap_or(0));
    map.insert("num_heads".into(), heads.into());
    map.insert("expand_k".into(), json!(1.0));
    map.insert("head_norm_eps".into(), json!(64e-5));
    Ok(())
}

fn plan(source: &Source<'_>) -> Result<Plan> {
    let stored = match source.gguf {
        Some(_) => rwkv6::Stored::Stacked,
        None if rwkv_own::is_own(source) => rwkv6::Stored::Turned,
        None => rwkv6::Stored::SideBySide,
    };
    flash::rwkv(source, ENTRY.name, (3.5, channel_mix::Version::V6), |config, _| {
        Ok(Box::new(rwkv6::Spec { stored, ..rwkv6::Spec::from_config(config)? }))
    })
}
