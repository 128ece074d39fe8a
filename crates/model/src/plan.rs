//! A model as data: layers of blocks, each block a norm, a part and a residual rule. Made by an architecture file, read by
//! `assemble`. Holds no weight and computes nothing.

use std::fmt::Debug;

use reverie_tensor::NormKind;

use crate::Build;
use crate::error::{Error, Result};
use crate::ffn::Ffn;
use crate::ffn::moe::Stack;
use crate::mixer::Mixer;
use crate::names::Names;
use crate::rewrite::RewriteSpec;
use crate::state::{KvNeed, StateSpec};

/// A normalisation by the name of its weight.
#[derive(Clone, Debug, PartialEq)]
pub struct NormSpec {
    /// Tensor name without `.weight`, below the layer's prefix (or whole, for the final norm).
    pub name: String,
    /// Which normalisation; a layer norm takes its bias where the checkpoint has one.
    pub kind: NormKind,
    /// Added under the root.
    pub eps: f32,
    /// What the stored weight means.
    pub weight: NormWeight,
}

impl NormSpec {
    /// An RMS norm.
    pub fn rms(name: impl Into<String>, eps: f32, weight: NormWeight) -> NormSpec {
        NormSpec { name: name.into(), kind: NormKind::Rms, eps, weight }
    }

    /// A layer norm.
    pub fn layer(name: impl Into<String>, eps: f32) -> NormSpec {
        NormSpec { name: name.into(), kind: NormKind::Layer, eps, weight: NormWeight::Plain }
    }
}

/// What a stored norm weight means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormWeight {
    /// The factor itself.
    Plain,
    /// The factor minus one (Gemma, Qwen3-Next): one is added at load.
    MinusOne,
    /// None is stored, and there is no factor.
    Absent,
}

/// A mixer as an architecture describes it: it owns its parameters and nobody else's.
pub trait MixerSpec: Debug + Send + Sync {
    /// The row of the registry it belongs to.
    fn kind(&self) -> &'static str;
    /// What it keeps between tokens.
    fn state(&self) -> StateSpec;
    /// True if it reads the embedding, which the plan must then keep (`rewrite::keep_embedding`).
    fn reads_embedding(&self) -> bool {
        false
    }
    /// Whose keys and values it reads, and what they must look like; such a mixer keeps nothing of its own.
    fn reads(&self) -> Option<(Lender, KvNeed)> {
        None
    }
    /// Takes its weights.
    fn build(&self, build: &mut Build<'_>) -> Result<Box<dyn Mixer>>;
}

/// Whose keys and values a mixer reads that keeps none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lender {
    /// An earlier mixer, counted over the whole model, after it has written them.
    Earlier(usize),
    /// A mixer of another model: the one that the target of a drafter lends under this word.
    Target(String),
}

/// A mixer whose keys and values drafters may read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lent {
    /// The word that a drafter's plan asks by.
    pub word: String,
    /// The mixer, counted over the whole model.
    pub mixer: usize,
}

/// What makes a plan a drafter's: it guesses the next tokens of a target from that model's keys, values and stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DraftSpec {
    /// Dt, the width of the target's stream.
    pub target_width: usize,
    /// `[D, 2·Dt]`: from the target's embedding of a token and the stream that goes with it.
    pub enter: String,
    /// `[Dt, D]`: to the stream that goes with the next token.
    pub leave: String,
}

