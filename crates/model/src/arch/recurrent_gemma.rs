//! RecurrentGemma (Griffin): recurrent blocks and local attention in turn, norms stored minus one, GeGLU with biases, a scaled
//! embedding, capped logits.

use reverie_tensor::Reach;

use super::{ArchEntry, Source};
use crate::error::{Error, Result};
use crate::ffn::geglu;
use crate::mixer::rg_lru;
use crate::names::Leaves;
use crate::plan::{MixerSpec, NormWeight, Plan};

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "recurrent_gemma",
    aliases: &[],
    about: "RecurrentGemma: real-gated linear recurrent units and local attention",
    plan,
    gguf: None,
};

/// Its words.
const LEAVES: Leaves =
    &[("input_layernorm", "temporal_pre_norm"), ("mlp", "mlp_block"), ("post_attention_layernorm", "channel_pre_norm")];

fn plan(source: &Source<'_>) -> Result<Plan> {
    let (config, norm) = (&source.config, NormWeight::MinusOne);
    let turns = config.optional_texts(config.spelling(&["block_types", "_block_types"]))?;
    let turns = turns.unwrap_or_else(|| vec!["recurrent", "recurrent", "attention"]);
    let mut plan = source.decoder(ENTRY.name, norm, |i| {
        let mixer: Box<dyn MixerSpec> = match turns.iter().cycle().nth(i).copied() {
            Some("recurrent") => Box::new(rg_lru::Spec::from_config(config)?),
            Some("attention") => {
                let mut attention = source.attention(i)?;
                attention.reach = Reach::Window(config.usize_or("attention_window_size", 2048)?);
                attention.o_bias = true;
                Box::new(attention)
            }
            other => {
                return Err(Error::config("block_types", other.unwrap_or("nothing"), "recurrent or attention"));
            }
        };
        source.pre_norm(norm, ("temporal_block", mixer), Box::new(geglu::halved(config)?))
    })?;
    plan.names = plan.names.with_leaves(LEAVES);
    // The published model keeps this factor in bf16.
    plan.embed_scale = reverie_tensor::DType::BF16.rounded((plan.width as f32).sqrt());
    plan.head.softcap = config.optional_f64("logits_soft_cap")?.map(|c| c as f32);
    Ok(plan)
}
