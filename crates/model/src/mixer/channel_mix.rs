//! RWKV's channel mixing: a feed-forward, squared ReLU inside, that also sees the token before; from version 4 to 6 with a gate of its
//! own. A mixer, since it remembers.

use reverie_files::ModelConfig;
use reverie_tensor::formula::input;
use reverie_tensor::{Act, Formula, Input, Operand, Tensor};

use super::shift::Shift;
use super::{Mixer, MixerEntry, Step, Stream};
use crate::Build;
use crate::error::{Error, Result};
use crate::linear::{Linear, project};
use crate::plan::MixerSpec;
use crate::state::{LayerState, StateKind, StateSpec};

/// The row.
pub const ENTRY: MixerEntry = MixerEntry {
    name: "channel_mix",
    aliases: &["rwkv_channel_mix"],
    about: "RWKV's feed-forward over a token and the one before",
    state: &[StateKind::Recurrent],
    spec: |config, _| Ok(Box::new(Spec::from_config(config)?)),
};

/// One channel mixing.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Width of the residual stream.
    pub width: usize,
    /// Width inside.
    pub inner: usize,
    /// Whose tensors it reads.
    pub version: Version,
}

/// Names and blends of the versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// `time_mix_key`, `time_mix_receptance` weigh the present token; `receptance` gates.
    V4,
    /// `key.mu`, `receptance.mu` weigh the token before; `key.linear`, `receptance.linear`.
    V6,
    /// `x_k`; no gate.
    V7,
}

impl Spec {
    /// From `intermediate_size`; `x_k` alone, as the newest version has it.
    pub fn from_config(config: &ModelConfig) -> Result<Spec> {
        let (width, inner) = (config.usize("hidden_size")?, config.usize("intermediate_size")?);
        Spec::new((width, inner), Version::V7)
    }

    /// In flash-linear-attention's field names: without `intermediate_size`, `hidden_ratio` widths rounded up to a multiple of 32.
    pub fn flash(config: &ModelConfig, ratio: f64, version: Version) -> Result<Spec> {
        let act = config.optional_text("hidden_act")?.unwrap_or("sqrelu");
        if act != "sqrelu" {
            return Err(Error::config("hidden_act", act, "sqrelu"));
        }
        let width = config.usize("hidden_size")?;
        let inner = match config.optional_usize("intermediate_size")? {
            Some(n) => n,
            None => {
                let whole = (width as f64 * config.f64_or("hidden_ratio", ratio)?) as usize;
                whole.min(1 << 24).next_multiple_of(32)
            }
        };
        Spec::new((width, inner), version)
    }

    /// Of these widths.
    pub fn new((width, inner): (usize, usize), version: Version) -> Result<Spec> {
        if inner == 0 || inner > 1 << 24 {
            return Err(Error::config("intermediate_size", inner, "1 to 16777216"));
        }
        Ok(Spec { width, inner, version })
    }
}

impl MixerSpec for Spec {
    fn kind(&self) -> &'static str {
        ENTRY.name
    }

    fn state(&self) -> StateSpec {
        StateSpec { kv: None, slots: vec![Shift::slot(self.width)] }
    }

    fn build(&self, b: &mut Build<'_>) -> Result<Box<dyn Mixer>> {
        let (width, inner) = (b.width(), self.inner);
        let v6 = self.version == Version::V6;
        let blend = |key: &str| -> Result<Tensor> {
            let mut mu = match self.version {
                Version::V4 => b.values(&format!("time_mix_{key}"), width)?,
                Version::V6 => b.values(&format!("{key}.mu"), width)?,
                Version::V7 => b.values("x_k", width)?,
            };
            if self.version == Version::V4 {
                mu.iter_mut().for_each(|m| *m = 1.0 - *m);
            }
            b.upload(&mu, &[width])
        };
        let gate = match self.version {
            Version::V7 => None,
            _ => Some((
                b.linear(if v6 { "receptance.linear" } else { "receptance" }, width, width)?,
                blend("receptance")?,
            )),
        };
        let up = input(0).act(Act::Relu);
        Ok(Box::new(ChannelMix {
            shift: Shift::build(b)?,
            key: (b.linear(if v6 { "key.linear" } else { "key" }, inner, width)?, blend("key")?),
            value: b.linear("value", width, inner)?,
            gate,
            squared: up.clone() * up,
        }))
    }
}

/// A channel mixing with its weights.
struct ChannelMix {
    shift: Shift,
    key: (Linear, Tensor),
    value: Linear,
    gate: Option<(Linear, Tensor)>,
    squared: Formula,
}

impl Mixer for ChannelMix {
    fn forward(&self, step: &Step<'_>, stream: Stream<'_>, states: &mut [&mut LayerState]) -> Result<Tensor> {
        let be = step.backend;
        let shifted = self.shift.forward(step, &stream, states, 0)?;
        let [key] = project(be, Input::Plain(&shifted.blend(step, &self.key.1)?), [&self.key.0])?;
        let key = be.pointwise(key.dims(), &[Operand::Each(&key)], &self.squared)?;
        let Some((gate, mu)) = &self.gate else {
            return stream.close(be, &self.value, Input::Plain(&key));
        };
        let [value] = project(be, Input::Plain(&key), [&self.value])?;
        let [r] = project(be, Input::Plain(&shifted.blend(step, mu)?), [gate])?;
        let operands = [Operand::Each(&value), Operand::Each(&r)];
        let y = be.pointwise(value.dims(), &operands, &(input(0) * input(1).sigmoid()))?;
        stream.finish(be, y)
    }
}
