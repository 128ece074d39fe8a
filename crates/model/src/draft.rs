//! A drafter beside its target: a small model that guesses the target's next tokens from the keys and values that the target has
//! written and from its stream. It has no tokens, positions or state of its own. Which guesses hold is not its business.

use std::sync::Arc;

use reverie_tensor::{Input, Tensor};

use crate::error::{Error, Result};
use crate::forward::Model;
use crate::linear::{Linear, project};
use crate::mixer::{Carry, Rows, Step};
use crate::state::State;

/// The projections between a target's stream and a drafter's.
pub(crate) struct Gates {
    pub(crate) enter: Linear,
    pub(crate) leave: Linear,
}

/// A drafter that fits its target.
pub struct Drafter {
    model: Arc<Model>,
    target: Arc<Model>,
    /// The target's mixers whose state the drafter's are handed.
    owners: Vec<usize>,
}

/// One sequence's share of a guess.
pub struct Guess<'a> {
    /// The token whose successor is guessed: the first that the target has not read, later the guess before.
    pub token: u32,
    /// `[1, Dt]`: for the first guess the target's stream after its final norm at the last token that it has read
    /// (`Model::forward_with_stream`), later what came with the guess before.
    pub stream: &'a Tensor,
    /// The target's state, which has read at least one token; only looked at.
    pub state: &'a mut State,
}

impl Drafter {
    /// Refused, by the field, where the two do not fit.
    pub fn new(model: Arc<Model>, target: Arc<Model>) -> Result<Drafter> {
        let (own, theirs) = (model.plan(), target.plan());
        let Some(draft) = &own.draft else {
            return Err(Error::config("drafter", format!("{}, which runs alone", own.arch), "a drafter"));
        };
        for (field, found, expected) in [
            ("width of the drafter's target", draft.target_width, theirs.width),
            ("vocabulary of the drafter", own.vocab, theirs.vocab),
        ] {
            if found != expected {
                return Err(Error::config(field, found, format!("{expected}, as '{}' has it", theirs.arch)));
            }
        }
        let owners = own.borrows(theirs)?;
        Ok(Drafter { model, target, owners })
    }

    /// The drafter.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// For every sequence the logits of the next token `[S, V]`, and the stream for the guess after it `[S, Dt]`. A guess stands at the
    /// position of the first token that the target has not read, however many guesses came before it.
    pub fn guess(&self, guesses: &mut [Guess<'_>]) -> Result<(Tensor, Tensor)> {
        let (own, theirs) = (&self.model.parts, &self.target.parts);
        let backend = own.backend.as_ref();
        if guesses.is_empty() {
            return Err(reverie_tensor::Error::value("sequences to guess for", 0, "at least one").into());
        }
        let (mut rows, mut positions) = (Vec::new(), Vec::new());
        for (i, guess) in guesses.iter().enumerate() {
            let read = guess.state.len();
            if !guess.state.is_whole() {
                return Err(Error::Poisoned);
            }
            if read == 0 {
                return Err(reverie_tensor::Error::value("tokens that the target has read", 0, "at least one").into());
            }
            if read >= own.plan.context {
                return Err(own.plan.beyond(read + 1));
            }
            if guess.token as usize >= theirs.plan.vocab {
                return Err(Error::TokenId { id: guess.token, vocab: theirs.plan.vocab });
            }
            // It sees what the last token that was read sees, from one position further on.
            rows.push(Rows { range: i..i + 1, start: read - 1 });
            positions.push(read as u32);
        }
        let ids: Vec<u32> = guesses.iter().map(|g| g.token).collect();
        let Some(gates) = &own.gates else { return Err(Error::Drafter { arch: own.plan.arch }) };
        let embedded = backend.embed(&theirs.embed, &ids, theirs.plan.embed_scale)?;
        let last: Vec<&Tensor> = guesses.iter().map(|g| g.stream).collect();
        let last = backend.concat(&last)?.reshape(&[guesses.len(), theirs.plan.width])?;
        let both = backend.concat(&[&embedded, &last])?;
        let [x] = project(backend, Input::Plain(&both), [&gates.enter])?;
        let step = Step { backend, ids: &ids, positions: &positions, rows: &rows, carry: Carry::default() };
        let mut states: Vec<&mut State> = guesses.iter_mut().map(|g| &mut *g.state).collect();
        let x = self.model.stream(&step, x, &self.owners, &mut states)?;
        let x = backend.norm(&x, &own.final_norm)?;
        let logits = self.model.logits(&x)?;
        let [stream] = project(backend, Input::Plain(&x), [&gates.leave])?;
        Ok((logits, stream))
    }
}
