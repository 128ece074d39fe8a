//! Gemma 3n in the words of GGUF: the projections of its streams lie three in a tensor, the sparsity of its gates in standard deviations.

use reverie_files::gguf::Metadata;
use serde_json::{Map, Value, json};

use super::{Source, gguf};
use crate::error::Result;

/// How GGUF spells it.
pub(super) static DIALECT: gguf::Dialect = gguf::Dialect {
    arch: "gemma3n",
    names: &[
        ("altup.correct_output_scale", "altup_correct_scale.weight!"),
        ("altup.correction_coefs", "altup_correct_coef"),
        ("altup.modality_router", "altup_router"),
        ("altup.prediction_coefs", "altup_predict_coef"),
        ("altup.router_norm", "altup_router_norm"),
        ("laurel.linear_left", "laurel_l"),
        ("laurel.linear_right", "laurel_r"),
        ("laurel.post_laurel_norm", "laurel_post_norm"),
        ("model.altup_projections", "altup_proj"),
        ("model.altup_unembed_projections", "altup_unembd_proj"),
        ("model.embed_tokens_per_layer", "per_layer_token_embd"),
        ("model.per_layer_model_projection", "per_layer_model_proj"),
        ("model.per_layer_projection_norm", "per_layer_proj_norm"),
        ("per_layer_input_gate", "inp_gate"),
        ("per_layer_projection", "proj"),
        ("post_attention_layernorm", "post_attention_norm"),
        ("post_feedforward_layernorm", "post_ffw_norm"),
        ("post_per_layer_input_norm", "post_norm"),
        ("pre_feedforward_layernorm", "ffn_norm"),
    ],
    interleaved_rows: false,
    adapt,
};

/// Width of the way around attention, which a file says by that tensor's extents alone.
pub(super) fn laurel_rank(source: &Source<'_>) -> Option<usize> {
    source.weights.shape("blk.0.laurel_l.weight")?.first().copied()
}

fn adapt(metadata: &Metadata, map: &mut Map<String, Value>) -> Result<()> {
    gguf::sliding_layers(metadata, map, DIALECT.arch)?;
    let (base, cap) = ("gemma3n.rope.freq_base_swa", "gemma3n.final_logit_softcapping");
    gguf::numbers(metadata, map, &[(base, "rope_local_base_freq"), (cap, "final_logit_softcapping")])?;
    if let Some(bars) = metadata.optional_f64s("gemma3n.activation_sparsity_scale")? {
        // Gates that are all open stand above minus infinity.
        let bar = |bar: &f64| if bar.is_finite() { json!(bar) } else { Value::Null };
        map.insert("activation_sparsity_pattern".into(), json!(0.0));
        map.insert("activation_sparsity_deviations".into(), bars.iter().map(bar).collect());
    }
    let sizes = [
        ("altup.active_idx", "altup_active_idx"),
        ("altup.num_inputs", "altup_num_inputs"),
        ("attention.shared_kv_layers", "num_kv_shared_layers"),
        ("embedding_length_per_layer_input", "hidden_size_per_layer_input"),
    ];
    gguf::counts(metadata, map, DIALECT.arch, &sizes)
}
