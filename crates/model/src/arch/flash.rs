//! The decoder of flash-linear-attention's models: pre-norm, SwiGLU, one kind of mixer. Holds no row; its families are files of a few
//! lines.

use reverie_files::ModelConfig;

use super::{Source, rwkv_own};
use crate::error::{Error, Result};
use crate::ffn::glu;
use crate::mixer::channel_mix;
use crate::names::Leaves;
use crate::plan::{Block, MixerSpec, NormSpec, NormWeight, Part, Plan};
use crate::rewrite::affine;

/// What they call the parts of a layer.
const LEAVES: Leaves =
    &[("self_attn", "attn"), ("input_layernorm", "attn_norm"), ("post_attention_layernorm", "mlp_norm")];

/// A decoder whose layers mix as `mixer` says.
pub fn decoder(
    source: &Source<'_>,
    arch: &'static str,
    mixer: impl Fn(usize) -> Result<Box<dyn MixerSpec>>,
) -> Result<Plan> {
    refuse_hybrids(source)?;
    let mut plan = source.decoder(arch, NormWeight::Plain, |i| {
        let ffn = glu::Spec::flash(&source.config)?;
        source.pre_norm(NormWeight::Plain, ("self_attn", mixer(i)?), Box::new(ffn))
    })?;
    plan.names = plan.names.with_leaves(LEAVES);
    Ok(plan)
}

/// Layers of softmax attention among the others are not read.
pub fn refuse_hybrids(source: &Source<'_>) -> Result<()> {
    match source.config.get("attn") {
        None => Ok(()),
        Some(_) => Err(Error::config("attn", "an object", "null: hybrids of this library are not supported")),
    }
}

/// An RWKV decoder of that library: layer norms, a norm after the embedding, two mixers a layer.
pub fn rwkv(
    source: &Source<'_>,
    arch: &'static str,
    (ratio, version): (f64, channel_mix::Version),
    mixer: impl Fn(&ModelConfig, usize) -> Result<Box<dyn MixerSpec>>,
) -> Result<Plan> {
    refuse_hybrids(source)?;
    let whole = rwkv_own::is_own(source);
    let source = &if whole { rwkv_own::renamed(source)? } else { source.with_fields([]) };
    let eps = source.config.f64_or("norm_eps", 1e-5)? as f32;
    // Where the stream is halved every so many layers, as GGUF has it, the weights that add to it are halved in the file.
    let every = source.config.usize_or("rescale_every", 0)?;
    let first = source.config.optional_bool("norm_first")?.unwrap_or(true);
    let mut plan = source.decoder(arch, NormWeight::Plain, |i| {
        let norm = |name: &str| Some(NormSpec::layer(name, eps));
        let ffn = channel_mix::Spec::flash(&source.config, ratio, version)?;
        let mut blocks = vec![
            Block::new("attn", norm("attn_norm"), Part::Mixer(mixer(&source.config, i)?)),
            Block::new("ffn", norm("ffn_norm"), Part::Mixer(Box::new(ffn))),
        ];
        let rewrite = |factor: f32| Part::Rewrite(Box::new(affine::Spec { factor }));
        if i == 0 && first {
            blocks.insert(0, Block::new("", norm("pre_norm"), rewrite(1.0)));
        }
        if whole {
            rwkv_own::rescale(&mut blocks, i, every);
        } else if every > 0 && (i + 1).is_multiple_of(every) {
            blocks.push(Block::new("", None, rewrite(0.5)));
        }
        Ok(blocks)
    })?;
    plan.final_norm = NormSpec::layer("model.norm", eps);
    Ok(if whole { rwkv_own::finish(source, plan, version) } else { plan })
}
