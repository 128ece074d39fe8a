//! Mixture of experts (arXiv 1701.06538): a router sends every token to a few feed-forwards of many, beside shared ones that serve
//! all. Tokens are grouped by expert; what the experts of a token give is added in the order of their numbers, so that a
//! token's result does not depend on its neighbours. Knows no family: what differs between them stands in the spec.

mod experts;
mod shelf;
mod stored;

use std::collections::BTreeMap;

use reverie_files::ModelConfig;
use reverie_tensor::{
    Act, Backend, Class, DType, Group, GroupRank, Input, Norm, RouteGroups, RouteSpec, Routes, Score, Tensor, Term,
    Weight,
};

use super::glu::{Glu, Inside, Shape};
use super::{ExpertBytes, Ffn, FfnEntry, glu, swiglu};
use crate::Build;
use crate::error::{Error, Result};
use crate::linear::{Linear, project};
use crate::mixer::{Out, Step, Stream};
use crate::plan::{FfnSpec, NormSpec};
use experts::{Experts, Wave};
pub use shelf::{Counters, Residence, Shelf};
pub use stored::{Fused, Stack};
use stored::{Layout, Stored};

/// The row.
pub const ENTRY: FfnEntry = FfnEntry {
    name: "moe",
    about: "mixture of experts: softmax or sigmoid scores, groups, shared experts",
    spec: |config, _| Ok(Box::new(Spec::from_config(config)?)),
};

/// One mixture.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Who chooses.
    pub router: Router,
    /// Experts there are.
    pub n_experts: usize,
    /// Width inside an expert.
    pub inner: usize,
    /// On an expert's gate, or inside a plain expert.
    pub act: Act,
    /// Projections of an expert.
    pub shape: Shape,
    /// How gate and up lie in one tensor where they do.
    pub fused: Fused,
    /// The folder in which MLX stacks them.
    pub mlx_folder: &'static str,
    /// The feed-forward that serves every token.
    pub shared: Option<Shared>,
    /// The narrower space that the experts work in, where they do not work in the stream's.
    pub latent: Option<Latent>,
}

/// A space that a token is brought into before its experts see it, and their sum out of (Nemotron 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latent {
    /// Its width.
    pub width: usize,
    /// The projection into it.
    pub enter: &'static str,
    /// The projection out of it.
    pub leave: &'static str,
}

/// How a mixture's router works.
#[derive(Clone, Debug)]
pub struct Router {
    /// Its projection.
    pub leaf: &'static str,
    /// Its own norm of the stream, in place of the block's, and what that norm's weight is multiplied by.
    pub norm: Option<(NormSpec, f32)>,
    /// Experts of a token.
    pub n_active: usize,
    /// Scores.
    pub score: Score,
    /// The vector that joins the scores for the choice.
    pub bias: Option<&'static str>,
    /// Restricts the choice.
    pub groups: Option<RouteGroups>,
    /// The weights are divided by their sum plus this.
    pub normalise: Option<f32>,
    /// Multiplies the weights.
    pub scale: f32,
    /// The vector that multiplies the weights by expert.
    pub per_expert: Option<&'static str>,
    /// What the weights multiply.
    pub weighed: Weighed,
}

/// What the weights of a token's experts multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weighed {
    /// What the experts give.
    Results,
    /// What they are given (Llama 4).
    Inputs,
}

/// The feed-forward that serves every token.
#[derive(Clone, Debug)]
pub struct Shared {
    /// Where its tensors are.
    pub scope: &'static str,
    /// Itself.
    pub glu: glu::Spec,
    /// A projection to one number, whose σ multiplies the result.
    pub gate: Option<&'static str>,
}

/// Most experts of a layer that a config may ask for.
const MOST_EXPERTS: usize = 1 << 16;

/// A number of experts from the first of these fields that the config has.
fn count(config: &ModelConfig, fields: &[&str]) -> Result<usize> {
    let field = fields.iter().find(|f| config.has(f)).or(fields.first()).copied().unwrap_or_default();
    match config.usize(field)? {
        n if n > 0 && n <= MOST_EXPERTS => Ok(n),
        n => Err(Error::config(field, n, format!("1 to {MOST_EXPERTS}"))),
    }
}

