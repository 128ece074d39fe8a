//! `quantize`: dense folder in, MLX affine folder out.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use reverie::rooms::files::Checkpoint;
use reverie::rooms::model::ffn::moe::Stack;
use reverie::rooms::model::stacks;
use reverie::rooms::pack::{Left, Override, QuantizeSpec, quantize};
use reverie::rooms::tensor::quant::affine;
use reverie::{Loader, locate};
use serde_json::json;

use super::shared::{LoadBars, bytes, one_of, parse_bytes, progress_bar};

/// Arguments of `quantize`.
#[derive(clap::Args)]
pub struct Args {
    /// Dense folder, or hub id owner/name
    source: String,
    /// Folder to write; must not hold files yet
    target: PathBuf,
    /// Bits of a weight: 2, 3, 4, 5, 6 or 8
    #[arg(long, default_value_t = 4, value_parser = parse_bits)]
    bits: u8,
    /// Weights that share a scale: 32, 64 or 128
    #[arg(long, default_value_t = 64, value_parser = parse_group)]
    group: usize,
    /// Another choice for some modules: '*.mlp.down_proj=6', 'lm_head=8:32', 'model.embed_tokens=dense'
    #[arg(long = "override", value_name = "PATTERN=BITS[:GROUP]")]
    overrides: Vec<String>,
    /// Largest size of an output file
    #[arg(long, value_name = "BYTES", default_value = "5GB", value_parser = parse_bytes)]
    shard: u64,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Names that are shown for one reason; --json has all.
const MOST_NAMES: usize = 4;

fn parse_bits(text: &str) -> Result<u8, String> {
    one_of(text, affine::ENTRY.planes.iter().flat_map(|p| p.bits).map(|n| (n, *n)))
}

fn parse_group(text: &str) -> Result<usize, String> {
    one_of(text, affine::ENTRY.planes.iter().flat_map(|p| p.groups).map(|n| (n, *n)))
}

/// The source's experts that lie in one tensor for all. Of a model that this build does not run nothing is known, which is said.
fn experts(source: &Checkpoint) -> Vec<Stack> {
    let known = Loader::default().plan(source).and_then(|plan| Ok(stacks(&plan, source.weights.as_ref())?));
    known.unwrap_or_else(|e| {
        eprintln!(
            "this build does not run {} ({e}): experts in one tensor for all stay as they are",
            source.path.display()
        );
        Vec::new()
    })
}

/// What was left, by the reason.
fn reasons(left: &[Left]) -> BTreeMap<&str, Vec<&str>> {
    left.iter().fold(BTreeMap::new(), |mut all, left| {
        all.entry(left.why.as_str()).or_insert_with(Vec::new).push(&left.name);
        all
    })
}

/// Writes the folder.
pub fn run(args: Args) -> anyhow::Result<()> {
    let overrides: Result<Vec<_>, _> = args.overrides.iter().map(|o| Override::parse(o, args.group)).collect();
    let overrides = overrides.map_err(|e| super::UsageError(e.to_string()))?;
    let spec = QuantizeSpec { bits: args.bits, group: args.group, overrides, shard_bytes: args.shard };
    let mut bars = LoadBars::default();
    let source = locate(&args.source, &mut |e| bars.hear(e))?.open()?;
    bars.clear();
    let bar = progress_bar(0, "{msg:40} [{bar:30}] {bytes}/{total_bytes} {eta}");
    let stop = Arc::new(AtomicBool::new(false));
    let raise = Arc::clone(&stop);
    ctrlc::set_handler(move || raise.store(true, Ordering::Relaxed))?;
    let done = quantize(&source, &experts(&source), &args.target, &spec, &mut |step| {
        bar.set_length(step.total_bytes);
        bar.set_position(step.done_bytes);
        bar.set_message(step.name.to_owned());
        if stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    bar.finish_and_clear();
    let plan = done?;
    if args.json {
        let report = json!({
            "quantised": plan.quantised,
            "kept": plan.kept,
            "left": reasons(&plan.left),
            "source_bytes": plan.source_bytes,
            "target_bytes": plan.target_bytes,
        });
        say!("{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        say!(
            "{} matrices at {} bits, {} tensors kept; {} -> {} in {}",
            plan.quantised,
            args.bits,
            plan.kept,
            bytes(plan.source_bytes),
            bytes(plan.target_bytes),
            args.target.display()
        )?;
        for (why, names) in reasons(&plan.left) {
            let more = if names.len() > MOST_NAMES { " …" } else { "" };
            let some = names.iter().take(MOST_NAMES).copied().collect::<Vec<_>>().join(", ");
            say!("not quantised: {} with {why}: {some}{more}", names.len())?;
        }
    }
    Ok(())
}
