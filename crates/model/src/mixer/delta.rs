//! The delta rules that DeltaNet, gated DeltaNet and Kimi delta attention are rows of: short causal convolutions, L2-normalised
//! queries and keys, a write that first takes away what the key already recalls (arXiv 2406.06484, 2412.06464, 2510.26692). Knows
//! no family: a spec says how the state decays, how the output is gated and how the tensors are stored.

use reverie_files::ModelConfig;
use reverie_tensor::formula::input;
use reverie_tensor::quant::DenseMatrix;
use reverie_tensor::{
    Act, Backend, DType, Decay, Formula, HeadOrder, Input, Operand, Read, Recurrence, RecurrenceSpec, Rule, Tensor,
    Weight,
};

use super::closing::{Closing, ClosingSpec, Gate, Over};
use super::mamba::Rates;
use super::qkv::{ByHead, Leaves, Narrow, Qkv, QkvSpec};
use super::{Mixer, Step, Stream};
use crate::Build;
use crate::error::{Error, Result};
use crate::linear::Linear;
use crate::plan::MixerSpec;
use crate::state::{LayerState, SlotNeed, StateSpec};

/// One layer of a delta rule.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The registry's row.
    pub kind: &'static str,
    /// Heads of q and k.
    pub n_k_heads: usize,
    /// Heads of v; a multiple of `n_k_heads`.
    pub n_v_heads: usize,
    /// Width of a key.
    pub k_dim: usize,
    /// Width of a value.
    pub v_dim: usize,
    /// Taps of the convolutions; none where there are none.
    pub kernel: Option<usize>,
    /// On q and k.
    pub act: Option<Act>,
    /// What the state loses at each token.
    pub decay: Forget,
    /// On q and k, after that.
    pub feature: Option<Formula>,
    /// What q and k are brought to.
    pub unit: Unit,
    /// How strongly a token writes.
    pub strength: Strength,
    /// On the way out.
    pub gate: Gate,
    /// Of the output norm.
    pub eps: f32,
    /// Which tensors there are.
    pub stored: Stored,
    /// How the rates of forgetting lie in the file.
    pub rates: Rates,
}

/// What the queries and keys of a head are brought to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A length of one.
    Length,
    /// A sum of magnitudes of one.
    Sum,
}

/// How strongly a token writes; 2 where eigenvalues may be negative.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Strength {
    /// σ(b) times this.
    Sigmoid(f32),
    /// The same for every token.
    Fixed(f32),
}

/// How a delta rule forgets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Forget {
    /// It does not.
    Nothing,
    /// exp(-exp(A) softplus(a + dt_bias)), a number a head.
    ByHead,
    /// The same for each channel of the key.
    ByKey,
    /// exp(bound · σ(exp(A) (a + dt_bias))) for each channel of the key: never below e^bound.
    Bounded(f32),
}

/// The tensors of a delta layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// `in_proj_qkv`, `_z`, `_a`, `_b`, one convolution; the value heads of one key head stand side by side.
    Joint,
    /// `in_proj_qkvz` and `in_proj_ba`, key head by key head.
    ByKeyHead,
    /// `q_proj`, `k_proj`, `v_proj`, `a_proj`, `b_proj`, `g_proj`, a convolution each.
    Apart,
    /// As `Joint`, value heads tiled over the key heads.
    Tiled,
    /// As `Joint`, but `in_proj_ba` key head by key head.
    JointByKeyHead,
}

impl Spec {
    /// The gated delta rule in Qwen3-Next's field names.
    pub fn gated(config: &ModelConfig) -> Result<Spec> {
        let spec = Spec {
            kind: "gated_delta",
            n_k_heads: count(config, "linear_num_key_heads")?,
            n_v_heads: count(config, "linear_num_value_heads")?,
            k_dim: count(config, "linear_key_head_dim")?,
            v_dim: count(config, "linear_value_head_dim")?,
            kernel: Some(count(config, "linear_conv_kernel_dim")?),
            act: Some(Act::Silu),
            decay: Forget::ByHead,
            feature: None,
            unit: Unit::Length,
            strength: Strength::Sigmoid(1.0),
            gate: Gate::Silu,
            eps: config.optional_f64("rms_norm_eps")?.unwrap_or(1e-6) as f32,
            stored: Stored::Joint,
            rates: Rates::Log,
        };
        spec.checked("linear_num_value_heads")
    }

