//! LFM2: gated short convolutions and a few attention layers with norms on queries and keys.

use reverie_files::gguf::Metadata;
use serde_json::{Map, Value};

use super::{ArchEntry, Source, gguf};
use crate::error::{Error, Result};
use crate::ffn::swiglu;
use crate::mixer::short_conv;
use crate::names::Leaves;
use crate::plan::{FfnSpec, MixerSpec, NormWeight, Plan};

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "lfm2",
    aliases: &[],
    about: "LFM2: gated short convolutions and attention",
    plan,
    gguf: Some(&gguf::Dialect { arch: "lfm2", names: GGUF_LEAVES, interleaved_rows: false, adapt }),
};

/// GGUF's words for it.
pub(super) const GGUF_LEAVES: Leaves = &[
    ("conv.conv", "shortconv.conv"),
    ("conv.in_proj", "shortconv.in_proj"),
    ("conv.out_proj", "shortconv.out_proj"),
    ("mlp.expert_bias", "exp_probs_b.bias!"),
    ("model.norm", "token_embd_norm"),
];

/// LFM2's words.
const LEAVES: Leaves = &[
    ("input_layernorm", "operator_norm"),
    ("mlp.down_proj", "feed_forward.w2"),
    ("mlp.gate_proj", "feed_forward.w1"),
    ("mlp.up_proj", "feed_forward.w3"),
    ("mlp", "feed_forward"),
    ("post_attention_layernorm", "ffn_norm"),
    ("self_attn.k_norm", "self_attn.k_layernorm"),
    ("self_attn.o_proj", "self_attn.out_proj"),
    ("self_attn.q_norm", "self_attn.q_layernorm"),
];

fn adapt(metadata: &Metadata, map: &mut Map<String, Value>) -> Result<()> {
    words(metadata, map, "lfm2")
}

/// What GGUF says of LFM2's layers.
pub(super) fn words(metadata: &Metadata, map: &mut Map<String, Value>, arch: &str) -> Result<()> {
    gguf::layer_types(map, "conv");
    map.insert("block_auto_adjust_ff_dim".into(), false.into());
    gguf::counts(metadata, map, arch, &[("shortconv.l_cache", "conv_L_cache")])
}

fn plan(source: &Source<'_>) -> Result<Plan> {
    with_ffn(source, ENTRY.name, |_| Ok(Box::new(swiglu::multiple(&source.config)?)))
}

/// LFM2's plan with these feed-forwards.
pub fn with_ffn(
    source: &Source<'_>,
    arch: &'static str,
    ffn: impl Fn(usize) -> Result<Box<dyn FfnSpec>>,
) -> Result<Plan> {
    let listed = source.config.optional_usizes("full_attn_idxs")?;
    let attends = |i: usize| listed.as_ref().is_none_or(|l| l.contains(&i));
    let mut plan = source.decoder(arch, NormWeight::Plain, |i| {
        let kind = source.layer_kind(i, |i| if attends(i) { "full_attention" } else { "conv" })?;
        let mixer: (&str, Box<dyn MixerSpec>) = match kind.as_str() {
            "conv" => ("conv", Box::new(short_conv::Spec::from_config(&source.config)?)),
            "full_attention" => {
                let mut attention = source.attention(i)?;
                attention.qk_norm = Some((source.eps()?, NormWeight::Plain));
                ("self_attn", Box::new(attention))
            }
            other => return Err(Error::config("layer_types", other, "conv or full_attention")),
        };
        source.pre_norm(NormWeight::Plain, mixer, ffn(i)?)
    })?;
    plan.names = plan.names.with_leaves(LEAVES);
    Ok(plan)
}
