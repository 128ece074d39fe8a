//! Gemma 3, text: norms before and after each part, stored minus one; a scaled embedding; GeGLU; five sliding layers to one full
//! layer, each kind with its own rotary base. `attn_logit_softcapping`, a leftover of Gemma 2, is not read: transformers does
//! not read it.

use super::{ArchEntry, Source, gguf};
use crate::error::{Error, Result};
use crate::ffn::geglu;
use crate::mixer::full_attention;
use crate::plan::{Block, NormSpec, NormWeight, Part, Plan};
use crate::rope;

/// Leaves that Gemma's GGUF files call by other names than most.
pub(super) const GGUF_NAMES: &[(&str, &str)] = &[
    ("post_attention_layernorm", "post_attention_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
];

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "gemma3_text",
    aliases: &["gemma3"],
    about: "Gemma 3, text: sliding and full layers, norms on both sides of each part",
    plan,
    gguf: Some(&gguf::Dialect { arch: "gemma3", names: GGUF_NAMES, interleaved_rows: false, adapt: gguf::gemma3 }),
};

fn plan(source: &Source<'_>) -> Result<Plan> {
    let config = &source.config;
    let pattern = match config.optional_usize("sliding_window_pattern")? {
        Some(p) => p,
        None => config.optional_usize("_sliding_window_pattern")?.unwrap_or(6),
    };
    let kind = |i: usize| if (i + 1).is_multiple_of(pattern.max(1)) { "full_attention" } else { "sliding_attention" };
    decoder(source, ENTRY.name, kind, |attention, kind| {
        attention.rope = Some(rope::for_layer_kind(config, kind, attention.head_dim)?);
        attention.qk_norm = Some((source.eps()?, source.norm_weight(NormWeight::MinusOne)));
        Ok(())
    })
}

/// The decoder that Gemma 2 and 3 share. `kind_of` names a layer's kind where the config does not, `adapt` sees its attention.
pub(super) fn decoder(
    source: &Source<'_>,
    arch: &'static str,
    kind_of: impl Fn(usize) -> &'static str,
    adapt: impl Fn(&mut full_attention::Spec, &str) -> Result<()>,
) -> Result<Plan> {
    let config = &source.config;
    if config.optional_bool("use_bidirectional_attention")?.unwrap_or(false) {
        return Err(Error::config("use_bidirectional_attention", "true", "false: this engine runs causal models"));
    }
    let scalar = config.optional_f64("query_pre_attn_scalar")?;
    let norm = |name: &str| -> Result<Option<NormSpec>> {
        let weight = source.norm_weight(NormWeight::MinusOne);
        Ok(Some(NormSpec::rms(name, source.eps()?, weight)))
    };
    let mut plan = source.decoder(arch, NormWeight::MinusOne, |i| {
        let kind = source.layer_kind(i, &kind_of)?;
        let mut attention = source.attention(i)?;
        attention.reach = full_attention::reach(config, &kind)?;
        if let Some(scalar) = scalar {
            attention.scale = scalar.powf(-0.5) as f32;
        }
        adapt(&mut attention, &kind)?;
        Ok(vec![
            Block {
                post: norm("post_attention_layernorm")?,
                ..Block::new("self_attn", norm("input_layernorm")?, Part::Mixer(Box::new(attention)))
            },
            Block {
                post: norm("post_feedforward_layernorm")?,
                ..Block::new("mlp", norm("pre_feedforward_layernorm")?, Part::Ffn((geglu::ENTRY.spec)(config, i)?))
            },
        ])
    })?;
    plan.embed_scale = (plan.width as f32).sqrt();
    plan.head.softcap = config.optional_f64("final_logit_softcapping")?.map(|c| c as f32);
    Ok(plan)
}
