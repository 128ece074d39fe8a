//! OLMo 3: no norm before a part but one after it, flat norms on queries and keys, three sliding layers to one full layer, rope
//! scaling in the full layers only.

use super::{ArchEntry, Source, gguf};
use crate::error::Result;
use crate::ffn::swiglu;
use crate::mixer::full_attention;
use crate::plan::{Block, NormSpec, NormWeight, Part, Plan};
use crate::rope;

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "olmo3",
    aliases: &["olmo2"],
    about: "OLMo 2 and 3: norms after the parts, flat norms on q and k",
    plan,
    gguf: Some(&gguf::Dialect {
        arch: "olmo2",
        names: &[("post_attention_layernorm", "post_attention_norm"), ("post_feedforward_layernorm", "post_ffw_norm")],
        interleaved_rows: false,
        adapt: |metadata, map| gguf::sliding_layers(metadata, map, "olmo2"),
    }),
};

fn plan(source: &Source<'_>) -> Result<Plan> {
    let config = &source.config;
    // OLMo 2 has no window at all.
    let windowed = config.has("sliding_window");
    let default = |i| if windowed && (i + 1) % 4 != 0 { "sliding_attention" } else { "full_attention" };
    let block = |scope: &str, part: Part, norm: &str| -> Result<Block> {
        let post = NormSpec::rms(norm, source.eps()?, NormWeight::Plain);
        Ok(Block { post: Some(post), ..Block::new(scope, None, part) })
    };
    source.decoder(ENTRY.name, NormWeight::Plain, |i| {
        let kind = source.layer_kind(i, default)?;
        let mut attention = source.attention(i)?;
        attention.rope = Some(rope::for_layer_kind(config, &kind, attention.head_dim)?);
        attention.reach = full_attention::reach(config, &kind)?;
        attention.qk_norm = Some((source.eps()?, NormWeight::Plain));
        attention.flat_qk_norm = true;
        let ffn = (swiglu::ENTRY.spec)(config, i)?;
        Ok(vec![
            block("self_attn", Part::Mixer(Box::new(attention)), "post_attention_layernorm")?,
            block("mlp", Part::Ffn(ffn), "post_feedforward_layernorm")?,
        ])
    })
}
