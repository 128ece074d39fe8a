//! `state`: what sleeps in the store, and what can be done with it while no model runs.

mod carry;
mod keep;
mod look;

use std::path::PathBuf;

use clap::Subcommand;
use reverie::rooms::memory::{Expect, Store, Value};
use serde_json::json;

/// Arguments of `state`.
#[derive(clap::Args)]
pub struct Args {
    /// Folder of the store [default: `store` below REVERIE_HOME, else below the user's data folder]
    #[arg(long, value_name = "DIR", global = true)]
    store: Option<PathBuf>,
    /// As JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// List names and tags
    Ls,
    /// Show the commits of a name, newest first
    Log {
        /// NAME, NAME~BACK, a tag, or a hash
        name: String,
    },
    /// Show what a state holds: identity, turns, pages, text
    Show {
        /// NAME, NAME~BACK, NAME@TURN, a tag, or a hash
        name: String,
    },
    /// Remove a name or a tag; what only it reached goes with the next gc
    Rm {
        /// The name or tag
        name: String,
    },
    /// Give a name another spelling
    Rename {
        /// As it is
        from: String,
        /// As it shall be
        to: String,
    },
    /// Start a second future of a state; nothing is copied
    Fork {
        /// NAME, NAME~BACK, NAME@TURN, a tag, or a hash
        from: String,
        /// The new name
        new: String,
        /// From the end of this turn (counted from 1) instead of the end
        #[arg(long, value_name = "TURN")]
        at: Option<usize>,
    },
    /// Label a moment for good
    Tag {
        /// NAME, NAME~BACK, NAME@TURN, or a hash
        spec: String,
        /// The label
        label: String,
    },
    /// Write a state to one file
    Export(carry::ExportArgs),
    /// Take in a state from a file
    Import(carry::ImportArgs),
    /// Bring a state, its history and the tags along it to another place: s3://, gs://, az://, file://, or a folder
    Push(carry::PushArgs),
    /// Fetch a state, or all, from another place
    Pull(carry::PullArgs),
    /// Sweep what no name reaches; on request let old history go
    Gc(keep::GcArgs),
    /// Prove that everything is whole
    Fsck(keep::FsckArgs),
    /// Count objects, bytes, and what sharing saves
    Stats,
}

/// Runs the sub-verb.
pub fn run(args: Args) -> anyhow::Result<()> {
    let place = args.store.map_or_else(Store::home, Ok)?;
    let store = Store::open(&place)?;
    let out = Out { json: args.json };
    let done = match args.verb {
        Verb::Ls => look::ls(&store, out),
        Verb::Log { name } => look::log(&store, &name, out),
        Verb::Show { name } => look::show(&store, &name, out),
        Verb::Stats => look::stats(&store, out),
        Verb::Rm { name } => remove(&store, &name, out),
        Verb::Rename { from, to } => {
            free(&store, &to)?;
            store.rename(&from, &to)?;
            out.say(json!({"renamed": from, "to": to}), || say!("{from} is now {to}"))
        }
        Verb::Fork { from, new, at } => {
            free(&store, &new)?;
            let from = at.map_or(from.clone(), |turn| format!("{from}@{turn}"));
            let head = store.fork(&from, &new)?;
            out.say(json!({"from": from, "name": new, "head": head}), || say!("{new} at {}", head.short()))
        }
        Verb::Tag { spec, label } => {
            let tag = store.tag(&spec, &label)?;
            let report = json!({"label": label, "manifest": tag.manifest, "tokens": tag.tokens});
            out.say(report, || say!("{label} is {} at token {}", tag.manifest.short(), tag.tokens))
        }
        Verb::Export(args) => carry::export(&store, &args, out),
        Verb::Import(args) => carry::import(&store, &args, out),
        Verb::Push(args) => carry::push(&store, &args, out),
        Verb::Pull(args) => carry::pull(&store, &args, out),
        Verb::Gc(args) => keep::gc(&store, &args, out),
        Verb::Fsck(args) => keep::fsck(&store, &args, out),
    };
    for notice in store.notices() {
        eprintln!("note: {notice}");
    }
    done
}

/// Refuses a new name that is taken.
fn free(store: &Store, name: &str) -> anyhow::Result<()> {
    match store.head(name)? {
        None => Ok(()),
        Some(head) => anyhow::bail!(
            "the name '{name}' is taken (it points at {}); choose another, or `reverie state rm {name}` first",
            head.short()
        ),
    }
}

fn remove(store: &Store, name: &str, out: Out) -> anyhow::Result<()> {
    if store.tags()?.iter().any(|t| t.label == name) {
        store.untag(name)?;
        return out.say(json!({"removed_tag": name}), || say!("tag {name} removed"));
    }
    let head = store.remove(name, Expect::Any)?;
    out.say(json!({"removed": name, "head": head}), || {
        say!("{name} removed; until the next gc `reverie state fork {} {name}` brings it back", head.short())?;
        Ok(())
    })
}

/// How answers are given.
#[derive(Clone, Copy)]
struct Out {
    json: bool,
}

impl Out {
    /// Prints the report as JSON, or runs the sentence for people.
    fn say(self, report: Value, people: impl FnOnce() -> std::io::Result<()>) -> anyhow::Result<()> {
        if self.json {
            say!("{}", serde_json::to_string_pretty(&report)?)?;
        } else {
            people()?;
        }
        Ok(())
    }
}
