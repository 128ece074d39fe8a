//! RWKV-7's time mixing (arXiv 2503.14456): a state that fades channel by channel, is corrected along one direction and written along
//! another; values lean on the first layer's.

use reverie_files::ModelConfig;
use reverie_tensor::formula::input;
use reverie_tensor::{
    Decay, Formula, HeadOrder, Heads, Input, Norm, NormKind, Operand, Read, Recurrence, RecurrenceSpec, Rule, Tensor,
};

use super::qkv::Narrow;
use super::shift::Shift;
use super::{Mixer, MixerEntry, Step, Stream, delta};
use crate::Build;
use crate::error::{Error, Result};
use crate::linear::{Linear, project};
use crate::plan::MixerSpec;
use crate::state::{LayerState, SlotNeed, StateKind, StateSpec};

/// The row.
pub const ENTRY: MixerEntry = MixerEntry {
    name: "rwkv7",
    aliases: &[],
    about: "RWKV-7's time mixing: a generalised delta rule",
    state: &[StateKind::Recurrent],
    spec: |config, layer| Ok(Box::new(Spec::from_config(config, layer)?)),
};

/// The first layer's values, for the later ones of a step.
const FIRST_VALUES: &str = "rwkv7.values";

/// -e^-0.5: the largest logarithm of a decay.
const LEAST_DECAY: f32 = -0.606_530_66;

/// One time mixing.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Width of the residual stream.
    pub width: usize,
    /// Heads.
    pub n_heads: usize,
    /// Width of a key.
    pub k_dim: usize,
    /// Width of a value.
    pub v_dim: usize,
    /// Later layers blend in the values of the first of their kind, which is numbered 0.
    pub layer: usize,
    /// Under the root of the removal key's norm.
    pub unit_eps: f32,
    /// Of the norm over each head's output.
    pub eps: f32,
}

impl Spec {
    /// In flash-linear-attention's field names.
    pub fn from_config(config: &ModelConfig, layer: usize) -> Result<Spec> {
        let width = delta::count(config, "hidden_size")?;
        let (n_heads, k_dim) = match config.optional_usize("head_dim")? {
            Some(dim) if dim > 0 && width.is_multiple_of(dim) => (width / dim, dim),
            Some(dim) => return Err(Error::config("head_dim", dim, format!("a divisor of hidden_size = {width}"))),
            None => {
                let heads = delta::count(config, "num_heads")?;
                (heads, width / heads)
            }
        };
        let values = match config.get("value_dim").and_then(|v| v.as_array()) {
            Some(_) => config.optional_usizes("value_dim")?.and_then(|all| all.get(layer).copied()).unwrap_or(0),
            None => config.usize_or("value_dim", width)?,
        };
        if n_heads * k_dim != width {
            return Err(Error::config("num_heads", n_heads, format!("a divisor of hidden_size = {width}")));
        }
        if values == 0 || values > 1 << 16 || !values.is_multiple_of(n_heads) {
            return Err(Error::config("value_dim", values, format!("a multiple of {n_heads} heads for every layer")));
        }
        let kinds = config.optional_texts("layer_types")?;
        let first = kinds.and_then(|kinds| kinds.iter().position(|kind| *kind == ENTRY.name));
        // The library's fused norm adds 1e-6 under the root, PyTorch's only keeps the root above 1e-12.
        let fused = config.optional_bool("fuse_norm")?.unwrap_or(true);
        Ok(Spec {
            width,
            n_heads,
            k_dim,
            v_dim: values / n_heads,
            layer: if first == Some(layer) { 0 } else { layer },
            unit_eps: if fused { 1e-6 } else { 1e-24 },
            eps: k_dim as f32 * config.f64_or("norm_eps", 1e-5)? as f32,
        })
    }
}

