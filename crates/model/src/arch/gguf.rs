//! GGUF metadata in the words of a config.json, so that one plan serves both. Key names: ggml's gguf.md and llama.cpp's
//! gguf-py constants.

use reverie_files::gguf::{self, Metadata};
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
    ("expert_count", "num_experts"),
    ("expert_feed_forward_length", "moe_intermediate_size"),
    ("expert_group_count", "n_group"),
    ("expert_group_used_count", "topk_group"),
    ("expert_shared_count", "n_shared_experts"),
    ("expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
    ("expert_used_count", "num_experts_per_tok"),
    ("feed_forward_length", "intermediate_size"),
    ("leading_dense_block_count", "first_k_dense_replace"),
];

/// The config of a GGUF file.
pub fn config(metadata: &Metadata, weights: &dyn TensorStore, dialect: &Dialect) -> Result<ModelConfig> {
    let key = |leaf: &str| format!("{}.{leaf}", dialect.arch);
    let mut map = Map::new();
    map.insert("model_type".into(), dialect.arch.into());
    for (leaf, field) in WORDS {
        if let Some(gguf::Value::List(_)) = metadata.get(&key(leaf)) {
            by_layer(metadata, &key(leaf), field, &mut map)?;
        } else if let Some(n) = metadata.optional_usize(&key(leaf))? {
            map.insert((*field).into(), n.into());
        }
    }
    // Blocks that guess tokens ahead come last and are not run. A drafter is nothing else.
    let (blocks, ahead) = (metadata.optional_usize(&key("block_count"))?, key("nextn_predict_layers"));
    if let (Some(all), Some(ahead)) = (blocks, metadata.optional_usize(&ahead)?.filter(|n| Some(*n) < blocks)) {
        map.insert("num_hidden_layers".into(), (all - ahead).into());
        map.insert("num_nextn_predict_layers".into(), ahead.into());
    }
    let floats = [
        ("attention.layer_norm_epsilon", "layer_norm_epsilon"),
        ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
        ("expert_weights_scale", "routed_scaling_factor"),
    ];
    for (leaf, field) in floats {
        numbers(metadata, &mut map, &[(&key(leaf), field)])?;
    }
    if let Some(normed) = metadata.optional_bool(&key("expert_weights_norm"))? {
        map.insert("norm_topk_prob".into(), normed.into());
    }
    let rows = weights.shape("token_embd.weight").and_then(|s| s.first().copied());
    let rows =
        rows.ok_or_else(|| Error::config("token_embd.weight", "no such tensor", "the embedding of a text model"))?;
    map.insert("vocab_size".into(), rows.into());
    if let Some(rows) = weights.shape("per_layer_token_embd.weight").and_then(|s| s.first().copied()) {
        map.insert("vocab_size_per_layer_input".into(), rows.into());
    }
    // A window of nothing is how some converters say that there is none.
    if map.get("sliding_window").is_some_and(|w| *w == 0) {
        map.remove("sliding_window");
    }
    rope(metadata, weights, dialect, &mut map)?;
    (dialect.adapt)(metadata, &mut map)?;
    Ok(ModelConfig::new(metadata.path(), map))
}

/// A field with a value a layer. Where layers that lack the part in question have 0 and all others the same: that value as the field, the
/// list under [`of_layers`]. Otherwise the list as the field, for families that take it layer by layer; others refuse a list.
fn by_layer(metadata: &Metadata, key: &str, field: &str, map: &mut Map<String, Value>) -> Result<()> {
    let each = metadata.optional_i64s(key)?.unwrap_or_default();
    let one = each.iter().copied().find(|n| *n != 0).unwrap_or(0);
    if each.iter().any(|n| *n != 0 && *n != one) {
        map.insert(field.into(), each.into());
        return Ok(());
    }
    map.insert(field.into(), one.into());
    map.insert(of_layers(field), each.into());
    Ok(())
}

/// Where a field's values by layer stand.
fn of_layers(field: &str) -> String {
    format!("{field}_of_layers")
}

/// `layer_types`: attention where a layer has key/value heads, `other` where it has none.
pub fn layer_types(map: &mut Map<String, Value>, other: &str) {
    let heads = map.get(&of_layers("num_key_value_heads")).and_then(Value::as_array);
    let kind = |n: &Value| if n.as_u64() == Some(0) { other } else { "full_attention" };
    if let Some(kinds) = heads.map(|h| h.iter().take(n_layers(map)).map(|n| kind(n).into()).collect::<Vec<Value>>()) {
        map.insert("layer_types".into(), kinds.into());
    }
}