/// A feed-forward as an architecture describes it.
pub trait FfnSpec: Debug + Send + Sync {
    /// The row of the registry it belongs to.
    fn kind(&self) -> &'static str;
    /// Its experts, as far as the checkpoint has one tensor for all of them.
    fn stacks(&self, build: &Build<'_>) -> Result<Vec<Stack>> {
        let _ = build;
        Ok(Vec::new())
    }
    /// Takes its weights.
    fn build(&self, build: &mut Build<'_>) -> Result<Box<dyn Ffn>>;
}

/// What stands between a norm and the residual sum.
#[derive(Debug)]
pub enum Part {
    /// Mixes over time.
    Mixer(Box<dyn MixerSpec>),
    /// Works on each token alone.
    Ffn(Box<dyn FfnSpec>),
    /// Takes the place of the stream; nothing is added, so the block's `post` and `scale` say nothing.
    Rewrite(Box<dyn RewriteSpec>),
}

/// x ← x + scale · post(part(pre(x))).
#[derive(Debug)]
pub struct Block {
    /// Sub-prefix of the part's tensors below the layer's prefix ("self_attn").
    pub scope: String,
    /// Before the part.
    pub pre: Option<NormSpec>,
    /// The part.
    pub part: Part,
    /// After the part, before the sum.
    pub post: Option<NormSpec>,
    /// Multiplies what is added to the stream; 1 nearly everywhere.
    pub scale: f32,
}

impl Block {
    /// A norm, a part, the sum.
    pub fn new(scope: impl Into<String>, pre: Option<NormSpec>, part: Part) -> Block {
        Block { scope: scope.into(), pre, part, post: None, scale: 1.0 }
    }

    /// A part that takes the place of the stream.
    pub fn rewrite(scope: impl Into<String>, spec: Box<dyn RewriteSpec>) -> Block {
        Block::new(scope, None, Part::Rewrite(spec))
    }
}

/// The blocks of one layer, in order.
#[derive(Debug)]
pub struct Layer {
    /// Tensor prefix with the layer's number ("model.layers.3").
    pub prefix: String,
    /// Usually a mixer and a feed-forward.
    pub blocks: Vec<Block>,
}

impl Layer {
    /// Rewrites alone, of tensors at `prefix`.
    pub fn of_rewrites(prefix: &str, specs: Vec<Box<dyn RewriteSpec>>) -> Layer {
        Layer { prefix: prefix.to_owned(), blocks: specs.into_iter().map(|s| Block::rewrite("", s)).collect() }
    }
}

/// Where the logits come from.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadSpec {
    /// Tensor name without `.weight`; none where the embedding serves.
    pub name: Option<String>,
    /// Multiplies the logits, before the cap.
    pub scale: f32,
    /// Logits become cap · tanh(logit / cap).
    pub softcap: Option<f32>,
    /// None where all tokens compete.
    pub clusters: Option<ClusterSpec>,
}

/// Tokens in clusters of one size, of which a row looks into a few.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterSpec {
    /// `[n, D]`: the projection that ranks the clusters.
    pub centroids: String,
    /// `[V]`, whole numbers: the tokens, cluster by cluster (whole name).
    pub ordering: String,
    /// Clusters.
    pub n: usize,
    /// Clusters that a row looks into.
    pub n_kept: usize,
}

/// A whole model.
#[derive(Debug)]
pub struct Plan {
    /// The architecture's row.
    pub arch: &'static str,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Positions that it runs to as it was loaded.
    pub context: usize,
    /// Positions the model was made for: more where it must be told at load that they are wanted (`rope::usable_context`).
    pub longest: usize,
    /// Tensor name of the embedding without `.weight`.
    pub embed: String,
    /// Multiplies the embedding.
    pub embed_scale: f32,
    /// Rewrites between the embedding and the layers.
    pub before: Option<Layer>,
    /// The layers.
    pub layers: Vec<Layer>,
    /// Rewrites between the layers and the final norm.
    pub after: Option<Layer>,
    /// Before the head.
    pub final_norm: NormSpec,
    /// The head.
    pub head: HeadSpec,
    /// What drafters may read.
    pub lends: Vec<Lent>,
    /// None for a model that runs alone.
    pub draft: Option<DraftSpec>,
    /// How the plan's tensor names are spelt in this checkpoint.
    pub names: Names,
}

