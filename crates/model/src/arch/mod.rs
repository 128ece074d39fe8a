//! The architectures: a config becomes a plan. One short file a family, no arithmetic in any. This file holds the rows and the
//! scaffold that decoders share.

pub mod bailing_hybrid;
pub mod bamba;
pub mod composed;
pub mod deepseek_v2;
pub mod deepseek_v3;
pub mod deepseek_v32;
mod defaults;
pub mod delta_net;
pub mod falcon_h1;
pub mod flash;
pub mod gated_deltanet;
pub mod gemma2;
pub mod gemma3_text;
mod gemma3n_gguf;
pub mod gemma3n_text;
pub mod gemma4_assistant;
mod gemma4_experts;
mod gemma4_gguf;
pub mod gemma4_text;
pub mod gguf;
pub mod gla;
pub mod glm4_moe;
pub mod gpt_oss;
pub mod granite;
pub mod granitemoehybrid;
pub mod gsa;
pub mod hgrn2;
pub mod jamba;
pub mod kda;
pub mod kimi_linear;
pub mod lfm2;
pub mod lfm2_moe;
pub mod llama;
pub mod llama4_text;
pub mod mamba;
pub mod mamba2;
pub mod minimax;
pub mod minimax_m2;
pub mod ministral3;
pub mod mistral;
pub mod mixtral;
pub mod mla;
pub mod moba;
pub mod nemotron_h;
pub mod nemotron_h_moe;
pub mod nsa;
pub mod olmo3;
pub mod olmo_hybrid;
pub mod olmoe;
pub mod phi3;
pub mod qwen2;
pub mod qwen2_moe;
pub mod qwen3;
pub mod qwen3_5_moe_text;
pub mod qwen3_5_text;
pub mod qwen3_moe;
pub mod qwen3_next;
pub mod recurrent_gemma;
pub mod retnet;
pub mod rwkv;
pub mod rwkv6;
pub mod rwkv7;
mod rwkv_own;
pub mod smollm3;
pub mod xlstm;
pub mod zamba2;

use reverie_files::{ModelConfig, TensorStore};
use reverie_tensor::Reach;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::mixer::full_attention;
use crate::mixer::mamba::Rates;
use crate::mixer::mamba2 as ssd;
use crate::names::{Leaves, Names};
use crate::plan::{Block, FfnSpec, HeadSpec, Layer, Lender, Lent, MixerSpec, NormSpec, NormWeight, Part, Plan};
use crate::registry::Registries;
use crate::rope;

/// A row of the registry.
pub struct ArchEntry {
    /// `model_type` in config.json; also the file's name.
    pub name: &'static str,
    /// Other `model_type`s that it reads, wrappers among them.
    pub aliases: &'static [&'static str],
    /// One line for people.
    pub about: &'static str,
    /// From a checkpoint's config to a plan.
    pub plan: fn(&Source<'_>) -> Result<Plan>,
    /// How GGUF spells it, if it does.
    pub gguf: Option<&'static gguf::Dialect>,
}

/// All architectures, by name.
pub static ARCHS: &[ArchEntry] = &[
    bailing_hybrid::ENTRY,
    bamba::ENTRY,
    composed::ENTRY,
    deepseek_v2::ENTRY,
    deepseek_v3::ENTRY,
    deepseek_v32::ENTRY,
    delta_net::ENTRY,
    falcon_h1::ENTRY,
    gated_deltanet::ENTRY,
    gemma2::ENTRY,
    gemma3_text::ENTRY,
    gemma3n_text::ENTRY,
    gemma4_assistant::ENTRY,
    gemma4_text::ENTRY,
    gla::ENTRY,
    glm4_moe::ENTRY,
    gpt_oss::ENTRY,
    granite::ENTRY,
    granitemoehybrid::ENTRY,
    gsa::ENTRY,
    hgrn2::ENTRY,
    jamba::ENTRY,
    kda::ENTRY,
    kimi_linear::ENTRY,
    lfm2::ENTRY,
    lfm2_moe::ENTRY,
    llama::ENTRY,
    llama4_text::ENTRY,
    mamba::ENTRY,
    mamba2::ENTRY,
    minimax::ENTRY,
    minimax_m2::ENTRY,
    ministral3::ENTRY,
    mistral::ENTRY,
    mixtral::ENTRY,
    mla::ENTRY,
    moba::ENTRY,
    nemotron_h::ENTRY,
    nemotron_h_moe::ENTRY,
    nsa::ENTRY,
    olmo3::ENTRY,
    olmo_hybrid::ENTRY,
    olmoe::ENTRY,
    phi3::ENTRY,
    qwen2::ENTRY,
    qwen2_moe::ENTRY,
    qwen3::ENTRY,
    qwen3_5_moe_text::ENTRY,
    qwen3_5_text::ENTRY,
    qwen3_moe::ENTRY,
    qwen3_next::ENTRY,
    recurrent_gemma::ENTRY,
    retnet::ENTRY,
    rwkv::ENTRY,
    rwkv6::ENTRY,
    rwkv7::ENTRY,
    smollm3::ENTRY,
    xlstm::ENTRY,
    zamba2::ENTRY,
];

