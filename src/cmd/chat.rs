//! `chat`: a conversation on the terminal, or line by line from a pipe.

use std::io::{BufRead, ErrorKind, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use reverie::rooms::chat::{Error as ChatError, FOLD_PROMPT};
use reverie::rooms::engine::Error as EngineError;
use reverie::rooms::engine::memory::Error as MemoryError;
use reverie::{Conversation, EMBEDDED, Finish, GenerateSpec, Go, LoadedModel, Reason};
use rustyline::error::ReadlineError;

use super::remember::{StateArgs, follow};
use super::shared::{LoadArgs, SamplerArgs, bytes, experts_line, progress_bar, utf8};

/// Arguments of `chat`.
#[derive(clap::Args)]
pub struct Args {
    /// Folder, .gguf file, the embedded model's name, or hub id owner/name
    #[arg(default_value = EMBEDDED)]
    model: String,
    /// System message
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Most tokens of an answer
    #[arg(short = 'n', long, value_name = "N")]
    max_tokens: Option<usize>,
    /// Template argument, such as enable_thinking=false; may be given several times
    #[arg(long = "arg", value_name = "NAME=VALUE")]
    arguments: Vec<String>,
    /// What asks the model for a summary when the conversation is folded
    #[arg(long, value_name = "FILE")]
    fold_prompt: Option<PathBuf>,
    #[command(flatten)]
    state: StateArgs,
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    sampler: SamplerArgs,
}

/// Tokens of a summary.
const FOLD_TOKENS: usize = 256;

/// Exchanges that a fold leaves as they were said.
const FOLD_RECENT: usize = 2;

const HELP: &str = "\
/help            this text
/system [TEXT]   set the system message, or remove it
/reset           forget the conversation
/fold            summarise the conversation and go on from the summary; what was said stays in the state's history
/state [NAME]    where the conversation sleeps, or let it sleep under another name from now on
/stats           what was read, reused and written, where prompts diverged, and the memory in use
/quit            leave (so does Ctrl-D); Ctrl-C stops an answer";

/// Talks until the input ends.
pub fn run(args: Args) -> anyhow::Result<()> {
    let model = args.load.load(&args.model)?;
    let fold_prompt = match &args.fold_prompt {
        Some(path) => std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?,
        None => FOLD_PROMPT.to_owned(),
    };
    let mut talk = Talk {
        conversation: args.state.conversation(&model)?,
        fold_prompt,
        spec: GenerateSpec {
            sampler: args.sampler.over(model.voice().sampler_defaults())?,
            max_tokens: args.max_tokens,
            ..GenerateSpec::default()
        },
        model: &model,
        last: None,
        totals: Totals::default(),
        unanswered: 0,
    };
    for argument in &args.arguments {
        let (name, value) = argument
            .split_once('=')
            .ok_or_else(|| super::UsageError(format!("--arg: found '{argument}', expected NAME=VALUE")))?;
        let value = serde_json::from_str(value).unwrap_or_else(|_| value.into());
        talk.conversation.arguments.insert(name.into(), value);
    }
    if args.system.is_some() {
        talk.conversation.set_system(args.system.as_deref());
    }
    let cancel = Arc::new(AtomicBool::new(false));
    talk.spec.cancel = Arc::clone(&cancel);
    // The handler only raises the flag: the answer stops, the program stays.
    ctrlc::set_handler(move || cancel.store(true, Ordering::Relaxed))?;
    if std::io::stdin().is_terminal() { talk.interactive() } else { talk.piped() }
}

/// Sums over the conversation.
#[derive(Default)]
struct Totals {
    prompt: usize,
    reused: usize,
    answer: usize,
}

struct Talk<'a> {
    model: &'a LoadedModel,
    conversation: Conversation,
    fold_prompt: String,
    spec: GenerateSpec,
    last: Option<Finish>,
    totals: Totals,
    /// Questions for which the context had no room.
    unanswered: usize,
}

