//! Gemma 4 in the words of GGUF: which leaves and fields differ, and what a file says only by the tensors that it lacks.

use reverie_files::gguf::Metadata;
use serde_json::{Map, Value, json};

use super::{Source, gguf};
use crate::error::Result;
use crate::names::Leaves;

/// How GGUF spells all forms of it.
pub(super) static DIALECT: gguf::Dialect =
    gguf::Dialect { arch: "gemma4", names: NAMES, interleaved_rows: false, adapt };

/// The same of its drafter, whose head over clusters files have lost.
pub(super) static ASSISTANT: gguf::Dialect =
    gguf::Dialect { arch: "gemma4-assistant", names: NAMES, interleaved_rows: false, adapt: assistant };

const NAMES: Leaves = &[
    ("experts.down_proj", "ffn_down_exps"),
    ("experts.gate_up_proj", "ffn_gate_up_exps"),
    ("layer_scalar", "layer_output_scale.weight!"),
    ("model.embed_tokens_per_layer", "per_layer_token_embd"),
    ("model.per_layer_model_projection", "per_layer_model_proj"),
    ("model.per_layer_projection_norm", "per_layer_proj_norm"),
    ("per_layer_input_gate", "inp_gate"),
    ("per_layer_projection", "proj"),
    ("post_attention_layernorm", "post_attention_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
    ("post_feedforward_layernorm_1", "post_ffw_norm_1"),
    ("post_feedforward_layernorm_2", "post_ffw_norm_2"),
    ("post_per_layer_input_norm", "post_norm"),
    ("post_projection", "nextn.post_projection"),
    ("pre_projection", "nextn.pre_projection"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("pre_feedforward_layernorm_2", "pre_ffw_norm_2"),
    ("router.per_expert_scale", "ffn_down_exps.scale!"),
    ("router.proj", "ffn_gate_inp"),
    ("router.scale", "ffn_gate_inp.scale!"),
];

/// Whether a full layer's keys are its values: a GGUF file says so by having no projection of values.
pub(super) fn keys_as_values(source: &Source<'_>, layer: usize) -> Result<bool> {
    match source.gguf {
        Some(_) => Ok(!source.weights.contains(&format!("blk.{layer}.attn_v.weight"))),
        None => Ok(source.config.flag("attention_k_eq_v")?),
    }
}

fn assistant(metadata: &Metadata, map: &mut Map<String, Value>) -> Result<()> {
    gguf::counts(metadata, map, ASSISTANT.arch, &[("embedding_length_out", "backbone_hidden_size")])?;
    adapt(metadata, map)
}

fn adapt(metadata: &Metadata, map: &mut Map<String, Value>) -> Result<()> {
    let arch = gguf::word(map);
    gguf::sliding_layers(metadata, map, &arch)?;
    let cap = format!("{arch}.final_logit_softcapping");
    gguf::numbers(metadata, map, &[(&cap, "final_logit_softcapping")])?;
    let counts = [
        ("attention.key_length", "global_head_dim"),
        ("attention.key_length_swa", "head_dim"),
        ("attention.shared_kv_layers", "num_kv_shared_layers"),
        ("embedding_length_per_layer_input", "hidden_size_per_layer_input"),
    ];
    gguf::counts(metadata, map, &arch, &counts)?;
    let active = map.get("num_experts_per_tok").cloned();
    map.insert("enable_moe_block".into(), active.is_some().into());
    map.insert("top_k_experts".into(), active.into());
    // The divisors are those of the full layers; they say which frequencies turn.
    map.remove("partial_rotary_factor");
    let mut full = match map.remove("rope_scaling") {
        Some(Value::Object(divisors)) => divisors,
        _ => Map::new(),
    };
    full.extend(map.remove("rope_theta").map(|base| ("rope_theta".to_owned(), base)));
    let mut sliding = Map::new();
    gguf::numbers(metadata, &mut sliding, &[(&format!("{arch}.rope.freq_base_swa"), "rope_theta")])?;
    map.insert("rope_parameters".into(), json!({"full_attention": full, "sliding_attention": sliding}));
    Ok(())
}
