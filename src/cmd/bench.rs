//! `bench`: prefill and decode speed with spread, at several depths, against the bandwidth that the machine shows in the same
//! run.

mod asleep;
mod report;
mod synthetic;
mod turns;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use reverie::Residence;
use reverie::backends::{self, BackendSpec};
use reverie::rooms::engine::Engine;
use reverie::rooms::model::arch::Source;
use reverie::rooms::model::ffn::moe::Shelf;
use reverie::rooms::model::{Model, Sequence, State, Want, assemble};
use reverie::rooms::tensor::{Class, Numerics};

use super::UsageError;
use super::process;
use super::shared::{LoadArgs, experts_json, experts_line, progress_bar};
use report::{Report, Row, Runs};

/// Arguments of `bench`.
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["model", "synthetic"]))]
pub struct Args {
    /// Folder, .gguf file, the embedded model's name, or hub id owner/name
    model: Option<String>,
    /// A shape with random weights instead: lfm2-350m, mamba2-370m, olmoe-1b-7b, qwen3-0.6b, qwen3-1.7b, qwen3-4b, qwen3.5-0.8b
    #[arg(long, value_name = "SHAPE")]
    synthetic: Option<String>,
    /// Format of the random weights: a dtype (bf16, f16, f32), a GGUF type (q4_0, q8_0, q4_k …) or affine bits:group (affine4:64)
    #[arg(long, default_value = "affine4:64", requires = "synthetic")]
    format: String,
    /// Tokens of the prefill measurement; 0 leaves it out
    #[arg(long, default_value_t = 512)]
    pp: usize,
    /// Tokens of the decode measurement; 0 leaves it out
    #[arg(long, default_value_t = 64)]
    tg: usize,
    /// Context depths at which to measure [default: 0,4096 as far as the context reaches]
    #[arg(long, value_delimiter = ',')]
    depth: Vec<usize>,
    /// Measurements of each; the table shows the median and the spread
    #[arg(short, long, default_value_t = 3)]
    runs: usize,
    /// Measure memory instead: read this many tokens, sleep, fork, wake
    #[arg(long, value_name = "TOKENS")]
    asleep: Option<usize>,
    /// Measure memory over a long life instead: this many turns of conversations that go on, fork, sleep and wake
    #[arg(long, value_name = "TURNS", conflicts_with = "asleep")]
    turns: Option<usize>,
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Draw the speeds over depth (or memory over turns) into this SVG file
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    #[command(flatten)]
    load: LoadArgs,
}

/// Measures and prints.
pub fn run(args: Args) -> anyhow::Result<()> {
    if args.runs == 0 {
        return Err(UsageError("--runs: found 0, expected at least 1".into()).into());
    }
    let threads = args.load.threads.unwrap_or_else(reverie::rooms::cpu::physical_cores);
    // Before the model: the probe's own buffer must not count in the peak.
    let bandwidth = reverie::rooms::cpu::probe::read_bandwidth(threads, 3)?;
    process::forget_peak();
    let began = Instant::now();
    let (engine, name) = match (&args.model, &args.synthetic) {
        (Some(model), _) => (Arc::clone(args.load.load(model)?.engine()), model.clone()),
        (None, Some(shape)) => (synthetic_engine(&args, shape)?, format!("{shape} {}", args.format)),
        (None, None) => return Err(UsageError("found neither MODEL nor --synthetic".into()).into()),
    };
    if let Some(tokens) = args.asleep {
        return asleep::run(&engine, &name, tokens, args.runs, args.json);
    }
    if let Some(turns) = args.turns {
        return turns::run(&engine, &name, turns, args.plot.as_deref(), args.json);
    }
    let load_ms = began.elapsed().as_secs_f64() * 1e3;
    let model = engine.model();
    let first = Instant::now();
    let mut state = model.new_state(engine.cache());
    step(model, &mut state, 1)?;
    let first_ms = first.elapsed().as_secs_f64() * 1e3;
    drop(state);
    let weights_bytes = weights_read(model);
    let mut rows = Vec::new();
    let depths = depths(&args, engine.context())?;
    let bar = progress_bar((depths.len() * args.runs) as u64, "measuring [{bar:30}] {pos}/{len}");
    for &depth in &depths {
        let mut base = model.new_state(engine.cache());
        fill(model, &mut base, depth, engine_chunk(&args))?;
        let (mut pp, mut tg) = (Runs::default(), Runs::default());
        for _ in 0..args.runs {
            if args.pp > 0 {
                let mut state = base.fork();
                pp.time(model, args.pp, || fill(model, &mut state, depth + args.pp, engine_chunk(&args)))?;
            }
            if args.tg > 0 {
                let mut state = base.fork();
                step(model, &mut state, 1)?;
                tg.time(model, args.tg, || (0..args.tg).try_for_each(|_| step(model, &mut state, 1)))?;
            }
            bar.inc(1);
        }
        let (seen, dtype) = (depth + args.tg / 2, engine.cache().dtype);
        let kv = engine.model().state_specs().iter().map(|s| s.bytes_in_reach(seen, dtype)).sum::<usize>() as u64;
        let fixed = engine.model().state_specs().iter().map(|s| s.fixed_bytes()).sum::<usize>() as u64;
        // A recurrent state is read and written.
        let read = weights_bytes + kv + 2 * fixed;
        rows.extend(Row::of("pp", args.pp, depth, &pp, None, bandwidth));
        rows.extend(Row::of("tg", args.tg, depth, &tg, Some(read), bandwidth));
    }
    bar.finish_and_clear();
    let usage = model.backend().memory().usage();
    let report = Report {
        name,
        threads,
        isa: reverie::rooms::cpu::Isa::detect().name().into(),
        load_ms,
        first_ms,
        bandwidth,
        weights_bytes: usage.of(Class::Weights),
        peak_bytes: usage.peak,
        resident_bytes: process::peak_resident(),
        experts: (experts_line(model), experts_json(model)),
        rows,
    };
    if let Some(path) = &args.plot {
        report.plot(path)?;
    }
    if args.json {
        say!("{}", serde_json::to_string_pretty(&report.json())?)?;
    } else {
        report.print()?;
    }
    Ok(())
}