    /// In the field names of flash-linear-attention; `kind`'s own come on top. `expand_k` and `expand_v` count from `head_dim`, or
    /// from the width's share of a head.
    pub fn flash(config: &ModelConfig, kind: &'static str) -> Result<Spec> {
        let heads = count(config, "num_heads")?;
        let width = config.usize("hidden_size")?;
        let base = match config.optional_usize("head_dim")? {
            Some(dim) => dim,
            None if width.is_multiple_of(heads) => width / heads,
            None => return Err(Error::config("num_heads", heads, format!("a divisor of hidden_size = {width}"))),
        };
        let spec = Spec {
            kind,
            n_k_heads: heads,
            n_v_heads: config.usize_or("num_v_heads", heads)?,
            k_dim: expanded(config, "expand_k", base, 1.0)?,
            v_dim: expanded(config, "expand_v", base, 1.0)?,
            kernel: flash_kernel(config, true)?,
            act: Some(Act::Silu),
            decay: Forget::Nothing,
            feature: None,
            unit: Unit::Length,
            strength: Strength::Sigmoid(if config.flag("allow_neg_eigval")? { 2.0 } else { 1.0 }),
            gate: Gate::Absent,
            eps: config.f64_or("norm_eps", 1e-5)? as f32,
            stored: Stored::Apart,
            rates: Rates::Log,
        };
        spec.checked("num_v_heads")
    }

    fn checked(self, field: &str) -> Result<Spec> {
        if self.n_v_heads == 0 || !self.n_v_heads.is_multiple_of(self.n_k_heads) || self.n_v_heads > 1 << 16 {
            let expected = format!("a multiple of the {} key heads", self.n_k_heads);
            return Err(Error::config(field, self.n_v_heads, expected));
        }
        Ok(self)
    }

    fn widths(&self) -> [usize; 3] {
        let k = self.n_k_heads * self.k_dim;
        [k, k, self.n_v_heads * self.v_dim]
    }

    /// Rows of `in_proj_qkvz`: per key head q, k, its values, their gates; with the place of the gates.
    fn by_key_head(&self) -> (ByHead, (usize, usize)) {
        let (k, per) = (self.k_dim, self.n_v_heads / self.n_k_heads * self.v_dim);
        let parts = [(0, k), (k, k), (2 * k, per)];
        (ByHead { heads: self.n_k_heads, stretch: 2 * k + 2 * per, parts }, (2 * k + per, per))
    }

    fn qkv(&self) -> QkvSpec {
        let widths = self.widths();
        let leaves = match self.stored {
            Stored::Joint | Stored::Tiled | Stored::JointByKeyHead => Leaves::Joint("in_proj_qkv"),
            Stored::ByKeyHead => Leaves::ByHead("in_proj_qkvz", self.by_key_head().0),
            Stored::Apart => Leaves::Apart(["q_proj", "k_proj", "v_proj"]),
        };
        let features = [self.feature.clone(), self.feature.clone(), None];
        QkvSpec { widths, kernel: self.kernel, acts: [self.act, self.act, Some(Act::Silu)], features, leaves }
    }
}

/// A count from 1 to 65536.
pub fn count(config: &ModelConfig, field: &str) -> Result<usize> {
    match config.usize(field)? {
        n if n > 0 && n <= 1 << 16 => Ok(n),
        n => Err(Error::config(field, n, "1 to 65536")),
    }
}

/// `base` times the factor in `field`, which must come to a whole number.
pub fn expanded(config: &ModelConfig, field: &str, base: usize, default: f64) -> Result<usize> {
    let factor = config.f64_or(field, default)?;
    let n = (base as f64 * factor).round();
    let whole = (n - base as f64 * factor).abs() < 1e-6 * n && n <= 65536.0;
    if whole { Ok(n as usize) } else { Err(Error::config(field, factor, format!("a factor that makes {base} whole"))) }
}

/// Taps of flash-linear-attention's short convolutions, if it uses them.
pub fn flash_kernel(config: &ModelConfig, default: bool) -> Result<Option<usize>> {
    let used = config.optional_bool("use_short_conv")?.unwrap_or(default);
    match config.usize_or("conv_size", 4)? {
        _ if !used => Ok(None),
        n if n > 0 && n <= 1 << 10 => Ok(Some(n)),
        n => Err(Error::config("conv_size", n, "1 to 1024")),
    }
}

