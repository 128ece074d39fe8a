//! The mixers: what moves information between tokens. One file a row; a row turns a config's layer into a spec, a spec takes
//! its weights and becomes a mixer. A mixer never sees a weight format, and knows no other mixer.

pub mod channel_mix;
pub mod closing;
pub mod decayed;
pub mod delta;
pub mod deltanet;
pub mod full_attention;
pub mod gated_delta;
pub mod gla;
pub mod gsa;
pub mod hgrn2;
pub mod kda;
pub mod lightning;
pub mod mamba;
pub mod mamba2;
pub mod mla;
pub mod mlstm;
pub mod moba;
pub mod nsa;
pub mod parallel;
pub mod qkv;
pub mod retnet;
pub mod rg_lru;
pub mod rwkv4;
pub mod rwkv6;
pub mod rwkv7;
pub mod shared_attention;
pub mod shift;
pub mod short_conv;
pub mod sparse;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;

use reverie_files::ModelConfig;
use reverie_tensor::{Backend, KvSegment, KvSpec, KvTarget, Norm, StateSegment, Tensor};

use crate::error::{Error, Result};
use crate::plan::MixerSpec;
use crate::state::{LayerState, Pages, StateKind};

/// A row of the registry.
pub struct MixerEntry {
    /// The word that a config spells; also the file's name.
    pub name: &'static str,
    /// Other spellings.
    pub aliases: &'static [&'static str],
    /// One line for people.
    pub about: &'static str,
    /// The kinds of state it needs.
    pub state: &'static [StateKind],
    /// The layer's spec from a config with conventional field names.
    pub spec: fn(&ModelConfig, usize) -> Result<Box<dyn MixerSpec>>,
}

/// All mixers, by name.
pub static MIXERS: &[MixerEntry] = &[
    channel_mix::ENTRY,
    deltanet::ENTRY,
    full_attention::ENTRY,
    gated_delta::ENTRY,
    gla::ENTRY,
    gsa::ENTRY,
    hgrn2::ENTRY,
    kda::ENTRY,
    lightning::ENTRY,
    mamba::ENTRY,
    mamba2::ENTRY,
    mla::ENTRY,
    mlstm::ENTRY,
    moba::ENTRY,
    nsa::ENTRY,
    parallel::ENTRY,
    retnet::ENTRY,
    rg_lru::ENTRY,
    rwkv4::ENTRY,
    rwkv6::ENTRY,
    rwkv7::ENTRY,
    shared_attention::ENTRY,
    short_conv::ENTRY,
];

/// One sequence's rows in a step, and where they stand.
#[derive(Clone, Debug)]
pub struct Rows {
    /// Rows of the batch.
    pub range: Range<usize>,
    /// Absolute position of the first.
    pub start: usize,
}

/// What every part of a step may look at.
pub struct Step<'a> {
    /// Computes.
    pub backend: &'a dyn Backend,
    /// Token id of every row.
    pub ids: &'a [u32],
    /// Absolute position of every row.
    pub positions: &'a [u32],
    /// The sequences of the batch.
    pub rows: &'a [Rows],
    /// What earlier parts of this step left for later ones.
    pub carry: Carry,
}