/// The words of families that call a feed-forward so.
pub const FEED_FORWARD: Leaves = &[("mlp", "feed_forward"), ("post_attention_layernorm", "pre_ff_layernorm")];

/// Positions of a model whose config names no limit, as recurrent ones do: what llama.cpp's converter writes for them.
const UNSAID_CONTEXT: usize = 1 << 20;

/// A checkpoint as an architecture sees it.
pub struct Source<'a> {
    /// The text model's config; of a GGUF file, its metadata in the same words.
    pub config: ModelConfig,
    /// The same with what lies around it: differs where a wrapper holds the text model's.
    pub whole: ModelConfig,
    /// The tensors.
    pub weights: &'a dyn TensorStore,
    /// Set for a GGUF file.
    pub gguf: Option<&'static gguf::Dialect>,
    /// The rows that a plan may name.
    pub registries: &'a Registries,
}

impl<'a> Source<'a> {
    /// A Hugging Face checkpoint; a wrapper's `text_config` is stepped into. What the config leaves out is what transformers takes for it.
    pub fn hugging_face(
        config: &ModelConfig,
        weights: &'a dyn TensorStore,
        registries: &'a Registries,
    ) -> Result<Source<'a>> {
        let text = match config.section("text_config")? {
            Some(text) => defaults::wrapped(config, &text)?,
            None => defaults::bare(config)?,
        };
        Ok(Source { config: text, whole: config.clone(), weights, gguf: None, registries })
    }

    /// The same for whoever wants that many positions; any number up to the model's own, where none is said.
    #[must_use]
    pub fn wanting(self, context: Option<usize>) -> Source<'a> {
        match context {
            Some(n) => self.with_fields([(rope::WANTED.to_owned(), n.into())]),
            None => self,
        }
    }

    /// How the checkpoint spells a plan's names.
    pub fn names(&self) -> Names {
        match self.gguf {
            Some(dialect) => Names::Gguf(dialect.names),
            None => Names::of_hugging_face(self.weights),
        }
    }

    /// The same checkpoint where fields that the config leaves out have these values.
    pub fn with_defaults(&self, defaults: &[(&str, Value)]) -> Source<'a> {
        let missing = defaults.iter().filter(|(field, _)| !self.config.has(field));
        self.with_fields(missing.map(|(field, value)| ((*field).to_owned(), value.clone())))
    }

    /// The same checkpoint, its text model described so.
    fn with_config(&self, config: ModelConfig) -> Source<'a> {
        Source { config, whole: self.whole.clone(), ..*self }
    }

    /// The same checkpoint with these fields in place of the config's.
    pub fn with_fields(&self, fields: impl IntoIterator<Item = (String, Value)>) -> Source<'a> {
        let mut all = self.config.fields().clone();
        all.extend(fields);
        self.with_config(ModelConfig::new(self.config.path(), all))
    }

    /// The same checkpoint as layer `layer` sees it, for fields that may have one value for all layers or a list of one a layer.
    pub fn of_layer(&self, fields: &[&str], layer: usize) -> Result<Source<'a>> {
        let own = fields.iter().filter_map(|field| {
            let Value::Array(all) = self.config.get(field)? else { return None };
            let missing = || Error::config(*field, format!("{} entries", all.len()), "one a layer");
            Some(all.get(layer).cloned().ok_or_else(missing).map(|value| ((*field).to_owned(), value)))
        });
        Ok(self.with_fields(own.collect::<Result<Vec<_>>>()?))
    }

    /// Where layer `layer` finds keys and values, if the last `num_kv_shared_layers` have none of their own: in the last layer of its
    /// kind before those.
    pub fn shared_kv(&self, kinds: &[String], layer: usize) -> Result<Option<Lender>> {
        let shared = self.config.optional_usize("num_kv_shared_layers")?.unwrap_or(0);
        let first = kinds.len().saturating_sub(shared);
        if layer < first {
            return Ok(None);
        }
        let owner = kinds[..first].iter().rposition(|kind| *kind == kinds[layer]);
        let expected = || format!("so few that an earlier layer is '{}' as layer {layer} is", kinds[layer]);
        let owner = owner.ok_or_else(|| Error::config("num_kv_shared_layers", shared, expected()))?;
        Ok(Some(Lender::Earlier(owner)))
    }

    /// Of each kind the last layer with keys and values of its own: what drafters read.
    pub fn lends(&self, kinds: &[String]) -> Result<Vec<Lent>> {
        let shared = self.config.optional_usize("num_kv_shared_layers")?.unwrap_or(0);
        let own = kinds[..kinds.len().saturating_sub(shared)].iter().enumerate();
        let last: std::collections::BTreeMap<&String, usize> = own.map(|(i, kind)| (kind, i)).collect();
        Ok(last.into_iter().map(|(word, mixer)| Lent { word: word.clone(), mixer }).collect())
    }

    /// With fields (first of each pair) that this config spells otherwise (second).
    #[must_use]
    pub fn renamed(&self, pairs: &[(&str, &str)]) -> Source<'a> {
        self.joined(&self.config, pairs)
    }

    /// With fields (first of each pair) that another section has under another name (second), where this one lacks them.
    #[must_use]
    pub fn joined(&self, other: &ModelConfig, pairs: &[(&str, &str)]) -> Source<'a> {
        let mut fields = self.config.fields().clone();
        for (ours, theirs) in pairs {
            if let (false, Some(value)) = (self.config.has(ours), other.get(theirs)) {
                fields.insert((*ours).to_owned(), value.clone());
            }
        }
        self.with_config(ModelConfig::new(self.config.path(), fields))
    }

    /// With a count that the config may leave out.
    #[must_use]
    pub fn with_default(&self, field: &str, count: usize) -> Source<'a> {
        let fields = [(field.to_owned(), count.into())].into_iter().collect();
        self.joined(&ModelConfig::new(self.config.path(), fields), &[(field, field)])
    }

    /// The meaning of a stored norm weight: the GGUF converter has already added the one.
    pub fn norm_weight(&self, stored: NormWeight) -> NormWeight {
        if self.gguf.is_some() { NormWeight::Plain } else { stored }
    }

    /// True for what MLX has converted: the taps of a convolution lie in the middle, `[C, kernel, 1]`.
    pub fn is_turned(&self) -> bool {
        let names = self.weights.names();
        let conv = names.iter().find(|name| name.ends_with("conv1d.weight"));
        conv.and_then(|name| self.weights.shape(name)).is_some_and(|s| s.len() == 3 && s[1] > 1 && s[2] == 1)
    }

    /// How decay rates of state-space layers are stored.
    pub fn rates(&self) -> Rates {
        if self.gguf.is_some() { Rates::Plain } else { Rates::Log }
    }

    /// The Mamba-2 layer that hybrids describe.
    pub fn state_space(&self) -> Result<ssd::Spec> {
        Ok(ssd::Spec { rates: self.rates(), ..ssd::Spec::from_config(&self.config)? })
    }

    /// A factor on what the model computes with: a finite number other than 0, 1 where the config has none.
    pub fn factor(&self, field: &str) -> Result<f32> {
        match self.config.optional_f64(field)?.unwrap_or(1.0) {
            f if f.is_finite() && f != 0.0 => Ok(f as f32),
            f => Err(Error::config(field, f, "a finite number other than 0")),
        }
    }

    /// The attention layer that most configs describe.
    pub fn attention(&self, layer: usize) -> Result<full_attention::Spec> {
        let mut spec = full_attention::Spec::from_config(&self.config, layer)?;
        spec.interleaved_rows = self.gguf.is_some_and(|d| d.interleaved_rows);
        Ok(spec)
    }

    /// Layers that `layer_types` names, or `other` where the config has none.
    pub fn layer_kind(&self, layer: usize, other: impl Fn(usize) -> &'static str) -> Result<String> {
        match self.config.optional_texts("layer_types")? {
            Some(kinds) => {
                self.n_layers()?;
                let kind =
                    kinds.get(layer).ok_or_else(|| Error::config("layer_types", "too few entries", "one a layer"))?;
                Ok((*kind).to_owned())
            }
            None => Ok(other(layer).to_owned()),
        }
    }

    /// The kinds of all layers.
    pub fn layer_kinds(&self, other: impl Fn(usize) -> &'static str) -> Result<Vec<String>> {
        (0..self.n_layers()?).map(|i| self.layer_kind(i, &other)).collect()
    }

    /// Layers, as many as can be, and as many as have a kind.
    fn n_layers(&self) -> Result<usize> {
        let n = match self.config.usize("num_hidden_layers")? {
            n if (1..=10_000).contains(&n) => n,
            n => return Err(Error::config("num_hidden_layers", n, "1 to 10000")),
        };
        match self.config.get("layer_types").and_then(Value::as_array).map(Vec::len) {
            Some(kinds) if kinds != n => {
                let expected = format!("num_hidden_layers = {n}");
                Err(Error::config("layer_types", format!("{kinds} entries"), expected))
            }
            _ => Ok(n),
        }
    }

    /// The window of Qwen's layers: by `layer_types`, or from layer `max_window_layers` on where `use_sliding_window` says so.
    pub fn upper_window(&self, layer: usize) -> Result<Reach> {
        let used = self.config.optional_bool("use_sliding_window")?.unwrap_or(false);
        let from = self.config.optional_usize("max_window_layers")?.unwrap_or(usize::MAX);
        let kind =
            self.layer_kind(layer, |i| if used && i >= from { "sliding_attention" } else { "full_attention" })?;
        full_attention::reach(&self.config, &kind)
    }

    /// Epsilon of the RMS norms.
    pub fn eps(&self) -> Result<f32> {
        let field = self.config.spelling(&["rms_norm_eps", "layer_norm_epsilon", "norm_eps"]);
        Ok(self.config.optional_f64(field)?.unwrap_or(1e-6) as f32)
    }

    /// A checkpoint has the layers that its config says, and beyond them at most those that guess ahead, which are not run.
    fn refuse_other_layers(&self, said: usize) -> Result<()> {
        let ahead = self.config.spelling(&["num_nextn_predict_layers", "num_mtp_layers", "num_mtp_modules"]);
        let ahead = self.config.optional_usize(ahead)?.unwrap_or(0);
        match self.names().layers_held(self.weights) {
            Some(held) if held < said || held > said.saturating_add(ahead) => {
                let expected = format!("the {held} layers of the checkpoint, less those that guess ahead ({ahead})");
                Err(Error::config("num_hidden_layers", said, expected))
            }
            _ => Ok(()),
        }
    }

    /// A decoder in the names that transformers uses; `blocks` describes each layer.
    pub fn decoder(
        &self,
        arch: &'static str,
        norm: NormWeight,
        blocks: impl Fn(usize) -> Result<Vec<Block>>,
    ) -> Result<Plan> {
        let config = &self.config;
        let n_layers = self.n_layers()?;
        let names = self.names();
        let head = names.spell("lm_head.weight", self.weights);
        let tied = match config.optional_bool("tie_word_embeddings")? {
            Some(tied) => tied,
            None => !self.weights.contains(&head),
        };
        let promised = match config.optional_usize("max_position_embeddings")? {
            Some(0) => return Err(Error::config("max_position_embeddings", 0, "a positive number")),
            Some(n) => n,
            None => UNSAID_CONTEXT,
        };
        self.refuse_other_layers(n_layers)?;
        let layer = |i: usize| Ok(Layer { prefix: format!("model.layers.{i}"), blocks: blocks(i)? });
        let positive = |field: &str| match config.usize(field)? {
            0 => Err(Error::config(field, 0, "a positive number")),
            n => Ok(n),
        };
        Ok(Plan {
            arch,
            vocab: positive("vocab_size")?,
            width: positive("hidden_size")?,
            context: rope::usable_context(config, promised)?,
            longest: promised,
            embed: "model.embed_tokens".into(),
            embed_scale: 1.0,
            before: None,
            layers: (0..n_layers).map(layer).collect::<Result<_>>()?,
            after: None,
            final_norm: NormSpec::rms("model.norm", self.eps()?, self.norm_weight(norm)),
            head: HeadSpec { name: (!tied).then(|| "lm_head".into()), scale: 1.0, softcap: None, clusters: None },
            lends: Vec::new(),
            draft: None,
            names,
        })
    }

    /// A layer's only block: x + part(norm x), with the norm that such families call `norm`.
    pub fn lone(&self, scope: &str, part: Part) -> Result<Block> {
        let norm = NormSpec::rms("norm", self.eps()?, NormWeight::Plain);
        Ok(Block::new(scope, Some(norm), part))
    }

    /// x + mixer(norm x), then x + ffn(norm x), with the norms that transformers calls `input_layernorm` and
    /// `post_attention_layernorm`.
    pub fn pre_norm(
        &self,
        norm: NormWeight,
        (scope, mixer): (&str, Box<dyn MixerSpec>),
        ffn: Box<dyn FfnSpec>,
    ) -> Result<Vec<Block>> {
        let pre = |name: &str| -> Result<Option<NormSpec>> {
            Ok(Some(NormSpec::rms(name, self.eps()?, self.norm_weight(norm))))
        };
        Ok(vec![
            Block::new(scope, pre("input_layernorm")?, Part::Mixer(mixer)),
            Block::new("mlp", pre("post_attention_layernorm")?, Part::Ffn(ffn)),
        ])
    }
}
