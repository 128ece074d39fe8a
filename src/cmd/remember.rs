//! Arguments of the verbs that remember: under which name, from which state, in which store; and waking what they name.

use std::path::PathBuf;

use reverie::rooms::engine::memory::{Commit, Expect, Hash, Manifest, Store, Value};
use reverie::rooms::engine::sample::SamplerState;
use reverie::rooms::engine::{self, Note};
use reverie::{Bed, Conversation, Go, LoadedModel, Progress, Session, generator, tokens_here};
use serde_json::json;

use super::UsageError;
use super::shared::progress_bar;

/// Where states sleep.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct StateArgs {
    /// Remember under this name: woken if it exists, written when done
    #[arg(long, value_name = "NAME", help_heading = "Memory")]
    pub state: Option<String>,
    /// Start from this state (NAME, NAME@TURN, NAME~BACK or a tag) and leave it untouched
    #[arg(long, value_name = "STATE", help_heading = "Memory")]
    pub from: Option<String>,
    /// Folder of the store [default: REVERIE_HOME, or the user's data folder]
    #[arg(long, value_name = "DIR", help_heading = "Memory")]
    pub store: Option<PathBuf>,
    /// Where a state was made with another model, template or number format: read its tokens again
    #[arg(long, help_heading = "Memory")]
    pub re_read: bool,
}

/// What the arguments name, awake.
pub struct Remembered {
    /// Where it sleeps again; none with --from alone.
    pub bed: Option<Bed>,
    /// What was asleep.
    pub manifest: Option<Manifest>,
    /// Stands where the manifest says.
    pub session: Session,
    /// True if its tokens were read again.
    re_read: bool,
}

/// Opens the store and lets the model's sessions sleep there; shows the hashing of weights that it has not seen.
pub fn open(model: &LoadedModel, place: Option<&std::path::Path>) -> anyhow::Result<Store> {
    let bar = progress_bar(0, "hashing the weights, once [{bar:30}] {bytes}/{total_bytes}");
    let store = model.open_store(place, &mut |_, done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    for notice in store.notices() {
        eprintln!("{notice}");
    }
    Ok(store)
}

impl StateArgs {
    /// Wakes what the arguments name; none if they name nothing.
    pub fn wake(&self, model: &LoadedModel) -> anyhow::Result<Option<Remembered>> {
        if self.state.is_none() && self.from.is_none() {
            if self.re_read {
                return Err(UsageError(
                    "found --re-read without --state or --from, expected a state to read again".into(),
                )
                .into());
            }
            return Ok(None);
        }
        let store = open(model, self.store.as_deref())?;
        let head = match &self.state {
            Some(name) => store.head(name)?,
            None => None,
        };
        let commit: Option<Commit> = match (&self.from, head, &self.state) {
            (Some(from), Some(_), Some(name)) => {
                let text = format!(
                    "--from {from} with --state {name}: the state '{name}' exists already; choose a new name, or leave --from out"
                );
                return Err(UsageError(text).into());
            }
            (Some(from), ..) => Some(store.resolve(from)?),
            (None, Some(_), Some(name)) => Some(store.resolve(name)?),
            _ => None,
        };
        let forked_from: Option<Hash> = commit.as_ref().filter(|_| self.from.is_some()).map(|c| c.hash);
        let bed = self.state.clone().map(|name| Bed { name, head, forked_from });
        let Some(commit) = commit else {
            return Ok(Some(Remembered { bed, manifest: None, session: model.session(), re_read: false }));
        };
        let manifest = commit.state()?;
        // A word on the terminal cannot be taken back: none comes before every byte is proved.
        let awake = model.engine().wake(&manifest).and_then(|mut session| session.proved().map(|()| session));
        match awake {
            Ok(session) => Ok(Some(Remembered { bed, manifest: Some(manifest), session, re_read: false })),
            Err(e @ (engine::Error::Identity { .. } | engine::Error::PageTokens { .. })) if self.re_read => {
                eprintln!("{e}\nreading its {} tokens again", manifest.tokens.len());
                let session = model.session();
                Ok(Some(Remembered { bed, manifest: Some(manifest), session, re_read: true }))
            }
            Err(e) => Err(e.into()),
        }
    }

    /// The conversation that the arguments name, or an empty one.
    pub fn conversation(&self, model: &LoadedModel) -> anyhow::Result<Conversation> {
        let Some(remembered) = self.wake(model)? else { return Ok(model.conversation()) };
        remembered.conversation(model)
    }
}

impl Remembered {
    /// True if it holds a conversation and not plain text.
    pub fn is_conversation(&self) -> bool {
        self.manifest.as_ref().is_some_and(|m| m.extra["kind"] == "conversation")
    }

    /// As a conversation.
    pub fn conversation(self, model: &LoadedModel) -> anyhow::Result<Conversation> {
        let mut conversation = match &self.manifest {
            None => Conversation::new(self.session),
            Some(manifest) if self.re_read => {
                let bar = progress_bar(0, "reading again [{bar:30}] {pos}/{len} tokens");
                let done = Conversation::read_again(self.session, manifest, model.voice(), &mut |p| follow(&bar, p))?;
                bar.finish_and_clear();
                done
            }
            Some(manifest) => Conversation::of_manifest(self.session, manifest)?,
        };
        if let Some(bed) = self.bed {
            conversation.call(bed);
        }
        Ok(conversation)
    }

    /// The generator that an answer goes on with.
    pub fn generator(&self) -> anyhow::Result<Option<SamplerState>> {
        Ok(self.manifest.as_ref().map(|m| generator(&m.sampler)).transpose()?.flatten())
    }

    /// The tokens and the text of a state that holds plain text.
    pub fn plain(&self, model: &LoadedModel) -> anyhow::Result<(Vec<u32>, String)> {
        let Some(manifest) = &self.manifest else { return Ok((Vec::new(), String::new())) };
        let tokens = tokens_here(manifest, &self.session, model.voice())?;
        Ok((tokens, manifest.text.clone()))
    }

    /// Lets a session of plain text sleep again, if it has a bed.
    pub fn sleep_plain(&self, session: &mut Session, text: String, sampler: Value) -> anyhow::Result<()> {
        let Some(bed) = &self.bed else { return Ok(()) };
        let mut turns = self.manifest.as_ref().map(|m| m.turns.clone()).unwrap_or_default();
        let tokens = session.tokens().len();
        turns.retain(|t| t.tokens < tokens && t.text_end <= text.len() && text.is_char_boundary(t.text_end));
        turns.push(reverie::rooms::engine::memory::Turn { role: "text".into(), text_end: text.len(), tokens });
        let note = Note { text, turns, sampler, extra: json!({"kind": "text"}), forked_from: bed.forked_from };
        session.sleep(&bed.name, bed.head.map_or(Expect::Absent, Expect::Head), note)?;
        Ok(())
    }
}

/// Shows a read on a bar.
pub fn follow(bar: &indicatif::ProgressBar, p: Progress) -> Go {
    bar.set_length(p.total as u64);
    bar.set_position(p.done as u64);
    Go::On
}
