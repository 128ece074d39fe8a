//! `logits`: logits and hidden states to a safetensors file, so that anyone can hold a model against their own reference.

use std::collections::BTreeMap;
use std::path::PathBuf;

use reverie::rooms::files::{FloatTensor, write_floats};
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
    model.engine().admit(ids.len())?;
    let core = model.engine().model();
    let mut state = core.new_state(model.engine().cache());
    let (mut logits, mut vocab) = (Vec::new(), 0);
    let mut hidden: BTreeMap<String, (usize, Vec<f32>)> = BTreeMap::new();
    let bar = progress_bar(ids.len() as u64, "reading [{bar:30}] {pos}/{len} tokens");
    for chunk in ids.chunks(args.load.chunk.max(1)) {
        let out = core.forward(&mut [Sequence { tokens: chunk, state: &mut state, want: Want::All }])?;
        for tensor in out.iter().flatten() {
            vocab = tensor.width();
            logits.extend(core.backend().read(tensor)?);
        }
        for (name, width, values) in model.recorded() {
            hidden.entry(name).or_insert((width, Vec::new())).1.extend(values);
        }
        bar.inc(chunk.len() as u64);
    }
    bar.finish_and_clear();
    let t = ids.len();
    let mut tensors = vec![FloatTensor { name: "logits".into(), shape: vec![t, vocab], values: logits }];
    tensors.extend(hidden.into_iter().map(|(name, (d, values))| FloatTensor { name, shape: vec![t, d], values }));
    write_floats(&args.out, &tensors)?;
    if args.json {
        let shapes: serde_json::Map<_, _> = tensors.iter().map(|t| (t.name.clone(), json!(t.shape))).collect();
        let report = json!({ "file": args.out, "ids": ids, "tensors": shapes });
        say!("{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        say!("{t} tokens, {} tensors -> {}", tensors.len(), args.out.display())?;
    }
    Ok(())
}
