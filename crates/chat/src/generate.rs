//! The loop: sample, accept, detokenise, hold back stop strings, split thinking from text. An iterator of deltas.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use reverie_engine::sample::{Logprobs, logprobs};
use reverie_engine::sample::{Sampler, SamplerParams, SamplerState};
use reverie_engine::session::Go;
use reverie_engine::{Progress, Session, Synced};
use reverie_text::parse::Part;
use reverie_text::parse::thinking::{ThinkingMarks, ThinkingParser};
use reverie_text::{Detokenizer, DetokenizerSpec, StopBuffer};
use serde_json::Value;

use crate::chosen::chosen;
use crate::error::{Error, Result};
use crate::voice::Voice;

/// How an answer is made.
#[derive(Clone, Debug, Default)]
pub struct GenerateSpec {
    /// The sampling chain.
    pub sampler: SamplerParams,
    /// The generator that it goes on with, unless its seed is another.
    pub follows: Option<SamplerState>,
    /// Most new tokens; none means up to the end of the context.
    pub max_tokens: Option<usize>,
    /// Texts that end the answer and are not part of it.
    pub stops: Vec<String>,
    /// Alternatives to report with each token's log-probability; none reports nothing.
    pub logprobs: Option<usize>,
    /// Set from elsewhere to end the answer after the current token.
    pub cancel: Arc<AtomicBool>,
}

/// A piece of an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Delta {
    /// What the model says.
    pub text: String,
    /// What the model thinks first.
    pub thinking: String,
    /// The token behind it.
    pub token: Option<u32>,
    /// Log-probabilities of that token, if asked for.
    pub logprobs: Option<Logprobs>,
}

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The model said so.
    End,
    /// A stop string.
    Stop(String),
    /// The most tokens allowed.
    Length,
    /// The end of the context, or of what the byte budget holds.
    Context,
    /// The caller.
    Cancelled,
}

/// What an answer took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of them, found in the session.
    pub reused_tokens: usize,
    /// Tokens of the answer.
    pub answer_tokens: usize,
    /// Time to read the prompt.
    pub prefill: Duration,
    /// Time to write the answer.
    pub decode: Duration,
}

/// The end of an answer.
#[derive(Clone, Debug)]
pub struct Finish {
    /// Why.
    pub reason: Reason,
    /// What it took.
    pub usage: Usage,
}

/// An answer in the making: iterate for deltas, then ask `finish`.
pub struct Generation<'a> {
    session: &'a mut Session,
    voice: &'a Voice,
    spec: GenerateSpec,
    sampler: Sampler,
    detok: Detokenizer,
    stop: StopBuffer,
    thinking: ThinkingParser,
    usage: Usage,
    room: usize,
    reason: Option<Reason>,
    began: Instant,
}

