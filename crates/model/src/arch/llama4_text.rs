//! Llama 4, text: layers that see their own chunk, with rotated and normed queries and keys, and every fourth one without positions that
//! sees all, whose queries grow; experts, in all layers or in some, that are given what their weights have multiplied.

use reverie_files::gguf::Metadata;
use serde_json::{Map, Value, json};

use super::{ArchEntry, Source, gguf};
use crate::error::Result;
use crate::ffn::moe::{self, Fused, Weighed};
use crate::ffn::swiglu;
use crate::mixer::full_attention::{self, Growth};
use crate::names::Leaves;
use crate::plan::{FfnSpec, NormWeight, Plan};
use reverie_tensor::Score;

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "llama4_text",
    aliases: &["llama4"],
    about: "Llama 4, text: chunked attention, layers without positions, mixture of experts",
    plan,
    gguf: Some(&gguf::Dialect { arch: "llama4", names: &[], interleaved_rows: false, adapt }),
};

/// Its own word for feed-forwards.
const LEAVES: Leaves = &[("mlp", "feed_forward")];

fn adapt(metadata: &Metadata, map: &mut Map<String, Value>) -> Result<()> {
    gguf::counts(metadata, map, "llama4", &[("interleave_moe_layer_step", "interleave_moe_layer_step")])?;
    let dense = map.get("intermediate_size").cloned();
    map.insert("intermediate_size_mlp".into(), dense.unwrap_or_default());
    // What files do not say: those with 128 experts have no norm on queries and keys; where the window is said to be nothing, all layers
    // rotate and see all; else the width of chunks is the published one.
    map.insert("use_qk_norm".into(), (map.get("num_experts") != Some(&json!(128))).into());
    if metadata.optional_usize("llama4.attention.sliding_window")? == Some(0) {
        let layers = metadata.usize("llama4.block_count")?.min(10_000);
        map.insert("layer_types".into(), vec!["full_attention"; layers].into());
        map.insert("no_rope_layers".into(), vec![1; layers].into());
    }
    Ok(())
}

fn plan(source: &Source<'_>) -> Result<Plan> {
    let source = &source.with_defaults(&[
        ("attention_chunk_size", json!(8192)),
        ("head_dim", json!(128)),
        ("num_experts_per_tok", json!(1)),
        ("num_key_value_heads", json!(8)),
        ("num_local_experts", json!(16)),
        ("rms_norm_eps", json!(1e-5)),
        ("rope_theta", json!(5e5)),
    ]);
    let config = &source.config;
    let rotated = config.optional_usizes("no_rope_layers")?.filter(|layers| !layers.is_empty());
    let interval = config.usize_or("no_rope_layer_interval", 4)?;
    let is_rotated = |i: usize| match &rotated {
        Some(layers) => layers.get(i) != Some(&0),
        None => !(i + 1).is_multiple_of(interval),
    };
    let (sparse, step) = (config.optional_usizes("moe_layers")?, config.usize_or("interleave_moe_layer_step", 1)?);
    let is_sparse = |i: usize| sparse.as_ref().map_or((i + 1).is_multiple_of(step), |layers| layers.contains(&i));
    let normed = config.optional_bool("use_qk_norm")?.unwrap_or(true);
    let mut plan = source.decoder(ENTRY.name, NormWeight::Plain, |i| {
        let mut attention = source.attention(i)?;
        let default = |i| if is_rotated(i) { "chunked_attention" } else { "full_attention" };
        attention.reach = full_attention::reach(config, &source.layer_kind(i, default)?)?;
        if is_rotated(i) {
            // Neighbours are turned together. The norm, of each head and without factors, comes after that, which changes no length.
            attention.interleaved_rows = true;
            attention.qk_norm = if normed { Some((source.eps()?, NormWeight::Absent)) } else { None };
        } else {
            attention.rope = None;
            attention.qk_norm = None;
            attention.growth = growth(source)?;
        }
        let ffn = match is_sparse(i) {
            true => experts(source)?,
            false => dense(source, i)?,
        };
        source.pre_norm(NormWeight::Plain, ("self_attn", Box::new(attention)), ffn)
    })?;
    plan.names = plan.names.with_leaves(LEAVES);
    Ok(plan)
}

/// Of the queries without positions. The switch has been a number, too.
fn growth(source: &Source<'_>) -> Result<Option<Growth>> {
    let config = &source.config;
    if config.get("attn_temperature_tuning").is_some_and(|v| *v == json!(false) || *v == json!(0)) {
        return Ok(None);
    }
    let beta = config.f64_or("attn_scale", 0.1)? as f32;
    Ok(Some(Growth { beta, period: config.usize_or("floor_scale", 8192)?, from: 1 }))
}

fn experts(source: &Source<'_>) -> Result<Box<dyn FfnSpec>> {
    let experts = moe::Spec::from_config(&source.config)?;
    let inner = experts.inner;
    let mut experts = experts.with_shared("shared_expert", inner);
    (experts.fused, experts.mlx_folder) = (Fused::TurnedRows, "experts");
    experts.router.leaf = "router";
    experts.router.score = Score::Sigmoid;
    experts.router.weighed = Weighed::Inputs;
    Ok(Box::new(experts))
}

fn dense(source: &Source<'_>, layer: usize) -> Result<Box<dyn FfnSpec>> {
    let inner = source.config.get("intermediate_size_mlp").cloned().unwrap_or(Value::from(16384));
    (swiglu::ENTRY.spec)(&source.with_fields([("intermediate_size".to_owned(), inner)]).config, layer)
}