/// Layers that are run; lists may go on with blocks that guess ahead.
fn n_layers(map: &Map<String, Value>) -> usize {
    map.get("num_hidden_layers").and_then(Value::as_u64).map_or(usize::MAX, |n| n as usize)
}

/// Whole numbers under these keys (leaf below the architecture's word, field).
pub fn counts(metadata: &Metadata, map: &mut Map<String, Value>, arch: &str, pairs: &[(&str, &str)]) -> Result<()> {
    for (leaf, field) in pairs {
        map.insert((*field).into(), metadata.usize(&format!("{arch}.{leaf}"))?.into());
    }
    Ok(())
}

/// The sizes of Mamba-2 layers, in a hybrid's words.
pub fn state_space(metadata: &Metadata, map: &mut Map<String, Value>, arch: &str) -> Result<()> {
    let sizes = [
        ("ssm.conv_kernel", "mamba_d_conv"),
        ("ssm.group_count", "mamba_n_groups"),
        ("ssm.inner_size", "mamba_d_ssm"),
        ("ssm.state_size", "mamba_d_state"),
        ("ssm.time_step_rank", "mamba_n_heads"),
    ];
    counts(metadata, map, arch, &sizes)
}

fn rope(metadata: &Metadata, weights: &dyn TensorStore, dialect: &Dialect, map: &mut Map<String, Value>) -> Result<()> {
    let key = |leaf: &str| format!("{}.rope.{leaf}", dialect.arch);
    if let Some(base) = metadata.optional_f64(&key("freq_base"))? {
        map.insert("rope_theta".into(), json!(base));
    }
    let field = |name: &str| map.get(name).and_then(Value::as_u64);
    let shared = || field("hidden_size")?.checked_div(field("num_attention_heads")?);
    let head = field("head_dim").or_else(shared).filter(|h| *h > 0);
    if let (Some(rotated), Some(head)) = (metadata.optional_usize(&key("dimension_count"))?, head) {
        map.insert("partial_rotary_factor".into(), json!(rotated as f64 / head as f64));
    }
    // Llama 3.1's scaling is stored as the divisors that it comes to.
    if weights.contains("rope_freqs.weight") {
        let factors = weights.floats("rope_freqs.weight")?.1;
        map.insert("rope_scaling".into(), json!({"rope_type": "divisors", "divisors": factors}));
    } else if weights.contains("rope_factors_short.weight") {
        let mut scaling = Map::new();
        scaling.insert("rope_type".into(), "longrope".into());
        for which in ["short", "long"] {
            let factors = weights.floats(&format!("rope_factors_{which}.weight"))?.1;
            scaling.insert(format!("{which}_factor"), json!(factors));
        }
        numbers(metadata, &mut scaling, &[(&key("scaling.attn_factor"), "attention_factor")])?;
        let original = metadata.optional_usize(&key("scaling.original_context_length"))?;
        scaling.extend(original.map(|n| ("original_max_position_embeddings".to_owned(), n.into())));
        map.insert("rope_scaling".into(), scaling.into());
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

/// Mixtures whose weights always sum to one, which their files do not say.
pub fn normalised(_: &Metadata, map: &mut Map<String, Value>) -> Result<()> {
    map.insert("norm_topk_prob".into(), true.into());
    Ok(())
}

/// gpt-oss: the ramp of its YaRN is not rounded to whole pairs.
pub fn gpt_oss(_: &Metadata, map: &mut Map<String, Value>) -> Result<()> {
    if let Some(Value::Object(scaling)) = map.get_mut("rope_scaling") {
        scaling.insert("truncate".into(), false.into());
    }
    Ok(())
}

/// The word of the file's architecture.
pub fn word(map: &Map<String, Value>) -> String {
    map.get("model_type").and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// DeepSeek-V2 to V3.2 and what took its attention over: the widths of latent attention.
pub fn latent(metadata: &Metadata, map: &mut Map<String, Value>) -> Result<()> {
    let arch = word(map);
    let key = |leaf: &str| format!("{arch}.{leaf}");
    let rotated = metadata.usize(&key("rope.dimension_count"))?;
    let head = match metadata.optional_usize(&key("attention.key_length_mla"))? {
        Some(head) => head,
        None => metadata.usize(&key("attention.key_length"))?,
    };
    let value = match metadata.optional_usize(&key("attention.value_length_mla"))? {
        Some(value) => value,
        None => metadata.usize(&key("attention.value_length"))?,
    };
    if rotated >= head {
        return Err(Error::config(key("rope.dimension_count"), rotated, format!("below a head's {head}")));
    }
    map.insert("qk_nope_head_dim".into(), (head - rotated).into());
    map.insert("qk_rope_head_dim".into(), rotated.into());
    map.insert("v_head_dim".into(), value.into());
    map.insert("kv_lora_rank".into(), metadata.usize(&key("attention.kv_lora_rank"))?.into());
    if let Some(rank) = metadata.optional_usize(&key("attention.q_lora_rank"))? {
        map.insert("q_lora_rank".into(), rank.into());
    }
    if metadata.optional_usize(&key("expert_group_count"))?.is_some_and(|n| n > 1) {
        map.insert("topk_method".into(), "group_limited_greedy".into());
    }
    // The whole of the rotated part is rotated.
    map.remove("partial_rotary_factor");
    if let (Some(Value::Object(scaling)), Some(m)) =
        (map.get_mut("rope_scaling"), metadata.optional_f64(&key("rope.scaling.yarn_log_multiplier"))?)
    {
        // The file has a tenth of it.
        scaling.insert("mscale".into(), json!(10.0 * m));
        scaling.insert("mscale_all_dim".into(), json!(10.0 * m));
    }
    Ok(())
}

/// Kimi delta attention beside latent attention: what [`latent`] adds, and the sizes of the delta layers.
pub fn kimi(metadata: &Metadata, map: &mut Map<String, Value>) -> Result<()> {
    latent(metadata, map)?;
    layer_types(map, "linear_attention");
    let heads = map.get("num_attention_heads").cloned();
    map.insert("linear_num_heads".into(), heads.unwrap_or_default());
    let sizes = [("kda.head_dim", "linear_head_dim"), ("ssm.conv_kernel", "linear_conv_kernel_dim")];
    counts(metadata, map, &word(map), &sizes)
}

/// Kinds of layers from a list that says which of them slide.
pub fn sliding_layers(metadata: &Metadata, map: &mut Map<String, Value>, arch: &str) -> Result<()> {
    if let Some(slides) = metadata.optional_bools(&format!("{arch}.attention.sliding_window_pattern"))? {
        let kind = |slides: &bool| if *slides { "sliding_attention" } else { "full_attention" };
        map.insert("layer_types".into(), slides.iter().take(n_layers(map)).map(kind).collect());
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

/// Qwen3-Next, Qwen3.5: the gated delta layers.
pub fn qwen35(metadata: &Metadata, map: &mut Map<String, Value>) -> Result<()> {
    let arch = word(map);
    let key = |leaf: &str| format!("{arch}.{leaf}");
    let n = |leaf: &str| metadata.usize(&key(leaf));
    let v_heads = n("ssm.time_step_rank")?;
    if v_heads == 0 {
        return Err(Error::config(key("ssm.time_step_rank"), 0, "a positive number of value heads"));
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
    if let Some(interval) = metadata.optional_usize(&key("full_attention_interval"))? {
        map.insert("full_attention_interval".into(), interval.into());
    }
    if let Some(recurrent) = metadata.optional_bools(&key("attention.recurrent_layers"))? {
        let kind = |r: &bool| if *r { "linear_attention" } else { "full_attention" };
        map.insert("layer_types".into(), recurrent.iter().take(n_layers(map)).map(kind).collect());
    }
    Ok(())
}

/// RWKV-7: heads, and the epsilon of its layer norms. The norm of the removal key is not the fused one.
pub fn rwkv7(metadata: &Metadata, map: &mut Map<String, Value>) -> Result<()> {
    map.insert("head_dim".into(), metadata.usize("rwkv7.wkv.head_size")?.into());
    if let Some(eps) = metadata.optional_f64("rwkv7.attention.layer_norm_epsilon")? {
        map.insert("norm_eps".into(), json!(eps));
    }
    map.insert("fuse_norm".into(), false.into());
    Ok(())
}