impl Plan {
    /// What each mixer keeps: what it needs itself, as far back as those reach that read it.
    pub fn states(&self) -> Vec<StateSpec> {
        let mut states: Vec<StateSpec> = self.mixers().map(|m| m.state()).collect();
        for (lender, need) in self.mixers().filter_map(|m| m.reads()) {
            if let Lender::Earlier(from) = lender
                && let Some(kv) = states.get_mut(from).and_then(|s| s.kv.as_mut())
            {
                kv.reach = kv.reach.or(need.reach);
            }
        }
        states
    }

    /// For each mixer of a model that runs alone the one whose state it is handed: its own, or an earlier one's that it reads. Refused
    /// where the state that is read is not there, or is another.
    pub fn owners(&self) -> Result<Vec<usize>> {
        let mixers: Vec<_> = self.mixers().collect();
        let owner = |(i, mixer): (usize, &&dyn MixerSpec)| match mixer.reads() {
            None => Ok(i),
            Some((Lender::Earlier(from), need)) => {
                let kept = mixers[..i].get(from).and_then(|m| m.state().kv);
                lent((i, *mixer), (from, kept), need)
            }
            Some((Lender::Target(word), _)) => {
                let found = format!("'{word}' of another model");
                Err(Error::config(format!("mixer {i} reads"), found, "state of this model, which is no drafter"))
            }
        };
        mixers.iter().enumerate().map(owner).collect()
    }

    /// For each mixer of a drafter the mixer of `target` whose state it reads.
    pub fn borrows(&self, target: &Plan) -> Result<Vec<usize>> {
        let theirs = target.states();
        let owner = |(i, mixer): (usize, &dyn MixerSpec)| {
            let Some((Lender::Target(word), need)) = mixer.reads() else {
                let expected = "one that reads the target: a drafter has no state of its own";
                return Err(Error::config(format!("mixer {i}"), mixer.kind(), expected));
            };
            let Some(from) = target.lends.iter().find(|l| l.word == word).map(|l| l.mixer) else {
                let expected = format!("keys and values that '{}' lends under this word", target.arch);
                return Err(Error::config(format!("mixer {i} reads"), format!("'{word}'"), expected));
            };
            let kept = theirs.get(from).and_then(|s| s.kv);
            let (reach, kv) = (need.reach, kept.map(|kv| kv.reach));
            // One row further back than its target, as `Standing::needed` has it.
            if kv.is_some_and(|kept| kept.or(reach.less_one()) != kept) {
                let expected = format!("no more than the {kv:?} that the target keeps");
                return Err(Error::config(format!("mixer {i} reaches"), format!("{reach:?}"), expected));
            }
            lent((i, mixer), (from, kept), need)
        };
        self.mixers().enumerate().map(owner).collect()
    }

    /// The refusal of more tokens than fit.
    pub fn beyond(&self, tokens: usize) -> Error {
        Error::Context { tokens, context: self.context, longest: self.longest }
    }

    /// The mixers, layer by layer.
    pub fn mixers(&self) -> impl Iterator<Item = &dyn MixerSpec> {
        self.layers.iter().flat_map(|l| &l.blocks).filter_map(|b| match &b.part {
            Part::Mixer(m) => Some(m.as_ref()),
            Part::Ffn(_) | Part::Rewrite(_) => None,
        })
    }
}

/// The lender's number, if it keeps what the reader needs and the reader keeps nothing.
fn lent((i, mixer): (usize, &dyn MixerSpec), (from, kept): (usize, Option<KvNeed>), need: KvNeed) -> Result<usize> {
    let same = |kept: KvNeed| KvNeed { reach: need.reach, ..kept } == need;
    if kept.is_some_and(same) && mixer.state() == StateSpec::default() {
        return Ok(from);
    }
    let expected = format!("one that keeps {need:?}, and no state of its own");
    Err(Error::config(format!("mixer {i} reads mixer {from}"), format!("{kept:?}"), expected))
}
