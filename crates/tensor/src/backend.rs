//! The operations a model is made of, each with the plain scalar reference as its default body. A backend overrides
//! what it does faster; a decorator overrides what it wants to see. Knows no model and no device.
//!
//! Shapes: T rows (tokens of all sequences of the batch, one after another), D width, H query heads, G key/value
//! heads, Dk/Dv their widths, N and K rows and columns of a weight, C channels, P tokens of a page.

use std::any::Any;
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

pub use crate::attention::{
    AttendSpec, Choice, ChooseSpec, Keep, KvSegment, KvSpec, KvTarget, Latent, PAGE_TOKENS, Reach, SPAN_PAGES,
};
use crate::buffer::{Class, Memory};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::experts::{Event, Group, RouteSpec, Routes, Term};
use crate::form::{Form, WeightSource};
use crate::formula::Formula;
use crate::recurrence::{Recurrence, RecurrenceSpec};
use crate::reference;
use crate::tensor::Tensor;

/// Values of an activation that share one int8 scale. Part of the numerics.
pub const ACT_BLOCK: usize = 32;

/// How activations meet integer weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numerics {
    /// As f32, whatever the weight.
    Exact,
    /// As int8 with one scale per 32 values where the weight is grouped integers; f32 otherwise.
    Int8,
}

/// An elementwise activation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Act {
    /// x · σ(x).
    Silu,
    /// GELU, tanh form.
    GeluTanh,
    /// GELU, by the error function.
    Gelu,
    /// max(x, 0).
    Relu,
    /// x: a plain product where it stands in a gate.
    Identity,
    /// max(x, 0)².
    Relu2,
    /// x · σ(alpha · x) with x cut off above at `limit`. As a gate it lets through u + 1, u cut off to ±`limit` (gpt-oss).
    Clamped {
        /// Inside σ.
        alpha: f32,
        /// Where values are cut off.
        limit: f32,
    },
}

/// Which normalisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// x / sqrt(mean(x²) + eps).
    Rms,
    /// (x - mean) / sqrt(var + eps).
    Layer,
}

/// A normalisation over the last extent.
#[derive(Clone, Debug)]
pub struct Norm {
    /// Which one.
    pub kind: NormKind,
    /// Multiplied after normalising: f32 `[D]`, or `[G, D]` where row r is of group r mod G (x `[T, G, D]`).
    pub weight: Option<Tensor>,
    /// Added last: f32, shaped as the weight.
    pub bias: Option<Tensor>,
    /// Added under the root.
    pub eps: f32,
}

/// What a matrix product reads: a tensor, or what is computed on the way into the product.
#[derive(Clone, Copy)]
pub enum Input<'a> {
    /// x `[T, K]`.
    Plain(&'a Tensor),
    /// norm(x), x `[T, K]`.
    Normed(&'a Tensor, &'a Norm),
    /// act(gate) ⊙ up, both `[T, K]`.
    Glu(&'a Tensor, &'a Tensor, Act),
    /// act(x), x `[T, K]`.
    Activated(&'a Tensor, Act),
    /// x ⊙ σ(gate), both `[T, K]`.
    SigmoidGated(&'a Tensor, &'a Tensor),
}

impl<'a> Input<'a> {
    /// The tensor that sets the shape.
    pub fn lead(&self) -> &'a Tensor {
        match self {
            Input::Plain(x)
            | Input::Normed(x, _)
            | Input::Glu(x, _, _)
            | Input::Activated(x, _)
            | Input::SigmoidGated(x, _) => x,
        }
    }
}

/// A weight matrix as a backend packed it: `[N, K]`, with its bias if it has one.
#[derive(Clone)]
pub struct Weight {
    /// Output rows.
    pub n: usize,
    /// Length of a row.
    pub k: usize,
    /// The compute form it came in.
    pub form: Form,
    /// Added to every output row: f32 `[N]`.
    pub bias: Option<Tensor>,
    /// The backend's own packing.
    pub packed: Arc<dyn Any + Send + Sync>,
}

