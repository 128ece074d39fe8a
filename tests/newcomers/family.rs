//! A newcomer's family, as docs/ADDING.md describes one: `parrot` has echo layers, every second one softmax attention, and SwiGLU.

use reverie::rooms::model::arch::{ArchEntry, Source};
use reverie::rooms::model::ffn::swiglu;
use reverie::rooms::model::plan::{MixerSpec, NormWeight};
use reverie::rooms::model::{Error, Plan};

use super::mixer;

/// The row.
pub static ENTRY: ArchEntry =
    ArchEntry { name: "parrot", aliases: &[], about: "echo and attention in turn", plan, gguf: None };

fn plan(source: &Source<'_>) -> Result<Plan, Error> {
    source.decoder(ENTRY.name, NormWeight::Plain, |i| {
        let mixer: (&str, Box<dyn MixerSpec>) = match i % 2 {
            0 => ("echo", Box::new(mixer::Spec::from_config(&source.config)?)),
            _ => ("self_attn", Box::new(source.attention(i)?)),
        };
        source.pre_norm(NormWeight::Plain, mixer, (swiglu::ENTRY.spec)(&source.config, i)?)
    })
}
