//! Phi-3, Phi-3.5 and Phi-4: Llama's plan with stacked projections, a window over every layer where the config has one, and rotary
//! frequencies with a set of factors for short contexts and one for long ones.

use reverie_tensor::Reach;

use super::{ArchEntry, Source, gguf};
use crate::error::Result;
use crate::ffn::swiglu;
use crate::plan::{NormWeight, Plan};

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "phi3",
    aliases: &[],
    about: "Phi-3, Phi-3.5, Phi-4 (text): stacked projections, longrope",
    plan,
    gguf: Some(&gguf::Dialect {
        arch: "phi3",
        names: &[("mlp.gate_up_proj", "ffn_up"), ("self_attn.qkv_proj", "attn_qkv")],
        interleaved_rows: false,
        adapt: gguf::as_is,
    }),
};

fn plan(source: &Source<'_>) -> Result<Plan> {
    let window = source.config.optional_usize("sliding_window")?;
    source.decoder(ENTRY.name, NormWeight::Plain, |i| {
        let mut attention = source.attention(i)?;
        attention.reach = Reach::window(window);
        let ffn = (swiglu::ENTRY.spec)(&source.config, i)?;
        source.pre_norm(NormWeight::Plain, ("self_attn", Box::new(attention)), ffn)
    })
}
