//! Lightning attention (arXiv 2401.04658) as MiniMax-01 uses it: silu on queries, keys and values, a fixed decay a head that weakens
//! from layer to layer, a gate on the way out.

use reverie_files::ModelConfig;
use reverie_tensor::Act;

use super::closing::{ClosingSpec, Gate, Over};
use super::decayed::{Fade, Spec};
use super::qkv::{ByHead, Leaves, PLAIN, QkvSpec};
use super::{MixerEntry, delta};
use crate::error::{Error, Result};
use crate::state::StateKind;

/// The row.
pub const ENTRY: MixerEntry = MixerEntry {
    name: "lightning",
    aliases: &["lightning_attention"],
    about: "lightning attention: a fixed decay a head, gated (MiniMax-01)",
    state: &[StateKind::Recurrent],
    spec: |config, layer| Ok(Box::new(spec(config, layer)?)),
};

/// In MiniMax-01's field names. Head h of H fades by exp(-2^(-8 (h + 1) / H) · (1 - layer / (layers - 1) + 1e-5)), as transformers'
/// minimax computes it; the buffers that checkpoints hold are not read.
pub fn spec(config: &ModelConfig, layer: usize) -> Result<Spec> {
    let heads = delta::count(config, "num_attention_heads")?;
    let width = delta::count(config, "hidden_size")?;
    let dim = match config.optional_usize("head_dim")? {
        Some(dim) if dim > 0 && dim <= 4096 => dim,
        Some(dim) => return Err(Error::config("head_dim", dim, "1 to 4096")),
        None if width.is_multiple_of(heads) => width / heads,
        None => return Err(Error::config("num_attention_heads", heads, format!("a divisor of hidden_size = {width}"))),
    };
    let act = config.optional_text("hidden_act")?.unwrap_or("silu");
    if act != "silu" && act != "swish" {
        return Err(Error::config("hidden_act", act, "silu"));
    }
    let layers = config.usize("num_hidden_layers")?;
    let depth = 1.0 - layer as f32 / (layers as f32 - 1.0 + 1e-5) + 1e-5;
    let base = 1.0 / (8.0 / heads as f32).exp2();
    Ok(Spec {
        kind: ENTRY.name,
        n_heads: heads,
        n_kv_heads: heads,
        k_dim: dim,
        v_dim: dim,
        qkv: QkvSpec {
            widths: [heads * dim; 3],
            kernel: None,
            acts: [Some(Act::Silu); 3],
            features: PLAIN,
            leaves: Leaves::ByHead(
                "qkv_proj",
                ByHead { heads, stretch: 3 * dim, parts: [(0, dim), (dim, dim), (2 * dim, dim)] },
            ),
        },
        rope: None,
        q_scale: 1.0,
        fade: Fade::Fixed((0..heads).map(|h| (-(base.powi(h as i32 + 1) * depth)).exp()).collect()),
        gate: "output_gate",
        closing: ClosingSpec { norm: &["norm"], over: Over::All, eps: 1e-6, gate: Gate::Sigmoid, out: "out_proj" },
    })
}
