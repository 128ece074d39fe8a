//! Multi-scale retention (RetNet, arXiv 2307.08621): a fixed decay a head, rotary queries and keys.

use std::sync::Arc;

use reverie_files::ModelConfig;
use reverie_tensor::{Rope, RopeLayout};

use super::decayed::{Fade, Spec};
use super::{MixerEntry, gla};
use crate::error::{Error, Result};
use crate::state::StateKind;

/// The row.
pub const ENTRY: MixerEntry = MixerEntry {
    name: "retnet",
    aliases: &["retention"],
    about: "multi-scale retention: a fixed decay a head, rotary",
    state: &[StateKind::Recurrent],
    spec: |config, _| Ok(Box::new(spec(config)?)),
};

/// In flash-linear-attention's field names; the short convolution of its config is never used. Head h keeps 1 - 2^-(5 + h).
pub fn spec(config: &ModelConfig) -> Result<Spec> {
    let mut spec = gla::flash(config, ENTRY.name, (1.0, 2.0), None, Fade::Fixed(Vec::new()))?;
    if !spec.k_dim.is_multiple_of(2) {
        return Err(Error::config("expand_k", spec.k_dim, "key heads of even width, for the rotary embedding"));
    }
    spec.fade = Fade::Fixed((0..spec.n_heads).map(|h| 1.0 - (-5.0 - h as f32).exp2()).collect());
    let freq = |i: usize| 10000f32.powf(-2.0 * i as f32 / spec.k_dim as f32);
    let freqs: Arc<[f32]> = (0..spec.k_dim / 2).map(freq).collect();
    spec.rope = Some(Rope { freqs, magnitude: 1.0, layout: RopeLayout::Halves });
    Ok(spec)
}
