//! `inspect`: what a checkpoint holds, layer by layer, and what it will take.

use std::collections::BTreeMap;

use reverie::rooms::files::{Checkpoint, View};
use reverie::rooms::model::arch::ArchEntry;
use reverie::rooms::model::ffn::ExpertBytes;
use reverie::rooms::model::plan::{Layer, Lender, Part};
use reverie::rooms::tensor::{DType, Form};
use reverie::{Loader, locate};
use serde_json::{Value, json};

use super::shared::{LoadArgs, LoadBars, bytes, parse_count};

/// Arguments of `inspect`.
#[derive(clap::Args)]
pub struct Args {
    /// Folder, .gguf file, the embedded model's name, or hub id owner/name
    model: String,
    /// Sequences at once in the forecast
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = |text: &str| parse_count(text, 1..=1024))]
    batch: usize,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    load: LoadArgs,
}

/// Prints the report.
pub fn run(args: Args) -> anyhow::Result<()> {
    let mut bars = LoadBars::default();
    let located = locate(&args.model, &mut |e| bars.hear(e))?;
    bars.clear();
    let loader: Loader = args.load.loader()?;
    let checkpoint = located.open()?;
    let engine = loader.shadow(&checkpoint)?;
    let plan = engine.model().plan();
    let dtype = engine.cache().dtype;
    let context = args.load.context.unwrap_or(plan.context.min(32_768)).min(plan.context);
    // A drafter runs beside its target only.
    let forecast = if plan.draft.is_some() { None } else { engine.forecast(context, args.batch)? };
    let (experts, lazy) = (engine.model().expert_bytes(), engine.model().shelf().is_some());
    let arch: Option<&ArchEntry> = loader.registries.archs().iter().copied().find(|a| a.name == plan.arch);
    let per_token: usize = engine.model().state_specs().iter().map(|s| s.bytes_per_token(dtype)).sum();
    let window = engine.model().standing().window_tokens();
    let windowed: usize = engine.model().state_specs().iter().map(|s| s.windowed_bytes(dtype)).sum();
    let fixed: usize = engine.model().state_specs().iter().map(|s| s.fixed_bytes()).sum();
    // Asked before the tensors are looked at one by one: looking counts as use.
    let unused: Vec<&str> = checkpoint.weights.unused().collect();
    let held: Vec<Held> = tensors(&checkpoint);
    let parameters: u64 = held.iter().map(|t| t.parameters).sum();
    let mut formats = BTreeMap::new();
    held.iter().filter_map(|t| t.format.as_ref()).for_each(|word| *formats.entry(word.clone()).or_insert(0usize) += 1);
    let layer = |(i, layer): (usize, &Layer)| {
        // Of a GGUF file the plan's own names are not the file's.
        let spelt = plan.names.spell(&format!("{}.", layer.prefix), checkpoint.weights.as_ref());
        let below = [spelt, format!("blk.{i}.")];
        let own = held.iter().filter(|t| below.iter().any(|b| t.name.starts_with(b)) && !unused.contains(&t.name));
        describe(i, layer, own.fold((0, 0), |(n, b), t| (n + t.parameters, b + t.bytes)), dtype)
    };
    let layers: Vec<Value> = plan.layers.iter().enumerate().map(layer).collect();
    let report = json!({
        "model": args.model,
        "architecture": plan.arch,
        "about": arch.map(|a| a.about),
        "parameters": parameters,
        "file_bytes": checkpoint.weights.total_bytes(),
        "bits_per_weight": checkpoint.weights.total_bytes() as f64 * 8.0 / (parameters as f64).max(1.0),
        "formats": formats,
        "vocabulary": plan.vocab,
        "width": plan.width,
        "context": plan.context,
        "layers": layers,
        "tied_head": plan.head.name.is_none(),
        "cache": engine.cache().name,
        "state_bytes_per_token": per_token,
        "state_bytes_per_token_in_window": windowed,
        "state_window_tokens": window,
        "state_bytes_fixed": fixed,
        "forecast": forecast.map(|f| json!({
            "context": context,
            "batch": args.batch,
            "weights_bytes": f.weights_bytes,
            "experts_bytes": f.experts_bytes,
            "state_bytes": f.state_bytes,
            "peak_bytes": f.peak_bytes,
        })),
        "experts": if experts == ExpertBytes::default() { Value::Null } else { json!({
            "lazy": lazy, "packed_bytes": experts.all, "a_token_bytes": experts.a_token, "at_once_bytes": experts.at_once,
        }) },
        "unused_tensors": unused,
    });
    if args.json {
        say!("{}", serde_json::to_string_pretty(&report)?)?;
        return Ok(());
    }
    say!("{} ({})", plan.arch, arch.map_or("", |a| a.about))?;
    say!(
        "{} parameters, {} on disk, {:.2} bits a weight; {}",
        count(parameters),
        bytes(checkpoint.weights.total_bytes()),
        report["bits_per_weight"].as_f64().unwrap_or(0.0),
        formats.iter().map(|(n, c)| format!("{c} × {n}")).collect::<Vec<_>>().join(", ")
    )?;
    say!("vocabulary {}, width {}, context {}", plan.vocab, plan.width, plan.context)?;
    say!("{:>5}  {:16} {:12} {:>10} {:>5}  state", "layer", "mixer", "feed-forward", "parameters", "bits")?;
    for layer in &layers {
        let word = |k: &str| layer[k].as_str().unwrap_or("-").to_owned();
        let (n, bits) = (count(layer["parameters"].as_u64().unwrap_or(0)), layer["bits_per_weight"].as_f64());
        let (mixer, ffn, bits) = (word("mixer"), word("ffn"), bits.unwrap_or(0.0));
        let i = layer["layer"].as_u64().unwrap_or(0);
        say!("{i:>5}  {mixer:16} {ffn:12} {n:>10} {bits:>5.2}  {}", word("state"))?;
    }
    say!(
        "state: {} a token with --kv {}{}, {} fixed",
        bytes(per_token as u64),
        engine.cache().name,
        match windowed {
            0 => String::new(),
            windowed => format!(" and {} for each of the last {window}", bytes(windowed as u64)),
        },
        bytes(fixed as u64)
    )?;
    if experts != ExpertBytes::default() {
        say!(
            "experts: {} packed, {} read by a token; {}",
            bytes(experts.all),
            bytes(experts.a_token),
            if lazy {
                format!("lazy, at least {} packed at a time and more while --memory has room", bytes(experts.at_once))
            } else {
                "packed at load (--experts lazy leaves them in the file)".into()
            }
        )?;
    }
    if let Some(f) = forecast {
        say!(
            "forecast for {} × {context} tokens: weights {}, state {}, peak {}",
            args.batch,
            bytes(f.weights_bytes + f.experts_bytes),
            bytes(f.state_bytes),
            bytes(f.peak_bytes)
        )?;
    }
    if !unused.is_empty() {
        say!("{} tensors are not run: {}", unused.len(), summarise(&unused))?;
    }
    Ok(())
}

