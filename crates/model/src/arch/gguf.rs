//! GGUF metadata in the words of a config.json, so that one plan serves both. Key names: ggml's gguf.md and llama.cpp's
//! gguf-py constants.

use reverie_files::gguf::Metadata;
use reverie_files::{ModelConfig, TensorStore};
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

/// How GGUF spells one architecture.
pub struct Dialect {
    /// `general.architecture`.
    pub arch: &'static str,
    /// Pairs of leaves (plan's, file's) beside the common ones.
    pub names: &'static [(&'static str, &'static str)],
    /// The rows of q and k are stored pair by pair.
    pub interleaved_rows: bool,
    /// Adds to the config what only this architecture knows.
    pub adapt: fn(&Metadata, &mut Map<String, Value>) -> Result<()>,
}

/// Nothing to add.
pub fn as_is(_: &Metadata, _: &mut Map<String, Value>) -> Result<()> {
    Ok(())
}

/// Fields that translate one to one.
const WORDS: &[(&str, &str)] = &[
    ("attention.head_count", "num_attention_heads"),
    ("attention.head_count_kv", "num_key_value_heads"),
    ("attention.key_length", "head_dim"),
    ("attention.sliding_window", "sliding_window"),
    ("block_count", "num_hidden_layers"),
    ("context_length", "max_position_embeddings"),
    ("embedding_length", "hidden_size"),
    ("feed_forward_length", "intermediate_size"),
];

/// The config of a GGUF file.
pub fn config(metadata: &Metadata, weights: &dyn TensorStore, dialect: &Dialect) -> Result<ModelConfig> {
    let key = |leaf: &str| format!("{}.{leaf}", dialect.arch);
    let mut map = Map::new();
    map.insert("model_type".into(), dialect.arch.into());
    for (leaf, field) in WORDS {
        if let Some(n) = metadata.optional_usize(&key(leaf))? {
            map.insert((*field).into(), n.into());
        }
    }
    if let Some(eps) = metadata.optional_f64(&key("attention.layer_norm_rms_epsilon"))? {
        map.insert("rms_norm_eps".into(), json!(eps));
    }
    let rows = weights.shape("token_embd.weight").and_then(|s| s.first().copied());
    let rows =
        rows.ok_or_else(|| Error::config("token_embd.weight", "no such tensor", "the embedding of a text model"))?;
    map.insert("vocab_size".into(), rows.into());
    rope(metadata, weights, dialect, &mut map)?;
    (dialect.adapt)(metadata, &mut map)?;
    Ok(ModelConfig::new(metadata.path(), map))
}

fn rope(metadata: &Metadata, weights: &dyn TensorStore, dialect: &Dialect, map: &mut Map<String, Value>) -> Result<()> {
    let key = |leaf: &str| format!("{}.rope.{leaf}", dialect.arch);
    if let Some(base) = metadata.optional_f64(&key("freq_base"))? {
        map.insert("rope_theta".into(), json!(base));
    }
    let head = map.get("head_dim").and_then(Value::as_u64);
    if let (Some(rotated), Some(head)) = (metadata.optional_usize(&key("dimension_count"))?, head) {
        map.insert("partial_rotary_factor".into(), json!(rotated as f64 / head as f64));
    }
    // Llama 3.1's scaling is stored as the divisors that it comes to.
    if weights.contains("rope_freqs.weight") {
        let factors = weights.floats("rope_freqs.weight")?.1;
        map.insert("rope_scaling".into(), json!({"rope_type": "divisors", "divisors": factors}));
    } else if let Some(kind) = metadata.optional_text(&key("scaling.type"))?.filter(|k| *k != "none") {
        let mut scaling = Map::new();
        scaling.insert("rope_type".into(), kind.into());
        for (leaf, field) in [("scaling.factor", "factor"), ("scaling.attn_factor", "attention_factor")] {
            if let Some(v) = metadata.optional_f64(&key(leaf))? {
                scaling.insert(field.into(), json!(v));
            }
        }
        for (leaf, field) in [("scaling.yarn_beta_fast", "beta_fast"), ("scaling.yarn_beta_slow", "beta_slow")] {
            if let Some(v) = metadata.optional_f64(&key(leaf))? {
                scaling.insert(field.into(), json!(v));
            }
        }
        if let Some(n) = metadata.optional_usize(&key("scaling.original_context_length"))? {
            scaling.insert("original_max_position_embeddings".into(), n.into());
        }
        map.insert("rope_scaling".into(), scaling.into());
    }
    Ok(())
}