impl MixerSpec for Spec {
    fn kind(&self) -> &'static str {
        ENTRY.name
    }

    fn state(&self) -> StateSpec {
        let state = SlotNeed { name: "wkv", shape: vec![self.n_heads, self.k_dim, self.v_dim] };
        StateSpec { kv: None, slots: vec![Shift::slot(self.width), state] }
    }

    fn build(&self, b: &mut Build<'_>) -> Result<Box<dyn Mixer>> {
        let (width, h, dk, dv) = (b.width(), self.n_heads, self.k_dim, self.v_dim);
        let (keys, values) = (h * dk, h * dv);
        // Older files stack the blends, in this order.
        let stacked = if b.has("x_x") { Some(b.values("x_x", 6 * width)?) } else { None };
        let blend = |i: usize, name: &str| match &stacked {
            Some(all) => b.upload(&all[i * width..(i + 1) * width], &[width]),
            None => b.vector(&format!("x_{name}"), width),
        };
        let narrow = |name: &str, n: usize| {
            let (first, second) = (format!("{name}_lora.lora.0"), format!("{name}_lora.lora.2"));
            Narrow::build(b, &format!("{name}_lora"), &[(&first, &second)], n)
        };
        let norm = |name: &str| -> Result<Option<Tensor>> {
            if !b.has(name) { Ok(None) } else { Ok(Some(b.upload(&b.values(name, values)?, &[h, dv])?)) }
        };
        let (weight, bias) = (norm("g_norm.weight")?, norm("g_norm.bias")?);
        let unit = (dk as f32).powf(-0.5);
        Ok(Box::new(Rwkv7 {
            shift: Shift::build(b)?,
            r: (b.linear("r_proj", keys, width)?, blend(0, "r")?),
            w: (narrow("w", keys)?.with(input(0).tanh()), blend(1, "w")?),
            k: (b.linear("k_proj", keys, width)?, blend(2, "k")?),
            v: (b.linear("v_proj", values, width)?, blend(3, "v")?),
            lean: if self.layer == 0 { None } else { Some(narrow("v", values)?) },
            a: (narrow("a", keys)?, blend(4, "a")?),
            g: (narrow("g", values)?.with(input(0).sigmoid()), blend(5, "g")?),
            k_k: b.vector("k_k", keys)?,
            k_a: b.vector("k_a", keys)?,
            r_k: b.vector("r_k", keys)?,
            unit: Norm {
                kind: NormKind::Rms,
                weight: Some(b.upload(&vec![unit; dk], &[dk])?),
                bias: None,
                eps: self.unit_eps / dk as f32,
            },
            norm: Norm { kind: NormKind::Layer, weight, bias, eps: self.eps },
            out: b.linear("o_proj", width, values)?,
            formulas: Formulas::new(),
            rule: RecurrenceSpec {
                n_heads: h,
                k_dim: dk,
                v_dim: dv,
                order: HeadOrder::Grouped,
                unit_eps: None,
                q_scale: 1.0,
                read: Read::After,
                skip: None,
            },
        }))
    }
}

/// What is made of the projections.
struct Formulas {
    /// exp(-e^-0.5 σ(w)).
    kept: Formula,
    /// v + (v₀ - v) σ(lean).
    lean: Formula,
    /// k (1 + (σ(a) - 1) k_a).
    key: Formula,
    /// The removal key, of unit length, times σ(a).
    back: Formula,
    product: Formula,
    minus: Formula,
    /// (y + (r · k · r_k) v) g.
    out: Formula,
}

impl Formulas {
    fn new() -> Formulas {
        Formulas {
            kept: (input(0).sigmoid() * LEAST_DECAY).exp(),
            lean: input(0) + (input(1) - input(0)) * input(2).sigmoid(),
            key: input(0) * ((input(1).sigmoid() - 1.0) * input(2) + 1.0),
            back: input(0) * input(1).sigmoid(),
            product: input(0) * input(1),
            minus: -input(0),
            out: (input(0) + input(1) * input(2)) * input(3),
        }
    }
}

