//! `logits`: logits and hidden states to a safetensors file, so that anyone can hold a model against their own reference.

use std::path::PathBuf;

use reverie::rooms::files::{Element, PendingFile, SafeTensorsWriter, TensorSpec};
use reverie::rooms::model::{Sequence, Want};
use serde_json::json;

use super::UsageError;
use super::shared::{LoadArgs, progress_bar};

/// Arguments of `logits`.
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("input").required(true).args(["ids", "text"]))]
pub struct Args {
    /// Folder, .gguf file, the embedded model's name, or hub id owner/name
    model: String,
    /// Token ids, separated by commas
    #[arg(long, value_delimiter = ',')]
    ids: Vec<u32>,
    /// Text to encode
    #[arg(long)]
    text: Option<String>,
    /// Also write the residual stream after the embedding and each layer (the last one after the final norm)
    #[arg(long)]
    hidden: bool,
    /// Where to write: tensors `logits` [T, V] and `hidden.<layer>` [T, D], f32
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Say what was written as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    load: LoadArgs,
}

/// Writes the file.
pub fn run(args: Args) -> anyhow::Result<()> {
    let mut loader = args.load.loader()?;
    loader.record = args.hidden;
    let model = loader.load(&args.model)?;
    let ids = match &args.text {
        Some(text) => model.voice().encode_text(text)?,
        None => args.ids.clone(),
    };
    if ids.is_empty() {
        return Err(UsageError("found no token ids, expected at least one by --ids or --text".into()).into());
    }
    let core = model.engine().model();
    let (be, plan, t) = (core.backend(), core.plan(), ids.len());
    let chunk = args.load.chunk.clamp(1, t);
    let slice = (SLICE_BYTES / (4 * plan.vocab)).clamp(1, chunk);
    // What is held on the way to the file: the rows at hand, on the backend and as they are written, and what a chunk's layers noted.
    let notes = if args.hidden { plan.layers.len() + 1 } else { 0 };
    let beside = 2 * slice * plan.vocab + (1 + 2 * notes) * chunk * plan.width;
    model.engine().admit_beside(t, 4 * beside as u64)?;
    let mut names: Vec<_> = (0..notes).map(|layer| (format!("hidden.{layer}"), plan.width)).collect();
    names.sort();
    names.insert(0, ("logits".into(), plan.vocab));
    let spec = |(name, width)| TensorSpec { name, element: Element::F32, shape: vec![t, width] };
    let tensors: Vec<TensorSpec> = names.into_iter().map(spec).collect();
    let mut writer = SafeTensorsWriter::in_file(PendingFile::create(&args.out)?, &tensors, &[])?;
    let mut state = core.new_state(model.engine().cache());
    let bar = progress_bar(t as u64, "reading [{bar:30}] {pos}/{len} tokens");
    for chunk in ids.chunks(chunk) {
        let streams = core.streams(&mut [Sequence { tokens: chunk, state: &mut state, want: Want::All }])?;
        for (name, _, values) in model.recorded() {
            writer.append(&name, &values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())?;
        }
        for stream in streams.iter().flatten() {
            let rows: Vec<usize> = (0..stream.rows()).collect();
            for rows in rows.chunks(slice) {
                let logits = core.logits(&be.rows(stream, rows)?)?;
                writer.append("logits", &be.read_bytes(&logits)?)?;
            }
        }
        bar.inc(chunk.len() as u64);
    }
    writer.finish()?;
    bar.finish_and_clear();
    if args.json {
        let shapes: serde_json::Map<_, _> = tensors.iter().map(|t| (t.name.clone(), json!(t.shape))).collect();
        let report = json!({ "file": args.out, "ids": ids, "tensors": shapes });
        say!("{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        say!("{t} tokens, {} tensors -> {}", tensors.len(), args.out.display())?;
    }
    Ok(())
}

/// Logits that are held at once.
const SLICE_BYTES: usize = 8 << 20;
