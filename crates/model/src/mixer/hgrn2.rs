//! HGRN2 (arXiv 2404.07904): the forget gate of each channel is bounded from below, layer by layer, and what it forgets is the key.

use reverie_files::ModelConfig;
use reverie_tensor::Act;

use super::closing::{ClosingSpec, Gate, Over};
use super::decayed::{Fade, Spec};
use super::qkv::{Leaves, PLAIN, QkvSpec};
use super::{MixerEntry, delta};
use crate::error::{Error, Result};
use crate::state::StateKind;

/// The row.
pub const ENTRY: MixerEntry = MixerEntry {
    name: "hgrn2",
    aliases: &[],
    about: "gated linear recurrence whose keys are what is forgotten (HGRN2)",
    state: &[StateKind::Recurrent],
    spec: |config, layer| Ok(Box::new(spec(config, layer)?)),
};

/// In flash-linear-attention's field names.
pub fn spec(config: &ModelConfig, layer: usize) -> Result<Spec> {
    let width = delta::count(config, "hidden_size")?;
    let heads = config.optional_usize("num_heads")?;
    let (heads, k_dim) = match config.optional_usize("expand_ratio")? {
        Some(dim) if dim > 0 && dim <= width => (heads.unwrap_or(width / dim), dim),
        Some(dim) => return Err(Error::config("expand_ratio", dim, format!("1 to hidden_size = {width}"))),
        None => {
            let heads = delta::count(config, "num_heads")?;
            (heads, width / heads)
        }
    };
    if heads == 0 || !width.is_multiple_of(heads) || k_dim == 0 {
        return Err(Error::config("num_heads", heads, format!("a divisor of hidden_size = {width}")));
    }
    let bounded = config.optional_bool("use_lower_bound")?.unwrap_or(true);
    Ok(Spec {
        kind: ENTRY.name,
        n_heads: heads,
        n_kv_heads: heads,
        k_dim,
        v_dim: width / heads,
        qkv: QkvSpec {
            widths: [heads * k_dim, heads * k_dim, width],
            kernel: delta::flash_kernel(config, false)?,
            acts: [Some(Act::Silu), None, None],
            features: PLAIN,
            leaves: Leaves::Apart(["q_proj", "f_proj", "i_proj"]),
        },
        rope: None,
        q_scale: (k_dim as f32).powf(-0.5),
        fade: Fade::Floor { layer: bounded.then_some(layer) },
        gate: "",
        closing: ClosingSpec {
            norm: &["g_norm"],
            over: Over::All,
            // What the library's fused norm and projection take, whatever the config says.
            eps: 1e-5,
            gate: Gate::Absent,
            out: "o_proj",
        },
    })
}
