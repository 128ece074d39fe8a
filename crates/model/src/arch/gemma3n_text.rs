//! Gemma 3n, text: four residual streams of which each layer computes one, a low-rank way around each attention, per-layer
//! embeddings, late layers that read earlier keys and values, sparse gates in the first layers.

use serde_json::json;

use super::{ArchEntry, Source, gemma3n_gguf};
use crate::error::Result;
use crate::ffn::{geglu, per_layer, sparse_geglu};
use crate::mixer::full_attention;
use crate::plan::{Block, FfnSpec, Layer, NormSpec, NormWeight, Part, Plan};
use crate::rewrite::{altup, laurel, per_layer_inputs};
use crate::rope;

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "gemma3n_text",
    aliases: &["gemma3n"],
    about: "Gemma 3n, text: parallel streams (AltUp), LAuReL, per-layer embeddings, shared keys and values",
    plan,
    gguf: Some(&gemma3n_gguf::DIALECT),
};

fn plan(source: &Source<'_>) -> Result<Plan> {
    let source = &source.with_defaults(&[
        ("altup_active_idx", json!(0)),
        ("altup_correct_scale", json!(true)),
        ("altup_num_inputs", json!(4)),
        ("final_logit_softcapping", json!(30.0)),
        ("head_dim", json!(256)),
        ("hidden_size_per_layer_input", json!(256)),
        ("laurel_rank", json!(gemma3n_gguf::laurel_rank(source).unwrap_or(64))),
        ("num_kv_shared_layers", json!(15)),
        ("rope_local_base_freq", json!(1e4)),
        ("rope_theta", json!(1e6)),
    ]);
    let config = &source.config;
    let streams = altup::Streams { n: config.usize("altup_num_inputs")?, active: config.usize("altup_active_idx")? };
    let width = config.usize("hidden_size_per_layer_input")?;
    let (scaled, rank) = (config.flag("altup_correct_scale")?, config.usize("laurel_rank")?);
    let default = |i: usize| if (i + 1).is_multiple_of(5) { "full_attention" } else { "sliding_attention" };
    let norm = |name: &str| -> Result<NormSpec> { Ok(NormSpec::rms(name, source.eps()?, NormWeight::Plain)) };
    let kinds = source.layer_kinds(default)?;
    let mut plan = source.decoder(ENTRY.name, NormWeight::Plain, |i| {
        let mut attention = source.attention(i)?;
        attention.scale = 1.0;
        attention.rope = Some(rope::for_layer_kind(config, &kinds[i], attention.head_dim)?);
        attention.reach = full_attention::reach(config, &kinds[i])?;
        attention.qk_norm = Some((source.eps()?, NormWeight::Plain));
        attention.v_norm = Some(source.eps()?);
        attention.reads = source.shared_kv(&kinds, i)?;
        let around = |name: &str, scope: &str, part: Part, post: &str| -> Result<Block> {
            Ok(Block { post: Some(norm(post)?), ..Block::new(scope, Some(norm(name)?), part) })
        };
        let (router, own) = (norm("altup.router_norm")?, per_layer::Spec { layer: i, width });
        let own_norm = norm("post_per_layer_input_norm")?;
        let low = laurel::Open { rank, norm: norm("post_laurel_norm")? };
        let correct = altup::Correct { streams, norm: router.clone(), scaled, own, own_norm };
        Ok(vec![
            Block::rewrite("", Box::new(altup::Predict { streams, norm: router })),
            Block { pre: Some(norm("input_layernorm")?), ..Block::rewrite("laurel", Box::new(low)) },
            around("input_layernorm", "self_attn", Part::Mixer(Box::new(attention)), "post_attention_layernorm")?,
            Block::rewrite("", Box::new(laurel::Close)),
            around("pre_feedforward_layernorm", "mlp", Part::Ffn(mlp(source, i)?), "post_feedforward_layernorm")?,
            Block::rewrite("", Box::new(correct)),
        ])
    })?;
    let inputs = per_layer_inputs::Spec::from_config(config, width)?;
    plan.before = Some(Layer::of_rewrites("model", vec![Box::new(inputs), Box::new(altup::Open(streams))]));
    plan.after = Some(Layer::of_rewrites("model", vec![Box::new(altup::Close(streams))]));
    plan.embed_scale = (plan.width as f32).sqrt();
    plan.head.softcap = config.optional_f64("final_logit_softcapping")?.map(|c| c as f32);
    Ok(plan)
}

fn mlp(source: &Source<'_>, i: usize) -> Result<Box<dyn FfnSpec>> {
    let fields = ["intermediate_size", "activation_sparsity_deviations", "activation_sparsity_pattern"];
    let source = source.of_layer(&fields, i)?;
    if let Some(bar) = source.config.optional_f64("activation_sparsity_deviations")? {
        return Ok(Box::new(sparse_geglu::Spec::above(&source.config, bar)?));
    }
    let deep = source.config.usize("num_hidden_layers")? > 10;
    let share = source.config.f64_or("activation_sparsity_pattern", if deep && i < 10 { 0.95 } else { 0.0 })?;
    match share {
        0.0 => (geglu::ENTRY.spec)(&source.config, i),
        share => Ok(Box::new(sparse_geglu::Spec::from_config(&source.config, share)?)),
    }
}
