//! `read`: reads files once and sleeps on them, so that any number of forks can ask about them later.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use reverie::rooms::chat;
use reverie::rooms::engine::Error as EngineError;
use reverie::{Bed, Go};
use serde_json::json;

use super::shared::{LoadArgs, bytes, progress_bar, utf8};
use super::{UsageError, remember};

/// Arguments of `read`.
#[derive(clap::Args)]
pub struct Args {
    /// Folder, .gguf file, the embedded model's name, or hub id owner/name
    model: String,
    /// Text files, read in this order
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Name to sleep under; an interrupted read of the same files goes on where it stopped
    #[arg(long, value_name = "NAME")]
    state: String,
    /// Folder of the store [default: REVERIE_HOME, or the user's data folder]
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// One JSON object at the end
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    load: LoadArgs,
}

/// Reads, then sleeps.
pub fn run(args: Args) -> anyhow::Result<()> {
    let mut text = String::new();
    for path in &args.files {
        let content = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let content = utf8(content, &path.display().to_string())?;
        if args.files.len() > 1 {
            text.push_str(&format!("--- {} ---\n", path.display()));
        }
        text.push_str(&content);
        if !text.ends_with('\n') {
            text.push('\n');
        }
    }
    if text.trim().is_empty() {
        return Err(UsageError("found nothing but white space, expected files with text".into()).into());
    }
    let model = args.load.load(&args.model)?;
    let store = remember::open(&model, args.store.as_deref())?;
    let mut conversation = model.conversation();
    conversation.call(Bed { name: args.state.clone(), head: store.head(&args.state)?, forked_from: None });
    let stop = Arc::new(AtomicBool::new(false));
    let raise = Arc::clone(&stop);
    ctrlc::set_handler(move || raise.store(true, Ordering::Relaxed))?;
    let bar = progress_bar(0, "reading [{bar:30}] {pos}/{len} tokens {eta}");
    let done = conversation.read(model.voice(), &text, &mut |p| {
        remember::follow(&bar, p);
        if stop.load(Ordering::Relaxed) { Go::Stop } else { Go::On }
    });
    bar.finish_and_clear();
    let synced = match done {
        Err(chat::Error::Engine(EngineError::Stopped { done, total })) => {
            anyhow::bail!(
                "stopped after {done} of {total} tokens, which sleep as '{}'; the same command goes on from there",
                args.state
            )
        }
        done => done?,
    };
    let session = conversation.session();
    if args.json {
        let value = json!({
            "state": args.state,
            "tokens": session.tokens().len(),
            "reused_tokens": synced.reused,
            "computed_tokens": synced.computed,
            "state_bytes": session.state_bytes(),
        });
        say!("{}", serde_json::to_string_pretty(&value)?)?;
    } else {
        say!(
            "{} tokens asleep as '{}' ({} were known, {} read; {})",
            session.tokens().len(),
            args.state,
            synced.reused,
            synced.computed,
            bytes(session.state_bytes() as u64)
        )?;
    }
    Ok(())
}
