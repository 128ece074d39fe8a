//! OLMo Hybrid: three gated delta layers, normed before their parts, then one layer of softmax attention in OLMo's manner, normed
//! after them, with flat norms on queries and keys and mostly without positions.

use super::{ArchEntry, Source};
use crate::error::{Error, Result};
use crate::ffn::swiglu;
use crate::mixer::{closing, delta};
use crate::names::Leaves;
use crate::plan::{Block, NormSpec, NormWeight, Part, Plan};

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "olmo_hybrid",
    aliases: &[],
    about: "OLMo Hybrid: gated delta layers (negative eigenvalues) and softmax layers",
    plan,
    gguf: None,
};

/// MLX's words, and those of transformers in memory.
const LEAVES: Leaves =
    &[("attention_layer_norm", "input_layernorm"), ("feedforward_layer_norm", "post_attention_layernorm")];

fn plan(source: &Source<'_>) -> Result<Plan> {
    let config = &source.config;
    let eps = source.eps()?;
    let norm = |name: &str| Some(NormSpec::rms(name, eps, NormWeight::Plain));
    // Without a rotary base there are no positions.
    let rotary = match config.section("rope_parameters")? {
        Some(rope) => rope.has("rope_theta"),
        None => config.has("rope_theta"),
    };
    let mut plan = source.decoder(ENTRY.name, NormWeight::Plain, |i| {
        let ffn = Part::Ffn((swiglu::ENTRY.spec)(config, i)?);
        let kind = source.layer_kind(i, |i| if i % 4 == 3 { "full_attention" } else { "linear_attention" })?;
        match kind.as_str() {
            "linear_attention" => {
                let mut mixer = delta::Spec::gated(config)?;
                mixer.stored = delta::Stored::Apart;
                mixer.gate = closing::Gate::Silu;
                mixer.eps = 1e-5;
                if config.optional_bool("linear_allow_neg_eigval")?.unwrap_or(true) {
                    mixer.strength = delta::Strength::Sigmoid(2.0);
                }
                Ok(vec![
                    Block::new("linear_attn", norm("attention_layer_norm"), Part::Mixer(Box::new(mixer))),
                    Block::new("mlp", norm("feedforward_layer_norm"), ffn),
                ])
            }
            "full_attention" => {
                let mut mixer = source.attention(i)?;
                mixer.qk_norm = Some((eps, NormWeight::Plain));
                mixer.flat_qk_norm = true;
                if !rotary {
                    mixer.rope = None;
                }
                let after =
                    |name: &str, scope: &str, part: Part| Block { post: norm(name), ..Block::new(scope, None, part) };
                Ok(vec![
                    after("feedforward_layer_norm", "self_attn", Part::Mixer(Box::new(mixer))),
                    after("post_feedforward_layernorm", "mlp", ffn),
                ])
            }
            other => Err(Error::config("layer_types", other, "linear_attention or full_attention")),
        }
    })?;
    plan.names = plan.names.with_leaves(LEAVES);
    Ok(plan)
}
