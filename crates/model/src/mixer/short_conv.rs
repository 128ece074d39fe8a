//! The gated short convolution of LFM2: a token's input is multiplied by a gate, convolved with the last few, and multiplied by another
//! gate: out(c ⊙ conv(b ⊙ x)). Formula as in transformers' lfm2.

use reverie_files::ModelConfig;
use reverie_tensor::{Act, ConvSpec, Input, Tensor};

use super::{Mixer, MixerEntry, Step, Stream};
use crate::Build;
use crate::error::{Error, Result};
use crate::linear::{Linear, project};
use crate::plan::MixerSpec;
use crate::state::{LayerState, SlotNeed, StateKind, StateSpec};

/// The row.
pub const ENTRY: MixerEntry = MixerEntry {
    name: "short_conv",
    aliases: &["conv", "shortconv"],
    about: "gated short convolution (LFM2)",
    state: &[StateKind::Recurrent],
    spec: |config, _| Ok(Box::new(Spec::from_config(config)?)),
};

/// One gated short convolution: `in_proj` (b, c, x), `conv`, `out_proj`.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Channels.
    pub inner: usize,
    /// Taps.
    pub kernel: usize,
    /// The projections and the convolution must have biases.
    pub bias: bool,
}

impl Spec {
    /// From LFM2's field names.
    pub fn from_config(config: &ModelConfig) -> Result<Spec> {
        let (inner, kernel) = (config.usize("hidden_size")?, config.usize_or("conv_L_cache", 3)?);
        if inner == 0 || inner > 1 << 20 {
            return Err(Error::config("hidden_size", inner, "1 to 1048576"));
        }
        if kernel == 0 || kernel > 1 << 10 {
            return Err(Error::config("conv_L_cache", kernel, "1 to 1024"));
        }
        Ok(Spec { inner, kernel, bias: config.optional_bool("conv_bias")?.unwrap_or(false) })
    }
}

impl MixerSpec for Spec {
    fn kind(&self) -> &'static str {
        ENTRY.name
    }

    fn state(&self) -> StateSpec {
        let conv = SlotNeed { name: "conv", shape: vec![self.kernel - 1, self.inner] };
        StateSpec { kv: None, slots: vec![conv] }
    }

    fn build(&self, b: &mut Build<'_>) -> Result<Box<dyn Mixer>> {
        let (width, c) = (b.width(), self.inner);
        if self.bias {
            b.values("in_proj.bias", 3 * c)?;
            b.values("out_proj.bias", width)?;
        }
        let third = |i: usize| b.linear_rows("in_proj", 3 * c, width, (i * c..(i + 1) * c).collect());
        Ok(Box::new(ShortConv {
            before: third(0)?,
            after: third(1)?,
            x: third(2)?,
            conv: ConvSpec {
                taps: b.conv_taps("conv.weight", c, self.kernel)?,
                bias: if self.bias { Some(b.vector("conv.bias", c)?) } else { None },
                act: None,
            },
            out: b.linear("out_proj", width, c)?,
        }))
    }
}

/// A gated short convolution with its weights.
struct ShortConv {
    /// The gate on what comes in.
    before: Linear,
    /// The gate on what goes out.
    after: Linear,
    x: Linear,
    conv: ConvSpec,
    out: Linear,
}

impl Mixer for ShortConv {
    fn forward(&self, step: &Step<'_>, stream: Stream<'_>, states: &mut [&mut LayerState]) -> Result<Tensor> {
        let be = step.backend;
        let [before, after, x] = project(be, stream.input(), [&self.before, &self.after, &self.x])?;
        let x = be.glu(&before, &x, Act::Identity)?;
        let y = be.conv(&x, &mut step.segments(states, 0)?, &self.conv)?;
        stream.close(be, &self.out, Input::Glu(&after, &y, Act::Identity))
    }
}
