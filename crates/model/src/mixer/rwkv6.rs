//! RWKV-6's time mixing (arXiv 2404.05892): a state that fades channel by channel, read before the token is written, with blends of a
//! token and the one before that depend on both.

use reverie_files::ModelConfig;
use reverie_tensor::formula::input;
use reverie_tensor::{
    Act, Decay, Formula, HeadOrder, Heads, Input, Norm, NormKind, Operand, Read, Recurrence, RecurrenceSpec, Rule,
    Tensor,
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
    name: "rwkv6",
    aliases: &[],
    about: "RWKV-6's time mixing: decays from the token, read before the write",
    state: &[StateKind::Recurrent],
    spec: |config, _| Ok(Box::new(Spec::from_config(config)?)),
};

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
    /// Of the norm over each head's output.
    pub eps: f32,
    /// How the blends lie in the file.
    pub stored: Stored,
}

/// The tensors of the five blends: of receptance, decay, key, value and gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// In this order, their last matrices side by side, `[D, 5 r]`.
    SideBySide,
    /// Decay, key, value, receptance, gate, their last matrices one after the other, `[5, D, r]`, as GGUF has it.
    Stacked,
    /// In that order, both matrices turned, `[D, 5 r]` and `[5, r, D]`, and a bias each, as the makers of RWKV publish it.
    Turned,
}