impl MixerSpec for Spec {
    fn kind(&self) -> &'static str {
        self.kind
    }

    fn state(&self) -> StateSpec {
        let mut slots = self.qkv().slots();
        slots.push(SlotNeed { name: "delta", shape: vec![self.n_v_heads, self.k_dim, self.v_dim] });
        StateSpec { kv: None, slots }
    }

    fn build(&self, b: &mut Build<'_>) -> Result<Box<dyn Mixer>> {
        let (heads, v_width, joint) = (self.n_v_heads, self.widths()[2], self.stored != Stored::Apart);
        // `in_proj_ba` holds, key head by key head, the b of its values and then their a.
        let per = heads / self.n_k_heads;
        let small = |leaf: &'static str, half: usize| match self.stored {
            Stored::ByKeyHead | Stored::JointByKeyHead => {
                let row = |h: usize| h / per * 2 * per + half * per + h % per;
                let first = b.linear_rows("in_proj_ba", 2 * heads, b.width(), (0..heads).map(row).collect())?;
                Ok(first)
            }
            Stored::Apart => b.linear(&format!("{leaf}_proj"), heads, b.width()),
            _ => b.linear(&format!("in_proj_{leaf}"), heads, b.width()),
        };
        let forget = match self.decay {
            Forget::Nothing => None,
            Forget::ByHead => Some((Narrow::from(small("a", 1)?), heads, 1)),
            Forget::ByKey | Forget::Bounded(_) => {
                let n = heads * self.k_dim;
                let pairs = [("f_proj.0", "f_proj.1"), ("f_a_proj", "f_b_proj")];
                Some((Narrow::build(b, "f_proj", &pairs, n)?, n, self.k_dim))
            }
        };
        let forget = match forget {
            None => None,
            Some((project, n, per_head)) => {
                // A file that has the rates has them as the formula wants them.
                let sign =
                    if self.rates == Rates::Log && matches!(self.decay, Forget::Bounded(_)) { -1.0 } else { 1.0 };
                let stored = self.rates.read(b.values("A_log", heads)?);
                let rate = |h: usize| sign * stored[h];
                let dt_bias = b.vector("dt_bias", n)?;
                let rates: Vec<f32> = (0..n).map(|i| rate(i / per_head)).collect();
                let formula = match self.decay {
                    Forget::Bounded(bound) => (((input(0) + input(1)) * input(2)).sigmoid() * bound).exp(),
                    _ => ((input(0) + input(1)).softplus() * input(2)).exp(),
                };
                Some(Forgetting { project, rate: b.upload(&rates, &[n])?, dt_bias, formula })
            }
        };
        let gate = match (self.gate, self.stored) {
            (Gate::Absent, _) => None,
            (_, Stored::Apart) => {
                let pairs = [("g_proj.0", "g_proj.1"), ("g_a_proj", "g_b_proj")];
                Some(Narrow::build(b, "g_proj", &pairs, v_width)?)
            }
            (_, Stored::ByKeyHead) => {
                let (heads, gates) = self.by_key_head();
                Some(Narrow::from(heads.pick(b, "in_proj_qkvz", &[gates])?))
            }
            _ => Some(Narrow::from(b.linear("in_proj_z", v_width, b.width())?)),
        };
        let strength = match self.strength {
            Strength::Sigmoid(scale) => {
                let formula = if scale == 1.0 { input(0).sigmoid() } else { input(0).sigmoid() * scale };
                Some((Some(small("b", 0)?), formula))
            }
            Strength::Fixed(1.0) => None,
            Strength::Fixed(scale) => Some((None, scale.into())),
        };
        let (norm, out): (&[&str], &str) = if joint { (&["norm"], "out_proj") } else { (&["o_norm"], "o_proj") };
        let closing = ClosingSpec { norm, over: Over::Head, eps: self.eps, gate: self.gate, out };
        Ok(Box::new(DeltaLayer {
            qkv: self.qkv().build(b)?,
            forget,
            strength,
            ones: match self.unit {
                Unit::Length => None,
                Unit::Sum => {
                    let ones = 1f32.to_le_bytes().repeat(self.k_dim);
                    Some(b.pack(&DenseMatrix::new(DType::F32, &ones, (1, self.k_dim))?, None)?)
                }
            },
            closing: closing.build(b, (heads, self.v_dim), gate)?,
            n_k_heads: self.n_k_heads,
            slot: self.qkv().slots().len(),
            rule: RecurrenceSpec {
                n_heads: heads,
                k_dim: self.k_dim,
                v_dim: self.v_dim,
                order: if self.stored == Stored::Tiled { HeadOrder::Tiled } else { HeadOrder::Grouped },
                unit_eps: (self.unit == Unit::Length).then_some(1e-6),
                q_scale: (self.k_dim as f32).powf(-0.5),
                read: Read::After,
                skip: None,
            },
        }))
    }
}

