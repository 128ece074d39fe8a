//! A conversation: messages on one side, a session on the other. Each question hands the whole conversation over again; the
//! session finds what it has already read. A conversation can go to sleep with its messages and wake where it was.

use reverie_engine::memory::{Expect, Hash, Manifest, Turn};
use reverie_engine::session::Go;
use reverie_engine::{Asleep, Note, Progress, Session, Synced};
use serde_json::{Map, Value, json};

use crate::chosen::generator;
use crate::error::{Error, Result};
use crate::generate::{Delta, Finish, GenerateSpec, Generation, Reason};
use crate::voice::Voice;

/// Tokens after which a long read sleeps.
const READ_STEP: usize = 1024;

/// The word by which a manifest says that it holds a conversation.
const KIND: &str = "conversation";

/// Messages and the session that has read them.
pub struct Conversation {
    session: Session,
    messages: Vec<Value>,
    /// Further template variables, such as `enable_thinking`.
    pub arguments: Map<String, Value>,
    /// What the session's tokens say.
    text: String,
    turns: Vec<Exchange>,
    /// How its last answer was chosen, and the generator that the next one goes on with.
    chosen: Value,
    /// Where it sleeps.
    bed: Option<Bed>,
}

/// The end of an answer.
#[derive(Clone, Debug)]
struct Exchange {
    turn: Turn,
    /// Messages up to there.
    messages: usize,
}

/// A name in the store and what it points at.
#[derive(Clone, Debug, Default)]
pub struct Bed {
    /// The name.
    pub name: String,
    /// Its head, which must still be that when the next commit is written; none if the name is new.
    pub head: Option<Hash>,
    /// The commit that the state was split from, under another name.
    pub forked_from: Option<Hash>,
}

/// How a summary is made when a conversation is folded.
pub const FOLD_PROMPT: &str = "\
Summarise our conversation so far for yourself, so that you can go on without it: every fact, name, number, decision and open \
question that may matter later, in short plain sentences. Write only the summary.";

/// The tokens of what slept, for a session of this engine: those that slept if its tokenizer is the same, else its text anew.
pub fn tokens_here(manifest: &Manifest, session: &Session, voice: &Voice) -> Result<Vec<u32>> {
    let here = session.engine().cellar().and_then(|c| c.identity.get("tokenizer"));
    match manifest.identity.get("tokenizer") == here {
        true => Ok(manifest.tokens.clone()),
        false => voice.encode_rendered(&manifest.text),
    }
}

impl Conversation {
    /// An empty conversation over an empty session.
    pub fn new(session: Session) -> Conversation {
        Conversation {
            session,
            messages: Vec::new(),
            arguments: Map::new(),
            text: String::new(),
            turns: Vec::new(),
            chosen: Value::Null,
            bed: None,
        }
    }

    /// What has been said.
    pub fn messages(&self) -> &[Value] {
        &self.messages
    }

    /// The session.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Exchanges so far.
    pub fn turns(&self) -> usize {
        self.turns.len()
    }

    /// The name under which it sleeps.
    pub fn name(&self) -> Option<&str> {
        self.bed.as_ref().map(|b| b.name.as_str())
    }

    /// Sets, replaces or (with none) removes the system message.
    pub fn set_system(&mut self, text: Option<&str>) {
        if self.messages.first().is_some_and(|m| m["role"] == "system") {
            self.messages.remove(0);
            self.turns.iter_mut().for_each(|t| t.messages = t.messages.saturating_sub(1));
        }
        if let Some(text) = text {
            self.messages.insert(0, json!({"role": "system", "content": text}));
            self.turns.iter_mut().for_each(|t| t.messages += 1);
        }
    }

    /// Forgets everything but the system message. The name stays: its history keeps what was said.
    pub fn reset(&mut self) {
        self.messages.retain(|m| m["role"] == "system");
        self.chosen = Value::Null;
        self.session.reset();
        self.text.clear();
        self.turns.clear();
    }

    /// Asks `question` and hands each piece of the answer to `hear`. A failed or stopped read leaves the conversation as it
    /// was; an answer that was cut short is kept as far as it came.
    pub fn ask(
        &mut self,
        voice: &Voice,
        question: &str,
        spec: GenerateSpec,
        watch: &mut dyn FnMut(Progress) -> Go,
        hear: &mut dyn FnMut(&Delta),
    ) -> Result<Finish> {
        self.messages.push(json!({"role": "user", "content": question}));
        let before = self.messages.len() - 1;
        match self.answer(voice, spec, watch, hear) {
            Ok(finish) => Ok(finish),
            Err(e) => {
                self.messages.truncate(before);
                Err(e)
            }
        }
    }

