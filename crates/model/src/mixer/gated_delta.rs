//! The gated delta rule (arXiv 2412.06464) in the form of Qwen3-Next and Qwen3.5: a short causal convolution over q, k and v,
//! L2-normalised queries and keys, a decay and a write rate per value head, a gated RMS norm on the way out.

use reverie_files::ModelConfig;
use reverie_tensor::formula::input;
use reverie_tensor::{
    Act, ConvSpec, Decay, Formula, HeadOrder, Heads, Input, Norm, Operand, Read, Recurrence, RecurrenceSpec, Rule,
    Tensor,
};

use super::{Mixer, MixerEntry, Step, Stream};
use crate::Build;
use crate::error::{Error, Result};
use crate::linear::{Linear, project};
use crate::plan::{MixerSpec, NormSpec, NormWeight};
use crate::state::{LayerState, SlotNeed, StateKind, StateSpec};

/// The row.
pub const ENTRY: MixerEntry = MixerEntry {
    name: "gated_delta",
    aliases: &["linear_attention", "gated_deltanet"],
    about: "gated delta rule with a causal convolution (Qwen3-Next, Qwen3.5)",
    state: &[StateKind::Recurrent],
    spec: |config, _| Ok(Box::new(Spec::from_config(config)?)),
};

/// One gated delta layer.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Heads of q and k.
    pub n_k_heads: usize,
    /// Heads of v; a multiple of `n_k_heads`.
    pub n_v_heads: usize,
    /// Width of a key.
    pub k_dim: usize,
    /// Width of a value.
    pub v_dim: usize,
    /// Taps of the convolution.
    pub kernel: usize,
    /// Of the output norm.
    pub eps: f32,
    /// Whose conventions the tensors follow.
    pub stored: Stored,
}

/// Conventions of a stored gated delta layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// `A_log`; the value heads of one key head stand side by side.
    HuggingFace,
    /// -exp(A_log) itself; value heads are tiled over the key heads.
    Ggml,
}

impl Spec {
    /// From Qwen3.5's field names.
    pub fn from_config(config: &ModelConfig) -> Result<Spec> {
        let positive = |field: &str| match config.usize(field)? {
            n if n > 0 && n <= 1 << 16 => Ok(n),
            n => Err(Error::config(field, n, "1 to 65536")),
        };
        let spec = Spec {
            n_k_heads: positive("linear_num_key_heads")?,
            n_v_heads: positive("linear_num_value_heads")?,
            k_dim: positive("linear_key_head_dim")?,
            v_dim: positive("linear_value_head_dim")?,
            kernel: positive("linear_conv_kernel_dim")?,
            eps: config.optional_f64("rms_norm_eps")?.unwrap_or(1e-6) as f32,
            stored: Stored::HuggingFace,
        };
        if !spec.n_v_heads.is_multiple_of(spec.n_k_heads) {
            return Err(Error::config(
                "linear_num_value_heads",
                spec.n_v_heads,
                format!("a multiple of linear_num_key_heads = {}", spec.n_k_heads),
            ));
        }
        Ok(spec)
    }

    /// Width of k (and of q).
    fn k_width(&self) -> usize {
        self.n_k_heads * self.k_dim
    }

    /// Width of v.
    fn v_width(&self) -> usize {
        self.n_v_heads * self.v_dim
    }

    /// Channels of the convolution: q, k, v.
    fn channels(&self) -> usize {
        2 * self.k_width() + self.v_width()
    }
}