impl Spec {
    /// In flash-linear-attention's field names.
    pub fn from_config(config: &ModelConfig) -> Result<Spec> {
        let (width, n_heads) = (delta::count(config, "hidden_size")?, delta::count(config, "num_heads")?);
        let dim = |field: &str, default: f64| -> Result<usize> {
            let all = delta::expanded(config, field, width, default)?;
            let fits = all > 0 && all.is_multiple_of(n_heads);
            let expected = || format!("a width that {n_heads} heads divide");
            if fits { Ok(all / n_heads) } else { Err(Error::config(field, all, expected())) }
        };
        Ok(Spec {
            width,
            n_heads,
            k_dim: dim("expand_k", 0.5)?,
            v_dim: dim("expand_v", 1.0)?,
            eps: config.f64_or(config.spelling(&["head_norm_eps", "norm_eps"]), 1e-5)? as f32,
            stored: Stored::SideBySide,
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
        let turned = self.stored == Stored::Turned;
        let first = if turned { "x_proj.2.weight" } else { "x_proj.0.linear.weight" };
        // Turned, the second one has three extents.
        let middle = match b.shape(first).as_deref() {
            Some(&[blends, rank, _]) if turned => blends.saturating_mul(rank),
            _ => b.rows_of(first)?,
        };
        if !middle.is_multiple_of(5) {
            let name = b.name(first);
            return Err(Error::TensorShape {
                name,
                found: format!("{middle} rows"),
                expected: "five of one width".into(),
            });
        }
        let rank = middle / 5;
        let bias = match turned {
            true => ["w", "k", "v", "r", "g"].map(|x| b.values(&format!("x_bias.{x}"), width)).into_iter().collect(),
            false => b.values("x_bias", 5 * width).map(|all| all.chunks(width).map(<[f32]>::to_vec).collect()),
        };
        let bias: Vec<Vec<f32>> = bias?;
        let blend = |i: usize| -> Result<Blend> {
            let i = if self.stored == Stored::SideBySide { i } else { [3, 0, 1, 2, 4][i] };
            let part = i * rank..(i + 1) * rank;
            let up = match self.stored {
                Stored::Stacked => {
                    b.linear_rows("x_proj.2", 5 * width, rank, (i * width..(i + 1) * width).collect())?
                }
                Stored::SideBySide => b.linear_columns("x_proj.2", (width, middle), part.clone())?,
                Stored::Turned => b.linear_turned("x_proj.2", (middle, width), (part.clone(), 0..width))?,
            };
            let down = match turned {
                true => b.linear_turned("x_proj.0.linear", (width, middle), (0..width, part))?,
                false => b.linear_rows("x_proj.0.linear", middle, width, part.collect())?,
            };
            Ok(Blend { down, up, bias: b.upload(&bias[i], &[width])? })
        };
        let group = |name: &str| -> Result<Option<Tensor>> {
            if !b.has(name) { Ok(None) } else { Ok(Some(b.upload(&b.values(name, values)?, &[h, dv])?)) }
        };
        let pairs = [("w_proj.linear.lora.0", "w_proj.linear.lora.2")];
        Ok(Box::new(Rwkv6 {
            shift: Shift::build(b)?,
            mu: b.vector("x_proj.0.mu", width)?,
            r: (b.linear("r_proj.linear", keys, width)?, blend(0)?),
            w: (Narrow::build(b, "w_proj.linear", &pairs, keys)?.with(input(0).tanh()), blend(1)?),
            k: (b.linear("k_proj.linear", keys, width)?, blend(2)?),
            v: (b.linear("v_proj.linear", values, width)?, blend(3)?),
            g: (b.linear("g_proj.linear", values, width)?, blend(4)?),
            blended: input(0) + input(1) * (input(2) + input(3)),
            kept: (-input(0).exp()).exp(),
            norm: Norm {
                kind: NormKind::Layer,
                weight: group("g_norm.weight")?,
                bias: group("g_norm.bias")?,
                eps: self.eps,
            },
            out: b.linear("o_proj", width, values)?,
            rule: RecurrenceSpec {
                n_heads: h,
                k_dim: dk,
                v_dim: dv,
                order: HeadOrder::Grouped,
                unit_eps: None,
                q_scale: 1.0,
                read: Read::Before(b.vector("bonus", keys)?),
                skip: None,
            },
        }))
    }
}

/// How much of the token before one projection's input takes in: up(tanh(down x)) + bias.
struct Blend {
    down: Linear,
    up: Linear,
    bias: Tensor,
}

/// A time mixing with its weights.
struct Rwkv6 {
    shift: Shift,
    /// The blend that the blends are made from.
    mu: Tensor,
    r: (Linear, Blend),
    w: (Narrow, Blend),
    k: (Linear, Blend),
    v: (Linear, Blend),
    g: (Linear, Blend),
    /// x + delta (blend + bias).
    blended: Formula,
    /// exp(-exp(w)).
    kept: Formula,
    norm: Norm,
    out: Linear,
    rule: RecurrenceSpec,
}

impl Mixer for Rwkv6 {
    fn forward(&self, step: &Step<'_>, stream: Stream<'_>, states: &mut [&mut LayerState]) -> Result<Tensor> {
        let be = step.backend;
        let shifted = self.shift.forward(step, &stream, states, 0)?;
        let base = shifted.blend(step, &self.mu)?;
        let blends = [&self.r.1, &self.w.1, &self.k.1, &self.v.1, &self.g.1];
        let middles = project(be, Input::Plain(&base), blends.map(|b| &b.down))?;
        let mut inputs = Vec::with_capacity(blends.len());
        for (blend, x) in blends.iter().zip(middles) {
            let x = be.pointwise(x.dims(), &[Operand::Each(&x)], &input(0).tanh())?;
            let [x] = project(be, Input::Plain(&x), [&blend.up])?;
            let operands = [
                Operand::Each(&shifted.x),
                Operand::Each(&shifted.delta),
                Operand::Each(&x),
                Operand::Row(&blend.bias),
            ];
            inputs.push(be.pointwise(x.dims(), &operands, &self.blended)?);
        }
        let one = |linear: &Linear, x: &Tensor| -> Result<Tensor> {
            let [y] = project(be, Input::Plain(x), [linear])?;
            Ok(y)
        };
        let (r, w) = (one(&self.r.0, &inputs[0])?, self.w.0.finish(step, one(&self.w.0.first, &inputs[1])?)?);
        let (k, v, g) = (one(&self.k.0, &inputs[2])?, one(&self.v.0, &inputs[3])?, one(&self.g.0, &inputs[4])?);
        let kept = be.pointwise(w.dims(), &[Operand::Each(&w)], &self.kept)?;
        let h = self.rule.n_heads;
        let operands = Recurrence {
            q: Heads::whole(&r, h),
            k: Heads::whole(&k, h),
            v: Heads::whole(&v, h),
            decay: Decay::Key(Heads::whole(&kept, h)),
            rule: Rule::Add(None),
        };
        let y = be.recurrence(&operands, &mut step.segments(states, 1)?, &self.rule)?;
        let y = be.norm(&y, &self.norm)?.reshape(g.dims())?;
        stream.close(be, &self.out, Input::Glu(&g, &y, Act::Silu))
    }
}