impl Step<'_> {
    /// One segment a sequence, over the recurrent slot with this number.
    pub fn segments<'s>(&self, states: &'s mut [&mut LayerState], slot: usize) -> Result<Vec<StateSegment<'s>>> {
        let missing =
            || Error::Pairing { cache: "none", holds: "nothing", mixer: "recurrent".into(), needs: "recurrent" };
        states
            .iter_mut()
            .zip(self.rows)
            .map(|(s, r)| Ok(StateSegment { rows: r.range.clone(), state: s.slots.get_mut(slot).ok_or_else(missing)? }))
            .collect()
    }

    /// The pages of every sequence and their layout; refused, by the mixer's name, where the state keeps none.
    pub fn pages<'s>(&self, states: &'s mut [&mut LayerState], mixer: &str) -> Result<(Vec<&'s mut Pages>, KvSpec)> {
        let pages: Vec<_> = states.iter_mut().filter_map(|s| s.kv.as_mut()).collect();
        let missing =
            || Error::Pairing { cache: "none", holds: "nothing", mixer: mixer.to_owned(), needs: "key/value" };
        let kv = pages.first().map(|p| p.spec).ok_or_else(missing)?;
        Ok((pages, kv))
    }

    /// Writes the keys and values of every row into the pages of its sequence.
    pub fn kv_write(&self, k: &Tensor, v: &Tensor, pages: &mut [&mut Pages], kv: &KvSpec) -> Result<()> {
        let mut targets: Vec<_> = pages
            .iter_mut()
            .zip(self.rows)
            .map(|(p, r)| KvTarget { rows: r.range.clone(), start: r.start, pages: &mut p.pages })
            .collect();
        Ok(self.backend.kv_write(k, v, &mut targets, kv)?)
    }

    /// What the rows of every sequence attend to.
    pub fn kv_segments<'p>(&self, pages: &'p [&mut Pages]) -> Vec<KvSegment<'p>> {
        pages
            .iter()
            .zip(self.rows)
            .map(|(p, r)| KvSegment { rows: r.range.clone(), start: r.start, pages: &p.pages })
            .collect()
    }
}

/// Values that one part of a step leaves for parts of later layers (a first layer's values, the embedding), by name. Gone when
/// the step ends: what must live longer is state.
#[derive(Default)]
pub struct Carry(RefCell<BTreeMap<&'static str, Vec<Tensor>>>);

impl Carry {
    /// Leaves `x` under `name`, in place of what was there.
    pub fn put(&self, name: &'static str, x: Tensor) {
        self.put_all(name, vec![x]);
    }

    /// Leaves several tensors under one name, in place of what was there.
    pub fn put_all(&self, name: &'static str, xs: Vec<Tensor>) {
        self.0.borrow_mut().insert(name, xs);
    }

    /// What was left under `name`.
    pub fn get(&self, name: &str) -> Option<Tensor> {
        self.0.borrow().get(name).and_then(|xs| xs.first()).cloned()
    }

    /// Takes all that was left under `name`.
    pub fn take_all(&self, name: &str) -> Vec<Tensor> {
        self.0.borrow_mut().remove(name).unwrap_or_default()
    }
}

/// What a block does with what its part computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Out {
    /// x + part(pre(x)).
    Add,
    /// part(pre(x)) alone.
    Plain,
}

/// The residual stream as it enters a part.
#[derive(Clone)]
pub struct Stream<'a> {
    /// `[T, D]`.
    pub x: Tensor,
    /// Applied on the way into the part's projections.
    pub pre: Option<&'a Norm>,
    /// What the part gives back.
    pub out: Out,
}

impl Stream<'_> {
    /// What projections read.
    pub fn input(&self) -> reverie_tensor::Input<'_> {
        match self.pre {
            Some(norm) => reverie_tensor::Input::Normed(&self.x, norm),
            None => reverie_tensor::Input::Plain(&self.x),
        }
    }

    /// What a part computed, when it ends in something else than a projection: added to the stream, or alone.
    pub fn finish(self, backend: &dyn Backend, y: Tensor) -> Result<Tensor> {
        match self.out {
            Out::Add => Ok(backend.add(self.x, &y)?),
            Out::Plain => Ok(y),
        }
    }

    /// The closing projection: added to the stream, or alone.
    pub fn close(
        self,
        backend: &dyn Backend,
        linear: &crate::Linear,
        input: reverie_tensor::Input<'_>,
    ) -> Result<Tensor> {
        match self.out {
            Out::Add => linear.add_to(backend, input, self.x),
            Out::Plain => {
                let [y] = crate::linear::project(backend, input, [linear])?;
                Ok(y)
            }
        }
    }
}

/// A mixer with its weights.
pub trait Mixer: Send + Sync {
    /// One step over the rows of all sequences; `states` has one entry a sequence, in the order of `step.rows`.
    fn forward(&self, step: &Step<'_>, stream: Stream<'_>, states: &mut [&mut LayerState]) -> Result<Tensor>;
}

#[cfg(test)]
mod tests;
