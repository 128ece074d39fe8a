//! Several mixers over one input, their results added: x + Σ scale · mixer(norm x). Each has its own scope, weights and state; at
//! most one keeps keys and values. Knows no kind of mixer.

use reverie_tensor::Tensor;
use reverie_tensor::backend::Map;

use super::{Mixer, MixerEntry, Out, Step, Stream, full_attention, mamba2};
use crate::Build;
use crate::error::{Error, Result};
use crate::plan::MixerSpec;
use crate::state::{LayerState, StateKind, StateSpec};

/// The row.
pub const ENTRY: MixerEntry = MixerEntry {
    name: "parallel",
    aliases: &["hybrid"],
    about: "mixers side by side, their results added (attention and Mamba-2 in Falcon-H1)",
    state: &[StateKind::Kv, StateKind::Recurrent],
    spec: |config, layer| {
        let branch = |scope: &str, mixer| Branch { scope: scope.into(), mixer, scale: 1.0 };
        Ok(Box::new(Spec {
            branches: vec![
                branch("mamba", Box::new(mamba2::Spec::from_config(config)?) as Box<dyn MixerSpec>),
                branch("self_attn", Box::new(full_attention::Spec::from_config(config, layer)?)),
            ],
        }))
    },
};

/// One of the mixers.
#[derive(Debug)]
pub struct Branch {
    /// Of its tensors, below the block's.
    pub scope: String,
    /// The mixer.
    pub mixer: Box<dyn MixerSpec>,
    /// Multiplies what it gives.
    pub scale: f32,
}

/// Mixers side by side.
#[derive(Debug)]
pub struct Spec {
    /// In the order in which their results are added.
    pub branches: Vec<Branch>,
}

impl MixerSpec for Spec {
    fn kind(&self) -> &'static str {
        ENTRY.name
    }

    fn state(&self) -> StateSpec {
        let each = self.branches.iter().map(|b| b.mixer.state());
        each.fold(StateSpec::default(), |mut all, one| {
            all.kv = all.kv.or(one.kv);
            all.slots.extend(one.slots);
            all
        })
    }

    fn build(&self, b: &mut Build<'_>) -> Result<Box<dyn Mixer>> {
        if self.branches.iter().filter(|b| b.mixer.state().kv.is_some()).count() > 1 {
            return Err(Error::config("parallel mixers", "two that keep keys and values", "one at most"));
        }
        let branches = self.branches.iter().map(|branch| {
            let state = branch.mixer.state();
            Ok(Built {
                mixer: branch.mixer.build(&mut b.below(&branch.scope))?,
                scale: branch.scale,
                kv: state.kv.is_some(),
                slots: state.slots.len(),
            })
        });
        Ok(Box::new(Parallel { branches: branches.collect::<Result<_>>()? }))
    }
}

/// One of the mixers with its weights.
struct Built {
    mixer: Box<dyn Mixer>,
    scale: f32,
    /// It keeps keys and values.
    kv: bool,
    /// Slots that it keeps.
    slots: usize,
}

impl Built {
    /// Takes the mixer's share out of a layer's state, whose slots before it are given back already.
    fn borrow(&self, whole: &mut LayerState) -> LayerState {
        let slots = whole.slots.drain(..self.slots.min(whole.slots.len())).collect();
        LayerState { kv: if self.kv { whole.kv.take() } else { None }, slots }
    }

    /// Puts it back, its slots last: after all mixers the order is the first again.
    fn restore(&self, whole: &mut LayerState, share: LayerState) {
        whole.slots.extend(share.slots);
        if self.kv {
            whole.kv = share.kv;
        }
    }
}

/// Mixers side by side with their weights.
struct Parallel {
    branches: Vec<Built>,
}

impl Mixer for Parallel {
    fn forward(&self, step: &Step<'_>, stream: Stream<'_>, states: &mut [&mut LayerState]) -> Result<Tensor> {
        let Stream { x, pre, out } = stream;
        let mut sum = (out == Out::Add).then(|| x.clone());
        let mut failed = None;
        for branch in &self.branches {
            let mut shares: Vec<LayerState> = states.iter_mut().map(|s| branch.borrow(s)).collect();
            if failed.is_none() {
                let mut lent: Vec<&mut LayerState> = shares.iter_mut().collect();
                let stream = Stream { x: x.clone(), pre, out: Out::Plain };
                let added = branch.mixer.forward(step, stream, &mut lent).and_then(|y| {
                    let y = if branch.scale == 1.0 { y } else { step.backend.map(y, Map::Scale(branch.scale))? };
                    match sum.take() {
                        Some(before) => Ok(step.backend.add(before, &y)?),
                        None => Ok(y),
                    }
                });
                match added {
                    Ok(y) => sum = Some(y),
                    Err(e) => failed = Some(e),
                }
            }
            // Also after a failure: the state must stay whole.
            states.iter_mut().zip(shares).for_each(|(s, share)| branch.restore(s, share));
        }
        match (failed, sum) {
            (Some(e), _) => Err(e),
            (None, Some(y)) => Ok(y),
            (None, None) => Err(Error::config("parallel mixers", "none", "at least one")),
        }
    }
}
