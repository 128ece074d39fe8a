//! `inspect`: what a checkpoint holds, layer by layer, and what it will take.

use reverie::rooms::model::arch::ArchEntry;
use reverie::rooms::model::ffn::ExpertBytes;
use reverie::rooms::model::plan::{Lender, Part};
use reverie::rooms::tensor::{DType, Form};
use reverie::{Loader, locate};
use serde_json::{Value, json};

use super::shared::{LoadArgs, LoadBars, bytes};

/// Arguments of `inspect`.
#[derive(clap::Args)]
pub struct Args {
    /// Folder, .gguf file, the embedded model's name, or hub id owner/name
    model: String,
    /// Sequences at once in the forecast
    #[arg(long, value_name = "N", default_value_t = 1)]
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
    let layers: Vec<Value> = plan.layers.iter().enumerate().map(|(i, layer)| describe(i, layer, dtype)).collect();
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
    let (tensors, parameters) = tensors(&checkpoint);
    let report = json!({
        "model": args.model,
        "architecture": plan.arch,
        "about": arch.map(|a| a.about),
        "parameters": parameters,
        "file_bytes": checkpoint.weights.total_bytes(),
        "bits_per_weight": checkpoint.weights.total_bytes() as f64 * 8.0 / (parameters as f64).max(1.0),
        "formats": tensors,
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
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    println!("{} ({})", plan.arch, arch.map_or("", |a| a.about));
    println!(
        "{} parameters, {} on disk, {:.2} bits a weight; {}",
        count(parameters),
        bytes(checkpoint.weights.total_bytes()),
        report["bits_per_weight"].as_f64().unwrap_or(0.0),
        tensors.iter().map(|(n, c)| format!("{c} × {n}")).collect::<Vec<_>>().join(", ")
    );
    println!("vocabulary {}, width {}, context {}", plan.vocab, plan.width, plan.context);
    println!("{:>5}  {:16} {:12} {:24} ", "layer", "mixer", "feed-forward", "state");
    for layer in &layers {
        let word = |k: &str| layer[k].as_str().unwrap_or("-").to_owned();
        println!("{:>5}  {:16} {:12} {:24} ", layer["layer"], word("mixer"), word("ffn"), word("state"));
    }
    println!(
        "state: {} a token with --kv {}{}, {} fixed",
        bytes(per_token as u64),
        engine.cache().name,
        match windowed {
            0 => String::new(),
            windowed => format!(" and {} for each of the last {window}", bytes(windowed as u64)),
        },
        bytes(fixed as u64)
    );
    if experts != ExpertBytes::default() {
        println!(
            "experts: {} packed, {} read by a token; {}",
            bytes(experts.all),
            bytes(experts.a_token),
            if lazy {
                format!("lazy, at least {} packed at a time and more while --memory has room", bytes(experts.at_once))
            } else {
                "packed at load (--experts lazy leaves them in the file)".into()
            }
        );
    }
    if let Some(f) = forecast {
        println!(
            "forecast for {} × {context} tokens: weights {}, state {}, peak {}",
            args.batch,
            bytes(f.weights_bytes + f.experts_bytes),
            bytes(f.state_bytes),
            bytes(f.peak_bytes)
        );
    }
    if !unused.is_empty() {
        println!("{} tensors are not run: {}", unused.len(), summarise(&unused));
    }
    Ok(())
}

fn describe(i: usize, layer: &reverie::rooms::model::plan::Layer, dtype: DType) -> Value {
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
    json!({"layer": i, "mixer": all(mixers), "ffn": all(ffns), "rewrites": all(rewrites), "state": all(states)})
}

/// Matrices by format, and the number of weights in all tensors.
fn tensors(checkpoint: &reverie::rooms::files::Checkpoint) -> (std::collections::BTreeMap<String, usize>, u64) {
    let (mut counts, mut parameters) = (std::collections::BTreeMap::new(), 0u64);
    for view in checkpoint.weights.iter() {
        if view.name.ends_with(".scales") || view.name.ends_with(".biases") {
            continue;
        }
        let matrix = checkpoint.weights.matrix(view.name).ok().filter(|_| view.shape.len() > 1);
        let Some(matrix) = matrix else {
            parameters += view.shape.iter().map(|&d| d as u64).product::<u64>();
            continue;
        };
        let word = match matrix.form() {
            Form::Dense(d) => d.name().to_owned(),
            Form::Grouped(g) => format!("{}-bit/{}", g.bits, g.block),
        };
        parameters += matrix.shape().0 as u64 * matrix.shape().1 as u64;
        *counts.entry(word).or_insert(0) += 1;
    }
    (counts, parameters)
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
