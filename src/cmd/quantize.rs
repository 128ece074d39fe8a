//! `quantize`: dense folder in, MLX affine folder out.

use std::path::PathBuf;

use reverie::locate;
use reverie::rooms::pack::{Override, QuantizeSpec, quantize};
use reverie::rooms::tensor::quant::affine;
use serde_json::json;

use super::shared::{LoadBars, bytes, parse_bytes, progress_bar};

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

/// The number that `text` says, if the format allows it.
fn one_of<N: std::str::FromStr + std::fmt::Display + PartialEq + Copy>(text: &str, of: &[N]) -> Result<N, String> {
    let words = || of.iter().map(N::to_string).collect::<Vec<_>>().join(", ");
    text.parse().ok().filter(|n| of.contains(n)).ok_or_else(|| format!("found '{text}', expected one of {}", words()))
}

fn parse_bits(text: &str) -> Result<u8, String> {
    one_of(text, affine::ENTRY.planes.map_or(&[], |p| p.bits))
}

fn parse_group(text: &str) -> Result<usize, String> {
    one_of(text, affine::ENTRY.planes.map_or(&[], |p| p.groups))
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
    let plan = quantize(&source, &args.target, &spec, &mut |step| {
        bar.set_length(step.total_bytes);
        bar.set_position(step.done_bytes);
        bar.set_message(step.name.to_owned());
    })?;
    bar.finish_and_clear();
    if args.json {
        let report = json!({
            "quantised": plan.quantised,
            "kept": plan.kept,
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
    }
    Ok(())
}