impl<'a> Generation<'a> {
    /// Reads the prompt. `prompt_text` is what the thinking parser looks at; `watch` hears the progress and may stop it.
    pub fn new(
        session: &'a mut Session,
        voice: &'a Voice,
        (prompt, prompt_text): (&[u32], &str),
        spec: GenerateSpec,
        watch: &mut dyn FnMut(Progress) -> Go,
    ) -> Result<Generation<'a>> {
        let context = session.engine().context();
        if prompt.len() >= context {
            return Err(Error::NoRoom { prompt: prompt.len(), context });
        }
        // What was asked for must fit before anything is read; without a number the answer may fill what there is.
        let end = spec.max_tokens.map_or(prompt.len() + 1, |m| prompt.len().saturating_add(m).min(context));
        session.engine().admit(end)?;
        let capacity = session.engine().capacity()?;
        let sampler = match &spec.follows {
            Some(state) => Sampler::following(spec.sampler.clone(), state)?,
            None => Sampler::new(spec.sampler.clone())?,
        };
        let stop = StopBuffer::new(spec.stops.iter().cloned())?;
        let began = Instant::now();
        let Synced { reused, .. } = session.sync(prompt, watch)?;
        let room = spec.max_tokens.unwrap_or(usize::MAX).min(capacity.saturating_sub(prompt.len()));
        let usage =
            Usage { prompt_tokens: prompt.len(), reused_tokens: reused, prefill: began.elapsed(), ..Usage::default() };
        Ok(Generation {
            detok: Detokenizer::new(&voice.tokenizer, DetokenizerSpec::answer()),
            thinking: ThinkingParser::for_prompt(prompt_text, ThinkingMarks::default()),
            session,
            voice,
            sampler,
            stop,
            usage,
            room,
            reason: None,
            began: Instant::now(),
            spec,
        })
    }

    /// Why it ended and what it took; `Cancelled` if it has not ended.
    pub fn finish(&self) -> Finish {
        Finish { reason: self.reason.clone().unwrap_or(Reason::Cancelled), usage: self.usage }
    }

    /// How the answer was chosen, and where the generator stands now: what the next answer goes on from.
    pub fn chosen(&self) -> Result<Value> {
        chosen(&self.spec.sampler, &self.sampler.state())
    }

    fn step(&mut self) -> Result<Delta> {
        if self.spec.cancel.load(Ordering::Relaxed) {
            return Ok(self.end(Reason::Cancelled));
        }
        if self.usage.answer_tokens >= self.room {
            let full = self.spec.max_tokens.is_none_or(|m| self.usage.answer_tokens < m);
            return Ok(self.end(if full { Reason::Context } else { Reason::Length }));
        }
        let logits = self.session.logits()?;
        let id = self.sampler.sample(&logits, self.session.tokens())?.id;
        if self.voice.ends.contains(&id) {
            return Ok(self.end(Reason::End));
        }
        let logprobs = self.spec.logprobs.map(|n| logprobs(&logits, id, n)).transpose()?;
        let text = self.detok.push(id)?.to_owned();
        let released = self.stop.push(&text);
        self.usage.answer_tokens += 1;
        let mut delta = self.split(&released.text);
        (delta.token, delta.logprobs) = (Some(id), logprobs);
        if let Some(stop) = released.stopped.and_then(|i| self.spec.stops.get(i)) {
            let rest = self.close(Reason::Stop(stop.clone()));
            delta.text.push_str(&rest.text);
            delta.thinking.push_str(&rest.thinking);
            return Ok(delta);
        }
        if self.usage.answer_tokens < self.room {
            self.session.accept(id)?;
        }
        Ok(delta)
    }

    fn split(&mut self, text: &str) -> Delta {
        gather(self.thinking.push(text))
    }

    /// Releases what is still held, then ends.
    fn end(&mut self, reason: Reason) -> Delta {
        let mut tail = self.detok.finish().to_owned();
        let released = self.stop.push(&tail);
        tail = released.text;
        if released.stopped.is_none() {
            tail.push_str(&self.stop.finish());
        }
        let mut delta = self.split(&tail);
        let rest = self.close(reason);
        delta.text.push_str(&rest.text);
        delta.thinking.push_str(&rest.thinking);
        delta
    }

    fn close(&mut self, reason: Reason) -> Delta {
        self.reason = Some(reason);
        self.usage.decode = self.began.elapsed();
        gather(self.thinking.finish())
    }
}

fn gather(parts: Vec<Part>) -> Delta {
    let mut delta = Delta::default();
    for part in parts {
        match part {
            Part::Text(t) => delta.text.push_str(&t),
            Part::Thinking(t) => delta.thinking.push_str(&t),
            _ => {}
        }
    }
    delta
}

impl Iterator for Generation<'_> {
    type Item = Result<Delta>;

    fn next(&mut self) -> Option<Result<Delta>> {
        if self.reason.is_some() {
            return None;
        }
        let step = self.step();
        if step.is_err() {
            self.reason = Some(Reason::Cancelled);
            self.usage.decode = self.began.elapsed();
        }
        Some(step)
    }
}