/// True if the layer has experts.
fn is_sparse(config: &ModelConfig, layer: usize) -> Result<bool> {
    if let Some(kinds) = config.optional_texts("mlp_layer_types")? {
        return match kinds.get(layer) {
            Some(&"sparse") => Ok(true),
            Some(&"dense") => Ok(false),
            Some(other) => Err(Error::config("mlp_layer_types", other, "sparse or dense")),
            None => Err(Error::config("mlp_layer_types", format!("{} entries", kinds.len()), "one a layer")),
        };
    }
    let dense = config.optional_usize("first_k_dense_replace")?.unwrap_or(0);
    let every = config.optional_usize("moe_layer_freq")?.unwrap_or(1);
    let step = config.optional_usize("decoder_sparse_step")?.unwrap_or(1);
    let only = config.optional_usizes("mlp_only_layers")?.unwrap_or_default();
    if every == 0 {
        return Err(Error::config("moe_layer_freq", 0, "at least 1"));
    }
    let at_step = step > 0 && (layer + 1).is_multiple_of(step);
    Ok(layer >= dense && layer.is_multiple_of(every) && at_step && !only.contains(&layer))
}

impl Spec {
    /// From the field names that most mixtures share: softmax scores, SwiGLU, no shared expert; the weights of a token sum to
    /// one where `norm_topk_prob` says so.
    pub fn from_config(config: &ModelConfig) -> Result<Spec> {
        let n_experts = count(config, &["num_experts", "num_local_experts", "n_routed_experts"])?;
        let n_active = count(config, &["num_experts_per_tok", "moe_k", "moe_topk"])?;
        if n_active > n_experts {
            return Err(Error::config("num_experts_per_tok", n_active, format!("at most the {n_experts} experts")));
        }
        let inner = if config.has("moe_intermediate_size") { "moe_intermediate_size" } else { "intermediate_size" };
        Ok(Spec {
            router: Router {
                leaf: "gate",
                norm: None,
                n_active,
                score: Score::Softmax,
                bias: None,
                groups: None,
                normalise: config.optional_bool("norm_topk_prob")?.unwrap_or(false).then_some(0.0),
                scale: config.optional_f64("routed_scaling_factor")?.unwrap_or(1.0) as f32,
                per_expert: None,
                weighed: Weighed::Results,
            },
            n_experts,
            inner: glu::width(config, inner)?,
            act: Act::Silu,
            shape: Shape::Gated,
            fused: Fused::Rows,
            mlx_folder: "switch_mlp",
            shared: None,
            latent: None,
        })
    }

    /// The feed-forward of a layer that `mlp_layer_types`, `first_k_dense_replace` with `moe_layer_freq`, or
    /// `decoder_sparse_step` with `mlp_only_layers` give a mixture or not.
    pub fn or_dense(self, config: &ModelConfig, layer: usize) -> Result<Box<dyn FfnSpec>> {
        if is_sparse(config, layer)? { Ok(Box::new(self)) } else { (swiglu::ENTRY.spec)(config, layer) }
    }

    /// With the choice restricted to groups, as `n_group` and `topk_group` say; unrestricted where all groups are kept.
    pub fn with_groups(mut self, config: &ModelConfig, rank: GroupRank) -> Result<Spec> {
        let n_groups = config.optional_usize("n_group")?.unwrap_or(1);
        let n_kept = config.optional_usize("topk_group")?.unwrap_or(n_groups);
        if n_groups == 0 || !self.n_experts.is_multiple_of(n_groups) {
            return Err(Error::config("n_group", n_groups, format!("a divisor of the {} experts", self.n_experts)));
        }
        if n_kept == 0 || n_kept > n_groups || n_kept * (self.n_experts / n_groups) < self.router.n_active {
            let (k, size) = (self.router.n_active, self.n_experts / n_groups);
            let expected = format!("1 to {n_groups}, and enough groups of {size} for {k} experts a token");
            return Err(Error::config("topk_group", n_kept, expected));
        }
        self.router.groups = (n_kept < n_groups).then_some(RouteGroups { n_groups, n_kept, rank });
        Ok(self)
    }

    /// With shared experts of this width under `scope`, none where the width is nothing.
    pub fn with_shared(mut self, scope: &'static str, inner: usize) -> Spec {
        let (act, shape) = (self.act, self.shape);
        let glu = glu::Spec::new(ENTRY.name, inner, act, shape);
        self.shared = (inner > 0).then_some(Shared { scope, glu, gate: None });
        self
    }

    /// With `n_shared_experts` experts side by side as one, under `shared_experts`.
    pub fn with_shared_experts(self, config: &ModelConfig) -> Result<Spec> {
        let n = config.optional_usize("n_shared_experts")?.unwrap_or(0);
        match n.checked_mul(self.inner).filter(|inner| *inner <= 1 << 24) {
            Some(inner) => Ok(self.with_shared("shared_experts", inner)),
            None => Err(Error::config("n_shared_experts", n, "at most 16777216 over an expert's width")),
        }
    }
}