impl Talk<'_> {
    fn interactive(&mut self) -> anyhow::Result<()> {
        say!("{} · /help for commands, Ctrl-D to leave", self.model.summary())?;
        if let Some(name) = self.conversation.name().filter(|_| self.conversation.turns() > 0) {
            say!("'{name}' is awake after {} exchanges", self.conversation.turns())?;
        }
        let mut editor = rustyline::DefaultEditor::new()?;
        let history = history_file();
        if let Some(path) = &history {
            // A first start has no history yet.
            let _ = editor.load_history(path);
        }
        let ended = self.prompt(&mut editor);
        if let Some(path) = &history {
            let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
            if let Err(e) = made.map_err(ReadlineError::from).and_then(|()| editor.save_history(path)) {
                eprintln!("the input history {} is not kept: {e}", path.display());
            }
        }
        ended
    }

    /// Asks for lines until one of them, or Ctrl-D, ends it.
    fn prompt(&mut self, editor: &mut rustyline::DefaultEditor) -> anyhow::Result<()> {
        loop {
            match editor.readline("> ") {
                Ok(line) => {
                    if !line.trim().is_empty() {
                        editor.add_history_entry(&line)?;
                    }
                    if !self.line(&line)? {
                        return Ok(());
                    }
                }
                Err(ReadlineError::Interrupted) => say!("(Ctrl-D or /quit leaves)")?,
                Err(ReadlineError::Eof) => return Ok(()),
                Err(ReadlineError::Io(e)) if e.kind() == ErrorKind::InvalidData => {
                    say!("(found bytes that are not UTF-8; the line is dropped)")?;
                }
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn piped(&mut self) -> anyhow::Result<()> {
        for (line, number) in std::io::stdin().lock().split(b'\n').zip(1..) {
            if !self.line(&utf8(line?, &format!("line {number} of the input"))?)? {
                break;
            }
        }
        match self.unanswered {
            0 => Ok(()),
            n => anyhow::bail!("questions that found no room in the context and were not asked: {n}"),
        }
    }

    /// One line of input; false means leave.
    fn line(&mut self, line: &str) -> anyhow::Result<bool> {
        let line = line.trim();
        match line.split_once(char::is_whitespace).map_or((line, ""), |(word, rest)| (word, rest.trim())) {
            ("", _) => {}
            ("/help", _) => say!("{HELP}")?,
            ("/quit" | "/exit", _) => return Ok(false),
            ("/reset", _) => {
                self.conversation.reset();
                say!("(forgotten)")?;
            }
            ("/system", text) => {
                self.conversation.set_system((!text.is_empty()).then_some(text));
                say!("(system message {})", if text.is_empty() { "removed" } else { "set" })?;
            }
            ("/stats", _) => self.stats()?,
            ("/state", "") => self.state()?,
            ("/state", name) => self.move_to(name)?,
            ("/fold", _) => self.fold()?,
            (word, _) if word.starts_with('/') => say!("(no command {word}; /help lists them)")?,
            _ => self.ask(line)?,
        }
        Ok(true)
    }

    fn ask(&mut self, question: &str) -> anyhow::Result<()> {
        self.spec.cancel.store(false, Ordering::Relaxed);
        let cancel = Arc::clone(&self.spec.cancel);
        let bar = progress_bar(0, "reading [{bar:30}] {pos}/{len} tokens");
        let colour = std::io::stdout().is_terminal();
        let mut out = std::io::stdout();
        let mut thought = false;
        let finish = self.conversation.ask(
            self.model.voice(),
            question,
            self.spec.clone(),
            &mut |p| {
                bar.set_length(p.total as u64);
                bar.set_position(p.done as u64);
                if p.done == p.total {
                    bar.finish_and_clear();
                }
                if cancel.load(Ordering::Relaxed) { Go::Stop } else { Go::On }
            },
            &mut |delta| {
                if !delta.thinking.is_empty() {
                    let _ = if colour {
                        write!(out, "\x1b[2m{}\x1b[0m", delta.thinking)
                    } else {
                        write!(out, "{}", delta.thinking)
                    };
                    thought = true;
                }
                if !delta.text.is_empty() {
                    if std::mem::take(&mut thought) {
                        let _ = writeln!(out);
                    }
                    let _ = write!(out, "{}", delta.text);
                }
                let _ = out.flush();
            },
        );
        bar.finish_and_clear();
        match finish {
            Ok(finish) => {
                say!()?;
                match &finish.reason {
                    Reason::Cancelled => say!("(stopped)")?,
                    Reason::Context => say!(
                        "(the context of {} tokens is full; /fold goes on from a summary, /reset starts anew)",
                        self.model.engine().context()
                    )?,
                    Reason::Length => say!("(stopped at --max-tokens)")?,
                    _ => {}
                }
                self.totals.prompt += finish.usage.prompt_tokens;
                self.totals.reused += finish.usage.reused_tokens;
                self.totals.answer += finish.usage.answer_tokens;
                self.last = Some(finish);
                self.sleep()
            }
            Err(e @ ChatError::NoRoom { .. }) => {
                self.unanswered += 1;
                say!("({e}; /fold goes on from a summary)")?;
                Ok(())
            }
            Err(ChatError::Engine(EngineError::Stopped { done, total })) => {
                say!("(stopped after {done} of {total} tokens of the question; asked again, it goes on from there)")?;
                Ok(())
            }
            // A question that cannot be asked leaves the conversation as it was.
            Err(e) => refused(e, ""),
        }
    }

    /// Writes the conversation, if it has a name: whatever happens later, this answer is remembered.
    fn sleep(&mut self) -> anyhow::Result<()> {
        if self.conversation.name().is_none() {
            return Ok(());
        }
        match self.conversation.sleep() {
            Ok(_) => Ok(()),
            // What was said is not thrown away because a disk is full.
            Err(e) => refused(e, "\n(this answer is not remembered yet; the next one tries again)"),
        }
    }

    /// Goes on under another name.
    fn move_to(&mut self, name: &str) -> anyhow::Result<()> {
        if self.conversation.name().is_none() || self.conversation.turns() == 0 {
            return Ok(self.state()?);
        }
        match self.conversation.fork_as(name) {
            Ok(_) => Ok(say!("(asleep as '{name}' from now on)")?),
            Err(e) if moved(&e).is_some() => {
                let taken = format!("the state '{name}' exists already; choose a new name");
                if std::io::stdin().is_terminal() { Ok(say!("error: {taken}")?) } else { anyhow::bail!(taken) }
            }
            Err(e) => refused(e, ""),
        }
    }

    fn state(&self) -> std::io::Result<()> {
        match self.conversation.name() {
            Some(name) => say!("'{name}', {} exchanges", self.conversation.turns()),
            None => say!("(this conversation has no name; start with --state NAME to keep it)"),
        }
    }

    fn fold(&mut self) -> anyhow::Result<()> {
        if self.conversation.turns() == 0 {
            return Ok(say!("(nothing was said yet that could be folded)")?);
        }
        self.spec.cancel.store(false, Ordering::Relaxed);
        let cancel = Arc::clone(&self.spec.cancel);
        let spec = GenerateSpec { max_tokens: Some(FOLD_TOKENS), ..self.spec.clone() };
        let bar = progress_bar(0, "folding [{bar:30}] {pos}/{len} tokens");
        let recent = FOLD_RECENT.min(self.conversation.turns());
        let done = self.conversation.fold(self.model.voice(), &self.fold_prompt, recent, spec, &mut |p| {
            follow(&bar, p);
            if cancel.load(Ordering::Relaxed) { Go::Stop } else { Go::On }
        });
        bar.finish_and_clear();
        match done {
            Ok(summary) => say!("(folded; going on from this summary and the last {recent} exchanges)\n{summary}")?,
            Err(e) => refused(e, "")?,
        }
        Ok(())
    }

    fn stats(&self) -> std::io::Result<()> {
        let Some(last) = &self.last else {
            return say!("(nothing asked yet)");
        };
        let u = last.usage;
        let rate = |n: usize, t: std::time::Duration| n as f64 / t.as_secs_f64().max(1e-9);
        let read = u.prompt_tokens - u.reused_tokens;
        say!(
            "last: prompt {} tokens ({} reused, {} read at {:.0} tok/s), answer {} tokens at {:.0} tok/s",
            u.prompt_tokens,
            u.reused_tokens,
            read,
            rate(read, u.prefill),
            u.answer_tokens,
            rate(u.answer_tokens, u.decode)
        )?;
        say!(
            "all:  prompts {}, reused {}, answers {} tokens",
            self.totals.prompt,
            self.totals.reused,
            self.totals.answer
        )?;
        let kept = self.model.engine().kept();
        say!(
            "kept: {} for later; {} of {} reads found something, {} tokens saved, {} pages and marks given up",
            bytes(kept.held_bytes),
            kept.counters.hits,
            kept.counters.hits + kept.counters.misses,
            kept.counters.tokens_saved,
            kept.counters.evictions
        )?;
        if let Some(d) = kept.counters.divergences.back() {
            let say = |ids: &[u32]| self.model.voice().decode(ids).unwrap_or_default();
            say!("diverged: at token {}, known {:?}, asked {:?}", d.at, say(&d.known), say(&d.asked))?;
        }
        let usage = self.model.engine().model().backend().memory().usage();
        say!(
            "state: {} of {} tokens, {}; memory {} (peak {})",
            self.conversation.session().tokens().len(),
            self.model.engine().context(),
            bytes(self.conversation.session().state_bytes() as u64),
            bytes(usage.total),
            bytes(usage.peak)
        )?;
        if let Some(line) = experts_line(self.model.engine().model()) {
            say!("{line}")?;
        }
        Ok(())
    }
}

/// The name that does not point where it should.
fn moved(e: &ChatError) -> Option<&str> {
    match e {
        ChatError::Engine(EngineError::Memory(MemoryError::Moved { name, .. })) => Some(name),
        _ => None,
    }
}

/// Where somebody types, says why and goes on; else ends. `aside` follows the reason, unless another process is it: then what to do.
fn refused(e: ChatError, aside: &str) -> anyhow::Result<()> {
    let typed = std::io::stdin().is_terminal();
    let Some(name) = moved(&e) else {
        return if typed { Ok(say!("error: {e}{aside}")?) } else { Err(e.into()) };
    };
    let told = format!(
        "another process has written to '{name}' since this conversation woke or slept there: what was said here since then is not \
         remembered. "
    );
    if !typed {
        anyhow::bail!("{told}Start again with --state {name} to go on from what the other wrote");
    }
    Ok(say!(
        "error: {told}/state and a new name lets all of it sleep under that; to go on from what the other wrote, leave and start \
         again with --state {name}"
    )?)
}

/// Where the input history is kept.
fn history_file() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".local/state"));
    Some(state.or(home)?.join("reverie/history"))
}
