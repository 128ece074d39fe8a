//! Linear attention with decay, S ← decay S + k vᵀ and y = qᵀS, that gated linear attention, retention, HGRN2 and lightning attention
//! are rows of (arXiv 2312.06635, 2307.08621, 2404.07904, 2501.08313). Knows no family: a spec says how the state fades.

use reverie_tensor::formula::input;
use reverie_tensor::{Decay, Formula, HeadOrder, Heads, Operand, Read, Recurrence, RecurrenceSpec, Rope, Rule, Tensor};

use super::closing::{Closing, ClosingSpec, Gate};
use super::qkv::{Narrow, Qkv, QkvSpec};
use super::{Mixer, Step, Stream};
use crate::Build;
use crate::error::{Error, Result};
use crate::linear::Linear;
use crate::plan::MixerSpec;
use crate::state::{LayerState, SlotNeed, StateSpec};

/// One layer of decaying linear attention.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The registry's row.
    pub kind: &'static str,
    /// Query heads; also the state's.
    pub n_heads: usize,
    /// Heads of keys, values and decays; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of a key.
    pub k_dim: usize,
    /// Width of a value.
    pub v_dim: usize,
    /// Queries, keys, values.
    pub qkv: QkvSpec,
    /// On queries and keys.
    pub rope: Option<Rope>,
    /// Multiplies q.
    pub q_scale: f32,
    /// What the state loses at each token.
    pub fade: Fade,
    /// The gate's projection.
    pub gate: &'static str,
    /// The end.
    pub closing: ClosingSpec,
}

/// How the state fades.
#[derive(Clone, Debug)]
pub enum Fade {
    /// A factor a head.
    Fixed(Vec<f32>),
    /// exp(max(ln σ(gk) / divisor, least)) for each channel of the key; gk has a narrow middle (`gk_proj.0`, `gk_proj.1`).
    ByKey {
        /// Divides the logarithm.
        divisor: f32,
        /// Least logarithm.
        least: Option<f32>,
    },
    /// f = b + (1 - b) σ(k) for each channel, and 1 - f is the key. b, zero in the first layer, is what the softmax over layers of
    /// `model.lower_bounds` adds up to before this one; zero everywhere where the model has none.
    Floor {
        /// The layer, where there are bounds.
        layer: Option<usize>,
    },
}

impl MixerSpec for Spec {
    fn kind(&self) -> &'static str {
        self.kind
    }

    fn state(&self) -> StateSpec {
        let mut slots = self.qkv.slots();
        slots.push(SlotNeed { name: "linear", shape: vec![self.n_heads, self.k_dim, self.v_dim] });
        StateSpec { kv: None, slots }
    }

    fn build(&self, b: &mut Build<'_>) -> Result<Box<dyn Mixer>> {
        let keys = self.n_kv_heads * self.k_dim;
        let fading = match &self.fade {
            Fade::Fixed(factors) => Fading::Fixed(b.upload(factors, &[self.n_heads])?),
            Fade::ByKey { divisor, least } => {
                let log = input(0).log_sigmoid() / *divisor;
                let log = if let Some(least) = least { log.max(*least) } else { log };
                Fading::ByKey(Box::new(Narrow::build(b, "gk_proj", &[("gk_proj.0", "gk_proj.1")], keys)?), log.exp())
            }
            Fade::Floor { layer } => Fading::Floor(b.upload(&floor(b, *layer, keys)?, &[keys])?),
        };
        let gate = match self.closing.gate {
            Gate::Absent => None,
            _ => Some(Narrow::from(b.linear(self.gate, self.n_heads * self.v_dim, b.width())?)),
        };
        Ok(Box::new(Decayed {
            qkv: self.qkv.build(b)?,
            fading,
            closing: self.closing.build(b, (self.n_heads, self.v_dim), gate)?,
            rope: self.rope.clone(),
            n_kv_heads: self.n_kv_heads,
            slot: self.qkv.slots().len(),
            rule: RecurrenceSpec {
                n_heads: self.n_heads,
                k_dim: self.k_dim,
                v_dim: self.v_dim,
                order: HeadOrder::Grouped,
                unit_eps: None,
                q_scale: self.q_scale,
                read: Read::After,
                skip: None,
            },
        }))
    }
}

