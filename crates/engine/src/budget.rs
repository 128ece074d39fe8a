//! What a request will take, to the byte, before it starts: the model itself is run on a dry backend, which allocates what
//! the real one would and computes nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use reverie_tensor::Class;

use crate::engine::Engine;
use crate::error::Result;
use crate::session::Go;

/// Predicted bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forecast {
    /// Packed weights.
    pub weights_bytes: u64,
    /// Packed experts that must be there at the same time; more stay while there is room. Nothing where they count as weights.
    pub experts_bytes: u64,
    /// Pages and slots at the full context.
    pub state_bytes: u64,
    /// The most that is held at once.
    pub peak_bytes: u64,
}

/// Runs sessions of an engine that computes nothing.
pub(crate) struct Forecaster {
    shadow: Arc<Engine>,
    known: Mutex<BTreeMap<(usize, usize), Forecast>>,
}

impl Forecaster {
    /// `shadow` stands on a dry backend.
    pub(crate) fn new(shadow: Engine) -> Forecaster {
        Forecaster { shadow: Arc::new(shadow), known: Mutex::default() }
    }

    /// `batch` sessions, each read in chunks up to `context` tokens, the last one token by itself.
    pub(crate) fn forecast(&self, context: usize, batch: usize) -> Result<Forecast> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&f) = known.get(&(context, batch)) {
            return Ok(f);
        }
        let memory = self.shadow.model().backend().memory();
        // What an earlier forecast left must not count in this one.
        self.shadow.forget();
        memory.trim();
        memory.reset_peak();
        let vocab = self.shadow.model().plan().vocab.max(1);
        let mut sessions: Vec<_> = (0..batch).map(|_| self.shadow.session()).collect();
        for (i, session) in sessions.iter_mut().enumerate() {
            // Texts that share nothing: the worst that a batch can be.
            let tokens = vec![(i % vocab) as u32; context.saturating_sub(1)];
            if !tokens.is_empty() {
                session.sync(&tokens, &mut |_| Go::On)?;
            }
            session.accept(0)?;
        }
        let usage = memory.usage();
        let forecast = Forecast {
            weights_bytes: usage.of(Class::Weights),
            experts_bytes: usage.of(Class::Experts),
            state_bytes: usage.of(Class::State),
            peak_bytes: usage.peak,
        };
        known.insert((context, batch), forecast);
        Ok(forecast)
    }
}
