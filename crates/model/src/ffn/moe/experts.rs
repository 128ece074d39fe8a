//! The experts of one mixture, packed at load or when they are wanted, and the waves in which a step meets them. Knows no routing.

use std::collections::BTreeMap;
use std::sync::Arc;

use reverie_tensor::{Backend, Class, Event, Weight};

use super::shelf::Shelf;
use super::stored::Stored;
use super::{Expert, Tokens};
use crate::Build;
use crate::error::{Error, Result};
use crate::ffn::ExpertBytes;

/// All experts of a mixture.
pub(super) enum Experts {
    /// Packed.
    Resident(Vec<Expert>),
    /// In the checkpoint; a wave has as many of them packed as a token wants, so that what a token fits in, any step fits in.
    Lazy(Box<Lazy>),
}

pub(super) struct Lazy {
    shelf: Arc<Shelf>,
    mixture: usize,
    stored: Stored,
    /// Packed, by expert.
    bytes: Vec<u64>,
    /// Experts of a wave.
    at_once: usize,
}

/// Experts that are multiplied together, with their tokens, by number. What it holds stays packed.
pub(super) enum Wave<'a> {
    Resident(Vec<(&'a Expert, Tokens)>),
    Lazy(Vec<(Arc<Expert>, Tokens)>),
}

impl Wave<'_> {
    pub(super) fn iter(&self) -> Box<dyn Iterator<Item = (&Expert, &Tokens)> + '_> {
        match self {
            Wave::Resident(all) => Box::new(all.iter().map(|(e, tokens)| (*e, tokens))),
            Wave::Lazy(all) => Box::new(all.iter().map(|(e, tokens)| (e.as_ref(), tokens))),
        }
    }
}

impl Experts {
    /// Of where they are stored: packed now, or left there if the model has a shelf.
    pub(super) fn new(b: &Build<'_>, stored: Stored, n_active: usize) -> Result<Experts> {
        let (backend, store) = (b.backend(), b.store());
        let Some(shelf) = b.shelf() else {
            let all = (0..stored.len()).map(|e| stored.pack(backend, store, e, Class::Weights));
            return Ok(Experts::Resident(all.collect::<Result<_>>()?));
        };
        let bytes = (0..stored.len()).map(|e| stored.packed_bytes(backend, store, e)).collect::<Result<_>>()?;
        let (shelf, mixture) = (Arc::clone(shelf), shelf.join());
        Ok(Experts::Lazy(Box::new(Lazy { shelf, mixture, stored, bytes, at_once: n_active })))
    }

    /// True if every step meets all of its experts in one wave.
    pub(super) fn come_at_once(&self) -> bool {
        matches!(self, Experts::Resident(_))
    }

    /// The next experts that have tokens waiting, taken from those.
    pub(super) fn next(&self, backend: &dyn Backend, waiting: &mut BTreeMap<u32, Tokens>) -> Result<Wave<'_>> {
        match self {
            Experts::Resident(all) => {
                let expert = |(e, tokens): (u32, Tokens)| Ok((all.get(e as usize).ok_or_else(|| unknown(e))?, tokens));
                Ok(Wave::Resident(std::mem::take(waiting).into_iter().map(expert).collect::<Result<_>>()?))
            }
            Experts::Lazy(lazy) => {
                let first = std::iter::from_fn(|| waiting.pop_first()).take(lazy.at_once).collect();
                Ok(Wave::Lazy(lazy.pack(backend, first)?))
            }
        }
    }

    /// What they take on `backend` when they are packed.
    pub(super) fn bytes(&self, backend: &dyn Backend, n_active: usize) -> ExpertBytes {
        let weight = |w: &Weight| backend.packed_bytes(w.n, w.k, &w.form) as u64;
        let of = |e: &Expert| e.gate.as_ref().map_or(0, weight) + weight(&e.up) + weight(&e.down);
        let mut each: Vec<u64> = match self {
            Experts::Resident(all) => all.iter().map(of).collect(),
            Experts::Lazy(lazy) => lazy.bytes.clone(),
        };
        each.sort_unstable_by(|a, b| b.cmp(a));
        let at_once: u64 = each.iter().take(n_active).sum();
        ExpertBytes { all: each.iter().sum(), a_token: at_once, at_once }
    }
}

impl Lazy {
    /// These experts, packed. Those that are there are held before any other is packed, which might push them out.
    fn pack(&self, backend: &dyn Backend, wanted: Vec<(u32, Tokens)>) -> Result<Vec<(Arc<Expert>, Tokens)>> {
        let there: Vec<_> = wanted.iter().map(|(e, _)| self.shelf.find((self.mixture, *e))).collect();
        let (mut wave, mut misses, mut packed_bytes) = (Vec::with_capacity(wanted.len()), 0, 0);
        for ((e, tokens), there) in wanted.into_iter().zip(there) {
            let expert = match there {
                Some(expert) => expert,
                None => {
                    let bytes = *self.bytes.get(e as usize).ok_or_else(|| unknown(e))?;
                    (misses, packed_bytes) = (misses + 1, packed_bytes + bytes);
                    let pack = || self.stored.pack(backend, self.shelf.store.as_ref(), e as usize, Class::Experts);
                    self.shelf.add((self.mixture, e), bytes, pack)?
                }
            };
            wave.push((expert, tokens));
        }
        let hits = wave.len() - misses;
        backend.event(&Event::Experts { mixture: self.mixture, hits, misses, packed_bytes });
        Ok(wave)
    }
}

fn unknown(expert: u32) -> Error {
    Error::config("expert", expert, "one that the layer has")
}
