//! RWKV-6 and RWKV-7 as the makers of RWKV publish them, with code of their own: what they call fields and tensors, in
//! flash-linear-attention's words. Holds no row. Names as llama.cpp's converter and the `rwkv` package read them.

use serde_json::json;

use super::Source;
use crate::error::Result;
use crate::mixer::channel_mix::Version;
use crate::names::Leaves;
use crate::plan::{Block, Layer, NormSpec, Plan};
use crate::rewrite::affine;

/// RWKV-6's tensors. What is no module's has no suffix.
const SIX: Leaves = &[
    ("attn.bonus", "attention.time_faaaa"),
    ("attn.g_norm", "attention.ln_x"),
    ("attn.g_proj.linear", "attention.gate"),
    ("attn.k_proj.linear", "attention.key"),
    ("attn.o_proj", "attention.output"),
    ("attn.r_proj.linear", "attention.receptance"),
    ("attn.v_proj.linear", "attention.value"),
    ("attn.w_proj.linear.lora.0.weight", "attention.time_decay_w1"),
    ("attn.w_proj.linear.lora.2.bias", "attention.time_decay"),
    ("attn.w_proj.linear.lora.2.weight", "attention.time_decay_w2"),
    ("attn.x_bias.g", "attention.time_maa_g"),
    ("attn.x_bias.k", "attention.time_maa_k"),
    ("attn.x_bias.r", "attention.time_maa_r"),
    ("attn.x_bias.v", "attention.time_maa_v"),
    ("attn.x_bias.w", "attention.time_maa_w"),
    ("attn.x_proj.0.linear.weight", "attention.time_maa_w1"),
    ("attn.x_proj.0.mu", "attention.time_maa_x"),
    ("attn.x_proj.2.weight", "attention.time_maa_w2"),
    ("attn_norm", "ln1"),
    ("ffn.key.linear", "feed_forward.key"),
    ("ffn.key.mu", "feed_forward.time_maa_k"),
    ("ffn.receptance.linear", "feed_forward.receptance"),
    ("ffn.receptance.mu", "feed_forward.time_maa_r"),
    ("ffn", "feed_forward"),
    ("ffn_norm", "ln2"),
    ("pre_norm", "pre_ln"),
];

/// RWKV-7's.
const SEVEN: Leaves = &[
    ("attn.a_lora.lora.0.weight", "attention.a1"),
    ("attn.a_lora.lora.2.bias", "attention.a0"),
    ("attn.a_lora.lora.2.weight", "attention.a2"),
    ("attn.g_lora.lora.0.weight", "attention.g1"),
    ("attn.g_lora.lora.2.weight", "attention.g2"),
    ("attn.g_norm", "attention.ln_x"),
    ("attn.k_proj", "attention.key"),
    ("attn.o_proj", "attention.output"),
    ("attn.r_proj", "attention.receptance"),
    ("attn.v_lora.lora.0.weight", "attention.v1"),
    ("attn.v_lora.lora.2.bias", "attention.v0"),
    ("attn.v_lora.lora.2.weight", "attention.v2"),
    ("attn.v_proj", "attention.value"),
    ("attn.w_lora.lora.0.weight", "attention.w1"),
    ("attn.w_lora.lora.2.bias", "attention.w0"),
    ("attn.w_lora.lora.2.weight", "attention.w2"),
    ("attn", "attention"),
    ("attn_norm", "ln1"),
    ("ffn", "feed_forward"),
    ("ffn_norm", "ln2"),
    ("pre_norm", "pre_ln"),
];

/// True for such a config: the width of a head is called otherwise.
pub fn is_own(source: &Source<'_>) -> bool {
    source.gguf.is_none() && source.config.has("head_size")
}

/// The config in flash-linear-attention's words. The norm of heads has the epsilon of the published models.
pub fn renamed<'a>(source: &Source<'a>) -> Result<Source<'a>> {
    let source = source.renamed(&[("head_dim", "head_size"), ("norm_eps", "layer_norm_epsilon")]);
    let key = source.names().with_leaves(SEVEN).spell("model.layers.0.ffn.key.weight", source.weights);
    let inner = source.weights.shape(&key).and_then(|shape| shape.first().copied());
    let heads = source.config.usize("hidden_size")?.checked_div(source.config.usize("head_dim")?);
    let fields = [("expand_k", json!(1.0)), ("fuse_norm", json!(false)), ("head_norm_eps", json!(64e-5))];
    let found = [("intermediate_size", json!(inner)), ("num_heads", json!(heads))];
    Ok(source.with_defaults(&fields).with_defaults(&found))
}

/// Every so many layers the stream is halved, and what the layers after add with it: `blocks` of layer `layer`, from weights kept whole.
pub fn rescale(blocks: &mut Vec<Block>, layer: usize, every: usize) {
    let Some(halvings) = layer.checked_div(every) else { return };
    blocks.iter_mut().for_each(|b| b.scale = 0.5f32.powi(halvings.min(100) as i32));
    if (layer + 1).is_multiple_of(every) {
        blocks.push(Block::rewrite("", Box::new(affine::Spec { factor: 0.5 })));
    }
}

/// The plan's names, and the norm after the embedding where it lies.
pub fn finish(source: &Source<'_>, mut plan: Plan, version: Version) -> Plan {
    plan.names = plan.names.with_leaves(if version == Version::V6 { SIX } else { SEVEN });
    if source.weights.contains("head.weight") {
        plan.head.name = Some("head".into());
    }
    let outside = plan.names.spell("model.pre_ln.weight", source.weights);
    if source.weights.contains(&outside)
        && let Some(block) = plan.layers.first_mut().map(|layer| layer.blocks.remove(0))
    {
        let pre = block.pre.map(|norm| NormSpec { name: "pre_ln".into(), ..norm });
        plan.before = Some(Layer { prefix: "model".into(), blocks: vec![Block { pre, ..block }] });
    }
    plan
}