impl std::fmt::Debug for Weight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Weight([{}, {}] {:?})", self.n, self.k, self.form)
    }
}

/// How a rotary embedding pairs the elements of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeLayout {
    /// Element i with i + rot/2 (NeoX, Hugging Face).
    Halves,
    /// Element 2i with 2i + 1 (GPT-J).
    Interleaved,
}

/// A rotary embedding: the first `2 · freqs.len()` elements of each head are turned by position · freq.
#[derive(Clone, Debug)]
pub struct Rope {
    /// Angular frequency of each pair, per token.
    pub freqs: Arc<[f32]>,
    /// Multiplies sine and cosine (yarn's attention factor); 1 otherwise.
    pub magnitude: f32,
    /// Which elements pair.
    pub layout: RopeLayout,
}

/// A depthwise causal convolution over time.
#[derive(Clone, Debug)]
pub struct ConvSpec {
    /// Taps by channel: f32 `[kernel, C]`; the last tap meets the current token.
    pub taps: Tensor,
    /// f32 `[C]`.
    pub bias: Option<Tensor>,
    /// Applied to the sum.
    pub act: Option<Act>,
}

/// Rows of one sequence and the recurrent slot that they advance, token by token.
pub struct StateSegment<'a> {
    /// Rows of the batch.
    pub rows: Range<usize>,
    /// The slot; it must be unshared.
    pub state: &'a mut Tensor,
}

/// What an input of `Backend::pointwise` holds, for a result of T rows of W values.
#[derive(Clone, Copy, Debug)]
pub enum Operand<'a> {
    /// A value for each of the result's.
    Each(&'a Tensor),
    /// Columns from this one on, of T wider rows.
    Columns(&'a Tensor, usize),
    /// One row `[W]` that meets every row.
    Row(&'a Tensor),
    /// `[T, n]`: a value for each stretch of W / n (a head, a row).
    Stretch(&'a Tensor),
}

impl<'a> Operand<'a> {
    /// What it reads.
    pub fn tensor(&self) -> &'a Tensor {
        match self {
            Operand::Each(x) | Operand::Columns(x, _) | Operand::Row(x) | Operand::Stretch(x) => x,
        }
    }

    /// Which of its values meets value `i` of a result of `rows` rows of `width`.
    pub fn index(&self, i: usize, rows: usize, width: usize) -> usize {
        let per_row = self.tensor().shape().elements() / rows.max(1);
        match self {
            Operand::Each(_) => i,
            Operand::Columns(_, at) => i / width * per_row + at + i % width,
            Operand::Row(_) => i % width,
            Operand::Stretch(_) => i / (width / per_row),
        }
    }
}

/// A selective scan (S6; Mamba, arXiv 2312.00752): every channel has N states of its own, and a token says how fast they decay, how
/// they are written and how they are read.
#[derive(Clone, Debug)]
pub struct ScanSpec {
    /// f32 `[N, C]`, negative: the decay of a token is exp(rate · softplus(dt)). Checkpoints store ln(-rate) as `[C, N]`.
    pub rate: Tensor,
    /// f32 `[C]`: how much of x goes past the states.
    pub skip: Tensor,
}

/// What a token brings to a selective scan.
#[derive(Clone, Copy)]
pub struct ScanInput<'a> {
    /// `[T, C]`.
    pub x: &'a Tensor,
    /// `[T, C]`, before the softplus.
    pub dt: &'a Tensor,
    /// Written to the states: `[T, N]`.
    pub b: &'a Tensor,
    /// Reads the states: `[T, N]`.
    pub c: &'a Tensor,
}

/// The real-gated linear recurrent unit (Griffin, arXiv 2402.19427): block-diagonal gates and one state a channel.
#[derive(Clone, Debug)]
pub struct RgLruSpec {
    /// f32 `[C]`, negative: the decay of a token is exp(rate · σ(recurrence gate)).
    pub rate: Tensor,
    /// Weight f32 `[H, C/H, C/H]` (block, input, output) and bias f32 `[C]` of the gate on what comes in.
    pub input_gate: (Tensor, Tensor),
    /// The same of the gate on the decay.
    pub decay_gate: (Tensor, Tensor),
}

/// One elementwise map.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Map {
    /// x · s.
    Scale(f32),
    /// cap · tanh(x / cap).
    Softcap(f32),
}