impl FfnSpec for Spec {
    fn kind(&self) -> &'static str {
        ENTRY.name
    }

    fn stacks(&self, b: &Build<'_>) -> Result<Vec<Stack>> {
        Ok(Layout::find(b, self)?.stacks())
    }

    fn build(&self, b: &mut Build<'_>) -> Result<Box<dyn Ffn>> {
        let (width, e, router) = (b.width(), self.n_experts, &self.router);
        let shared = match &self.shared {
            Some(shared) => {
                let gate = shared.gate.map(|gate| b.linear_f32(gate, 1, width)).transpose()?;
                Some((shared.glu.weights(&b.below(shared.scope))?, gate))
            }
            None => None,
        };
        let vector = |name: Option<&str>| name.map(|name| b.vector(name, e)).transpose();
        let norm = match &router.norm {
            Some((spec, factor)) => Some(b.norm_times(spec, width, *factor)?),
            None => None,
        };
        Ok(Box::new(Moe {
            // A router decides, and is small: it is kept exact whatever the format of the rest.
            router: b.linear_f32(router.leaf, e, width)?,
            norm,
            route: RouteSpec {
                n_experts: e,
                n_active: router.n_active,
                score: router.score,
                bias: vector(router.bias)?,
                groups: router.groups,
                normalise: router.normalise,
                scale: router.scale,
                per_expert: vector(router.per_expert)?,
            },
            experts: Experts::new(b, Stored::new(b, Layout::find(b, self)?)?, router.n_active)?,
            latent: match self.latent {
                Some(l) => Some((b.linear(l.enter, l.width, width)?, b.linear(l.leave, width, l.width)?)),
                None => None,
            },
            weighed: router.weighed,
            act: self.act,
            shared,
        }))
    }
}

/// One expert's weights.
struct Expert {
    gate: Option<Weight>,
    up: Weight,
    down: Weight,
}

/// A mixture with its weights.
struct Moe {
    router: Linear,
    norm: Option<Norm>,
    route: RouteSpec,
    experts: Experts,
    weighed: Weighed,
    act: Act,
    shared: Option<(Glu, Option<Linear>)>,
    /// Into the experts' own space, and out of it.
    latent: Option<(Linear, Linear)>,
}

/// The tokens of an expert, with their weights.
type Tokens = Vec<(u32, f32)>;

/// The tokens of each expert that has any, by the expert's number.
fn by_expert(routes: &Routes) -> BTreeMap<u32, Tokens> {
    let mut found: BTreeMap<u32, Tokens> = BTreeMap::new();
    for (i, (expert, weight)) in routes.experts.iter().zip(&routes.weights).enumerate() {
        found.entry(*expert).or_default().push(((i / routes.n_active) as u32, *weight));
    }
    found
}

impl Moe {
    /// What the experts of a wave give, row after row, and which row each is for.
    fn routed(&self, be: &dyn Backend, input: Input<'_>, wave: &Wave<'_>) -> Result<(Tensor, Vec<Term>)> {
        let given = match self.weighed {
            Weighed::Results => None,
            Weighed::Inputs => Some(weigh(be, input, wave)?),
        };
        let (mut first, mut last, mut terms) = (Vec::new(), Vec::new(), Vec::new());
        for (expert, tokens) in wave.iter() {
            let from = terms.len() as u32;
            let rows = |n: usize| from..from + n as u32;
            first.push(Group {
                weights: expert.gate.iter().chain([&expert.up]).collect(),
                rows: match given {
                    Some(_) => rows(tokens.len()).collect(),
                    None => tokens.iter().map(|(t, _)| *t).collect(),
                },
            });
            last.push(Group { weights: vec![&expert.down], rows: rows(tokens.len()).collect() });
            terms.extend(tokens.iter().zip(rows(tokens.len())).map(|((to, weight), from)| Term {
                to: *to,
                from,
                weight: if given.is_some() { 1.0 } else { *weight },
            }));
        }
        terms.sort_by_key(|t| t.to);
        let mut inside = be.linear_groups(given.as_ref().map_or(input, Input::Plain), &first)?;
        let missing = || reverie_tensor::Error::shape("experts", "fewer results", 2);
        let up = inside.pop().ok_or_else(missing)?;
        let inside = Inside::new(inside.pop(), up, self.act);
        Ok((be.linear_groups(inside.input(), &last)?.pop().ok_or_else(missing)?, terms))
    }

