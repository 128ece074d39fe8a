//! What a mixture of experts asks of a backend: how tokens choose experts, which rows meet which weights, and how the results are
//! put together again. Knows no operation's body and no model.

use crate::backend::Weight;
use crate::tensor::Tensor;

/// From the router's logits to scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Score {
    /// Softmax over all experts.
    Softmax,
    /// σ, each expert alone.
    Sigmoid,
}

/// By what a group of experts is ranked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupRank {
    /// Its best score.
    Best,
    /// The sum of its two best scores.
    BestTwo,
}

/// Experts in equal groups, of which only a few may be chosen from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteGroups {
    /// Groups; divides the experts.
    pub n_groups: usize,
    /// Groups that a token chooses from.
    pub n_kept: usize,
    /// What decides.
    pub rank: GroupRank,
}

/// How a token's experts are chosen: the highest scores, the lower index where two are equal.
#[derive(Clone, Debug)]
pub struct RouteSpec {
    /// E.
    pub n_experts: usize,
    /// Experts of a token.
    pub n_active: usize,
    /// Scores.
    pub score: Score,
    /// Added to the scores for the choice, not for the weights: f32 `[E]`.
    pub bias: Option<Tensor>,
    /// Restricts the choice.
    pub groups: Option<RouteGroups>,
    /// The weights of a token are divided by their sum plus this.
    pub normalise: Option<f32>,
    /// Then multiplied by this.
    pub scale: f32,
    /// Then by this, by expert: f32 `[E]`.
    pub per_expert: Option<Tensor>,
}

impl RouteSpec {
    /// One expert, whose weight is its score.
    pub fn alone(score: Score) -> RouteSpec {
        RouteSpec {
            n_experts: 1,
            n_active: 1,
            score,
            bias: None,
            groups: None,
            normalise: None,
            scale: 1.0,
            per_expert: None,
        }
    }
}

/// Where the tokens go.
#[derive(Clone, Debug, PartialEq)]
pub struct Routes {
    /// Experts of a token.
    pub n_active: usize,
    /// `[T, n_active]`, ascending in each row.
    pub experts: Vec<u32>,
    /// `[T, n_active]`.
    pub weights: Vec<f32>,
}

/// Rows of a shared input, and the weights that they meet.
#[derive(Clone, Debug)]
pub struct Group<'a> {
    /// As many in each group of a call; of one shape at each place.
    pub weights: Vec<&'a Weight>,
    /// Rows of the input, each at most once.
    pub rows: Vec<u32>,
}

/// What an observer may hear of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Experts that a mixture wanted at once.
    Experts {
        /// The mixture, counted through the model.
        mixture: usize,
        /// Those that were packed already.
        hits: usize,
        /// Those that were packed for it.
        misses: usize,
        /// Bytes that this packed.
        packed_bytes: u64,
    },
}

/// Row `to` of a sum gains `weight` times row `from`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Term {
    /// Row of the sum.
    pub to: u32,
    /// Row that is added.
    pub from: u32,
    /// Its factor.
    pub weight: f32,
}
