//! A newcomer's mixer, as docs/ADDING.md describes one: `echo` gives each token a blend of what it and the token before it bring. It
//! lives outside of every crate and keeps one recurrent slot.

use reverie::rooms::files::ModelConfig;
use reverie::rooms::model::mixer::{Mixer, MixerEntry, Step, Stream};
use reverie::rooms::model::plan::MixerSpec;
use reverie::rooms::model::state::{LayerState, SlotNeed, StateKind, StateSpec};
use reverie::rooms::model::{Build, Error, Linear};
use reverie::rooms::tensor::{ConvSpec, Input, Tensor};

type Result<T> = std::result::Result<T, Error>;

/// The row.
pub static ENTRY: MixerEntry = MixerEntry {
    name: "echo",
    aliases: &[],
    about: "each token blended with the one before it",
    state: &[StateKind::Recurrent],
    spec: |config, _| Ok(Box::new(Spec::from_config(config)?)),
};

/// One echo layer.
#[derive(Clone, Debug)]
pub struct Spec {
    inner: usize,
}

impl Spec {
    /// From `echo_size`.
    pub fn from_config(config: &ModelConfig) -> Result<Spec> {
        match config.usize("echo_size")? {
            inner if (1..=4096).contains(&inner) => Ok(Spec { inner }),
            inner => Err(Error::config("echo_size", inner, "1 to 4096")),
        }
    }
}

impl MixerSpec for Spec {
    fn kind(&self) -> &'static str {
        ENTRY.name
    }

    fn state(&self) -> StateSpec {
        StateSpec { kv: None, slots: vec![SlotNeed { name: "before", shape: vec![1, self.inner] }] }
    }

    fn build(&self, b: &mut Build<'_>) -> Result<Box<dyn Mixer>> {
        let taps = b.conv_taps("conv1d.weight", self.inner, 2)?;
        Ok(Box::new(Echo {
            enter: b.linear("in_proj", self.inner, b.width())?,
            blend: ConvSpec { taps, bias: None, act: None },
            leave: b.linear("out_proj", b.width(), self.inner)?,
        }))
    }
}

struct Echo {
    enter: Linear,
    blend: ConvSpec,
    leave: Linear,
}

impl Mixer for Echo {
    fn forward(&self, step: &Step<'_>, stream: Stream<'_>, states: &mut [&mut LayerState]) -> Result<Tensor> {
        let be = step.backend;
        let x = be.linear(stream.input(), &[&self.enter.weight])?.remove(0);
        let y = be.conv(&x, &mut step.segments(states, 0)?, &self.blend)?;
        stream.close(be, &self.leave, Input::Plain(&y))
    }
}
