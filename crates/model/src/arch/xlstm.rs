//! xLSTM, the large form of mLSTM layers and gated feed-forwards, in transformers' names.

use super::{ArchEntry, Source};
use crate::error::{Error, Result};
use crate::ffn::glu;
use crate::mixer::mlstm;
use crate::names::Leaves;
use crate::plan::{NormWeight, Plan};

/// The row.
pub const ENTRY: ArchEntry =
    ArchEntry { name: "xlstm", aliases: &[], about: "xLSTM: mLSTM layers alone", plan, gguf: None };

/// What it calls the parts of a layer.
const LEAVES: Leaves = &[
    ("self_attn", "mlstm_layer"),
    ("input_layernorm", "norm_mlstm"),
    ("mlp.gate_proj", "ffn.proj_up_gate"),
    ("mlp.up_proj", "ffn.proj_up"),
    ("mlp.gate_up_proj", "ffn.proj_up_gate_z"),
    ("mlp.down_proj", "ffn.proj_down"),
    ("post_attention_layernorm", "norm_ffn"),
];

fn plan(source: &Source<'_>) -> Result<Plan> {
    let config = &source.config;
    // transformers has the last norm whatever this field says.
    let normed = source.weights.contains(&source.names().spell("model.norm.weight", source.weights));
    if !config.optional_bool("add_out_norm")?.unwrap_or(true) && !normed {
        return Err(Error::config("add_out_norm", "false", "a last norm 'out_norm' among the tensors"));
    }
    let mut plan = source.decoder(ENTRY.name, NormWeight::Plain, |_| {
        let ffn = glu::Spec::rounded(config, "ffn_proj_factor", "ffn_round_up_to_multiple_of")?;
        let mixer = mlstm::Spec::from_config(config)?;
        source.pre_norm(NormWeight::Plain, ("self_attn", Box::new(mixer)), Box::new(ffn))
    })?;
    plan.names = plan.names.with_leaves(LEAVES);
    plan.head.softcap = Some(config.f64_or("output_logit_soft_cap", 30.0)? as f32);
    Ok(plan)
}