/// The operations of a model. Default bodies are the scalar reference and need host-readable tensors.
pub trait Backend: Send + Sync {
    /// A word for messages.
    fn name(&self) -> &'static str;

    /// How activations meet integer weights.
    fn numerics(&self) -> Numerics;

    /// The budget and the meter.
    fn memory(&self) -> &Memory;

    // ---- memory

    /// A tensor of zeros.
    fn alloc(&self, shape: &[usize], dtype: DType, class: Class) -> Result<Tensor>;

    /// A tensor whose content is nobody's business, since all of it will be overwritten.
    fn blank(&self, shape: &[usize], dtype: DType, class: Class) -> Result<Tensor> {
        self.alloc(shape, dtype, class)
    }

    /// Flat tensors of state over part of a file (elements and types), which must stay as it is: [`Memory::over_file`]. None: read it.
    fn over_file(&self, _file: &File, _from: u64, _parts: &[(usize, DType)]) -> Result<Option<Vec<Tensor>>> {
        Ok(None)
    }

    /// A tensor with these values, rounded to `dtype`.
    fn upload(&self, values: &[f32], shape: &[usize], dtype: DType, class: Class) -> Result<Tensor>;

    /// The values as f32.
    fn read(&self, x: &Tensor) -> Result<Vec<f32>>;

    /// Bytes of `x` as they lie in memory.
    fn read_bytes(&self, x: &Tensor) -> Result<Vec<u8>>;

    /// Overwrites the bytes of an unshared tensor.
    fn write_bytes(&self, x: &mut Tensor, bytes: &[u8]) -> Result<()>;

    /// A copy that shares nothing.
    fn copy(&self, x: &Tensor, class: Class) -> Result<Tensor>;

    // ---- weights

    /// Packs a matrix into this backend's layout, counted as `class`. The result is the only copy.
    fn pack(&self, source: &dyn WeightSource, bias: Option<&[f32]>, class: Class) -> Result<Weight>;

    /// The packed matrix shown as a source again: what `pack` took, row for row.
    fn unpack<'a>(&'a self, weight: &'a Weight) -> Result<Box<dyn WeightSource + 'a>>;

    /// Bytes that `pack` takes for a matrix of this shape, without its bias.
    fn packed_bytes(&self, n: usize, k: usize, form: &Form) -> usize;

    /// Bytes of workspace that one `linear` of `rows` rows takes beside its results.
    fn linear_workspace(&self, rows: usize, weights: &[&Weight]) -> usize {
        let _ = (rows, weights);
        0
    }

    /// Bytes of workspace that one `linear_groups` takes for `picked` rows in all, picked from `rows`, whatever the groups.
    fn linear_groups_workspace(&self, (rows, picked): (usize, usize), weights: &[&Weight]) -> usize {
        let _ = (rows, picked, weights);
        0
    }

    /// Bytes of workspace that one `attend` takes beside its result.
    fn attend_workspace(&self, rows: usize, keys: usize, spec: &AttendSpec) -> usize {
        let _ = (rows, keys, spec);
        0
    }

    // ---- operations

    /// Rows `ids` of the table times `scale`: `[T, K]`. Ids are below N.
    fn embed(&self, table: &Weight, ids: &[u32], scale: f32) -> Result<Tensor> {
        reference::embed::run(self, table, ids, scale)
    }

    /// `x · Wᵀ (+ bias)` for several weights that share one input: one `[T, N]` each.
    fn linear(&self, input: Input<'_>, weights: &[&Weight]) -> Result<Vec<Tensor>> {
        reference::linear::run(self, input, weights)
    }