    /// Reads `text` as the system message, so that it need not be read again by whoever asks about it later. A text that does not fit
    /// is refused before any of it is read. A conversation with a name sleeps every thousand tokens: whatever ends the read, the next
    /// one goes on from there.
    pub fn read(&mut self, voice: &Voice, text: &str, watch: &mut dyn FnMut(Progress) -> Go) -> Result<Synced> {
        self.set_system(Some(text));
        let prompt = voice.render_opening(&self.messages, &self.arguments)?;
        let ids = voice.encode_rendered(&prompt)?;
        self.keep_turns(&ids, &prompt);
        let (mut known, mut asked_to_stop) = (None, false);
        loop {
            let done = self.session.sync(&ids, &mut |p| {
                known.get_or_insert(p.reused);
                asked_to_stop = watch(p) == Go::Stop;
                if asked_to_stop || p.done - p.reused >= READ_STEP { Go::Stop } else { Go::On }
            });
            if matches!(&done, Ok(_) | Err(reverie_engine::Error::Stopped { .. })) {
                self.text = if done.is_ok() { prompt.clone() } else { voice.decode(self.session.tokens())? };
                if self.bed.is_some() {
                    self.sleep()?;
                }
            }
            match done {
                Err(reverie_engine::Error::Stopped { .. }) if !asked_to_stop => {}
                done => {
                    let last = done?;
                    let reused = known.unwrap_or(last.reused);
                    return Ok(Synced { reused, computed: ids.len() - reused, ..last });
                }
            }
        }
    }

    fn answer(
        &mut self,
        voice: &Voice,
        spec: GenerateSpec,
        watch: &mut dyn FnMut(Progress) -> Go,
        hear: &mut dyn FnMut(&Delta),
    ) -> Result<Finish> {
        let prompt = voice.render(&self.messages, &[], &self.arguments)?;
        let ids = voice.encode_rendered(&prompt)?;
        self.keep_turns(&ids, &prompt);
        let follows = generator(&self.chosen)?;
        let spec = GenerateSpec { follows, ..spec };
        let mut generation = Generation::new(&mut self.session, voice, (&ids, &prompt), spec, watch)?;
        let (mut text, mut thinking) = (String::new(), String::new());
        for delta in generation.by_ref() {
            let delta = delta?;
            text.push_str(&delta.text);
            thinking.push_str(&delta.thinking);
            hear(&delta);
        }
        let (finish, chosen) = (generation.finish(), generation.chosen()?);
        drop(generation);
        self.session.mark();
        self.text = prompt;
        self.text.push_str(&voice.decode(&self.session.tokens()[ids.len()..])?);
        if finish.reason != Reason::Cancelled || !text.is_empty() {
            let mut message = json!({"role": "assistant", "content": text});
            if !thinking.is_empty() {
                message["reasoning_content"] = thinking.into();
            }
            self.messages.push(message);
            self.chosen = chosen;
            let (tokens, text_end) = (self.session.tokens().len(), self.text.len());
            let turn = Turn { role: "assistant".into(), text_end, tokens };
            self.turns.push(Exchange { turn, messages: self.messages.len() });
        } else {
            self.messages.pop();
        }
        Ok(finish)
    }

    /// Forgets the marks of turns that are no part of the prompt any more: a template may drop what it wrote before.
    fn keep_turns(&mut self, ids: &[u32], prompt: &str) {
        let common = self.session.tokens().iter().zip(ids).take_while(|(a, b)| a == b).count();
        let text = &self.text;
        self.turns
            .retain(|t| t.turn.tokens <= common && prompt.as_bytes().starts_with(&text.as_bytes()[..t.turn.text_end]));
    }

    /// From now on the conversation sleeps in `bed`.
    pub fn call(&mut self, bed: Bed) {
        self.bed = Some(bed);
    }

    /// Sleeps under a name that nobody has yet, as a fork of where it slept last, and from now on there. Nothing changes if that fails.
    pub fn fork_as(&mut self, name: &str) -> Result<Asleep> {
        let old = self.bed.take().ok_or(Error::NoName)?;
        self.bed = Some(Bed { name: name.to_owned(), head: None, forked_from: old.head.or(old.forked_from) });
        let asleep = self.sleep();
        if asleep.is_err() {
            self.bed = Some(old);
        }
        asleep
    }

    /// Goes to sleep under its name: what the store lacks is written, and the name points at it.
    pub fn sleep(&mut self) -> Result<Asleep> {
        let Some(bed) = &mut self.bed else { return Err(Error::NoName) };
        let turns: Vec<usize> = self.turns.iter().map(|t| t.messages).collect();
        let note = Note {
            text: self.text.clone(),
            turns: self.turns.iter().map(|t| t.turn.clone()).collect(),
            sampler: self.chosen.clone(),
            extra: json!({"kind": KIND, "messages": self.messages, "arguments": self.arguments, "turn_messages": turns}),
            forked_from: bed.forked_from,
        };
        let expect = bed.head.map_or(Expect::Absent, Expect::Head);
        let asleep = self.session.sleep(&bed.name, expect, note)?;
        bed.head = Some(asleep.hash);
        Ok(asleep)
    }

