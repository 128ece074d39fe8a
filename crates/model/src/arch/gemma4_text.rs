//! Gemma 4, text, in all its forms: sliding layers and full ones with wider heads (whose keys may be their values), norms on queries,
//! keys and values, and, by the config, per-layer embeddings, late layers that read earlier keys and values, double-wide
//! feed-forwards, and experts beside the dense feed-forward.

use serde_json::{Value, json};

use super::{ArchEntry, Source, gemma4_experts, gemma4_gguf};
use crate::error::{Error, Result};
use crate::ffn::{geglu, glu, per_layer};
use crate::mixer::full_attention;
use crate::plan::{Block, Layer, NormSpec, NormWeight, Part, Plan};
use crate::rewrite::{layer_scalar, per_layer_inputs};
use crate::rope;

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "gemma4_text",
    aliases: &["gemma4", "gemma4_unified", "gemma4_unified_text"],
    about: "Gemma 4, text: dense, E2B/E4B and A4B forms, per-layer embeddings, shared keys and values",
    plan,
    gguf: Some(&gemma4_gguf::DIALECT),
};

fn plan(source: &Source<'_>) -> Result<Plan> {
    let mut plan = decoder(source, ENTRY.name, |attention, kinds, i| {
        attention.reads = source.shared_kv(kinds, i)?;
        Ok(())
    })?;
    plan.embed_scale = (plan.width as f32).sqrt();
    plan.head.softcap = source.config.optional_f64("final_logit_softcapping")?.map(|c| c as f32);
    Ok(plan)
}

/// The layers, without what surrounds them. `adapt` sees each layer's attention, with the kinds of all layers and its number.
pub(super) fn decoder(
    source: &Source<'_>,
    arch: &'static str,
    adapt: impl Fn(&mut full_attention::Spec, &[String], usize) -> Result<()>,
) -> Result<Plan> {
    let rope = json!({
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    });
    let source = &source.with_defaults(&[("global_head_dim", json!(512)), ("rope_parameters", rope)]);
    let config = &source.config;
    if config.get("use_bidirectional_attention").is_some_and(|v| v == "all") {
        return Err(Error::config(
            "use_bidirectional_attention",
            "all",
            "vision or null: this engine runs causal models",
        ));
    }
    let n_layers = config.usize("num_hidden_layers")?;
    let default = |i: usize| match i + 1 == n_layers || (i + 1).is_multiple_of(6) {
        true => "full_attention",
        false => "sliding_attention",
    };
    let input_width = config.optional_usize("hidden_size_per_layer_input")?.filter(|w| *w > 0);
    let norm = |name: &str| -> Result<NormSpec> { Ok(NormSpec::rms(name, source.eps()?, NormWeight::Plain)) };
    let block = |scope: &str, part: Part, (pre, post): (Option<&str>, &str)| -> Result<Block> {
        let pre = pre.map(norm).transpose()?;
        Ok(Block { post: Some(norm(post)?), ..Block::new(scope, pre, part) })
    };
    let kinds = source.layer_kinds(default)?;
    let mut plan = source.decoder(arch, NormWeight::Plain, |i| {
        let mut attention = attention(source, &kinds, i)?;
        adapt(&mut attention, &kinds, i)?;
        let own = source.of_layer(&["intermediate_size"], i)?.config;
        let mut mlp = glu::Spec::from_config(geglu::ENTRY.name, reverie_tensor::Act::GeluTanh, &own)?;
        if attention.reads.is_some() && config.flag("use_double_wide_mlp")? {
            mlp.inner *= 2;
        }
        let (around, about) = ("post_attention_layernorm", "post_feedforward_layernorm");
        let mut blocks = vec![
            block("self_attn", Part::Mixer(Box::new(attention)), (Some("input_layernorm"), around))?,
            match config.flag("enable_moe_block")? {
                true => block("", Part::Ffn(Box::new(gemma4_experts::beside(source, mlp)?)), (None, about))?,
                false => block("mlp", Part::Ffn(Box::new(mlp)), (Some("pre_feedforward_layernorm"), about))?,
            },
        ];
        if input_width.is_some() {
            let own = (per_layer::ENTRY.spec)(config, i)?;
            blocks.push(block("", Part::Ffn(own), (None, "post_per_layer_input_norm"))?);
        }
        blocks.push(Block::rewrite("", Box::new(layer_scalar::Spec)));
        Ok(blocks)
    })?;
    if let Some(width) = input_width {
        let inputs = per_layer_inputs::Spec::from_config(config, width)?;
        plan.before = Some(Layer::of_rewrites("model", vec![Box::new(inputs)]));
    }
    plan.lends = source.lends(&kinds)?;
    Ok(plan)
}

fn attention(source: &Source<'_>, kinds: &[String], i: usize) -> Result<full_attention::Spec> {
    let source = source.of_layer(&["num_key_value_heads"], i)?;
    let (config, sliding) = (&source.config, kinds[i] == "sliding_attention");
    let keys_as_values = !sliding && gemma4_gguf::keys_as_values(&source, i)?;
    let mut own: Vec<(String, Value)> = Vec::new();
    // The newest spelling has a section of exceptions for each layer, and then no other word for full ones.
    let older = !sliding && !config.has("per_layer_config");
    let wider = |field: &str, wide: &str| config.get(wide).filter(|_| older).map(|v| (field.to_owned(), v.clone()));
    own.extend(wider("head_dim", "global_head_dim"));
    own.extend(wider("num_key_value_heads", "num_global_key_value_heads").filter(|_| keys_as_values));
    if let Some(layers) = config.section("per_layer_config")?
        // Its keys are numbers, as wide as the last one.
        && let Some(key) = layers.fields().keys().find(|key| key.parse() == Ok(i))
        && let Some(layer) = layers.section(key)?
    {
        own.extend(layer.fields().clone());
    }
    let mut spec = source.with_fields(own).attention(i)?;
    spec.scale = 1.0;
    spec.rope = Some(rope::for_layer_kind(config, &kinds[i], spec.head_dim)?);
    spec.reach = full_attention::reach(config, &kinds[i])?;
    spec.qk_norm = Some((source.eps()?, NormWeight::Plain));
    spec.v_norm = Some(source.eps()?);
    spec.keys_as_values = keys_as_values;
    Ok(spec)
}
