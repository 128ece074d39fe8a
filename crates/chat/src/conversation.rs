//! A conversation: messages on one side, a session on the other. Each question hands the whole conversation over again; the
//! session finds what it has already read.

use reverie_engine::session::Go;
use reverie_engine::{Progress, Session};
use serde_json::{Map, Value, json};

use crate::error::Result;
use crate::generate::{Delta, Finish, GenerateSpec, Generation, Reason};
use crate::voice::Voice;

/// Messages and the session that has read them.
pub struct Conversation {
    session: Session,
    messages: Vec<Value>,
    /// Further template variables, such as `enable_thinking`.
    pub arguments: Map<String, Value>,
}

impl Conversation {
    /// An empty conversation over an empty session.
    pub fn new(session: Session) -> Conversation {
        Conversation { session, messages: Vec::new(), arguments: Map::new() }
    }

    /// What has been said.
    pub fn messages(&self) -> &[Value] {
        &self.messages
    }

    /// The session.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Sets, replaces or (with none) removes the system message.
    pub fn set_system(&mut self, text: Option<&str>) {
        if self.messages.first().is_some_and(|m| m["role"] == "system") {
            self.messages.remove(0);
        }
        if let Some(text) = text {
            self.messages.insert(0, json!({"role": "system", "content": text}));
        }
    }

    /// Forgets everything but the system message.
    pub fn reset(&mut self) {
        self.messages.retain(|m| m["role"] == "system");
        self.session.reset();
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

    fn answer(
        &mut self,
        voice: &Voice,
        spec: GenerateSpec,
        watch: &mut dyn FnMut(Progress) -> Go,
        hear: &mut dyn FnMut(&Delta),
    ) -> Result<Finish> {
        let prompt = voice.render(&self.messages, &[], &self.arguments)?;
        let ids = voice.encode_rendered(&prompt)?;
        let mut generation = Generation::new(&mut self.session, voice, (&ids, &prompt), spec, watch)?;
        let (mut text, mut thinking) = (String::new(), String::new());
        for delta in generation.by_ref() {
            let delta = delta?;
            text.push_str(&delta.text);
            thinking.push_str(&delta.thinking);
            hear(&delta);
        }
        let finish = generation.finish();
        if finish.reason != Reason::Cancelled || !text.is_empty() {
            let mut message = json!({"role": "assistant", "content": text});
            if !thinking.is_empty() {
                message["reasoning_content"] = thinking.into();
            }
            self.messages.push(message);
        } else {
            self.messages.pop();
        }
        Ok(finish)
    }
}
