//! One model with its cache scheme and its budget; the maker of sessions.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use reverie_model::{CacheEntry, Model, Registries, State};
use reverie_tensor::Class;

use crate::budget::{Forecast, Forecaster};
use crate::error::{Error, Result};
use crate::session::Session;
use crate::sleep::Cellar;
use crate::tree::{Counters, Tree};

/// How an engine is set up.
#[derive(Clone, Debug)]
pub struct EngineSpec {
    /// Cache scheme for keys and values.
    pub kv: String,
    /// Tokens of a prefill step. Any value gives the same bits.
    pub chunk: usize,
    /// Byte budget for weights, state and scratch.
    pub memory: Option<u64>,
    /// Bytes that the process holds, told by whoever owns the process: what no meter counts (the program, its vocabulary, an index in
    /// use) then takes its part of the budget too. None: only what is metered does.
    pub resident: Option<fn() -> Option<u64>>,
    /// Most bytes of pages and marks that are kept for later while no session holds them. The budget comes first.
    pub keep: u64,
}

/// What a process of our own grows by between its first forecast and the end of an answer, beside what is metered: code that runs for
/// the first time, stacks, odds and ends of the allocator. Measured: 1.0 to 2.1 MiB on the fixtures and the embedded model.
const GROWTH_BYTES: u64 = 4 << 20;

/// The same for each token of the vocabulary: logits, adjusted logits and candidates of the sampler.
const GROWTH_BYTES_PER_TOKEN: u64 = 24;

/// What is kept for later unless the caller chooses: a few long conversations of a small model.
pub const DEFAULT_KEEP: u64 = 2 << 30;

impl Default for EngineSpec {
    fn default() -> EngineSpec {
        EngineSpec {
            kv: reverie_model::cache::DEFAULT_KV.into(),
            chunk: 512,
            memory: None,
            resident: None,
            keep: DEFAULT_KEEP,
        }
    }
}

/// One model, ready to be talked to.
pub struct Engine {
    pub(crate) model: Arc<Model>,
    pub(crate) cache: &'static CacheEntry,
    pub(crate) chunk: usize,
    limit: Option<u64>,
    resident: Option<fn() -> Option<u64>>,
    /// What `unmetered` was when it was first asked for a forecast.
    unmetered_at_first: OnceLock<u64>,
    keep: u64,
    tree: Mutex<Tree>,
    pub(crate) cellar: OnceLock<Cellar>,
    forecaster: Option<Forecaster>,
    capacity: OnceLock<usize>,
}

/// What is kept for later.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    /// Bytes that only the prefix tree holds.
    pub held_bytes: u64,
    /// What it did so far.
    pub counters: Counters,
}

impl Engine {
    /// An engine over `model`. `shadow` is the same plan on a dry backend; without it no forecast is made and the budget is
    /// enforced only as memory is taken.
    pub fn new(
        model: Arc<Model>,
        shadow: Option<Arc<Model>>,
        registries: &Registries,
        spec: &EngineSpec,
    ) -> Result<Engine> {
        let mixers: Vec<_> = model.plan().mixers().collect();
        let cache = CacheEntry::choose(registries, &spec.kv, &mixers)?;
        if spec.chunk == 0 {
            return Err(reverie_tensor::Error::value("chunk", 0, "at least one token").into());
        }
        model.backend().memory().set_limit(spec.memory);
        let plain = |model: Arc<Model>, limit, forecaster| Engine {
            tree: Mutex::new(Tree::new(model.standing().clone())),
            model,
            cache,
            chunk: spec.chunk,
            limit,
            resident: spec.resident,
            unmetered_at_first: OnceLock::new(),
            keep: spec.keep,
            cellar: OnceLock::new(),
            forecaster,
            capacity: OnceLock::new(),
        };
        let forecaster = shadow.map(|m| Forecaster::new(plain(m, None, None)));
        Ok(plain(model, spec.memory, forecaster))
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// The scheme that holds keys and values.
    pub fn cache(&self) -> &'static CacheEntry {
        self.cache
    }

    /// Positions the model has.
    pub fn context(&self) -> usize {
        self.model.plan().context
    }

    /// The budget.
    pub fn memory_limit(&self) -> Option<u64> {
        self.limit
    }

    /// Peak bytes of `batch` sequences of `context` tokens; none without a shadow model.
    pub fn forecast(&self, context: usize, batch: usize) -> Result<Option<Forecast>> {
        self.forecaster.as_ref().map(|f| f.forecast(context, batch)).transpose()
    }

    /// Refuses a context that the model or the budget cannot hold, before any work.
    pub fn admit(&self, tokens: usize) -> Result<()> {
        self.admit_beside(tokens, 0)
    }

