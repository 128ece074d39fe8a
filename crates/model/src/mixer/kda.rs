//! Kimi delta attention (arXiv 2510.26692): a delta rule whose state fades by a factor for each channel of the key.

use reverie_files::ModelConfig;

use super::closing::Gate;
use super::delta::{Strength, Unit};
use super::mamba::Rates;
use super::{MixerEntry, delta};
use crate::error::{Error, Result};
use crate::state::StateKind;

/// The row.
pub const ENTRY: MixerEntry = MixerEntry {
    name: "kda",
    aliases: &["kimi_delta"],
    about: "delta rule with a decay for each channel of the key (Kimi Linear, Ling 2.5)",
    state: &[StateKind::Recurrent],
    spec: |config, _| Ok(Box::new(spec(config)?)),
};

/// In flash-linear-attention's field names.
pub fn spec(config: &ModelConfig) -> Result<delta::Spec> {
    let mut spec = delta::Spec::flash(config, ENTRY.name)?;
    spec.decay = decay(config, "lower_bound")?;
    spec.gate = Gate::Sigmoid;
    Ok(spec)
}

/// One width for keys and values, in the field names of transformers' kimi_linear.
pub fn hugging_face(config: &ModelConfig) -> Result<delta::Spec> {
    let (heads, dim) = (delta::count(config, "linear_num_heads")?, delta::count(config, "linear_head_dim")?);
    Ok(delta::Spec {
        kind: ENTRY.name,
        n_k_heads: heads,
        n_v_heads: heads,
        k_dim: dim,
        v_dim: dim,
        kernel: Some(delta::count(config, "linear_conv_kernel_dim")?),
        act: Some(reverie_tensor::Act::Silu),
        decay: delta::Forget::ByKey,
        feature: None,
        unit: Unit::Length,
        strength: Strength::Sigmoid(1.0),
        gate: Gate::Sigmoid,
        eps: config.f64_or("rms_norm_eps", 1e-6)? as f32,
        stored: delta::Stored::Apart,
        rates: Rates::Log,
    })
}

/// Bounded where `bound` names a (negative) logarithm.
pub fn decay(config: &ModelConfig, bound: &str) -> Result<delta::Forget> {
    match config.optional_f64(bound)? {
        None => Ok(delta::Forget::ByKey),
        Some(b) if b < 0.0 && b.is_finite() => Ok(delta::Forget::Bounded(b as f32)),
        Some(b) => Err(Error::config(bound, b, "a negative number")),
    }
}
