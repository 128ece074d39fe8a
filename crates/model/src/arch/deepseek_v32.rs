//! DeepSeek-V3.2: DeepSeek-V3 whose rows see the tokens that a lightning indexer chooses.

use reverie_files::gguf::Metadata;
use serde_json::{Map, Value};

use super::{ArchEntry, Source, gguf, glm4_moe};
use crate::error::Result;
use crate::mixer::mla;
use crate::plan::{NormWeight, Plan};

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "deepseek_v32",
    aliases: &[],
    about: "DeepSeek-V3.2: DeepSeek-V3 with a lightning indexer",
    plan,
    gguf: Some(&gguf::Dialect {
        arch: "deepseek32",
        names: &[
            ("self_attn.indexer.k_norm", "indexer.k_norm"),
            ("self_attn.indexer.weights_proj", "indexer.proj"),
            ("self_attn.indexer.wk", "indexer.attn_k"),
            ("self_attn.indexer.wq_b", "indexer.attn_q_b"),
        ],
        interleaved_rows: false,
        adapt,
    }),
};

fn adapt(metadata: &Metadata, map: &mut Map<String, Value>) -> Result<()> {
    gguf::latent(metadata, map)?;
    let sizes = [
        ("attention.indexer.head_count", "index_n_heads"),
        ("attention.indexer.key_length", "index_head_dim"),
        ("attention.indexer.top_k", "index_topk"),
    ];
    gguf::counts(metadata, map, "deepseek32", &sizes)
}

fn plan(source: &Source<'_>) -> Result<Plan> {
    source.decoder(ENTRY.name, NormWeight::Plain, |i| {
        let attention = mla::Spec::from_config(&source.config)?.indexed(&source.config)?;
        let ffn = glm4_moe::sigmoid_experts(source)?.or_dense(&source.config, i)?;
        source.pre_norm(NormWeight::Plain, ("self_attn", Box::new(attention)), ffn)
    })
}
