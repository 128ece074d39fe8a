//! A transformer block whose weights several layers share, before a mixer of each layer's own (Zamba2, arXiv 2411.15242): the block reads
//! the stream beside the embedding, its projections wear an adapter a layer, and what it gives joins the input of the mixer but not the
//! stream. The weights are packed once.

use reverie_files::ModelConfig;
use reverie_tensor::{Act, Input, Norm, Tensor};

use super::{Mixer, MixerEntry, Out, Step, Stream, full_attention, mamba2};
use crate::Build;
use crate::assemble::Adapter;
use crate::error::{Error, Result};
use crate::ffn::{Ffn, glu};
use crate::linear::{Linear, project};
use crate::plan::{FfnSpec, MixerSpec, NormSpec, NormWeight};
use crate::rewrite::keep_embedding::EMBEDDING;
use crate::state::{LayerState, StateKind, StateSpec};

/// The row.
pub const ENTRY: MixerEntry = MixerEntry {
    name: "shared_attention",
    aliases: &[],
    about: "a transformer block shared by layers, with an adapter each, before a Mamba-2 (Zamba2)",
    state: &[StateKind::Kv, StateKind::Recurrent],
    spec: |config, layer| {
        let places = config.optional_usizes("hybrid_layer_ids")?.unwrap_or_else(|| vec![layer]);
        Ok(Box::new(Spec::from_config(config, layer, &places)?))
    },
};

/// One layer with a shared block.
#[derive(Debug)]
pub struct Spec {
    /// Prefix of the layer that the block's tensors are stored with.
    pub home: String,
    /// Which of the layers with shared blocks this is: the number of its adapters.
    pub turn: usize,
    /// Attention over the stream beside the embedding.
    pub attention: full_attention::Spec,
    /// The adapters' rank.
    pub rank: usize,
    /// Queries, keys and values wear adapters too.
    pub attention_adapters: bool,
    /// After the attention.
    pub ffn: glu::Spec,
    /// Epsilon of the block's norms.
    pub eps: f32,
    /// What follows the block.
    pub then: Box<dyn MixerSpec>,
}

impl Spec {
    /// From Zamba2's field names; `places` are the layers with shared blocks.
    pub fn from_config(config: &ModelConfig, layer: usize, places: &[usize]) -> Result<Spec> {
        let blocks = config.usize_or("num_mem_blocks", 1)?;
        let turn = places.iter().position(|p| *p == layer);
        let (Some(turn), true) = (turn, blocks > 0) else {
            return Err(Error::config(
                "num_mem_blocks",
                blocks,
                "at least one shared block, at the layers called hybrid",
            ));
        };
        if config.optional_bool("use_long_context")?.unwrap_or(false) {
            return Err(Error::config("use_long_context", "true", "false: its rescaled frequencies are not computed"));
        }
        let (width, heads) = (config.usize("hidden_size")?, config.usize("num_attention_heads")?);
        let head_dim =
            config.usize_or("attention_head_dim", width.saturating_mul(2).checked_div(heads).unwrap_or(0))?;
        let mut wide = config.fields().clone();
        wide.insert("head_dim".into(), head_dim.into());
        let mut attention = full_attention::Spec::from_config(&ModelConfig::new(config.path(), wide), layer)?;
        attention.scale = (head_dim as f32 / 2.0).powf(-0.5);
        if !config.optional_bool("use_mem_rope")?.unwrap_or(false) {
            attention.rope = None;
        }
        let act = match config.optional_text("hidden_act")?.unwrap_or("gelu") {
            "gelu" => Act::Gelu,
            "gelu_pytorch_tanh" => Act::GeluTanh,
            "silu" => Act::Silu,
            other => return Err(Error::config("hidden_act", other, "gelu, gelu_pytorch_tanh or silu")),
        };
        let rank = config.usize_or("adapter_rank", 128)?;
        if rank == 0 || rank > 1 << 16 {
            return Err(Error::config("adapter_rank", rank, "1 to 65536"));
        }
        Ok(Spec {
            home: format!("model.layers.{}", places[turn % blocks]),
            turn,
            attention,
            rank,
            attention_adapters: config.optional_bool("use_shared_attention_adapter")?.unwrap_or(false),
            ffn: glu::Spec::from_config("shared", act, config)?,
            eps: config.optional_f64("rms_norm_eps")?.unwrap_or(1e-5) as f32,
            then: Box::new(mamba2::Spec::from_config(config)?),
        })
    }

    /// The adapter of a projection.
    fn adapter(&self, leaf: &str, list: &str) -> Adapter {
        let part = |i: usize| format!("{list}.{}.{i}", self.turn);
        Adapter { leaf: leaf.into(), down: part(0), up: part(1), rank: self.rank }
    }
}

impl MixerSpec for Spec {
    fn kind(&self) -> &'static str {
        ENTRY.name
    }

    fn state(&self) -> StateSpec {
        StateSpec { kv: self.attention.state().kv, ..self.then.state() }
    }

    fn reads_embedding(&self) -> bool {
        true
    }

    fn build(&self, b: &mut Build<'_>) -> Result<Box<dyn Mixer>> {
        let width = b.width();
        let norm = |name: &str| NormSpec::rms(name, self.eps, NormWeight::Plain);
        let block = b.shared(&format!("{}.shared_transformer", self.home));
        let worn = if self.attention_adapters { &["q", "k", "v"][..] } else { &[] };
        let worn = worn.iter().map(|p| self.adapter(&format!("{p}_proj"), &format!("linear_{p}_adapter_list")));
        let mut attention = block.below("self_attn").reading(2 * width).wearing(worn.collect());
        let mut ffn =
            block.below("feed_forward").wearing(vec![self.adapter("gate_up_proj", "gate_up_proj_adapter_list")]);
        Ok(Box::new(SharedAttention {
            before: block.norm(&norm("input_layernorm"), 2 * width)?,
            attention: self.attention.build(&mut attention)?,
            between: block.norm(&norm("pre_ff_layernorm"), width)?,
            ffn: self.ffn.build(&mut ffn)?,
            linear: b.linear("linear", width, width)?,
            then: self.then.build(&mut b.below("mamba_decoder.mamba"))?,
        }))
    }
}

/// A layer with a shared block, with its weights.
struct SharedAttention {
    before: Norm,
    attention: Box<dyn Mixer>,
    between: Norm,
    ffn: Box<dyn Ffn>,
    linear: Linear,
    then: Box<dyn Mixer>,
}

impl Mixer for SharedAttention {
    fn forward(&self, step: &Step<'_>, stream: Stream<'_>, states: &mut [&mut LayerState]) -> Result<Tensor> {
        let be = step.backend;
        let Some(embedding) = step.carry.get(EMBEDDING) else {
            return Err(Error::config(
                "shared attention",
                "no embedding kept",
                "a plan that keeps it before the layers",
            ));
        };
        let alone = |x, pre| Stream { x, pre: Some(pre), out: Out::Plain };
        let wide = be.concat(&[&stream.x, &embedding])?;
        let y = self.attention.forward(step, alone(wide, &self.before), states)?;
        let y = self.ffn.forward(step, alone(y, &self.between))?;
        let [y] = project(be, Input::Plain(&y), [&self.linear])?;
        let joined = Stream { x: be.add(y, &stream.x)?, pre: stream.pre, out: Out::Plain };
        let y = self.then.forward(step, joined, states)?;
        match stream.out {
            Out::Add => Ok(be.add(stream.x, &y)?),
            Out::Plain => Ok(y),
        }
    }
}