    /// What the experts' results are added to.
    fn base(&self, be: &dyn Backend, stream: Stream<'_>) -> Result<Tensor> {
        let Some((glu, gate)) = &self.shared else { return start(be, stream) };
        let gates = match gate {
            Some(gate) => Some(project(be, stream.input(), [gate])?),
            None => None,
        };
        let inside = glu.inside(be, stream.input())?;
        match gates {
            None => stream.close(be, glu.down(), inside.input()),
            Some([gates]) => {
                let [y] = project(be, inside.input(), [glu.down()])?;
                let terms = open(be, &gates)?;
                Ok(be.add_weighted(start(be, stream)?, &y, &terms)?)
            }
        }
    }
}

impl Ffn for Moe {
    fn experts(&self, backend: &dyn Backend) -> ExpertBytes {
        self.experts.bytes(backend, self.route.n_active)
    }

    fn forward(&self, step: &Step<'_>, stream: Stream<'_>) -> Result<Tensor> {
        let be = step.backend;
        let seen = match &self.norm {
            Some(norm) => Input::Normed(&stream.x, norm),
            None => stream.input(),
        };
        let [logits] = project(be, seen, [&self.router])?;
        let routes = be.route(&logits, &self.route)?;
        drop(logits);
        let mut waiting = by_expert(&routes);
        // In a space of their own the experts' sum begins with nothing, else with what the stream has.
        let (mut given, mut sum) = (None, None);
        if let Some((enter, _)) = &self.latent {
            let [entered] = project(be, stream.input(), [enter])?;
            sum = Some(be.alloc(entered.dims(), DType::F32, Class::Scratch)?);
            given = Some(entered);
        }
        let mut stream = Some(stream);
        // A token's experts are added by number, whether they come at once or one after another.
        while let Some(seen) = &stream {
            let wave = self.experts.next(be, &mut waiting)?;
            let (rows, terms) = self.routed(be, given.as_ref().map_or(seen.input(), Input::Plain), &wave)?;
            drop(wave);
            // A forecast sees one wave where a run may see more: with several rows both keep the stream beside the sum.
            let last = waiting.is_empty() && (self.experts.come_at_once() || seen.x.rows() == 1);
            let base = match sum.take() {
                Some(sum) => sum,
                None if last => self.base(be, stream.take().ok_or_else(nothing)?)?,
                None => self.base(be, seen.clone())?,
            };
            sum = Some(be.add_weighted(base, &rows, &terms)?);
            if waiting.is_empty() {
                break;
            }
        }
        let sum = sum.ok_or_else(nothing)?;
        match (&self.latent, stream) {
            (Some((_, leave)), Some(stream)) => leave.add_to(be, Input::Plain(&sum), self.base(be, stream)?),
            _ => Ok(sum),
        }
    }
}

/// For every expert of a wave its tokens times their weights, row after row.
fn weigh(be: &dyn Backend, input: Input<'_>, wave: &Wave<'_>) -> Result<Tensor> {
    let tokens = wave.iter().flat_map(|(_, tokens)| tokens);
    let terms: Vec<Term> =
        tokens.zip(0..).map(|((from, weight), to)| Term { to, from: *from, weight: *weight }).collect();
    let x = match input {
        Input::Normed(x, norm) => be.norm(x, norm)?,
        Input::Plain(x) => x.clone(),
        _ => return Err(reverie_tensor::Error::shape("experts", "a product", "the stream, normed or plain").into()),
    };
    let zeros = be.alloc(&[terms.len(), x.width()], DType::F32, Class::Scratch)?;
    Ok(be.add_weighted(zeros, &x, &terms)?)
}

fn nothing() -> Error {
    reverie_tensor::Error::shape("experts", "no rows", "at least one").into()
}

/// Every row for itself, times σ of its gate `[T, 1]`.
fn open(be: &dyn Backend, gates: &Tensor) -> Result<Vec<Term>> {
    let weights = be.route(gates, &RouteSpec::alone(Score::Sigmoid))?.weights;
    Ok(weights.into_iter().zip(0..).map(|(weight, t)| Term { to: t, from: t, weight }).collect())
}

/// The stream, or zeros like it.
fn start(be: &dyn Backend, stream: Stream<'_>) -> Result<Tensor> {
    match stream.out {
        Out::Add => Ok(stream.x),
        Out::Plain => Ok(be.alloc(stream.x.dims(), DType::F32, Class::Scratch)?),
    }
}
