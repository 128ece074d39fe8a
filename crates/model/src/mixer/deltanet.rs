//! The delta rule without decay (arXiv 2406.06484), in flash-linear-attention's field names.

use super::closing::Gate;
use super::delta::{Strength, Unit};
use super::{MixerEntry, delta, qkv};
use crate::error::{Error, Result};
use crate::state::StateKind;
use reverie_files::ModelConfig;

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
    let mut spec = delta::Spec::flash(config, ENTRY.name)?;
    spec.unit = match config.optional_text("qk_norm")?.unwrap_or("l2") {
        "l2" => Unit::Length,
        "sum" => Unit::Sum,
        other => return Err(Error::config("qk_norm", other, "l2 or sum")),
    };
    match config.optional_text("qk_activation")?.unwrap_or("silu") {
        "silu" => {}
        "identity" => spec.act = None,
        word => {
            spec.act = None;
            spec.feature = Some(qkv::feature("qk_activation", word, &["elu", "identity", "relu", "silu"])?);
        }
    }
    if !config.optional_bool("use_beta")?.unwrap_or(true) {
        spec.strength = Strength::Fixed(if config.flag("allow_neg_eigval")? { 2.0 } else { 1.0 });
    }
    if config.flag("use_gate")? {
        spec.gate = Gate::Silu;
    }
    Ok(spec)
}
