//! Mixture of block attention (arXiv 2502.13189) as flash-linear-attention has it: every query head chooses the blocks whose mean keys it
//! meets best. Prefill and decode choose alike.

use reverie_files::ModelConfig;

use super::closing::Gate;
use super::{MixerEntry, sparse};
use crate::error::Result;
use crate::state::StateKind;

/// The row.
pub const ENTRY: MixerEntry = MixerEntry {
    name: "moba",
    aliases: &["mixture_of_block_attention"],
    about: "mixture of block attention: blocks chosen by their mean keys",
    state: &[StateKind::Kv],
    spec: |config, _| Ok(Box::new(spec(config)?)),
};

/// One layer.
pub fn spec(config: &ModelConfig) -> Result<sparse::Spec> {
    let way = sparse::Way::Mean { gate: if config.flag("use_output_gate")? { Gate::Sigmoid } else { Gate::Absent } };
    sparse::Spec::from_config(config, (ENTRY.name, way), ("moba_chunk_size", "moba_topk"))
}