impl MixerSpec for Spec {
    fn kind(&self) -> &'static str {
        ENTRY.name
    }

    fn state(&self) -> StateSpec {
        StateSpec {
            kv: None,
            slots: vec![
                SlotNeed { name: "conv", shape: vec![self.kernel - 1, self.channels()] },
                SlotNeed { name: "delta", shape: vec![self.n_v_heads, self.k_dim, self.v_dim] },
            ],
        }
    }

    fn build(&self, b: &mut Build<'_>) -> Result<Box<dyn Mixer>> {
        let (width, heads) = (b.width(), self.n_v_heads);
        let mut rate = b.values("A_log", heads)?;
        if self.stored == Stored::HuggingFace {
            rate.iter_mut().for_each(|a| *a = -a.exp());
        }
        let norm = NormSpec::rms("norm", self.eps, NormWeight::Plain);
        Ok(Box::new(GatedDelta {
            qkv: b.linear("in_proj_qkv", self.channels(), width)?,
            z: b.linear("in_proj_z", self.v_width(), width)?,
            a: b.linear("in_proj_a", heads, width)?,
            b: b.linear("in_proj_b", heads, width)?,
            out: b.linear("out_proj", width, self.v_width())?,
            conv: ConvSpec {
                taps: b.conv_taps("conv1d.weight", self.channels(), self.kernel)?,
                bias: b.opt_vector("conv1d.bias", self.channels())?,
                act: Some(Act::Silu),
            },
            norm: b.norm(&norm, self.v_dim)?,
            n_k_heads: self.n_k_heads,
            rate: b.upload(&rate, &[heads])?,
            dt_bias: b.vector("dt_bias", heads)?,
            kept: ((input(0) + input(1)).softplus() * input(2)).exp(),
            written: input(0).sigmoid(),
            delta: RecurrenceSpec {
                n_heads: heads,
                k_dim: self.k_dim,
                v_dim: self.v_dim,
                order: match self.stored {
                    Stored::HuggingFace => HeadOrder::Grouped,
                    Stored::Ggml => HeadOrder::Tiled,
                },
                unit_eps: Some(1e-6),
                q_scale: (self.k_dim as f32).powf(-0.5),
                read: Read::After,
                skip: None,
            },
        }))
    }
}

/// A gated delta layer with its weights.
struct GatedDelta {
    qkv: Linear,
    z: Linear,
    a: Linear,
    b: Linear,
    out: Linear,
    conv: ConvSpec,
    norm: Norm,
    n_k_heads: usize,
    /// f32 `[n_v_heads]`, negative.
    rate: Tensor,
    /// f32 `[n_v_heads]`.
    dt_bias: Tensor,
    /// exp(rate · softplus(a + dt_bias)): what a token leaves of the state.
    kept: Formula,
    /// σ(b): how strongly it writes.
    written: Formula,
    delta: RecurrenceSpec,
}

impl Mixer for GatedDelta {
    fn forward(&self, step: &Step<'_>, stream: Stream<'_>, states: &mut [&mut LayerState]) -> Result<Tensor> {
        let be = step.backend;
        let [qkv, z, a, b] = project(be, stream.input(), [&self.qkv, &self.z, &self.a, &self.b])?;
        let mixed = be.conv(&qkv, &mut step.segments(states, 0)?, &self.conv)?;
        let gates = [Operand::Each(&a), Operand::Row(&self.dt_bias), Operand::Row(&self.rate)];
        let kept = be.pointwise(a.dims(), &gates, &self.kept)?;
        let written = be.pointwise(b.dims(), &[Operand::Each(&b)], &self.written)?;
        let k_width = self.n_k_heads * self.delta.k_dim;
        let operands = Recurrence {
            q: Heads { x: &mixed, at: 0, n: self.n_k_heads },
            k: Heads { x: &mixed, at: k_width, n: self.n_k_heads },
            v: Heads { x: &mixed, at: 2 * k_width, n: self.delta.n_heads },
            decay: Decay::Head(&kept),
            rule: Rule::Delta(Some(&written)),
        };
        let y = be.recurrence(&operands, &mut step.segments(states, 1)?, &self.delta)?;
        let z = z.reshape(y.dims())?;
        let y = be.gated_norm(&y, &z, &self.norm)?;
        let t = y.dims()[0];
        let y = y.reshape(&[t, self.delta.n_heads * self.delta.v_dim])?;
        stream.close(be, &self.out, Input::Plain(&y))
    }
}