/// HGRN2's lower bounds of one layer.
fn floor(b: &Build<'_>, layer: Option<usize>, width: usize) -> Result<Vec<f32>> {
    let mut sums = vec![0.0f32; width];
    let Some(layer) = layer.filter(|l| *l > 0) else { return Ok(sums) };
    let (shape, bounds) = b.outside("model.lower_bounds")?;
    let &[layers, stored] = shape.as_slice() else {
        return Err(bounds_shape(&shape, width));
    };
    if stored != width || layer >= layers {
        return Err(bounds_shape(&shape, width));
    }
    for (c, sum) in sums.iter_mut().enumerate() {
        let column: Vec<f32> = (0..layers).map(|l| bounds[l * width + c]).collect();
        let top = column.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let total: f32 = column.iter().map(|v| (v - top).exp()).sum();
        *sum = column[1..=layer].iter().map(|v| (v - top).exp() / total).sum();
    }
    Ok(sums)
}

fn bounds_shape(found: &[usize], width: usize) -> Error {
    let name = "model.lower_bounds".into();
    Error::TensorShape { name, found: format!("{found:?}"), expected: format!("[layers, {width}]") }
}

/// A `Fade` with its weights.
enum Fading {
    Fixed(Tensor),
    ByKey(Box<Narrow>, Formula),
    Floor(Tensor),
}

/// A layer of decaying linear attention with its weights.
struct Decayed {
    qkv: Qkv,
    fading: Fading,
    closing: Closing,
    rope: Option<Rope>,
    n_kv_heads: usize,
    /// The state's, after those of the convolutions.
    slot: usize,
    rule: RecurrenceSpec,
}

impl Mixer for Decayed {
    fn forward(&self, step: &Step<'_>, stream: Stream<'_>, states: &mut [&mut LayerState]) -> Result<Tensor> {
        let be = step.backend;
        let (h, g, dk) = (self.rule.n_heads, self.n_kv_heads, self.rule.k_dim);
        let fade = match &self.fading {
            Fading::ByKey(project, _) => Some(&project.first),
            _ => None,
        };
        let others: Vec<&Linear> = [self.closing.gate(), fade].into_iter().flatten().collect();
        let (mut mixed, others) = self.qkv.forward(step, &stream, &others, states)?;
        let mut others = others.into_iter();
        let z = if self.closing.gate().is_some() { others.next() } else { None };
        if let Some(rope) = &self.rope {
            for (part, heads) in [(0, h), (1, g)] {
                mixed.change(part, |x| {
                    let (t, width) = (x.rows(), x.width());
                    let turned = be.rope(x.reshape(&[t, heads, dk])?, step.positions, rope)?;
                    Ok(turned.reshape(&[t, width])?)
                })?;
            }
        }
        let kept = match (&self.fading, others.next()) {
            (Fading::ByKey(project, formula), Some(x)) => {
                let x = project.finish(step, x)?;
                Some(be.pointwise(x.dims(), &[Operand::Each(&x)], formula)?)
            }
            (Fading::Floor(bounds), _) => {
                let mut kept = None;
                mixed.change(1, |x| {
                    let open = input(1) + (-input(1) + 1.0) * input(0).sigmoid();
                    let f = be.pointwise(x.dims(), &[Operand::Each(&x), Operand::Row(bounds)], &open)?;
                    let shut = (-input(1) + 1.0) * (-input(0)).sigmoid();
                    let key = be.pointwise(x.dims(), &[Operand::Each(&x), Operand::Row(bounds)], &shut)?;
                    kept = Some(f);
                    Ok(key)
                })?;
                kept
            }
            _ => None,
        };
        let operands = Recurrence {
            q: mixed.heads(0, h),
            k: mixed.heads(1, g),
            v: mixed.heads(2, g),
            decay: match (&self.fading, &kept) {
                (Fading::Fixed(factors), _) => Decay::Fixed(factors),
                (_, Some(f)) => Decay::Key(Heads::whole(f, g)),
                _ => Decay::None,
            },
            rule: Rule::Add(None),
        };
        let y = be.recurrence(&operands, &mut step.segments(states, self.slot)?, &self.rule)?;
        self.closing.finish(step, stream, y, z)
    }
}
