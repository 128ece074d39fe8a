//! One timeline of tokens. Callers hand over the full token list; the session finds what it has already read, goes back
//! where it must and reads the rest. Knows nothing of text.

use std::sync::{Arc, OnceLock};

use reverie_memory::{Snapshot, Window};
use reverie_model::{Sequence, State, Want};
use reverie_tensor::backend::PAGE_TOKENS;
use reverie_tensor::{Class, Tensor};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::proof::Proof;
use crate::tree::{Divergence, Found, Tree, Why};

/// Interval marks of one long read; with more, every second goes and the interval doubles.
const INTERVAL_MARKS: usize = 8;

/// Tokens between the first marks of a long read.
const INTERVAL_TOKENS: usize = 1024;

/// Windows that fit between two such marks at least, where layers have one: a mark keeps the pages of its window.
const INTERVAL_WINDOWS: usize = 16;

/// How far a read has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Tokens that were found and not read.
    pub reused: usize,
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Synced {
    /// Tokens that were known.
    pub reused: usize,
    /// Tokens computed.
    pub computed: usize,
    /// Where the tokens left the nearest text that was known, if they did.
    pub diverged: Option<Divergence>,
}

/// What a forward left after its last token.
#[derive(Clone)]
pub(crate) struct Last {
    /// The stream after the final norm `[1, D]`: all that the head reads.
    pub(crate) row: Tensor,
    /// What the head makes of it `[1, V]`, once somebody asked.
    logits: OnceLock<Tensor>,
}

impl From<Tensor> for Last {
    fn from(row: Tensor) -> Last {
        Last { row, logits: OnceLock::new() }
    }
}

/// A timeline: tokens read, the state they left, the logits after the last. What it has read stays in the engine's prefix tree,
/// for itself and for others, until the budget takes it.
pub struct Session {
    pub(crate) engine: Arc<Engine>,
    pub(crate) state: State,
    pub(crate) tokens: Vec<u32>,
    pub(crate) last: Option<Last>,
    /// Snapshots of this timeline that the store has, ascending by position.
    pub(crate) asleep: Vec<Snapshot>,
    /// Pages of windowed layers that the store has for them, ascending.
    pub(crate) windows_asleep: Vec<Window>,
    /// While what was woken is not proved; nothing is computed from it and nobody else gets it before.
    pub(crate) unproved: Option<Arc<Proof>>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.keep_for_later();
    }
}