fn describe(i: usize, layer: &Layer, (parameters, stored): (u64, u64), dtype: DType) -> Value {
    let (mut mixers, mut ffns, mut states) = (Vec::new(), Vec::new(), Vec::new());
    let mut rewrites = Vec::new();
    for block in &layer.blocks {
        match &block.part {
            Part::Mixer(m) => {
                let spec = m.state();
                let kinds: Vec<&str> = spec.kinds().iter().map(|k| k.name()).collect();
                let growth = match (spec.bytes_per_token(dtype), spec.windowed_bytes(dtype), spec.fixed_bytes()) {
                    (0, 0, fixed) => bytes(fixed as u64),
                    (0, token, _) => format!("{token} B/token in reach"),
                    (token, ..) => format!("{token} B/token"),
                };
                mixers.push(m.kind());
                states.push(match m.reads() {
                    Some((Lender::Earlier(owner), _)) => format!("reads mixer {owner}"),
                    Some((Lender::Target(word), _)) => format!("reads the target's {word}"),
                    None => format!("{} {growth}", kinds.join("+")),
                });
            }
            Part::Ffn(f) => ffns.push(f.kind()),
            Part::Rewrite(r) => rewrites.push(r.kind()),
        }
    }
    let all = |words: Vec<&str>| if words.is_empty() { Value::Null } else { words.join("+").into() };
    let states = states.iter().map(String::as_str).collect();
    json!({
        "layer": i,
        "mixer": all(mixers),
        "ffn": all(ffns),
        "rewrites": all(rewrites),
        "state": all(states),
        "parameters": parameters,
        "bits_per_weight": stored as f64 * 8.0 / (parameters as f64).max(1.0),
    })
}

/// A stored tensor.
struct Held<'a> {
    name: &'a str,
    /// Weights that it stands for; none where it is a part of another one's.
    parameters: u64,
    /// On disk.
    bytes: u64,
    /// Of a matrix.
    format: Option<String>,
}

fn tensors(checkpoint: &Checkpoint) -> Vec<Held<'_>> {
    let mut all = Vec::new();
    for View { name, shape, bytes, .. } in checkpoint.weights.iter() {
        let mut held = Held { name, parameters: 0, bytes: bytes.len() as u64, format: None };
        let whole = name.strip_suffix("_blocks").unwrap_or(name);
        let a_part = [".scales", ".biases", "_scales"].iter().any(|part| name.ends_with(part));
        match checkpoint.weights.matrix(whole).ok().filter(|_| shape.len() > 1) {
            _ if a_part => {}
            None => held.parameters = shape.iter().map(|&d| d as u64).product(),
            Some(matrix) => {
                held.parameters = matrix.shape().0 as u64 * matrix.shape().1 as u64;
                held.format = Some(match matrix.form() {
                    Form::Dense(d) => d.name().to_owned(),
                    Form::Grouped(g) => format!("{}-bit/{}", g.bits, g.block),
                });
            }
        }
        all.push(held);
    }
    all
}

fn count(n: u64) -> String {
    match n {
        0..1_000_000 => n.to_string(),
        1_000_000..1_000_000_000 => format!("{:.1} M", n as f64 / 1e6),
        _ => format!("{:.2} G", n as f64 / 1e9),
    }
}

/// Names by their first two parts, with counts.
fn summarise(names: &[&str]) -> String {
    let mut groups = std::collections::BTreeMap::new();
    for name in names {
        let stem: Vec<&str> = name.split('.').take(2).collect();
        *groups.entry(stem.join(".")).or_insert(0usize) += 1;
    }
    groups.iter().map(|(g, n)| format!("{g} ({n})")).collect::<Vec<_>>().join(", ")
}