    /// The same for a caller who holds so many bytes of his own beside it.
    pub fn admit_beside(&self, tokens: usize, bytes: u64) -> Result<()> {
        if tokens > self.context() {
            return Err(self.model.plan().beyond(tokens).into());
        }
        let (Some(limit), Some(forecast)) = (self.limit, self.forecast(tokens, 1)?) else { return Ok(()) };
        let needed = forecast.peak_bytes + self.unmetered_at_last() + bytes;
        if needed > limit {
            return Err(Error::Budget { tokens, needed, limit });
        }
        Ok(())
    }

    /// Bytes that the process holds and no meter counts.
    fn unmetered(&self) -> u64 {
        let metered = self.model.backend().memory().usage().total;
        self.resident.and_then(|ask| ask()).map_or(0, |bytes| bytes.saturating_sub(metered))
    }

    /// What that will be when an answer is done.
    fn unmetered_at_last(&self) -> u64 {
        let now = self.unmetered();
        let first = *self.unmetered_at_first.get_or_init(|| now);
        let growth = GROWTH_BYTES + GROWTH_BYTES_PER_TOKEN * self.model.plan().vocab as u64;
        if self.resident.is_some() { now.max(first + growth) } else { now }
    }

    /// What is left of the budget for what is metered, as things stand; from now on no more is lent.
    fn metered_limit(&self) -> Option<u64> {
        let limit = self.limit?.saturating_sub(self.unmetered());
        self.model.backend().memory().set_limit(Some(limit));
        Some(limit)
    }

    /// Tokens that one session can hold: the model's context, or as many as fit the budget.
    pub fn capacity(&self) -> Result<usize> {
        if let Some(&known) = self.capacity.get() {
            return Ok(known);
        }
        let (mut fits, mut beyond) = (0, self.context() + 1);
        if self.limit.is_none() || self.admit(self.context()).is_ok() {
            fits = self.context();
            beyond = fits + 1;
        }
        while beyond - fits > 1 {
            let middle = fits.midpoint(beyond);
            match self.admit(middle) {
                Ok(()) => fits = middle,
                Err(Error::Budget { .. }) => beyond = middle,
                Err(e) => return Err(e),
            }
        }
        Ok(*self.capacity.get_or_init(|| fits))
    }

    /// A state before the first token.
    pub(crate) fn empty_state(&self) -> State {
        self.model.new_state(self.cache)
    }

    /// The prefix tree.
    pub(crate) fn tree(&self) -> MutexGuard<'_, Tree> {
        self.tree.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go of kept pages so that a session which already refers to `own_bytes` of state can grow to `tokens`.
    pub(crate) fn make_room(&self, tokens: usize, own_bytes: usize) -> Result<()> {
        let (Some(limit), Some(forecast)) = (self.metered_limit(), self.forecast(tokens, 1)?) else { return Ok(()) };
        let others = self.model.backend().memory().usage().of(Class::State).saturating_sub(own_bytes as u64);
        let over = (others + forecast.peak_bytes).saturating_sub(limit);
        if over > 0 {
            self.tree().evict(over);
        }
        Ok(())
    }

    /// Lets go of kept pages so that one step can take `state_bytes` of state and what computing `rows` rows takes.
    pub(crate) fn make_room_for_step(&self, rows: usize, state_bytes: usize) -> Result<()> {
        let (Some(limit), Some(step)) = (self.metered_limit(), self.forecast(rows.min(self.context()), 1)?) else {
            return Ok(());
        };
        let usage = self.model.backend().memory().usage();
        // Experts make room by themselves; those that the step cannot do without are in its peak.
        let held = usage.total - usage.idle - usage.of(Class::Experts);
        let needed = held + state_bytes as u64 + (step.peak_bytes - step.weights_bytes);
        let over = needed.saturating_sub(limit);
        if over > 0 {
            self.tree().evict(over);
        }
        Ok(())
    }

    /// Lets go of what is kept beyond `EngineSpec::keep`.
    pub(crate) fn trim_tree(&self) {
        self.trim_to(self.keep);
    }

    /// Lets go of what is kept for later beyond `bytes`, least used first.
    pub fn trim_to(&self, bytes: u64) {
        let mut tree = self.tree();
        let over = tree.held_bytes().saturating_sub(bytes);
        if over > 0 {
            tree.evict(over);
        }
    }

    /// Forgets everything that no session holds.
    pub fn forget(&self) {
        self.tree().clear();
    }

    /// Keeps the pages of `tokens` whatever the budget says, until `unpin`.
    pub fn pin(&self, tokens: &[u32]) {
        self.tree().pin(tokens, 1);
    }

    /// Takes one `pin` back.
    pub fn unpin(&self, tokens: &[u32]) {
        self.tree().pin(tokens, -1);
    }

    /// What is kept for later, and what that was good for.
    pub fn kept(&self) -> Kept {
        let tree = self.tree();
        Kept { held_bytes: tree.held_bytes(), counters: tree.counters().clone() }
    }

    /// An empty session.
    pub fn session(self: &Arc<Self>) -> Session {
        Session::new(Arc::clone(self))
    }
}
