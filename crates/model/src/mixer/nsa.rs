//! Native sparse attention (arXiv 2502.11089) as flash-linear-attention has it: attention to the means of blocks, to chosen blocks and
//! to a window, weighed by gates.

use reverie_files::ModelConfig;

use super::{MixerEntry, sparse};
use crate::error::Result;
use crate::state::StateKind;

/// The row.
pub const ENTRY: MixerEntry = MixerEntry {
    name: "nsa",
    aliases: &["native_sparse_attention"],
    about: "native sparse attention: block means, chosen blocks, a window",
    state: &[StateKind::Kv],
    spec: |config, _| Ok(Box::new(spec(config)?)),
};

/// One layer.
pub fn spec(config: &ModelConfig) -> Result<sparse::Spec> {
    let window = config.optional_usize("window_size")?.filter(|w| *w > 0);
    let fields = ("block_size", "block_counts");
    let spec = sparse::Spec::from_config(config, (ENTRY.name, sparse::Way::Share { window }), fields)?;
    // The published kernel chooses powers of two.
    Ok(sparse::Spec { n_kept: spec.n_kept.next_power_of_two(), ..spec })
}
