//! RWKV-4's time mixing (arXiv 2305.13048): each channel is a weighted mean of its past values, the weights e^key fading with time.

use reverie_files::ModelConfig;
use reverie_tensor::{Input, Tensor};

use super::shift::Shift;
use super::{Mixer, MixerEntry, Step, Stream};
use crate::Build;
use crate::error::{Error, Result};
use crate::linear::{Linear, project};
use crate::plan::MixerSpec;
use crate::state::{LayerState, SlotNeed, StateKind, StateSpec};

/// The row.
pub const ENTRY: MixerEntry = MixerEntry {
    name: "rwkv4",
    aliases: &["wkv"],
    about: "RWKV-4's time mixing: a fading weighted mean of each channel",
    state: &[StateKind::Recurrent],
    spec: |config, _| Ok(Box::new(Spec::from_config(config)?)),
};

/// One time mixing.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Width of the residual stream.
    pub width: usize,
    /// Channels.
    pub inner: usize,
}

impl Spec {
    /// From `attention_hidden_size`, or the width.
    pub fn from_config(config: &ModelConfig) -> Result<Spec> {
        let width = config.usize("hidden_size")?;
        let inner = config.usize_or("attention_hidden_size", width)?;
        if inner == 0 || inner > 1 << 20 {
            return Err(Error::config("attention_hidden_size", inner, "1 to 1048576"));
        }
        Ok(Spec { width, inner })
    }
}

impl MixerSpec for Spec {
    fn kind(&self) -> &'static str {
        ENTRY.name
    }

    fn state(&self) -> StateSpec {
        let mean = SlotNeed { name: "wkv", shape: vec![3, self.inner] };
        StateSpec { kv: None, slots: vec![Shift::slot(self.width), mean] }
    }

    fn build(&self, b: &mut Build<'_>) -> Result<Box<dyn Mixer>> {
        let (width, n) = (b.width(), self.inner);
        let part = |leaf: &str| -> Result<(Linear, Tensor)> {
            let present = b.values(&format!("time_mix_{leaf}"), width)?;
            let before: Vec<f32> = present.iter().map(|m| 1.0 - m).collect();
            Ok((b.linear(leaf, n, width)?, b.upload(&before, &[width])?))
        };
        let decay: Vec<f32> = b.values("time_decay", n)?.iter().map(|w| -w.exp()).collect();
        Ok(Box::new(Rwkv4 {
            shift: Shift::build(b)?,
            key: part("key")?,
            value: part("value")?,
            receptance: part("receptance")?,
            decay: b.upload(&decay, &[n])?,
            first: b.vector("time_first", n)?,
            out: b.linear("output", width, n)?,
        }))
    }
}

/// A time mixing with its weights; each projection with how much it blends in of the token before.
struct Rwkv4 {
    shift: Shift,
    key: (Linear, Tensor),
    value: (Linear, Tensor),
    receptance: (Linear, Tensor),
    /// f32 `[C]`, negative: added to the logarithm of a weight at each token.
    decay: Tensor,
    /// f32 `[C]`: added to the newest key where it is read.
    first: Tensor,
    out: Linear,
}

impl Mixer for Rwkv4 {
    fn forward(&self, step: &Step<'_>, stream: Stream<'_>, states: &mut [&mut LayerState]) -> Result<Tensor> {
        let be = step.backend;
        let shifted = self.shift.forward(step, &stream, states, 0)?;
        let part = |(linear, mu): &(Linear, Tensor)| -> Result<Tensor> {
            let [y] = project(be, Input::Plain(&shifted.blend(step, mu)?), [linear])?;
            Ok(y)
        };
        let (k, v, r) = (part(&self.key)?, part(&self.value)?, part(&self.receptance)?);
        let y = be.wkv((&k, &v), (&self.decay, &self.first), &mut step.segments(states, 1)?)?;
        stream.close(be, &self.out, Input::SigmoidGated(&y, &r))
    }
}