    /// `residual + x · Wᵀ (+ bias)`: `[T, N]`. The residual's storage is used if it is unshared.
    fn linear_add(&self, input: Input<'_>, weight: &Weight, residual: Tensor) -> Result<Tensor> {
        let y = self.linear(input, &[weight])?.pop().ok_or_else(|| Error::shape("linear_add", 0, 1))?;
        self.add(residual, &y)
    }

    /// The experts of every row of the router's logits `[T, E]`.
    fn route(&self, logits: &Tensor, spec: &RouteSpec) -> Result<Routes> {
        reference::experts::route(self, logits, spec)
    }

    /// For every group, its rows of the input times its weights: one `[R, N]` for each place in the groups' weights, R being the
    /// rows of all groups, group after group. A row's numbers are those that `linear` gives.
    fn linear_groups(&self, input: Input<'_>, groups: &[Group<'_>]) -> Result<Vec<Tensor>> {
        reference::experts::linear_groups(self, input, groups)
    }

    /// `base` `[T, D]` with the terms' rows of x `[R, D]` added: every row of the sum is one chain, in the order of the terms, which
    /// ascend by `to`. The base's storage is used if it is unshared.
    fn add_weighted(&self, base: Tensor, x: &Tensor, terms: &[Term]) -> Result<Tensor> {
        reference::experts::add_weighted(self, &base, x, terms)
    }

    /// Normalises the last extent of `x`, any rank.
    fn norm(&self, x: &Tensor, norm: &Norm) -> Result<Tensor> {
        reference::norm::run(self, x, norm)
    }

    /// RMS norm of x times weight times silu(z), over the last extent: Mamba-2's and gated delta's output norm.
    fn gated_norm(&self, x: &Tensor, z: &Tensor, norm: &Norm) -> Result<Tensor> {
        reference::norm::run_gated(self, x, z, norm)
    }

    /// Rotates the heads of x `[T, H, D]` by their row's position.
    fn rope(&self, x: Tensor, positions: &[u32], rope: &Rope) -> Result<Tensor> {
        reference::rope::run(self, x, positions, rope)
    }

    /// Writes k `[T, G, Dk]` and v `[T, G, Dv]` into the pages of their sequences.
    fn kv_write(&self, k: &Tensor, v: &Tensor, targets: &mut [KvTarget<'_>], spec: &KvSpec) -> Result<()> {
        reference::attend::write(self, k, v, targets, spec)
    }

    /// Causal attention of q `[T, H, Dk]` over the pages: `[T, H·Dv]`. `AttendSpec::q_dim` and `v_dim` say how wide both are.
    fn attend(&self, q: &Tensor, segments: &[KvSegment<'_>], spec: &AttendSpec) -> Result<Tensor> {
        reference::attend::run(self, q, segments, spec)
    }

    /// The keys that every row of q `[T, H, D]` sees, and with `Choice::Share` its attention to the means of whole blocks,
    /// `[T, H·Dv]`: zeros before there is one.
    fn choose(&self, q: &Tensor, segments: &[KvSegment<'_>], spec: &ChooseSpec) -> Result<(Keep, Option<Tensor>)> {
        reference::choose::run(self, q, segments, spec)
    }

    /// Causal depthwise convolution of x `[T, C]`; each slot holds the last kernel-1 inputs, f32 `[kernel-1, C]`, oldest first.
    fn conv(&self, x: &Tensor, segments: &mut [StateSegment<'_>], spec: &ConvSpec) -> Result<Tensor> {
        reference::conv::run(self, x, segments, spec)
    }

    /// A linear recurrence; each slot f32 `[H, Dk, Dv]`. Gives `[T, H, Dv]`.
    fn recurrence(
        &self,
        x: &Recurrence<'_>,
        segments: &mut [StateSegment<'_>],
        spec: &RecurrenceSpec,
    ) -> Result<Tensor> {
        reference::recurrence::run(self, x, segments, spec)
    }

    /// A formula of each value: a result of `shape`, whose first extent is T.
    fn pointwise(&self, shape: &[usize], inputs: &[Operand<'_>], formula: &Formula) -> Result<Tensor> {
        reference::pointwise::run(self, shape, inputs, formula)
    }

    /// RWKV-4's mean over time of v `[T, C]`, weighted by e^k, k `[T, C]`; of `rates`, the first (f32 `[C]`, negative) is added to the
    /// logarithm of a weight at each token, the second to the newest key where it is read. Slots f32 `[3, C]`. Gives `[T, C]`.
    fn wkv(
        &self,
        kv: (&Tensor, &Tensor),
        rates: (&Tensor, &Tensor),
        segments: &mut [StateSegment<'_>],
    ) -> Result<Tensor> {
        reference::wkv::run(self, kv, rates, segments)
    }

    /// Exponential gates over m, the largest logarithm so far: m ← max(forget + m, input), both `[T, H]`, slots f32 `[H]`. Gives what
    /// stays, e^(forget + old m - m), what is written, e^(input - m), and m.
    fn exp_gates(&self, input: &Tensor, forget: &Tensor, segments: &mut [StateSegment<'_>]) -> Result<[Tensor; 3]> {
        reference::exp_gates::run(self, input, forget, segments)
    }

    /// The softmax over the last extent, into x's storage if it is unshared.
    fn softmax(&self, x: Tensor) -> Result<Tensor> {
        reference::elementwise::softmax(self, &x)
    }

    /// Σ a ⊙ b over the last extent: `[T, H, D]` twice gives `[T, H]`.
    fn dot(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        reference::elementwise::dot(self, a, b)
    }

    /// The selective scan; each slot is f32 `[N, C]`. Gives `[T, C]`.
    fn selective_scan(
        &self,
        input: ScanInput<'_>,
        segments: &mut [StateSegment<'_>],
        spec: &ScanSpec,
    ) -> Result<Tensor> {
        reference::scan::run(self, input, segments, spec)
    }

    /// The real-gated linear recurrent unit over x `[T, C]`; each slot is f32 `[C]`. What comes in at position 0 is not scaled down.
    fn rg_lru(
        &self,
        x: &Tensor,
        positions: &[u32],
        segments: &mut [StateSegment<'_>],
        spec: &RgLruSpec,
    ) -> Result<Tensor> {
        reference::rg_lru::run(self, x, positions, segments, spec)
    }

    /// act(gate) ⊙ up.
    fn glu(&self, gate: &Tensor, up: &Tensor, act: Act) -> Result<Tensor> {
        reference::elementwise::glu(self, gate, up, act)
    }

    /// a + b, into a's storage if it is unshared.
    fn add(&self, a: Tensor, b: &Tensor) -> Result<Tensor> {
        reference::elementwise::add(self, &a, b)
    }

    /// One elementwise map, into x's storage if it is unshared.
    fn map(&self, x: Tensor, map: Map) -> Result<Tensor> {
        reference::elementwise::map(self, &x, map)
    }

    /// Row by row combinations of n tensors of one shape `[T, …]`: `y_i[t] = Σ_j c[t, i·n + j] · x_j[t]`, added in the order of j. `c` is
    /// f32 `[T, m·n]`; gives m tensors of the inputs' shape.
    fn combine(&self, xs: &[&Tensor], coefficients: &Tensor) -> Result<Vec<Tensor>> {
        reference::elementwise::combine(self, xs, coefficients)
    }

    /// Rows side by side: `[T, Di]` each to `[T, ΣDi]`.
    fn concat(&self, parts: &[&Tensor]) -> Result<Tensor> {
        reference::elementwise::concat(self, parts)
    }

    /// The given rows of x `[T, D]`.
    fn rows(&self, x: &Tensor, rows: &[usize]) -> Result<Tensor> {
        reference::elementwise::rows(self, x, rows)
    }

    /// Tells an observer that `x` is what the model calls `name`; nobody listens by default.
    fn note(&self, name: &str, x: &Tensor) -> Result<()> {
        let _ = (name, x);
        Ok(())
    }

    /// Tells an observer what happened; nobody listens by default.
    fn event(&self, event: &Event) {
        let _ = event;
    }
}