/// Puts numbers under a config's names, where the file has them: (key, field).
pub fn numbers(metadata: &Metadata, map: &mut Map<String, Value>, pairs: &[(&str, &str)]) -> Result<()> {
    for (key, field) in pairs {
        if let Some(value) = metadata.optional_f64(key)? {
            map.insert((*field).into(), json!(value));
        }
    }
    Ok(())
}

/// Gemma 3: the base of the sliding layers.
pub fn gemma3(metadata: &Metadata, map: &mut Map<String, Value>) -> Result<()> {
    let (base, cap) = ("gemma3.rope.freq_base_swa", "gemma3.final_logit_softcapping");
    numbers(metadata, map, &[(base, "rope_local_base_freq"), (cap, "final_logit_softcapping")])?;
    // The 27B model scales by its width over its heads; the file does not say so.
    if map.get("num_hidden_layers").and_then(Value::as_u64) == Some(62)
        && let (Some(width), Some(heads)) = (
            map.get("hidden_size").and_then(Value::as_u64),
            map.get("num_attention_heads").and_then(Value::as_u64).filter(|h| *h > 0),
        )
    {
        map.insert("query_pre_attn_scalar".into(), json!(width as f64 / heads as f64));
    }
    Ok(())
}

/// Qwen3.5: the gated delta layers.
pub fn qwen35(metadata: &Metadata, map: &mut Map<String, Value>) -> Result<()> {
    let n = |leaf: &str| metadata.usize(&format!("qwen35.{leaf}"));
    let v_heads = n("ssm.time_step_rank")?;
    if v_heads == 0 {
        return Err(Error::config("qwen35.ssm.time_step_rank", 0, "a positive number of value heads"));
    }
    for (field, value) in [
        ("linear_conv_kernel_dim", n("ssm.conv_kernel")?),
        ("linear_key_head_dim", n("ssm.state_size")?),
        ("linear_num_key_heads", n("ssm.group_count")?),
        ("linear_num_value_heads", v_heads),
        ("linear_value_head_dim", n("ssm.inner_size")? / v_heads),
    ] {
        map.insert(field.into(), value.into());
    }
    if let Some(interval) = metadata.optional_usize("qwen35.full_attention_interval")? {
        map.insert("full_attention_interval".into(), interval.into());
    }
    if let Some(recurrent) = metadata.optional_bools("qwen35.attention.recurrent_layers")? {
        let kind = |r: &bool| if *r { "linear_attention" } else { "full_attention" };
        map.insert("layer_types".into(), recurrent.iter().map(kind).collect());
    }
    Ok(())
}

/// Mamba: the sizes of the scan.
pub fn mamba(metadata: &Metadata, map: &mut Map<String, Value>) -> Result<()> {
    for (leaf, field) in [
        ("conv_kernel", "conv_kernel"),
        ("inner_size", "mamba_d_ssm"),
        ("state_size", "state_size"),
        ("time_step_rank", "time_step_rank"),
    ] {
        map.insert(field.into(), metadata.usize(&format!("mamba.ssm.{leaf}"))?.into());
    }
    if metadata.optional_bool("mamba.ssm.dt_b_c_rms")?.unwrap_or(false) {
        map.insert("model_type".into(), "falcon_mamba".into());
    }
    Ok(())
}

/// LFM2: the taps of the convolution; the layers that attend are those with key/value heads.
pub fn lfm2(metadata: &Metadata, map: &mut Map<String, Value>) -> Result<()> {
    map.insert("conv_L_cache".into(), metadata.usize("lfm2.shortconv.l_cache")?.into());
    map.insert("block_auto_adjust_ff_dim".into(), false.into());
    Ok(())
}
