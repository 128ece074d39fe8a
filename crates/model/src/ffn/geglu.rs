//! GeGLU: the gated feed-forward with GELU in its tanh form.

use reverie_tensor::Act;

use super::{FfnEntry, glu};

/// The row.
pub const ENTRY: FfnEntry = FfnEntry {
    name: "geglu",
    about: "down(gelu_tanh(gate x) * up x)",
    spec: |config, _| Ok(Box::new(glu::Spec::from_config("geglu", Act::GeluTanh, config)?)),
};
