//! Gated slot attention (arXiv 2409.07146): a softmax over a few slots whose keys and values are both linear recurrences with one decay.

use reverie_files::ModelConfig;
use reverie_tensor::formula::input;
use reverie_tensor::{
    Act, Decay, Formula, HeadOrder, Heads, Input, Norm, Operand, Read, Recurrence, RecurrenceSpec, Rule, Tensor,
};

use super::qkv::{self, Leaves, Qkv, QkvSpec};
use super::{Mixer, MixerEntry, Step, Stream, delta};
use crate::Build;
use crate::error::{Error, Result};
use crate::linear::Linear;
use crate::plan::{MixerSpec, NormSpec, NormWeight};
use crate::state::{LayerState, SlotNeed, StateKind, StateSpec};

/// The row.
pub const ENTRY: MixerEntry = MixerEntry {
    name: "gsa",
    aliases: &["gated_slot_attention"],
    about: "gated slot attention: a softmax over slots that fade",
    state: &[StateKind::Recurrent],
    spec: |config, _| Ok(Box::new(Spec::from_config(config)?)),
};

/// One layer of gated slot attention.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Query heads; also the state's.
    pub n_heads: usize,
    /// Heads of keys, values and gates; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of a key.
    pub k_dim: usize,
    /// Width of a value.
    pub v_dim: usize,
    /// Slots of a head.
    pub n_slots: usize,
    /// Taps of the convolutions, if there are any.
    pub kernel: Option<usize>,
    /// On q and k.
    pub feature: Formula,
    /// Divides the logarithm of the decay.
    pub divisor: f32,
    /// Of the output norm.
    pub eps: f32,
}

impl Spec {
    /// In flash-linear-attention's field names.
    pub fn from_config(config: &ModelConfig) -> Result<Spec> {
        let (width, n_heads) = (delta::count(config, "hidden_size")?, delta::count(config, "num_heads")?);
        let n_kv_heads = config.optional_usize("num_kv_heads")?.unwrap_or(n_heads);
        if n_kv_heads == 0 || !n_heads.is_multiple_of(n_kv_heads) {
            return Err(Error::config("num_kv_heads", n_kv_heads, format!("a divisor of num_heads = {n_heads}")));
        }
        let dim = |field: &str| -> Result<usize> {
            let all = delta::expanded(config, field, width, 1.0)?;
            let fits = all > 0 && all.is_multiple_of(n_heads);
            let expected = || format!("a width that {n_heads} heads divide");
            if fits { Ok(all / n_heads) } else { Err(Error::config(field, all, expected())) }
        };
        let (k_dim, v_dim) = (dim("expand_k")?, dim("expand_v")?);
        if n_heads * v_dim != width {
            return Err(Error::config(
                "expand_v",
                n_heads * v_dim,
                format!("1, since the norm covers hidden_size = {width}"),
            ));
        }
        let n_slots = config.optional_usize("num_slots")?.unwrap_or(k_dim);
        if n_slots == 0 || n_slots > 1024 {
            return Err(Error::config("num_slots", n_slots, "1 to 1024"));
        }
        let map = config.optional_text("feature_map")?.unwrap_or("swish");
        let feature = qkv::feature("feature_map", map, &["relu", "swish"])?;
        let divisor = config.f64_or("gate_logit_normalizer", 8.0)? as f32;
        if divisor.is_nan() || divisor <= 0.0 {
            return Err(Error::config("gate_logit_normalizer", divisor, "a positive number"));
        }
        let kernel = delta::flash_kernel(config, false)?;
        // The fused norm and projection of the library take this epsilon, whatever the config says.
        Ok(Spec { n_heads, n_kv_heads, k_dim, v_dim, n_slots, kernel, feature, divisor, eps: 1e-5 })
    }

    fn qkv(&self) -> QkvSpec {
        let (g, conv) = (self.n_kv_heads, self.kernel.map(|_| Act::Silu));
        QkvSpec {
            widths: [self.n_heads * self.k_dim, g * self.k_dim, g * self.v_dim],
            kernel: self.kernel,
            acts: [conv; 3],
            features: [Some(self.feature.clone()), Some(self.feature.clone()), Some(input(0).act(Act::Silu))],
            leaves: Leaves::Apart(["q_proj", "k_proj", "v_proj"]),
        }
    }

