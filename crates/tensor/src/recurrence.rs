//! Linear recurrences over a matrix of state per head: what stays, what is written, what is read. One form for Mamba-2, gated
//! linear attention, retention, the delta rules and RWKV. Knows no gate: decays and write strengths come ready.

use crate::tensor::Tensor;

/// How heads share the rows of an operand that has fewer of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadOrder {
    /// Head j reads j / (heads / shared): neighbours share (Hugging Face).
    Grouped,
    /// Head j reads j mod shared (ggml).
    Tiled,
}

impl HeadOrder {
    /// Which of `n_shared` rows head `j` of `n_heads` reads.
    pub fn shared_head(self, j: usize, n_shared: usize, n_heads: usize) -> usize {
        match self {
            HeadOrder::Grouped => j / (n_heads / n_shared),
            HeadOrder::Tiled => j % n_shared,
        }
    }
}

/// Heads that lie side by side in the rows of a tensor.
#[derive(Clone, Copy, Debug)]
pub struct Heads<'a> {
    /// T rows of any width.
    pub x: &'a Tensor,
    /// Column of the first head.
    pub at: usize,
    /// How many heads; divides the state's heads.
    pub n: usize,
}

impl<'a> Heads<'a> {
    /// `n` heads from the first column on.
    pub fn whole(x: &'a Tensor, n: usize) -> Heads<'a> {
        Heads { x, at: 0, n }
    }
}

/// What a token leaves of the state, as factors.
#[derive(Clone, Copy, Debug)]
pub enum Decay<'a> {
    /// All of it.
    None,
    /// The same for every token: f32 `[H]`.
    Fixed(&'a Tensor),
    /// `[T, H]`.
    Head(&'a Tensor),
    /// Dk values a head: each row of the state has its own.
    Key(Heads<'a>),
    /// Dv values a head: each column of the state has its own.
    Value(Heads<'a>),
}

/// How a token is written into the state.
#[derive(Clone, Copy, Debug)]
pub enum Rule<'a> {
    /// S ← decay S + strength · k vᵀ. Strength `[T, H]`, or 1.
    Add(Option<&'a Tensor>),
    /// S ← S' + strength · k (v - kᵀS')ᵀ with S' = decay S (arXiv 2412.06464). Not with a decay of columns.
    Delta(Option<&'a Tensor>),
    /// S ← decay S + b (aᵀS)ᵀ + k vᵀ, Dk values a head each (RWKV-7, arXiv 2503.14456). Decay of rows only.
    LowRank(Heads<'a>, Heads<'a>),
}

/// What a token reads of the state.
#[derive(Clone, Debug)]
pub enum Read {
    /// qᵀS after the write.
    After,
    /// qᵀ(S + bonus ⊙ k vᵀ) with S before decay and write (RWKV-6, arXiv 2404.05892); bonus f32 `[H, Dk]`. With `Rule::Add` alone.
    Before(Tensor),
}

/// The operands of a recurrence.
#[derive(Clone, Copy, Debug)]
pub struct Recurrence<'a> {
    /// Dk values a head.
    pub q: Heads<'a>,
    /// Dk values a head.
    pub k: Heads<'a>,
    /// Dv values a head.
    pub v: Heads<'a>,
    /// What stays.
    pub decay: Decay<'a>,
    /// What is written.
    pub rule: Rule<'a>,
}

/// What does not change from token to token.
#[derive(Clone, Debug)]
pub struct RecurrenceSpec {
    /// H, heads of the state.
    pub n_heads: usize,
    /// Dk.
    pub k_dim: usize,
    /// Dv.
    pub v_dim: usize,
    /// How heads share operands.
    pub order: HeadOrder,
    /// q and k become x / √(Σx² + this).
    pub unit_eps: Option<f32>,
    /// Multiplies q, after that.
    pub q_scale: f32,
    /// What is read.
    pub read: Read,
    /// Added to the result: skip · v, f32 `[H]` (Mamba-2's D).
    pub skip: Option<Tensor>,
}