    /// A conversation as `manifest` has it, in a session that stands there already.
    pub fn of_manifest(session: Session, manifest: &Manifest) -> Result<Conversation> {
        let extra = &manifest.extra;
        if extra["kind"] != KIND {
            return Err(Error::NoConversation { found: extra["kind"].as_str().unwrap_or("nothing").to_owned() });
        }
        let list = |field: &str| extra[field].as_array().cloned().unwrap_or_default();
        let mut messages = list("messages");
        let counts: Vec<usize> = list("turn_messages").iter().filter_map(|v| Some(v.as_u64()? as usize)).collect();
        let turns: Vec<Exchange> = manifest
            .turns
            .iter()
            .zip(&counts)
            .map(|(turn, &n)| Exchange { turn: turn.clone(), messages: n.min(messages.len()) })
            .collect();
        // A state that was cut at a turn has fewer turns than its messages tell of.
        if manifest.turns.len() < counts.len() {
            messages.truncate(turns.last().map_or_else(|| counts[0].saturating_sub(2), |t| t.messages));
        }
        let arguments = extra["arguments"].as_object().cloned().unwrap_or_default();
        let chosen = manifest.sampler.clone();
        generator(&chosen)?;
        Ok(Conversation { session, messages, arguments, text: manifest.text.clone(), turns, chosen, bed: None })
    }

    /// The same conversation over a session of this engine that reads everything again: for a state whose identity differs.
    pub fn read_again(
        mut session: Session,
        manifest: &Manifest,
        voice: &Voice,
        watch: &mut dyn FnMut(Progress) -> Go,
    ) -> Result<Conversation> {
        let tokens = tokens_here(manifest, &session, voice)?;
        session.sync(&tokens, watch)?;
        let mut conversation = Conversation::of_manifest(session, manifest)?;
        if tokens != manifest.tokens {
            conversation.turns.clear();
        }
        Ok(conversation)
    }

    /// Folds a conversation that has become long: the model summarises it (`prompt` asks it to), and the conversation goes on from the
    /// summary and the last `recent` exchanges. What was said sleeps on as the parent, if the conversation has a name. Gives the summary.
    /// Without one (it was stopped, or the model says nothing) the conversation stays as it was.
    pub fn fold(
        &mut self,
        voice: &Voice,
        prompt: &str,
        recent: usize,
        spec: GenerateSpec,
        watch: &mut dyn FnMut(Progress) -> Go,
    ) -> Result<String> {
        if self.bed.is_some() {
            self.sleep()?;
        }
        // Ever older messages are left out until the request for a summary fits.
        let system = self.messages.iter().take_while(|m| m["role"] == "system").count();
        let mut asked = self.messages.clone();
        asked.push(json!({"role": "user", "content": prompt}));
        let mut fork = self.session.fork();
        let room = spec.max_tokens.unwrap_or(256);
        let context = fork.engine().capacity()?;
        let (rendered, ids) = loop {
            let rendered = voice.render(&asked, &[], &self.arguments)?;
            let ids = voice.encode_rendered(&rendered)?;
            if ids.len() + room <= context || asked.len() <= system + 2 {
                break (rendered, ids);
            }
            asked.drain(system..(system + 2).min(asked.len() - 1));
        };
        let spec = GenerateSpec { max_tokens: Some(room), ..spec };
        let mut summary = String::new();
        let mut generation = Generation::new(&mut fork, voice, (&ids, &rendered), spec, watch)?;
        for delta in generation.by_ref() {
            summary.push_str(&delta?.text);
        }
        let summary = summary.trim().to_owned();
        match generation.finish().reason {
            Reason::Cancelled => return Err(Error::NoSummary { why: "it was stopped" }),
            _ if summary.is_empty() => return Err(Error::NoSummary { why: "the model wrote nothing" }),
            _ => {}
        }
        let keep = self.messages.len().saturating_sub(2 * recent).max(system);
        let tail = self.messages.split_off(keep);
        let old = self.messages.first().filter(|m| m["role"] == "system").and_then(|m| m["content"].as_str());
        let opening = match old {
            Some(text) => format!("{text}\n\nWhat was said before, in short:\n{summary}"),
            None => format!("What was said before, in short:\n{summary}"),
        };
        self.messages = vec![json!({"role": "system", "content": opening})];
        self.messages.extend(tail);
        self.session.reset();
        self.text.clear();
        self.turns.clear();
        Ok(summary)
    }
}