    fn rule(&self, k_dim: usize, v_dim: usize) -> RecurrenceSpec {
        RecurrenceSpec {
            n_heads: self.n_heads,
            k_dim,
            v_dim,
            order: HeadOrder::Grouped,
            unit_eps: None,
            q_scale: 1.0,
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
        let mut slots = self.qkv().slots();
        slots.push(SlotNeed { name: "keys", shape: vec![self.n_heads, self.k_dim, self.n_slots] });
        slots.push(SlotNeed { name: "values", shape: vec![self.n_heads, self.n_slots, self.v_dim] });
        StateSpec { kv: None, slots }
    }

    fn build(&self, b: &mut Build<'_>) -> Result<Box<dyn Mixer>> {
        let values = self.n_heads * self.v_dim;
        let kept = (input(0).log_sigmoid() / self.divisor).exp();
        Ok(Box::new(Gsa {
            qkv: self.qkv().build(b)?,
            f: b.linear("f_proj", self.n_kv_heads * self.n_slots, b.width())?,
            silu: input(0).act(Act::Silu),
            kept,
            written: -input(0) + 1.0,
            norm: b.norm(&NormSpec::rms("g_norm", self.eps, NormWeight::Plain), values)?,
            out: b.linear("o_proj", b.width(), values)?,
            n_kv_heads: self.n_kv_heads,
            slot: self.qkv().slots().len(),
            keys: self.rule(self.k_dim, self.n_slots),
            values: self.rule(self.n_slots, self.v_dim),
        }))
    }
}

/// A layer of gated slot attention with its weights.
struct Gsa {
    qkv: Qkv,
    /// The slots' decay.
    f: Linear,
    silu: Formula,
    kept: Formula,
    /// What a token puts into a slot: what the slot has lost.
    written: Formula,
    norm: Norm,
    out: Linear,
    n_kv_heads: usize,
    /// The first after those of the convolutions.
    slot: usize,
    /// Keys by slot, `[H, Dk, M]`: its columns fade.
    keys: RecurrenceSpec,
    /// Values by slot, `[H, M, Dv]`: its rows fade.
    values: RecurrenceSpec,
}

impl Mixer for Gsa {
    fn forward(&self, step: &Step<'_>, stream: Stream<'_>, states: &mut [&mut LayerState]) -> Result<Tensor> {
        let (be, h, g) = (step.backend, self.keys.n_heads, self.n_kv_heads);
        let (mixed, mut others) = self.qkv.forward(step, &stream, &[&self.f], states)?;
        let f = others.remove(0);
        let kept = be.pointwise(f.dims(), &[Operand::Each(&f)], &self.kept)?;
        let written = be.pointwise(f.dims(), &[Operand::Each(&kept)], &self.written)?;
        let keys = Recurrence {
            q: mixed.heads(0, h),
            k: mixed.heads(1, g),
            v: Heads::whole(&written, g),
            decay: Decay::Value(Heads::whole(&kept, g)),
            rule: Rule::Add(None),
        };
        let scores = be.recurrence(&keys, &mut step.segments(states, self.slot)?, &self.keys)?;
        let weights = be.softmax(scores)?;
        let values = Recurrence {
            q: Heads::whole(&weights, h),
            k: Heads::whole(&written, g),
            v: mixed.heads(2, g),
            decay: Decay::Key(Heads::whole(&kept, g)),
            rule: Rule::Add(None),
        };
        let y = be.recurrence(&values, &mut step.segments(states, self.slot + 1)?, &self.values)?;
        let y = y.reshape(&[f.rows(), h * self.values.v_dim])?;
        let y = be.pointwise(y.dims(), &[Operand::Each(&y)], &self.silu)?;
        stream.close(be, &self.out, Input::Normed(&y, &self.norm))
    }
}
