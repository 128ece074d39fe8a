//! Gemma 4's drafter: a few layers of Gemma 4 without keys and values of their own, which read those of the target's last sliding
//! and last full layer.

use reverie_tensor::Reach;

use super::{ArchEntry, Source, gemma4_gguf, gemma4_text};
use crate::error::Result;
use crate::plan::{ClusterSpec, DraftSpec, Lender, Plan};

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "gemma4_assistant",
    aliases: &["gemma4_unified_assistant"],
    about: "Gemma 4's drafter, which reads its target's keys and values",
    plan,
    gguf: Some(&gemma4_gguf::ASSISTANT),
};

fn plan(source: &Source<'_>) -> Result<Plan> {
    let whole = &source.whole;
    let mut plan = gemma4_text::decoder(source, ENTRY.name, |attention, kinds, i| {
        attention.reads = Some(Lender::Target(kinds[i].clone()));
        // Both ends of the reference's window count.
        if let Reach::Window(n) = &mut attention.reach {
            *n = n.saturating_add(1);
        }
        Ok(())
    })?;
    plan.lends.clear();
    if whole.flag("use_ordered_embeddings")? {
        plan.head.clusters = Some(ClusterSpec {
            centroids: "masked_embedding.centroids".into(),
            ordering: "masked_embedding.token_ordering".into(),
            n: whole.usize_or("num_centroids", 2048)?,
            n_kept: whole.usize_or("centroid_intermediate_top_k", 32)?,
        });
    }
    plan.draft = Some(DraftSpec {
        target_width: whole.usize_or("backbone_hidden_size", 1536)?,
        enter: "pre_projection".into(),
        leave: "post_projection".into(),
    });
    Ok(plan)
}