/// A time mixing with its weights; each projection with how much it blends in of the token before.
struct Rwkv7 {
    shift: Shift,
    r: (Linear, Tensor),
    w: (Narrow, Tensor),
    k: (Linear, Tensor),
    v: (Linear, Tensor),
    /// How far values lean on the first layer's; it reads what v reads.
    lean: Option<Narrow>,
    a: (Narrow, Tensor),
    g: (Narrow, Tensor),
    k_k: Tensor,
    k_a: Tensor,
    r_k: Tensor,
    /// Brings a head to unit length.
    unit: Norm,
    norm: Norm,
    out: Linear,
    formulas: Formulas,
    rule: RecurrenceSpec,
}

impl Mixer for Rwkv7 {
    fn forward(&self, step: &Step<'_>, stream: Stream<'_>, states: &mut [&mut LayerState]) -> Result<Tensor> {
        let (be, f) = (step.backend, &self.formulas);
        let shifted = self.shift.forward(step, &stream, states, 0)?;
        let t = shifted.x.rows();
        let (h, dk, dv) = (self.rule.n_heads, self.rule.k_dim, self.rule.v_dim);
        let whole = |(linear, mu): &(Linear, Tensor)| -> Result<Tensor> {
            let [y] = project(be, Input::Plain(&shifted.blend(step, mu)?), [linear])?;
            Ok(y)
        };
        let narrow = |(narrow, mu): &(Narrow, Tensor)| -> Result<Tensor> {
            let [y] = project(be, Input::Plain(&shifted.blend(step, mu)?), [&narrow.first])?;
            narrow.finish(step, y)
        };
        let each = |shape: &[usize], inputs: &[Operand<'_>], formula: &Formula| be.pointwise(shape, inputs, formula);
        let (r, k, w, a, g) = (whole(&self.r)?, whole(&self.k)?, narrow(&self.w)?, narrow(&self.a)?, narrow(&self.g)?);
        let v_input = shifted.blend(step, &self.v.1)?;
        let v;
        match (&self.lean, step.carry.get(FIRST_VALUES)) {
            (Some(lean), Some(first)) => {
                let [own, x] = project(be, Input::Plain(&v_input), [&self.v.0, &lean.first])?;
                let x = lean.finish(step, x)?;
                v = each(own.dims(), &[Operand::Each(&own), Operand::Each(&first), Operand::Each(&x)], &f.lean)?;
            }
            (Some(_), None) => {
                let found = "layers that blend in the values of an rwkv7 layer 0";
                return Err(Error::config("layer_types", found, "such a layer first"));
            }
            (None, _) => {
                [v] = project(be, Input::Plain(&v_input), [&self.v.0])?;
                step.carry.put(FIRST_VALUES, v.clone());
            }
        }
        let kept = each(w.dims(), &[Operand::Each(&w)], &f.kept)?;
        let removal = each(&[t, h, dk], &[Operand::Each(&k), Operand::Row(&self.k_k)], &f.product)?;
        let removal = be.norm(&removal, &self.unit)?;
        let back = each(removal.dims(), &[Operand::Each(&removal), Operand::Each(&a)], &f.back)?;
        let removal = each(removal.dims(), &[Operand::Each(&removal)], &f.minus)?;
        let k = each(k.dims(), &[Operand::Each(&k), Operand::Each(&a), Operand::Row(&self.k_a)], &f.key)?;
        let operands = Recurrence {
            q: Heads::whole(&r, h),
            k: Heads::whole(&k, h),
            v: Heads::whole(&v, h),
            decay: Decay::Key(Heads::whole(&kept, h)),
            rule: Rule::LowRank(Heads::whole(&removal, h), Heads::whole(&back, h)),
        };
        let y = be.recurrence(&operands, &mut step.segments(states, 1)?, &self.rule)?;
        let y = be.norm(&y, &self.norm)?;
        let read = each(&[t, h, dk], &[Operand::Each(&r), Operand::Row(&self.r_k)], &f.product)?;
        let bonus = be.dot(&read, &k.reshape(&[t, h, dk])?)?;
        let operands = [Operand::Each(&y), Operand::Stretch(&bonus), Operand::Each(&v), Operand::Each(&g)];
        let y = each(&[t, h * dv], &operands, &f.out)?;
        stream.close(be, &self.out, Input::Plain(&y))
    }
}
