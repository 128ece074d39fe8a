//! MiniMax-01: lightning attention and softmax attention, a mixture in every layer. Residuals start at the norm, and are weighted:
//! x ← α n + β part(n) with n = norm(x).

use reverie_files::gguf::Metadata;
use reverie_tensor::Reach;
use serde_json::{Map, Value, json};

use super::{ArchEntry, Source, gguf};
use crate::error::{Error, Result};
use crate::ffn::moe;
use crate::mixer::lightning;
use crate::plan::{Block, MixerSpec, NormSpec, NormWeight, Part, Plan};
use crate::rewrite::affine;

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "minimax",
    aliases: &["minimax_m1", "minimax_text_01"],
    about: "MiniMax-01: lightning and softmax attention, mixture of experts",
    plan,
    gguf: Some(&gguf::Dialect {
        arch: "minimax-01",
        names: &[
            ("self_attn.norm", "attn_norm_2"),
            ("self_attn.out_proj", "attn_output"),
            ("self_attn.output_gate", "attn_gate"),
            ("self_attn.qkv_proj", "attn_qkv"),
        ],
        interleaved_rows: false,
        adapt,
    }),
};

/// A file has one factor for all parts.
fn adapt(metadata: &Metadata, map: &mut Map<String, Value>) -> Result<()> {
    let factor = metadata.f64("minimax-01.residual_scale")?;
    for part in ["full_attn", "linear_attn", "mlp"] {
        map.insert(format!("{part}_alpha_factor"), json!(factor));
    }
    Ok(())
}

/// What its makers' configs call the factors of the residuals.
const OWN: &[(&str, &str)] = &[
    ("full_attn_alpha_factor", "layernorm_full_attention_alpha"),
    ("full_attn_beta_factor", "layernorm_full_attention_beta"),
    ("linear_attn_alpha_factor", "layernorm_linear_attention_alpha"),
    ("linear_attn_beta_factor", "layernorm_linear_attention_beta"),
    ("mlp_alpha_factor", "layernorm_mlp_alpha"),
    ("mlp_beta_factor", "layernorm_mlp_beta"),
];

/// The kind of a layer where the config does not list them: by the tensors that it has, or in turn where it has none.
fn kind_of(source: &Source<'_>, layer: usize) -> &'static str {
    let has = |leaf: &str| {
        let name = source.names().spell(&format!("model.layers.{layer}.self_attn.{leaf}.weight"), source.weights);
        source.weights.contains(&name)
    };
    if has("qkv_proj") || (layer % 2 == 1 && !has("q_proj")) { "linear_attention" } else { "full_attention" }
}

fn plan(source: &Source<'_>) -> Result<Plan> {
    let source = &source.renamed(OWN);
    let config = &source.config;
    if !config.optional_bool("postnorm")?.unwrap_or(true) {
        return Err(Error::config("postnorm", "false", "true: residuals that start at the norm"));
    }
    let eps = source.eps()?;
    let factor = |name: &str, part: &str| -> Result<f32> {
        let field = format!("{part}_{name}_factor");
        match config.f64_or(&field, 1.0)? {
            f if f.is_finite() && f != 0.0 => Ok(f as f32),
            f => Err(Error::config(field, f, "a finite factor that is not 0")),
        }
    };
    // α (x + β/α part(x)), the norm ahead.
    let weighted = |norm: &str, (scope, kind): (&str, &str), part: Part| -> Result<[Block; 3]> {
        let (alpha, beta) = (factor("alpha", kind)?, factor("beta", kind)?);
        let rewrite =
            |factor: f32, pre: Option<NormSpec>| Block::new("", pre, Part::Rewrite(Box::new(affine::Spec { factor })));
        let first = rewrite(1.0, Some(NormSpec::rms(norm, eps, NormWeight::Plain)));
        Ok([first, Block { scale: beta / alpha, ..Block::new(scope, None, part) }, rewrite(alpha, None)])
    };
    let mut plan = source.decoder(ENTRY.name, NormWeight::Plain, |i| {
        let kind = source.layer_kind(i, |i| kind_of(source, i))?;
        let (kind, mixer): (&str, Box<dyn MixerSpec>) = match kind.as_str() {
            "linear_attention" => ("linear_attn", Box::new(lightning::spec(config, i)?)),
            "full_attention" => {
                let mut attention = source.attention(i)?;
                attention.reach = Reach::window(config.optional_usize("sliding_window")?);
                ("full_attn", Box::new(attention))
            }
            other => return Err(Error::config("layer_types", other, "linear_attention or full_attention")),
        };
        let mut experts = moe::Spec::from_config(config)?;
        experts.router.normalise = Some(0.0);
        let [a, b, c] = weighted("input_layernorm", ("self_attn", kind), Part::Mixer(mixer))?;
        let [d, e, f] = weighted("post_attention_layernorm", ("mlp", "mlp"), Part::Ffn(Box::new(experts)))?;
        Ok(vec![a, b, c, d, e, f])
    })?;
    plan.names = plan.names.with_leaves(&[("mlp", "block_sparse_moe")]);
    Ok(plan)
}
