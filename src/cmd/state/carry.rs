//! `state export`, `import`, `push`, `pull`: states that travel.

use std::path::PathBuf;

use indicatif::ProgressBar;
use reverie::rooms::memory::{Depth, Progress, Remote, Send, Store, Transfer};
use serde_json::{Value, json};

use super::Out;
use crate::cmd::shared::{bytes, progress_bar};

/// Arguments of `export`.
#[derive(clap::Args)]
pub(super) struct ExportArgs {
    /// NAME, NAME~BACK, or a hash
    name: String,
    /// The file to write
    file: PathBuf,
    /// All commits, not the newest alone
    #[arg(long)]
    history: bool,
}

/// Arguments of `import`.
#[derive(clap::Args)]
pub(super) struct ImportArgs {
    /// The file
    file: PathBuf,
    /// Under this name instead of the one it carries
    #[arg(long = "as", value_name = "NAME")]
    name: Option<String>,
}

/// Arguments of `push`.
#[derive(clap::Args)]
pub(super) struct PushArgs {
    /// The state
    name: String,
    /// s3://bucket/…, gs://bucket/…, az://container/…, file://…, or a folder
    url: String,
    /// Under this name there
    #[arg(long = "as", value_name = "NAME")]
    to: Option<String>,
    /// Send everything, also what seems to be there: heals a place whose content was damaged
    #[arg(long)]
    again: bool,
}

/// Arguments of `pull`.
#[derive(clap::Args)]
pub(super) struct PullArgs {
    /// s3://bucket/…, gs://bucket/…, az://container/…, file://…, or a folder
    url: String,
    /// The state; all of them if none is given
    name: Option<String>,
    /// Under this name here
    #[arg(long = "as", value_name = "NAME", requires = "name")]
    to: Option<String>,
}

pub(super) fn export(store: &Store, args: &ExportArgs, out: Out) -> anyhow::Result<()> {
    let depth = if args.history { Depth::History } else { Depth::Head };
    let done = with_bar(|hear| Ok(store.export(&args.name, &args.file, depth, hear)?))?;
    let mut report = told(&done);
    report["file"] = json!(args.file);
    out.say(report, || {
        let (name, file) = (&done.name, args.file.display());
        say!("{name}: {} commits, {} objects, {} in {file}", done.commits, done.objects, bytes(done.bytes))?;
        Ok(())
    })
}

pub(super) fn import(store: &Store, args: &ImportArgs, out: Out) -> anyhow::Result<()> {
    let done = with_bar(|hear| Ok(store.import(&args.file, args.name.as_deref(), hear)?))?;
    out.say(told(&done), || people(&done))
}

pub(super) fn push(store: &Store, args: &PushArgs, out: Out) -> anyhow::Result<()> {
    let send = if args.again { Send::All } else { Send::Missing };
    let remote = Remote::open(&args.url)?.sending(send);
    let done = with_bar(|hear| Ok(store.push(&args.name, &remote, args.to.as_deref(), hear)?))?;
    out.say(told(&done), || people(&done))
}

pub(super) fn pull(store: &Store, args: &PullArgs, out: Out) -> anyhow::Result<()> {
    let remote = Remote::open(&args.url)?;
    let names = match &args.name {
        Some(name) => vec![name.clone()],
        None => remote.names()?,
    };
    let mut done = Vec::new();
    for name in &names {
        done.push(with_bar(|hear| Ok(store.pull(name, &remote, args.to.as_deref(), hear)?))?);
    }
    out.say(done.iter().map(told).collect(), || {
        if done.is_empty() {
            say!("no states at {}", args.url)?;
        }
        done.iter().try_for_each(people)
    })
}

fn with_bar<T>(work: impl FnOnce(&mut dyn FnMut(Progress)) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let bar: ProgressBar = progress_bar(0, "[{bar:30}] {pos}/{len} objects {msg} {eta}");
    let done = work(&mut |p: Progress| {
        bar.set_length(p.total as u64);
        bar.set_position(p.done as u64);
        bar.set_message(bytes(p.bytes));
    });
    bar.finish_and_clear();
    done
}

fn told(t: &Transfer) -> Value {
    json!({
        "name": t.name,
        "head": t.head,
        "result": t.landing.word(),
        "commits": t.commits,
        "objects": t.objects,
        "bytes": t.bytes,
        "tags": t.tags,
    })
}

fn people(t: &Transfer) -> std::io::Result<()> {
    let (what, head) = (t.landing.word(), t.head.short());
    let tags = if t.tags.is_empty() { String::new() } else { format!(", tags {}", t.tags.join(", ")) };
    say!("{}: {what} at {head}; {} commits, {} objects, {}{tags}", t.name, t.commits, t.objects, bytes(t.bytes))
}
