//! Bamba: Mamba-2 layers and a few attention layers that rotate half of each head.

use super::{ArchEntry, FEED_FORWARD, Source};
use crate::error::Result;
use crate::ffn::swiglu;
use crate::plan::{MixerSpec, NormWeight, Plan};

/// The row.
pub const ENTRY: ArchEntry =
    ArchEntry { name: "bamba", aliases: &[], about: "Bamba: Mamba-2 and attention layers", plan, gguf: None };

fn plan(source: &Source<'_>) -> Result<Plan> {
    let source = &source.with_defaults(&[("partial_rotary_factor", 0.5.into())]);
    let attends = source.config.optional_usizes("attn_layer_indices")?.unwrap_or_default();
    let mut plan = source.decoder(ENTRY.name, NormWeight::Plain, |i| {
        let mixer: (&str, Box<dyn MixerSpec>) = if attends.contains(&i) {
            ("self_attn", Box::new(source.attention(i)?))
        } else {
            ("mamba", Box::new(source.state_space()?))
        };
        source.pre_norm(NormWeight::Plain, mixer, (swiglu::ENTRY.spec)(&source.config, i)?)
    })?;
    plan.names = plan.names.with_leaves(FEED_FORWARD);
    Ok(plan)
}
