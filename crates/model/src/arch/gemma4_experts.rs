//! The experts of Gemma 4, beside its dense feed-forward: what `gemma4_text` and families after it share.

use super::Source;
use crate::error::Result;
use crate::ffn::branches::{self, Branch};
use crate::ffn::{glu, moe};
use crate::plan::{NormSpec, NormWeight};

/// The dense feed-forward and the experts, whose router has a norm of its own.
pub(super) fn beside(source: &Source<'_>, mlp: glu::Spec) -> Result<branches::Spec> {
    let norm = |name: &str| -> Result<NormSpec> { Ok(NormSpec::rms(name, source.eps()?, NormWeight::Plain)) };
    let active = source.config.get("top_k_experts").cloned().unwrap_or_default();
    let source = source.with_fields([("num_experts_per_tok".to_owned(), active)]);
    let mut experts = moe::Spec::from_config(&source.config)?;
    (experts.act, experts.mlx_folder) = (mlp.act, "experts.switch_glu");
    experts.router.leaf = "router.proj";
    experts.router.norm = Some((norm("router.scale")?, (source.config.usize("hidden_size")? as f32).powf(-0.5)));
    experts.router.normalise = Some(0.0);
    experts.router.per_expert = Some("router.per_expert_scale");
    let branch = |scope, pre: &str, ffn, post: &str| -> Result<Branch> {
        Ok(Branch { scope, pre: Some(norm(pre)?), ffn, post: Some(norm(post)?) })
    };
    let dense = branch("mlp", "pre_feedforward_layernorm", Box::new(mlp), "post_feedforward_layernorm_1")?;
    let sparse = branch("", "pre_feedforward_layernorm_2", Box::new(experts), "post_feedforward_layernorm_2")?;
    Ok(branches::Spec { kind: "geglu+moe", branches: vec![dense, sparse] })
}
