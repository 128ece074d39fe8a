//! SwiGLU: the gated feed-forward with SiLU.

use reverie_files::ModelConfig;
use reverie_tensor::Act;

use super::{FfnEntry, glu};
use crate::error::{Error, Result};

/// The row.
pub const ENTRY: FfnEntry = FfnEntry {
    name: "swiglu",
    about: "down(silu(gate x) * up x)",
    spec: |config, _| Ok(Box::new(glu::Spec::from_config("swiglu", Act::Silu, config)?)),
};

/// By LFM2's fields: two thirds of `block_ff_dim` (or `intermediate_size`), times a factor, up to a multiple, where
/// `block_auto_adjust_ff_dim` says so.
pub fn multiple(config: &ModelConfig) -> Result<glu::Spec> {
    let field = config.spelling(&["block_ff_dim", "intermediate_size"]);
    let (given, of) = (config.usize(field)?, config.usize_or("block_multiple_of", 256)?);
    let factor = config.f64_or("block_ffn_dim_multiplier", 1.0)?;
    if given == 0 || given > 1 << 24 || of == 0 || of > 1 << 24 || !(0.0..=1024.0).contains(&factor) {
        return Err(Error::config(field, format!("{given}, times {factor} in multiples of {of}"), "a positive width"));
    }
    let adjusts = config.optional_bool("block_auto_adjust_ff_dim")?.unwrap_or(true);
    let inner = if adjusts { ((factor * (2 * given / 3) as f64) as usize).next_multiple_of(of) } else { given };
    Ok(glu::Spec::new(ENTRY.name, inner.max(1), Act::Silu, glu::Shape::Gated))
}

/// With a factor on the gate before its activation.
pub fn with_gate_factor(config: &ModelConfig, gate_factor: f32) -> Result<glu::Spec> {
    Ok(glu::Spec { gate_factor, ..glu::Spec::from_config(ENTRY.name, Act::Silu, config)? })
}
