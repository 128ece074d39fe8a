//! One timeline of tokens. Callers hand over the full token list; the session finds what it has already read, goes back
//! where it must and reads the rest. Knows nothing of text.

use std::sync::Arc;

use reverie_model::{Checkpoint, Sequence, State, Want};
use reverie_tensor::Tensor;

use crate::engine::Engine;
use crate::error::{Error, Result};

/// Marks a session keeps; the oldest but the first go first.
const KEPT_MARKS: usize = 8;

/// Tokens between the marks of a long read.
const MARK_TOKENS: usize = 1024;

/// A place where a session can stand again at no cost: the end of a read, and steps of a long one.
#[derive(Clone)]
struct Mark {
    point: Checkpoint,
    /// Kept where they were computed.
    logits: Option<Tensor>,
}

impl Mark {
    fn position(&self) -> usize {
        self.point.position()
    }
}

/// How far a read has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Tokens in the session.
    pub done: usize,
    /// Tokens asked for.
    pub total: usize,
}

/// Goes on or stops a long read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Go {
    /// Read on.
    On,
    /// Stop; what was read is kept.
    Stop,
}

/// What a `sync` did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Synced {
    /// Tokens found in the session.
    pub reused: usize,
    /// Tokens computed.
    pub computed: usize,
}

/// A timeline: tokens read, the state they left, the logits after the last.
pub struct Session {
    engine: Arc<Engine>,
    state: State,
    tokens: Vec<u32>,
    logits: Option<Tensor>,
    /// Ascending by position.
    marks: Vec<Mark>,
}

impl Session {
    pub(crate) fn new(engine: Arc<Engine>) -> Session {
        let state = engine.model.new_state(engine.cache);
        Session { engine, state, tokens: Vec::new(), logits: None, marks: Vec::new() }
    }

    /// The engine it belongs to.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Tokens read, in order.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Bytes of its state; shared pages count in full.
    pub fn state_bytes(&self) -> usize {
        self.state.bytes()
    }

    /// Logits after the last token, `[V]`.
    pub fn logits(&self) -> Result<Vec<f32>> {
        let logits = self.logits.as_ref().ok_or(Error::Empty)?;
        Ok(self.engine.model.backend().read(logits)?)
    }

    /// Makes the session stand after exactly `tokens`, with their logits: reuses the longest prefix at which every layer can
    /// stand and reads the rest in chunks. `watch` hears each chunk and may stop; what was read then stays.
    pub fn sync(&mut self, tokens: &[u32], watch: &mut dyn FnMut(Progress) -> Go) -> Result<Synced> {
        if tokens.is_empty() {
            return Err(Error::Empty);
        }
        self.engine.admit(tokens.len())?;
        let common = self.tokens.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        if common == tokens.len() && common == self.tokens.len() && self.logits.is_some() {
            return Ok(Synced { reused: common, computed: 0 });
        }
        if common == tokens.len()
            && let Some(mark) = self.marks.iter().find(|m| m.position() == common && m.logits.is_some())
        {
            let logits = mark.logits.clone();
            self.rewind(common)?;
            self.logits = logits;
            return Ok(Synced { reused: common, computed: 0 });
        }
        // Logits are kept at marks only: elsewhere the last token of a prefix is read again.
        self.rewind(common.min(tokens.len() - 1))?;
        let reused = self.tokens.len();
        while self.tokens.len() < tokens.len() {
            let from = self.tokens.len();
            let next = &tokens[from..tokens.len().min(from + self.engine.chunk)];
            let last = from + next.len() == tokens.len();
            self.read(next, if last { Want::Last } else { Want::Nothing })?;
            let done = self.tokens.len();
            if last || self.marks.last().is_none_or(|m| m.position() + MARK_TOKENS <= done) {
                self.mark();
            }
            if watch(Progress { done, total: tokens.len() }) == Go::Stop && !last {
                return Err(Error::Stopped { done, total: tokens.len() });
            }
        }
        Ok(Synced { reused, computed: tokens.len() - reused })
    }

