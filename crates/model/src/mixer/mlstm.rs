//! The mLSTM of xLSTM (arXiv 2405.04517): a matrix of state with exponential gates, read over a normaliser. Names as in transformers'
//! xlstm.

use std::ops::Range;

use reverie_files::ModelConfig;
use reverie_tensor::formula::input;
use reverie_tensor::{
    Decay, Formula, HeadOrder, Heads, Input, Norm, NormKind, Operand, Read, Recurrence, RecurrenceSpec, Rule, Tensor,
};

use super::{Mixer, MixerEntry, Step, Stream, delta};
use crate::Build;
use crate::error::{Error, Result};
use crate::linear::{Linear, project};
use crate::plan::MixerSpec;
use crate::state::{LayerState, SlotNeed, StateKind, StateSpec};

/// The row.
pub const ENTRY: MixerEntry = MixerEntry {
    name: "mlstm",
    aliases: &[],
    about: "mLSTM: a matrix of state with exponential gates (xLSTM)",
    state: &[StateKind::Recurrent],
    spec: |config, _| Ok(Box::new(Spec::from_config(config)?)),
};

/// One mLSTM layer.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Heads.
    pub n_heads: usize,
    /// Width of a key.
    pub k_dim: usize,
    /// Width of a value.
    pub v_dim: usize,
    /// Gates before their functions become cap · tanh(gate / cap).
    pub gate_cap: Option<f32>,
    /// Added to the normaliser.
    pub eps: f32,
    /// Of the norm over each head's output.
    pub norm_eps: f32,
}

impl Spec {
    /// In transformers' field names.
    pub fn from_config(config: &ModelConfig) -> Result<Spec> {
        let (width, n_heads) = (delta::count(config, "hidden_size")?, delta::count(config, "num_heads")?);
        let dim = |field: &str, default: f64| -> Result<usize> {
            let all = (width as f64 * config.f64_or(field, default)?) as usize;
            let fits = all > 0 && all <= 1 << 16 && all.is_multiple_of(n_heads);
            let expected = || format!("a factor that makes a width that {n_heads} heads divide");
            if fits { Ok(all / n_heads) } else { Err(Error::config(field, all, expected())) }
        };
        Ok(Spec {
            n_heads,
            k_dim: dim("qk_dim_factor", 0.5)?,
            v_dim: dim("v_dim_factor", 1.0)?,
            gate_cap: Some(config.f64_or("gate_soft_cap", 15.0)? as f32).filter(|c| *c > 0.0),
            eps: config.f64_or("eps", 1e-6)? as f32,
            norm_eps: config.f64_or("norm_eps", 1e-6)? as f32,
        })
    }

    fn rule(&self, v_dim: usize) -> RecurrenceSpec {
        RecurrenceSpec {
            n_heads: self.n_heads,
            k_dim: self.k_dim,
            v_dim,
            order: HeadOrder::Grouped,
            unit_eps: None,
            q_scale: (self.k_dim as f32).powf(-0.5),
            read: Read::After,
            skip: None,
        }
    }
}

impl MixerSpec for Spec {
    fn kind(&self) -> &'static str {
        ENTRY.name
    }

    fn state(&self) -> StateSpec {
        let (h, dk, dv) = (self.n_heads, self.k_dim, self.v_dim);
        let slot = |name: &'static str, shape: Vec<usize>| SlotNeed { name, shape };
        StateSpec {
            kv: None,
            slots: vec![slot("memory", vec![h, dk, dv]), slot("normaliser", vec![h, dk, 1]), slot("largest", vec![h])],
        }
    }

    fn build(&self, b: &mut Build<'_>) -> Result<Box<dyn Mixer>> {
        let (width, h) = (b.width(), self.n_heads);
        let (keys, values) = (h * self.k_dim, h * self.v_dim);
        let fused = b.has("qkv_opreact.weight");
        let part = |leaf: &str, whole: (&str, usize), rows: Range<usize>| match fused {
            true => b.linear_rows(whole.0, whole.1, width, rows.collect()),
            false => b.linear(leaf, rows.len(), width),
        };
        let all = ("qkv_opreact", 2 * (keys + values));
        let gates = ("ifgate_preact", 2 * h);
        let capped = |x: Formula| if let Some(cap) = self.gate_cap { x.softcap(cap) } else { x };
        let bias = b.has("multihead_norm.bias");
        let norm = |name: &str| b.upload(&b.values(name, values)?, &[h, self.v_dim]);
        Ok(Box::new(Mlstm {
            q: part("q", all, 0..keys)?,
            k: part("k", all, keys..2 * keys)?,
            v: part("v", all, 2 * keys..2 * keys + values)?,
            o: part("ogate_preact", all, 2 * keys + values..all.1)?,
            i: part("igate_preact", gates, 0..h)?,
            f: part("fgate_preact", gates, h..2 * h)?,
            out: b.linear("out_proj", width, values)?,
            norm: Norm {
                kind: NormKind::Layer,
                weight: Some(norm("multihead_norm.weight")?),
                bias: if bias { Some(norm("multihead_norm.bias")?) } else { None },
                eps: self.norm_eps,
            },
            input_gate: capped(input(0)),
            forget_gate: capped(input(0)).log_sigmoid(),
            over: input(0) / (input(1).abs().max((-input(2)).exp()) + self.eps),
            memory: self.rule(self.v_dim),
            normaliser: self.rule(1),
        }))
    }
}

/// An mLSTM layer with its weights.
struct Mlstm {
    q: Linear,
    k: Linear,
    v: Linear,
    /// The output gate.
    o: Linear,
    i: Linear,
    f: Linear,
    out: Linear,
    norm: Norm,
    input_gate: Formula,
    /// The logarithm of what stays.
    forget_gate: Formula,
    /// What is read over max(|q·n|, e^-m) + eps.
    over: Formula,
    memory: RecurrenceSpec,
    normaliser: RecurrenceSpec,
}

impl Mixer for Mlstm {
    fn forward(&self, step: &Step<'_>, stream: Stream<'_>, states: &mut [&mut LayerState]) -> Result<Tensor> {
        let (be, h) = (step.backend, self.memory.n_heads);
        let all = [&self.q, &self.k, &self.v, &self.o, &self.i, &self.f];
        let [q, k, v, o, i, f] = project(be, stream.input(), all)?;
        let i = be.pointwise(i.dims(), &[Operand::Each(&i)], &self.input_gate)?;
        let f = be.pointwise(f.dims(), &[Operand::Each(&f)], &self.forget_gate)?;
        let [kept, written, top] = be.exp_gates(&i, &f, &mut step.segments(states, 2)?)?;
        let operands = Recurrence {
            q: Heads::whole(&q, h),
            k: Heads::whole(&k, h),
            v: Heads::whole(&v, h),
            decay: Decay::Head(&kept),
            rule: Rule::Add(Some(&written)),
        };
        let y = be.recurrence(&operands, &mut step.segments(states, 0)?, &self.memory)?;
        // The normaliser is the same recurrence over a value of one.
        let ones = be.pointwise(kept.dims(), &[], &Formula::from(1.0))?;
        let operands = Recurrence { v: Heads::whole(&ones, h), ..operands };
        let n = be.recurrence(&operands, &mut step.segments(states, 1)?, &self.normaliser)?;
        let n = n.reshape(kept.dims())?;
        let y =
            be.pointwise(y.dims(), &[Operand::Each(&y), Operand::Stretch(&n), Operand::Stretch(&top)], &self.over)?;
        let y = be.norm(&y, &self.norm)?.reshape(o.dims())?;
        stream.close(be, &self.out, Input::SigmoidGated(&y, &o))
    }
}