/// The depths asked for, which must fit; or those of the default that do.
fn depths(args: &Args, context: usize) -> anyhow::Result<Vec<usize>> {
    let deepest = context.saturating_sub(args.pp.max(args.tg + 1));
    if let Some(depth) = args.depth.iter().find(|&&d| d > deepest) {
        anyhow::bail!(
            "--depth: found {depth}, expected at most {deepest} for a context of {context} and these --pp and --tg"
        );
    }
    if !args.depth.is_empty() {
        return Ok(args.depth.clone());
    }
    let usual = [0, 4096];
    if usual.iter().any(|&d| d > deepest) {
        eprintln!("depth 4096 is left out: the context holds {context} tokens");
    }
    Ok(usual.into_iter().filter(|&d| d <= deepest).collect())
}

fn engine_chunk(args: &Args) -> usize {
    args.load.chunk.max(1)
}

fn synthetic_engine(args: &Args, shape: &str) -> anyhow::Result<Arc<Engine>> {
    let store = Arc::new(synthetic::Store::new(shape, &args.format).map_err(UsageError)?);
    let loader = args.load.loader()?;
    let config = store.config();
    let arch = loader.registries.arch(config.text("model_type")?)?;
    let plan = (arch.plan)(&Source::hugging_face(&config, store.as_ref(), &loader.registries)?)?;
    let numerics = if args.load.exact { Numerics::Exact } else { Numerics::Int8 };
    let backend =
        backends::open(BackendSpec { threads: args.load.threads, numerics: Some(numerics), isa: args.load.isa })?;
    let bar = progress_bar(0, "making weights [{bar:30}] {pos}/{len} layers");
    backend.memory().set_limit(args.load.memory);
    let lazy = args.load.experts == Residence::Lazy;
    let shelf = lazy.then(|| Arc::new(Shelf::new(Arc::clone(&store) as _, u64::MAX)));
    let model = assemble(plan, store.as_ref(), &backend, shelf.as_ref(), &mut |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    })?;
    bar.finish_and_clear();
    let spec = args.load.engine();
    Ok(Arc::new(Engine::new(Arc::new(model), None, &loader.registries, &spec)?))
}

/// Bytes of weights that one token reads: everything packed at load and of the experts its own, the embedding only where it is the
/// head too.
fn weights_read(model: &Model) -> u64 {
    let experts = model.expert_bytes();
    let packed = if model.shelf().is_some() { 0 } else { experts.all };
    let all = model.backend().memory().usage().of(Class::Weights) - packed + experts.a_token;
    let table = model.embedding();
    if model.plan().head.name.is_none() {
        all
    } else {
        all - model.backend().packed_bytes(table.n, table.k, &table.form) as u64
    }
}

fn fill(model: &Model, state: &mut State, to: usize, chunk: usize) -> anyhow::Result<()> {
    while state.len() < to {
        let n = chunk.min(to - state.len());
        step(model, state, n)?;
    }
    Ok(())
}

/// Reads `n` more tokens of a fixed sequence; logits of the last.
fn step(model: &Model, state: &mut State, n: usize) -> anyhow::Result<()> {
    let vocab = model.plan().vocab as u64;
    let from = state.len() as u64;
    let tokens: Vec<u32> = (0..n as u64).map(|i| ((from + i).wrapping_mul(2_654_435_761) % vocab) as u32).collect();
    let logits = model.forward(&mut [Sequence { tokens: &tokens, state, want: Want::Last }])?;
    // What a caller would do with them: bring them to the host.
    std::hint::black_box(logits.into_iter().flatten().next().map(|l| model.backend().read(&l)).transpose()?);
    Ok(())
}
