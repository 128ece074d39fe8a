//! What a request will take, to the byte, before it starts: the model itself is run on a dry backend, which allocates what
//! the real one would and computes nothing.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use reverie_model::{CacheEntry, Model, Sequence, Want};
use reverie_tensor::Class;

use crate::error::Result;

/// Predicted bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forecast {
    /// Packed weights.
    pub weights_bytes: u64,
    /// Pages and slots at the full context.
    pub state_bytes: u64,
    /// The most that is held at once.
    pub peak_bytes: u64,
}

/// Runs a shadow of the model.
pub(crate) struct Forecaster {
    shadow: Model,
    cache: &'static CacheEntry,
    chunk: usize,
    known: Mutex<BTreeMap<(usize, usize), Forecast>>,
}

impl Forecaster {
    pub(crate) fn new(shadow: Model, cache: &'static CacheEntry, chunk: usize) -> Forecaster {
        Forecaster { shadow, cache, chunk, known: Mutex::default() }
    }

    /// `batch` sequences, each read in chunks up to `context` tokens, the last by single steps.
    pub(crate) fn forecast(&self, context: usize, batch: usize) -> Result<Forecast> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&f) = known.get(&(context, batch)) {
            return Ok(f);
        }
        let memory = self.shadow.backend().memory();
        memory.reset_peak();
        let mut states: Vec<_> = (0..batch).map(|_| self.shadow.new_state(self.cache)).collect();
        let tokens = vec![0; self.chunk];
        for state in &mut states {
            while state.len() < context {
                let n = self.chunk.min(context - state.len());
                let last = state.len() + n == context;
                let want = if last { Want::Last } else { Want::Nothing };
                self.shadow.forward(&mut [Sequence { tokens: &tokens[..n], state, want }])?;
            }
        }
        let usage = memory.usage();
        let forecast = Forecast {
            weights_bytes: usage.of(Class::Weights),
            state_bytes: usage.of(Class::State),
            peak_bytes: usage.peak,
        };
        known.insert((context, batch), forecast);
        Ok(forecast)
    }
}
