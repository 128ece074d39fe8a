//! The recurrent block of Griffin (arXiv 2402.19427): a causal convolution and a real-gated linear recurrent unit in one branch, a
//! GELU in the other, their product on the way out.

use reverie_files::ModelConfig;
use reverie_tensor::{Act, ConvSpec, Input, RgLruSpec, Tensor};

use super::{Mixer, MixerEntry, Step, Stream};
use crate::Build;
use crate::error::{Error, Result};
use crate::linear::{Linear, project};
use crate::plan::MixerSpec;
use crate::state::{LayerState, SlotNeed, StateKind, StateSpec};

/// The row.
pub const ENTRY: MixerEntry = MixerEntry {
    name: "rg_lru",
    aliases: &["recurrent"],
    about: "real-gated linear recurrent unit with a causal convolution (Griffin)",
    state: &[StateKind::Recurrent],
    spec: |config, _| Ok(Box::new(Spec::from_config(config)?)),
};

/// What multiplies softplus(`recurrent_param`) in the logarithm of the decay (Griffin, equation 6).
const SPEED: f32 = -8.0;

/// One recurrent block: `linear_x`, `linear_y`, `linear_out`, `conv_1d`, `rg_lru`.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Channels of the recurrence.
    pub inner: usize,
    /// Blocks on the diagonal of the gates; divides `inner`.
    pub n_blocks: usize,
    /// Taps of the convolution.
    pub kernel: usize,
}

impl Spec {
    /// From RecurrentGemma's field names.
    pub fn from_config(config: &ModelConfig) -> Result<Spec> {
        let count = |field: &str, default: Option<usize>| {
            let n = match default {
                Some(default) => config.usize_or(field, default)?,
                None => config.usize(field)?,
            };
            if n > 0 && n <= 1 << 20 { Ok(n) } else { Err(Error::config(field, n, "1 to 1048576")) }
        };
        let act = config.optional_text("hidden_activation")?.unwrap_or("gelu_pytorch_tanh");
        if act != "gelu_pytorch_tanh" {
            return Err(Error::config(
                "hidden_activation",
                act,
                "gelu_pytorch_tanh, the only one that this mixer computes",
            ));
        }
        let (inner, n_blocks) =
            (count("lru_width", Some(count("hidden_size", None)?))?, count("num_attention_heads", None)?);
        if !inner.is_multiple_of(n_blocks) {
            return Err(Error::config("lru_width", inner, format!("a multiple of num_attention_heads = {n_blocks}")));
        }
        Ok(Spec { inner, n_blocks, kernel: count("conv1d_width", Some(4))? })
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
                SlotNeed { name: "conv", shape: vec![self.kernel - 1, self.inner] },
                SlotNeed { name: "lru", shape: vec![self.inner] },
            ],
        }
    }

    fn build(&self, b: &mut Build<'_>) -> Result<Box<dyn Mixer>> {
        let (width, c) = (b.width(), self.inner);
        let block = c / self.n_blocks;
        let gate = |leaf: &str| -> Result<(Tensor, Tensor)> {
            let weight = b.values(&format!("rg_lru.{leaf}_gate_weight"), c * block)?;
            let bias = b.vector(&format!("rg_lru.{leaf}_gate_bias"), c)?;
            Ok((b.upload(&weight, &[self.n_blocks, block, block])?, bias))
        };
        let param = b.values("rg_lru.recurrent_param", c)?;
        let rate: Vec<f32> = param.iter().map(|&p| SPEED * reverie_tensor::reference::softplus(p)).collect();
        Ok(Box::new(RgLru {
            x: b.linear_biased("linear_x", c, width)?,
            y: b.linear_biased("linear_y", c, width)?,
            conv: ConvSpec {
                taps: b.conv_taps("conv_1d.weight", c, self.kernel)?,
                bias: Some(b.vector("conv_1d.bias", c)?),
                act: None,
            },
            lru: RgLruSpec { rate: b.upload(&rate, &[c])?, input_gate: gate("input")?, decay_gate: gate("recurrent")? },
            out: b.linear_biased("linear_out", width, c)?,
        }))
    }
}

/// A recurrent block with its weights.
struct RgLru {
    x: Linear,
    y: Linear,
    conv: ConvSpec,
    lru: RgLruSpec,
    out: Linear,
}

impl Mixer for RgLru {
    fn forward(&self, step: &Step<'_>, stream: Stream<'_>, states: &mut [&mut LayerState]) -> Result<Tensor> {
        let be = step.backend;
        let [x, y] = project(be, stream.input(), [&self.x, &self.y])?;
        let x = be.conv(&x, &mut step.segments(states, 0)?, &self.conv)?;
        let h = be.rg_lru(&x, step.positions, &mut step.segments(states, 1)?, &self.lru)?;
        stream.close(be, &self.out, Input::Glu(&y, &h, Act::GeluTanh))
    }
}
