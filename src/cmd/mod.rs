//! The verbs, one file each, and the arguments that they share.

/// Prints a line and gives what became of it: `println!` would panic where nobody reads any more (`… | head`).
macro_rules! say {
    ($($line:tt)*) => {{
        use std::io::Write as _;
        writeln!(std::io::stdout().lock(), $($line)*)
    }};
}

mod bench;
mod chat;
mod doctor;
mod generate;
mod inspect;
mod list;
mod logits;
mod process;
mod quantize;
mod read;
mod remember;
mod shared;
mod state;

use clap::{Parser, Subcommand};

/// A local engine for language models that keeps what it has read.
#[derive(Parser)]
#[command(version, propagate_version = true, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Measure prefill and decode speed
    Bench(bench::Args),
    /// Talk to a model
    Chat(chat::Args),
    /// Say what this machine offers and what is in use
    Doctor(doctor::Args),
    /// Continue a prompt
    Generate(generate::Args),
    /// Show what a checkpoint holds and what it will take
    Inspect(inspect::Args),
    /// List what every registry holds
    List(list::Args),
    /// Write logits and hidden states to a file
    Logits(logits::Args),
    /// Quantise a dense folder to MLX affine
    Quantize(quantize::Args),
    /// Read files once and sleep on them
    Read(read::Args),
    /// Look after sleeping states: list, fork, carry, check
    State(state::Args),
}

/// A mistake in how a command was used: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// Parses the command line; on a mistake, clap's own message (exit code 2).
pub fn parse() -> Result<Cli, clap::Error> {
    Cli::try_parse()
}

/// Runs the verb.
pub fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.verb {
        Verb::Bench(args) => bench::run(args),
        Verb::Chat(args) => chat::run(args),
        Verb::Doctor(args) => doctor::run(args),
        Verb::Generate(args) => generate::run(args),
        Verb::Inspect(args) => inspect::run(args),
        Verb::List(args) => list::run(args),
        Verb::Logits(args) => logits::run(args),
        Verb::Quantize(args) => quantize::run(args),
        Verb::Read(args) => read::run(args),
        Verb::State(args) => state::run(args),
    }
}

/// The refusal and its causes; a cause that the refusal quotes already is not said twice.
pub fn paragraph(e: &anyhow::Error) -> String {
    e.chain()
        .map(ToString::to_string)
        .reduce(|said, cause| if said.contains(&cause) { said } else { format!("{said}: {cause}") })
        .unwrap_or_default()
}

/// 2 for usage, 1 for the rest.
pub fn exit_code(e: &anyhow::Error) -> u8 {
    if e.downcast_ref::<UsageError>().is_some() { 2 } else { 1 }
}

/// True where the reader of our output has gone: not an error.
pub fn is_broken_pipe(e: &anyhow::Error) -> bool {
    e.chain().any(|c| c.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe))
}
