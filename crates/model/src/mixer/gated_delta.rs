//! The gated delta rule (arXiv 2412.06464): a delta rule whose state fades by a factor a head.

use reverie_files::ModelConfig;

use super::closing::Gate;
use super::{MixerEntry, delta};
use crate::error::{Error, Result};
use crate::state::StateKind;

/// The row.
pub const ENTRY: MixerEntry = MixerEntry {
    name: "gated_delta",
    aliases: &["linear_attention", "gated_deltanet"],
    about: "gated delta rule with a causal convolution (Qwen3-Next, Qwen3.5, Olmo Hybrid)",
    state: &[StateKind::Recurrent],
    spec: |config, _| {
        let hugging_face = config.has("linear_num_key_heads");
        Ok(Box::new(if hugging_face { delta::Spec::gated(config)? } else { flash(config)? }))
    },
};

/// In flash-linear-attention's field names.
pub fn flash(config: &ModelConfig) -> Result<delta::Spec> {
    let mut spec = delta::Spec::flash(config, ENTRY.name)?;
    spec.decay = delta::Forget::ByHead;
    if config.optional_bool("use_gate")?.unwrap_or(true) {
        spec.gate = match config.optional_text("output_gate_activation")?.unwrap_or("swish") {
            "swish" | "silu" => Gate::Silu,
            "sigmoid" => Gate::Sigmoid,
            other => return Err(Error::config("output_gate_activation", other, "swish, silu or sigmoid")),
        };
    }
    Ok(spec)
}
