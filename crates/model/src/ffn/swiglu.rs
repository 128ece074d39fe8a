//! SwiGLU: the gated feed-forward with SiLU.

use reverie_tensor::Act;

use super::{FfnEntry, glu};

/// The row.
pub const ENTRY: FfnEntry = FfnEntry {
    name: "swiglu",
    about: "down(silu(gate x) * up x)",
    spec: |config, _| Ok(Box::new(glu::Spec::from_config("swiglu", Act::Silu, config)?)),
};
