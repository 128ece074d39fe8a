//! GeGLU: the gated feed-forward with GELU in its tanh form.

use reverie_files::ModelConfig;
use reverie_tensor::Act;

use super::{FfnEntry, glu};
use crate::error::Result;

/// The row.
pub const ENTRY: FfnEntry = FfnEntry {
    name: "geglu",
    about: "down(gelu_tanh(gate x) * up x)",
    spec: |config, _| Ok(Box::new(glu::Spec::from_config("geglu", Act::GeluTanh, config)?)),
};

/// With half of `intermediate_size` inside: RecurrentGemma counts gate and value together.
pub fn halved(config: &ModelConfig) -> Result<glu::Spec> {
    let spec = glu::Spec::from_config("geglu", Act::GeluTanh, config)?;
    Ok(glu::Spec { inner: (spec.inner / 2).max(1), ..spec })
}