/// How a layer forgets, with its weights.
struct Forgetting {
    project: Narrow,
    /// ∓exp(A_log), for each value that `project` gives.
    rate: Tensor,
    dt_bias: Tensor,
    formula: Formula,
}

/// A layer of a delta rule with its weights.
struct DeltaLayer {
    qkv: Qkv,
    forget: Option<Forgetting>,
    /// From a projection, or the same for all; none for a write in full.
    strength: Option<(Option<Linear>, Formula)>,
    /// `[1, Dk]`, where keys and queries have a sum of magnitudes of one.
    ones: Option<Weight>,
    closing: Closing,
    n_k_heads: usize,
    /// The state's, after those of the convolutions.
    slot: usize,
    rule: RecurrenceSpec,
}

impl DeltaLayer {
    /// Each head `[Dk]` of queries or keys over the sum of its magnitudes, which counts at least 1e-6.
    fn of_sum_one(&self, be: &dyn Backend, x: Tensor, ones: &Weight) -> Result<Tensor> {
        let (t, heads) = (x.rows(), self.n_k_heads);
        let magnitudes = be.pointwise(&[t * heads, self.rule.k_dim], &[Operand::Each(&x)], &input(0).abs())?;
        let sums = be.linear(Input::Plain(&magnitudes), &[ones])?.remove(0).reshape(&[t, heads])?;
        let share = input(0) / input(1).max(1e-6);
        Ok(be.pointwise(x.dims(), &[Operand::Each(&x), Operand::Stretch(&sums)], &share)?)
    }
}

impl Mixer for DeltaLayer {
    fn forward(&self, step: &Step<'_>, stream: Stream<'_>, states: &mut [&mut LayerState]) -> Result<Tensor> {
        let be = step.backend;
        let firsts = [
            self.closing.gate(),
            self.forget.as_ref().map(|f| &f.project.first),
            self.strength.as_ref().and_then(|(b, _)| b.as_ref()),
        ];
        let others: Vec<&Linear> = firsts.iter().flatten().copied().collect();
        let (mut mixed, others) = self.qkv.forward(step, &stream, &others, states)?;
        let mut others = others.into_iter();
        let mut next = |wanted: bool| if wanted { others.next() } else { None };
        let (z, a, b) = (next(firsts[0].is_some()), next(firsts[1].is_some()), next(firsts[2].is_some()));
        let kept = match (&self.forget, a) {
            (Some(f), Some(a)) => {
                let a = f.project.finish(step, a)?;
                let gates = [Operand::Each(&a), Operand::Row(&f.dt_bias), Operand::Row(&f.rate)];
                Some(be.pointwise(a.dims(), &gates, &f.formula)?)
            }
            _ => None,
        };
        let heads = self.rule.n_heads;
        let written = match (&self.strength, b) {
            (Some((_, formula)), Some(b)) => Some(be.pointwise(b.dims(), &[Operand::Each(&b)], formula)?),
            (Some((_, formula)), None) => Some(be.pointwise(&[step.positions.len(), heads], &[], formula)?),
            (None, _) => None,
        };
        if let Some(ones) = &self.ones {
            for part in [0, 1] {
                mixed.change(part, |x| self.of_sum_one(be, x, ones))?;
            }
        }
        let operands = Recurrence {
            q: mixed.heads(0, self.n_k_heads),
            k: mixed.heads(1, self.n_k_heads),
            v: mixed.heads(2, heads),
            decay: match &kept {
                None => Decay::None,
                Some(d) if d.width() == heads => Decay::Head(d),
                Some(d) => Decay::Key(reverie_tensor::Heads::whole(d, heads)),
            },
            rule: Rule::Delta(written.as_ref()),
        };
        let y = be.recurrence(&operands, &mut step.segments(states, self.slot)?, &self.rule)?;
        self.closing.finish(step, stream, y, z)
    }
}
