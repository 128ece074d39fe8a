//! Gated linear attention (arXiv 2312.06635): a decay for each channel of the key, made from the token.

use reverie_files::ModelConfig;
use reverie_tensor::Act;

use super::closing::{ClosingSpec, Gate, Over};
use super::decayed::{Fade, Spec};
use super::qkv::{self, Leaves, QkvSpec};
use super::{MixerEntry, delta};
use crate::error::{Error, Result};
use crate::state::StateKind;

/// The row.
pub const ENTRY: MixerEntry = MixerEntry {
    name: "gla",
    aliases: &["gated_linear_attention"],
    about: "gated linear attention: a decay for each channel of the key",
    state: &[StateKind::Recurrent],
    spec: |config, _| Ok(Box::new(spec(config)?)),
};

/// In flash-linear-attention's field names.
pub fn spec(config: &ModelConfig) -> Result<Spec> {
    let least = config.optional_f64("clamp_min")?.map(|c| c as f32);
    let divisor = config.f64_or("gate_logit_normalizer", 16.0)? as f32;
    if divisor.is_nan() || divisor <= 0.0 {
        return Err(Error::config("gate_logit_normalizer", divisor, "a positive number"));
    }
    let kernel = delta::flash_kernel(config, false)?;
    flash(config, ENTRY.name, (0.5, 1.0), kernel, Fade::ByKey { divisor, least })
}

/// What gated linear attention and retention share; `expand` are the defaults of `expand_k` and `expand_v`.
pub fn flash(
    config: &ModelConfig,
    kind: &'static str,
    expand: (f64, f64),
    kernel: Option<usize>,
    fade: Fade,
) -> Result<Spec> {
    let (width, n_heads) = (delta::count(config, "hidden_size")?, delta::count(config, "num_heads")?);
    let n_kv_heads = config.optional_usize("num_kv_heads")?.unwrap_or(n_heads);
    if n_kv_heads == 0 || !n_heads.is_multiple_of(n_kv_heads) {
        return Err(Error::config("num_kv_heads", n_kv_heads, format!("a divisor of num_heads = {n_heads}")));
    }
    let dim = |field: &str, default: f64| -> Result<usize> {
        let all = delta::expanded(config, field, width, default)?;
        let fits = all > 0 && all.is_multiple_of(n_heads);
        if fits {
            Ok(all / n_heads)
        } else {
            Err(Error::config(field, all, format!("a width that {n_heads} heads divide")))
        }
    };
    let (k_dim, v_dim) = (dim("expand_k", expand.0)?, dim("expand_v", expand.1)?);
    let words = ["gelu", "logsigmoid", "relu", "sigmoid", "silu", "sqrelu", "swish"];
    let map = config.optional_text("feature_map")?.map(|word| qkv::feature("feature_map", word, &words)).transpose()?;
    let conv = kernel.map(|_| Act::Silu);
    let gated = config.optional_bool("use_output_gate")?.unwrap_or(true);
    Ok(Spec {
        kind,
        n_heads,
        n_kv_heads,
        k_dim,
        v_dim,
        qkv: QkvSpec {
            widths: [n_heads * k_dim, n_kv_heads * k_dim, n_kv_heads * v_dim],
            kernel,
            acts: [conv; 3],
            features: [map.clone(), map, None],
            leaves: Leaves::Apart(["q_proj", "k_proj", "v_proj"]),
        },
        rope: None,
        q_scale: (k_dim as f32).powf(-0.5),
        fade,
        gate: "g_proj",
        closing: ClosingSpec {
            norm: &["g_norm", "g_norm_swish_gate"],
            over: Over::Head,
            eps: config.f64_or("norm_eps", 1e-6)? as f32,
            gate: if gated { Gate::Silu } else { Gate::Absent },
            out: "o_proj",
        },
    })
}
