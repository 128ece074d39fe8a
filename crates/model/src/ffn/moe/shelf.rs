//! Packed experts that come and go: what a token wants is packed out of the checkpoint, and stays until the budget wants its bytes
//! back. Knows no routing and no place in a file.
//!
//! Mixtures take turns, so that the expert that was wanted last is, of those that are wanted at every turn, the one that is wanted latest.
//! What no mixture wanted at its last turn goes first, the oldest first; then the youngest. A token that wants more than may stay
//! finds a part of it, where least recently used order would find nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use reverie_files::TensorStore;
use reverie_tensor::Holder;

use super::Expert;
use crate::error::Result;

/// Where the experts of mixtures are while a model lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Residence {
    /// Packed at load, all of them.
    #[default]
    Resident,
    /// In the checkpoint, packed when a token wants them.
    Lazy,
}

impl Residence {
    /// Both, by the words for them.
    pub const ALL: &[(&str, Residence)] = &[("resident", Residence::Resident), ("lazy", Residence::Lazy)];
}

/// What a shelf did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Experts wanted that were there.
    pub hits: u64,
    /// Experts wanted that were packed.
    pub misses: u64,
    /// Bytes that this packed.
    pub packed_bytes: u64,
    /// Experts given back.
    pub given_back: u64,
}

/// An expert by its mixture, counted through the model, and its number there.
pub(super) type Key = (usize, u32);

/// The packed experts of a model, over the checkpoint that the others lie in.
pub struct Shelf {
    pub(super) store: Arc<dyn TensorStore>,
    most_bytes: u64,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    packed: BTreeMap<Key, Packed>,
    /// When each was last wanted, oldest first.
    by_use: BTreeMap<u64, Key>,
    uses: u64,
    mixtures: usize,
    /// The mixture whose turn it is.
    at: usize,
    /// Turns so far, of all mixtures.
    turn: u64,
    counters: Counters,
}

struct Packed {
    expert: Arc<Expert>,
    bytes: u64,
    used: u64,
    /// When it was wanted last.
    turn: u64,
}

impl Held {
    /// It is the mixture's turn: counted on to where the next round would have it.
    fn turn_of(&mut self, mixture: usize) {
        let steps = if mixture >= self.at { mixture - self.at } else { self.mixtures + mixture - self.at };
        self.turn += steps as u64;
        self.at = mixture;
    }

    /// Takes out experts that no step is using, of `bytes` in all if there are as many.
    fn give_back(&mut self, bytes: u64) -> Vec<Arc<Expert>> {
        let (mut keys, mut freed) = (Vec::new(), 0);
        let round = self.mixtures as u64;
        let stale = |key: &&Key| self.packed.get(key).is_some_and(|p| self.turn > p.turn + round);
        let (old, young) = (self.by_use.values(), self.by_use.values().rev());
        for key in old.filter(stale).chain(young.filter(|key| !stale(key))) {
            if freed >= bytes {
                break;
            }
            // A step holds what it is using by a handle of its own.
            if let Some(packed) = self.packed.get(key).filter(|p| Arc::strong_count(&p.expert) == 1) {
                freed += packed.bytes;
                keys.push(*key);
            }
        }
        self.counters.given_back += keys.len() as u64;
        let gone: Vec<Packed> = keys.iter().filter_map(|key| self.packed.remove(key)).collect();
        for packed in &gone {
            self.by_use.remove(&packed.used);
        }
        gone.into_iter().map(|packed| packed.expert).collect()
    }
}

impl Shelf {
    /// An empty shelf over `store`. Until the budget is short, experts stay as long as they are no more than `most_bytes`; with none,
    /// only those that a step is using, which is what a forecast counts on.
    pub fn new(store: Arc<dyn TensorStore>, most_bytes: u64) -> Shelf {
        Shelf { store, most_bytes, held: Mutex::default() }
    }

    /// What it did so far.
    pub fn counters(&self) -> Counters {
        self.lock().counters
    }

    /// Bytes packed now.
    pub fn held_bytes(&self) -> u64 {
        self.lock().packed.values().map(|p| p.bytes).sum()
    }

    /// A number for one more mixture.
    pub(super) fn join(&self) -> usize {
        let mut held = self.lock();
        held.mixtures += 1;
        held.mixtures - 1
    }

    /// The expert, if it is packed.
    pub(super) fn find(&self, key: Key) -> Option<Arc<Expert>> {
        let held = &mut *self.lock();
        held.turn_of(key.0);
        held.uses += 1;
        let packed = held.packed.get_mut(&key)?;
        held.by_use.remove(&packed.used);
        (packed.used, packed.turn) = (held.uses, held.turn);
        held.by_use.insert(packed.used, key);
        held.counters.hits += 1;
        Some(Arc::clone(&packed.expert))
    }

    /// Packs an expert of so many bytes that was not there.
    pub(super) fn add(&self, key: Key, bytes: u64, pack: impl FnOnce() -> Result<Expert>) -> Result<Arc<Expert>> {
        let over = self.held_bytes().saturating_add(bytes).saturating_sub(self.most_bytes);
        self.give_back(over);
        // Packing asks the budget for memory, and the budget may ask this shelf: it is not locked meanwhile.
        let expert = Arc::new(pack()?);
        let held = &mut *self.lock();
        held.uses += 1;
        held.counters.misses += 1;
        held.counters.packed_bytes += bytes;
        let packed = Packed { expert: Arc::clone(&expert), bytes, used: held.uses, turn: held.turn };
        if let Some(twin) = held.packed.insert(key, packed) {
            held.by_use.remove(&twin.used);
        }
        held.by_use.insert(held.uses, key);
        Ok(expert)
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Holder for Shelf {
    fn give_back(&self, bytes: u64) {
        let gone = self.lock().give_back(bytes);
        // Outside the lock: their buffers go back to the budget.
        drop(gone);
    }
}
