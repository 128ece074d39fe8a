//! The delta rule without decay (arXiv 2406.06484), in flash-linear-attention's field names.

use reverie_files::ModelConfig;
use reverie_tensor::Act;

use super::closing::Gate;
use super::{MixerEntry, delta};
use crate::error::{Error, Result};
use crate::state::StateKind;

/// The row.
pub const ENTRY: MixerEntry = MixerEntry {
    name: "deltanet",
    aliases: &["delta_net"],
    about: "delta rule with causal convolutions, without decay (DeltaNet)",
    state: &[StateKind::Recurrent],
    spec: |config, _| Ok(Box::new(spec(config)?)),
};

/// DeltaNet's layer.
pub fn spec(config: &ModelConfig) -> Result<delta::Spec> {
    let norm = config.optional_text("qk_norm")?.unwrap_or("l2");
    if norm != "l2" {
        return Err(Error::config("qk_norm", norm, "l2, the only one that this mixer computes"));
    }
    let act = match config.optional_text("qk_activation")?.unwrap_or("silu") {
        "silu" => Some(Act::Silu),
        "relu" => Some(Act::Relu),
        "identity" => None,
        other => return Err(Error::config("qk_activation", other, "silu, relu or identity")),
    };
    let mut spec = delta::Spec::flash(config, ENTRY.name)?;
    spec.act = act;
    if !config.optional_bool("use_beta")?.unwrap_or(true) {
        spec.strength = None;
    }
    if config.flag("use_gate")? {
        spec.gate = Gate::Silu;
    }
    Ok(spec)
}