impl Session {
    pub(crate) fn new(engine: Arc<Engine>) -> Session {
        let state = engine.empty_state();
        let (tokens, asleep, windows_asleep) = (Vec::new(), Vec::new(), Vec::new());
        Session { engine, state, tokens, last: None, asleep, windows_asleep, unproved: None }
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

    /// Logits after the last token, `[V]`. Of a place that was found or woken they take one product with the head, and no layer.
    pub fn logits(&self) -> Result<Vec<f32>> {
        let (engine, last) = (&self.engine, self.last.as_ref().ok_or(Error::Empty)?);
        let logits = match last.logits.get() {
            Some(logits) => logits,
            None => {
                engine.make_room_for_step(1, 0)?;
                let logits = engine.model.logits(&last.row)?;
                last.logits.get_or_init(|| logits)
            }
        };
        Ok(engine.model.backend().read(logits)?)
    }

    /// Makes the session stand after exactly `tokens`, with their logits: goes on from the deepest place at which every layer
    /// can stand, in this session or in the engine's tree, and reads the rest in chunks. `watch` hears each chunk and may stop;
    /// what was read then stays.
    pub fn sync(&mut self, tokens: &[u32], watch: &mut dyn FnMut(Progress) -> Go) -> Result<Synced> {
        if tokens.is_empty() {
            return Err(Error::Empty);
        }
        let engine = Arc::clone(&self.engine);
        engine.admit(tokens.len())?;
        let common = self.tokens.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        if common == tokens.len() && common == self.tokens.len() && self.last.is_some() {
            return Ok(Synced { reused: common, ..Synced::default() });
        }
        self.proved()?;
        if common < self.tokens.len() {
            self.keep(Why::Turn);
        }
        let diverged = {
            let mut tree = engine.tree();
            let found = tree.find(tokens);
            // Last rows are kept at marks only: elsewhere the last token is read again.
            let whole = tree.has_last(&found, tokens.len());
            let stand = tree.stand(&found, if whole { tokens.len() } else { tokens.len() - 1 });
            // The session's own end is as good a place, if the tokens go on from there.
            if common < self.tokens.len() || common == tokens.len() || stand > common {
                self.stand_in(&mut tree, &found, tokens, stand);
            }
            tree.divergence(tokens, &found)
        };
        self.look_below(tokens, PAGE_TOKENS)?;
        let reused = self.tokens.len();
        engine.make_room(tokens.len(), self.state.bytes())?;
        engine.tree().count(reused, diverged.as_ref());
        let standing = engine.model.standing();
        let windows = standing.window_tokens().saturating_mul(INTERVAL_WINDOWS);
        let (mut marked, mut interval) = (reused, INTERVAL_TOKENS.max(windows));
        while self.tokens.len() < tokens.len() {
            let from = self.tokens.len();
            let next = &tokens[from..tokens.len().min(from + engine.chunk)];
            let last = from + next.len() == tokens.len();
            self.read(next, if last { Want::Last } else { Want::Nothing })?;
            let done = self.tokens.len();
            if last {
                self.keep(Why::Turn);
            } else if !standing.anywhere() && done >= marked.saturating_add(interval) {
                self.keep(Why::Interval);
                marked = done;
                if engine.tree().thin(&self.tokens, INTERVAL_MARKS) {
                    interval *= 2;
                }
            }
            if watch(Progress { reused, done, total: tokens.len() }) == Go::Stop && !last {
                return Err(Error::Stopped { done, total: tokens.len() });
            }
        }
        engine.trim_tree();
        Ok(Synced { reused, computed: tokens.len() - reused, diverged })
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

    /// Goes back to the first `to` tokens, or, where some layer cannot stand there, to the deepest mark before and reads again up
    /// to there. The logits are gone until the next read.
    pub fn rewind(&mut self, to: usize) -> Result<()> {
        let to = to.min(self.tokens.len());
        if to == self.tokens.len() {
            return Ok(());
        }
        self.proved()?;
        self.keep(Why::Turn);
        let engine = Arc::clone(&self.engine);
        let replay = self.tokens[..to].to_vec();
        {
            let mut tree = engine.tree();
            let found = tree.find(&replay);
            let stand = tree.stand(&found, to);
            self.stand_in(&mut tree, &found, &replay, stand);
        }
        let stand = self.tokens.len();
        for chunk in replay[stand..].chunks(engine.chunk) {
            self.read(chunk, Want::Nothing)?;
        }
        Ok(())
    }

    /// Makes this place findable and lets every layer stand here later: the end of a turn, the end of what many will share.
    pub fn mark(&mut self) {
        self.keep(Why::Turn);
        self.engine.trim_tree();
    }

    /// Waits until all that was woken is held against its names, which happens by itself behind the caller's back. Whatever computes
    /// from woken pages or hands them on waits here first; the logits of the last row need none of them.
    ///
    /// # Errors
    /// The damage, by the object's name. The session then is empty.
    pub fn proved(&mut self) -> Result<()> {
        let Some(proof) = self.unproved.clone() else { return Ok(()) };
        if let Err(e) = proof.wait() {
            *self = Session::new(Arc::clone(&self.engine));
            return Err(e);
        }
        self.unproved = None;
        self.mark();
        self.engine.tree().set_stored(&self.tokens, &proof.stored);
        Ok(())
    }

    /// A second future: shares pages and slots until one side writes; the parent is untouched. Where it was woken and is
    /// not proved yet, neither is the fork.
    pub fn fork(&self) -> Session {
        Session {
            engine: Arc::clone(&self.engine),
            state: self.state.fork(),
            tokens: self.tokens.clone(),
            last: self.last.clone(),
            asleep: self.asleep.clone(),
            windows_asleep: self.windows_asleep.clone(),
            unproved: self.unproved.clone(),
        }
    }

    /// Starts anew. What was read stays in the tree.
    pub fn reset(&mut self) {
        *self = Session::new(Arc::clone(&self.engine));
    }

    /// Leaves what was read so far in the tree, as the end of a turn.
    pub(crate) fn keep_for_later(&mut self) {
        self.keep(Why::Turn);
    }

    /// Leaves what was read so far in the tree.
    fn keep(&mut self, why: Why) {
        if self.unproved.is_none() && self.state.is_whole() && self.state.len() == self.tokens.len() {
            let (engine, last) = (Arc::clone(&self.engine), self.last.as_ref());
            // A mark without its last row costs one token more later; a budget too tight for it is no reason to fail.
            let copy = || engine.model.backend().copy(&last?.row, Class::State).ok();
            engine.tree().keep(&self.tokens, &mut self.state, copy, why);
        }
    }

    /// Stands after the first `at` of `tokens`, a place that the tree has.
    fn stand_in(&mut self, tree: &mut Tree, found: &Found, tokens: &[u32], at: usize) {
        let empty = self.engine.empty_state();
        let (state, last) = match tree.state(found, at, &empty) {
            Some(there) if at > 0 => there,
            _ => (empty, None),
        };
        let common = self.tokens.iter().zip(tokens).take_while(|(a, b)| a == b).count().min(at);
        self.asleep.retain(|s| s.position <= common);
        let within = self.windows_asleep.iter().filter_map(|w| w.within(PAGE_TOKENS, common));
        self.windows_asleep = within.collect();
        self.tokens.clear();
        self.tokens.extend_from_slice(&tokens[..state.len()]);
        (self.state, self.last) = (state, last.map(Last::from));
    }

    /// After a step that failed half-way: stands where the last good one ended, or at the deepest mark before.
    fn recover(&mut self) {
        self.last = None;
        let to = self.tokens.len();
        if !self.state.rewind(to, None) {
            let (engine, tokens) = (Arc::clone(&self.engine), std::mem::take(&mut self.tokens));
            let mut tree = engine.tree();
            let found = tree.find(&tokens);
            let stand = tree.stand(&found, to);
            self.stand_in(&mut tree, &found, &tokens, stand);
        }
    }

    fn read(&mut self, tokens: &[u32], want: Want) -> Result<()> {
        let engine = Arc::clone(&self.engine);
        step(&engine, &mut [(self, tokens)], want)
    }
}

/// One forward over the new tokens of one or several sessions of `engine`.
fn step(engine: &Engine, batch: &mut [(&mut Session, &[u32])], want: Want) -> Result<()> {
    batch.iter_mut().try_for_each(|(s, _)| s.proved())?;
    if engine.memory_limit().is_some() {
        let specs = engine.model.state_specs();
        let growth = batch.iter().map(|(s, tokens)| s.state.growth(specs, tokens.len())).sum();
        let rows = batch.iter().map(|(_, tokens)| tokens.len()).sum();
        engine.make_room_for_step(rows, growth)?;
    }
    let mut sequences: Vec<_> =
        batch.iter_mut().map(|(s, tokens)| Sequence { tokens, state: &mut s.state, want }).collect();
    match engine.model.forward_with_stream(&mut sequences) {
        Ok(out) => {
            for ((session, tokens), last) in batch.iter_mut().zip(out) {
                session.tokens.extend_from_slice(tokens);
                session.last = last.map(|(logits, row)| Last { row, logits: OnceLock::from(logits) });
            }
            Ok(())
        }
        Err(e) => {
            for (session, _) in batch {
                session.recover();
            }
            Err(e.into())
        }
    }
}