    /// Reads one more token; its logits are next.
    pub fn accept(&mut self, id: u32) -> Result<()> {
        self.read(&[id], Want::Last)
    }

    /// One decode step for several sessions of one engine: each accepts its token, all share one forward.
    ///
    /// Sessions of different engines are refused.
    pub fn accept_all(sessions: &mut [(&mut Session, u32)]) -> Result<()> {
        let Some(engine) = sessions.first().map(|(s, _)| Arc::clone(&s.engine)) else { return Ok(()) };
        if sessions.iter().any(|(s, _)| !Arc::ptr_eq(&s.engine, &engine)) {
            return Err(
                reverie_tensor::Error::value("batch", "sessions of several engines", "sessions of one engine").into()
            );
        }
        let mut batch: Vec<_> = sessions.iter_mut().map(|(s, id)| (&mut **s, std::slice::from_ref(&*id))).collect();
        step(&engine, &mut batch, Want::Last)
    }

    /// Goes back to the first `to` tokens, or, in a recurrent model, to the deepest checkpoint before and reads again up to
    /// there. The logits are gone until the next read.
    pub fn rewind(&mut self, to: usize) -> Result<()> {
        let to = to.min(self.tokens.len());
        if to < self.tokens.len() {
            self.logits = None;
        }
        let replay = self.tokens[..to].to_vec();
        self.stand_at(to);
        let stand = self.tokens.len();
        for chunk in replay[stand..].chunks(self.engine.chunk) {
            self.read(chunk, Want::Nothing)?;
        }
        Ok(())
    }

    /// A second future: shares pages and slots until one side writes; the parent is untouched.
    pub fn fork(&self) -> Session {
        Session {
            engine: Arc::clone(&self.engine),
            state: self.state.fork(),
            tokens: self.tokens.clone(),
            logits: self.logits.clone(),
            marks: self.marks.clone(),
        }
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        *self = Session::new(Arc::clone(&self.engine));
    }

    /// Stands after `to` tokens, or at the deepest mark before if the state cannot stand there.
    fn stand_at(&mut self, to: usize) {
        let exact = self.marks.iter().find(|m| m.position() == to);
        if !self.state.rewind(to, exact.map(|m| &m.point)) {
            let deepest = self.marks.iter().rfind(|m| m.position() <= to);
            let at = deepest.map_or(0, Mark::position);
            // Position 0 and a mark's own position can always be stood at.
            self.state.rewind(at, deepest.map(|m| &m.point));
        }
        self.tokens.truncate(self.state.len());
        let stand = self.tokens.len();
        self.marks.retain(|m| m.position() <= stand);
    }

    fn read(&mut self, tokens: &[u32], want: Want) -> Result<()> {
        let engine = Arc::clone(&self.engine);
        step(&engine, &mut [(self, tokens)], want)
    }

    /// Remembers this place.
    fn mark(&mut self) {
        let point = self.state.checkpoint();
        self.marks.retain(|m| m.position() != point.position());
        if self.marks.len() == KEPT_MARKS {
            self.marks.remove(1);
        }
        self.marks.push(Mark { point, logits: self.logits.clone() });
    }
}

/// One forward over the new tokens of one or several sessions of `engine`.
fn step(engine: &Engine, batch: &mut [(&mut Session, &[u32])], want: Want) -> Result<()> {
    let mut sequences: Vec<_> =
        batch.iter_mut().map(|(s, tokens)| Sequence { tokens, state: &mut s.state, want }).collect();
    match engine.model.forward(&mut sequences) {
        Ok(logits) => {
            for ((session, tokens), logits) in batch.iter_mut().zip(logits) {
                session.tokens.extend_from_slice(tokens);
                session.logits = logits;
            }
            Ok(())
        }
        Err(e) => {
            for (session, _) in batch {
                // The step may have advanced some slots: stand where the last good step ended, or before.
                session.stand_at(session.state.len());
                session.logits = None;
            }
            Err(e.into())
        }
    }
}
