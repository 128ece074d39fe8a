//! RWKV-7, as flash-linear-attention or its makers store it.

use super::{ArchEntry, Source, flash, gguf};
use crate::error::Result;
use crate::mixer::{channel_mix, rwkv7};
use crate::plan::Plan;

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "rwkv7",
    aliases: &[],
    about: "RWKV-7: time mixing and channel mixing",
    plan,
    gguf: Some(&gguf::Dialect {
        arch: "rwkv7",
        names: &[
            ("attn.a_lora.lora.0", "time_mix_a1"),
            ("attn.a_lora.lora.2", "time_mix_a2"),
            ("attn.a_lora.lora.2.bias", "time_mix_a0.weight!"),
            ("attn.g_lora.lora.0", "time_mix_g1"),
            ("attn.g_lora.lora.2", "time_mix_g2"),
            ("attn.g_norm", "time_mix_ln"),
            ("attn.k_a", "time_mix_k_a.weight!"),
            ("attn.k_k", "time_mix_k_k.weight!"),
            ("attn.k_proj", "time_mix_key"),
            ("attn.o_proj", "time_mix_output"),
            ("attn.r_k", "time_mix_r_k.weight!"),
            ("attn.r_proj", "time_mix_receptance"),
            ("attn.v_lora.lora.0", "time_mix_v1"),
            ("attn.v_lora.lora.2", "time_mix_v2"),
            ("attn.v_lora.lora.2.bias", "time_mix_v0.weight!"),
            ("attn.v_proj", "time_mix_value"),
            ("attn.w_lora.lora.0", "time_mix_w1"),
            ("attn.w_lora.lora.2", "time_mix_w2"),
            ("attn.w_lora.lora.2.bias", "time_mix_w0.weight!"),
            ("attn.x_x", "time_mix_lerp_fused.weight!"),
            ("attn_norm", "attn_norm"),
            ("ffn.key", "channel_mix_key"),
            ("ffn.value", "channel_mix_value"),
            ("ffn.x_k", "channel_mix_lerp_k.weight!"),
            ("ffn_norm", "attn_norm_2"),
            ("model.layers.0.pre_norm", "token_embd_norm"),
        ],
        interleaved_rows: false,
        adapt: gguf::rwkv7,
    }),
};

fn plan(source: &Source<'_>) -> Result<Plan> {
    let channels = (4.0, channel_mix::Version::V7);
    flash::rwkv(source, ENTRY.name, channels, |config, i| Ok(Box::new(rwkv7::Spec::from_config(config, i)?)))
}
