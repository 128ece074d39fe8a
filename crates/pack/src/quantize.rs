//! Dense folder in, MLX affine folder out. Matrices are read, quantised and written row by row; nothing is held whole. The folder
//! appears whole or not at all.

mod fate;

use std::ops::ControlFlow;
use std::path::Path;

use reverie_files::{
    Checkpoint, Choice, Origin, PendingFolder, Quantisation, SafeTensorsWriter, TensorSpec, Weights, write_json,
};
use reverie_model::ffn::moe::Stack;
use reverie_tensor::WeightSource;
use reverie_tensor::quant::{PlaneRow, Planes, affine};

use crate::error::{Error, Result};
use fate::{Fate, Fates, Form, Planned};

/// Rows that one thread quantises at a time.
const ROWS: usize = 64;

/// What to do.
#[derive(Clone, Debug)]
pub struct QuantizeSpec {
    /// Bits of a code.
    pub bits: u8,
    /// Weights that share a scale.
    pub group: usize,
    /// Exceptions; the first that matches a module counts.
    pub overrides: Vec<Override>,
    /// Largest size of an output file.
    pub shard_bytes: u64,
}

/// Another choice for some modules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// Module name as MLX has it ("model.layers.0.mlp.down_proj"); `*` stands for any text.
    pub pattern: String,
    /// Bits and group; none leaves the module dense.
    pub choice: Option<(u8, usize)>,
}

impl Override {
    /// "PATTERN=BITS", "PATTERN=BITS:GROUP" or "PATTERN=dense"; the group is `group` unless given.
    pub fn parse(text: &str, group: usize) -> Result<Override> {
        let wrong = || Error::Value {
            what: "override".into(),
            found: text.into(),
            expected: "PATTERN=BITS, PATTERN=BITS:GROUP or PATTERN=dense, such as '*.mlp.down_proj=6'".into(),
        };
        let (pattern, choice) = text.split_once('=').ok_or_else(wrong)?;
        if choice == "dense" {
            return Ok(Override { pattern: pattern.into(), choice: None });
        }
        let (bits, group) = match choice.split_once(':') {
            Some((bits, group)) => (bits, group.parse().map_err(|_| wrong())?),
            None => (choice, group),
        };
        Ok(Override { pattern: pattern.into(), choice: Some((bits.parse().map_err(|_| wrong())?, group)) })
    }

    fn matches(&self, module: &str) -> bool {
        wild(self.pattern.as_bytes(), module.as_bytes())
    }
}

fn wild(pattern: &[u8], text: &[u8]) -> bool {
    match pattern.split_first() {
        None => text.is_empty(),
        Some((b'*', rest)) => (0..=text.len()).any(|i| wild(rest, &text[i..])),
        Some((c, rest)) => text.first() == Some(c) && wild(rest, &text[1..]),
    }
}

/// Progress.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// The tensor at hand.
    pub name: &'a str,
    /// Source bytes done so far.
    pub done_bytes: u64,
    /// Source bytes in all.
    pub total_bytes: u64,
}

/// Follows the steps; a break ends the work, and nothing of it stays.
pub type Hear<'a> = &'a mut dyn FnMut(Step<'_>) -> ControlFlow<()>;

/// What could have been quantised and is not, though nobody asked for that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// The tensor, as it is written.
    pub name: String,
    /// Why.
    pub why: String,
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Matrices quantised; those of all experts of a mixture count as one.
    pub quantised: usize,
    /// Tensors that stay what they are.
    pub kept: usize,
    /// Those of them that have rows and columns, and that no override leaves dense.
    pub left: Vec<Left>,
    /// Bytes of tensors read.
    pub source_bytes: u64,
    /// Bytes of tensors written.
    pub target_bytes: u64,
}

/// Quantises `source` into the new folder `target`. `stacks` are its experts in one tensor for all, which are written apart, projection
/// by projection.
pub fn quantize(
    source: &Checkpoint,
    stacks: &[Stack],
    target: &Path,
    spec: &QuantizeSpec,
    hear: Hear<'_>,
) -> Result<Plan> {
    let Origin::Folder { config, .. } = &source.origin else {
        let expected = "a dense folder in the Hugging Face layout";
        return Err(Error::Source {
            path: source.path.clone(),
            found: "a GGUF file".into(),
            expected: expected.into(),
        });
    };
    if source.weights.quantisation().general().is_some() {
        let expected = "a dense folder: quantising twice loses what the first left";
        return Err(Error::Source {
            path: source.path.clone(),
            found: "a quantised folder".into(),
            expected: expected.into(),
        });
    }
    let planes = affine::ENTRY.planes.ok_or_else(|| Error::Value {
        what: "affine".into(),
        found: "no planes".into(),
        expected: "a format in planes".into(),
    })?;
    let Fates { fates, modules, mut plan } = Fates::of(&source.weights, stacks, (spec, planes))?;
    let specs: Vec<TensorSpec> = fates.iter().flat_map(|f| f.specs.iter().cloned()).collect();
    plan.target_bytes = specs.iter().filter_map(TensorSpec::bytes).sum();
    let folder = PendingFolder::create(target)?;
    let writer = SafeTensorsWriter::create(folder.path(), &specs, spec.shard_bytes, &[("format", "mlx")])?;
    let mut out = Out { writer, hear, done_bytes: 0, total_bytes: plan.source_bytes };
    for planned in &fates {
        out.tensor(&source.weights, planned, planes)?;
    }
    out.writer.finish()?;
    let quantisation = Quantisation::new(choice(spec), modules).to_json();
    let mut fields = config.fields().clone();
    fields.insert("quantization".into(), quantisation.clone());
    fields.insert("quantization_config".into(), quantisation);
    copy_beside(source, folder.path())?;
    write_json(&folder.path().join(CONFIG), &fields.into())?;
    folder.finish(CONFIG)?;
    Ok(plan)
}

const CONFIG: &str = "config.json";

fn choice(spec: &QuantizeSpec) -> Choice {
    Choice { bits: spec.bits, group: spec.group, mode: affine::ENTRY.name.into() }
}

/// Where tensors go, and who follows.
struct Out<'a> {
    writer: SafeTensorsWriter,
    hear: Hear<'a>,
    done_bytes: u64,
    total_bytes: u64,
}

impl Out<'_> {
    fn tensor(&mut self, weights: &Weights, planned: &Planned<'_>, planes: &Planes) -> Result<()> {
        let done = self.done_bytes;
        match &planned.fate {
            Fate::Copy(view) => self.writer.append(view.name, view.bytes)?,
            Fate::Pick { view, stack, row_bytes } => {
                let (mut bytes, row) = (Vec::new(), |r: usize| view.bytes.get(r * row_bytes..(r + 1) * row_bytes));
                stack.rows().for_each(|r| bytes.extend_from_slice(row(r).unwrap_or_default()));
                self.append(planned, 0, &bytes)?;
            }
            Fate::Matrices { from, form } => {
                for e in 0..from.len() {
                    let matrix = from.get(weights, e)?;
                    self.matrix(matrix.as_ref(), planned, (*form, planes))?;
                    matrix.done();
                }
            }
        }
        self.done_bytes = done + planned.source_bytes;
        self.step(planned.name)
    }

    fn append(&mut self, planned: &Planned<'_>, which: usize, bytes: &[u8]) -> Result<()> {
        match planned.specs.get(which) {
            Some(spec) => Ok(self.writer.append(&spec.name, bytes)?),
            None => Ok(()),
        }
    }

    fn step(&mut self, name: &str) -> Result<()> {
        match (self.hear)(Step { name, done_bytes: self.done_bytes, total_bytes: self.total_bytes }) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Stopped),
        }
    }

    /// One matrix, row blocks on all threads, written in order.
    fn matrix(&mut self, matrix: &dyn WeightSource, planned: &Planned<'_>, how: (Form, &Planes)) -> Result<()> {
        let (n, k) = matrix.shape();
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let starts: Vec<usize> = (0..n).step_by(ROWS).collect();
        for wave in starts.chunks(threads) {
            let blocks = std::thread::scope(|scope| {
                let range = |start| start..n.min(start + ROWS);
                let workers: Vec<_> = wave
                    .iter()
                    .map(|&start| scope.spawn(move || block(matrix, (planned.name, how), range(start))))
                    .collect();
                workers
                    .into_iter()
                    .map(|w| w.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                    .collect::<Result<Vec<_>>>()
            })?;
            for block in blocks {
                for (which, bytes) in block.iter().enumerate() {
                    self.append(planned, which, bytes)?;
                }
            }
            let rows: usize = wave.iter().map(|start| n.min(start + ROWS) - start).sum();
            self.done_bytes += (rows * k * how.0.source_size()) as u64;
            self.step(planned.name)?;
        }
        Ok(())
    }
}

/// Some rows: codes, scales and biases, or the dense rows alone.
fn block(
    matrix: &dyn WeightSource,
    (name, (form, planes)): (&str, (Form, &Planes)),
    range: std::ops::Range<usize>,
) -> Result<Vec<Vec<u8>>> {
    let (_, k) = matrix.shape();
    let spec = match form {
        Form::Dense(dtype) => {
            let mut rows = vec![0; range.len() * k * dtype.size()];
            range.zip(rows.chunks_mut(k * dtype.size())).for_each(|(row, out)| matrix.row_dense(row, out));
            return Ok(vec![rows]);
        }
        Form::Planes(spec) => spec,
    };
    let (code_bytes, scale_bytes) = (k * spec.bits as usize / 8, k / spec.group * spec.dtype.size());
    let mut codes = vec![0; range.len() * code_bytes];
    let mut scales = vec![0; range.len() * scale_bytes];
    let mut biases = scales.clone();
    let mut weights = vec![0.0; k];
    let out = codes.chunks_mut(code_bytes).zip(scales.chunks_mut(scale_bytes)).zip(biases.chunks_mut(scale_bytes));
    for (row, ((codes, scales), biases)) in range.zip(out) {
        matrix.row_f32(row, &mut weights);
        planes.quantise(name, spec, &weights, PlaneRow { codes, scales, biases })?;
    }
    Ok(vec![codes, scales, biases])
}

/// Tokenizer, templates and whatever else stands beside the weights.
fn copy_beside(source: &Checkpoint, target: &Path) -> Result<()> {
    if !source.path.is_dir() {
        return Ok(());
    }
    let copied = |path: &Path, e| Error::Copy { path: path.to_owned(), source: e };
    for entry in source.path.read_dir().map_err(|e| copied(&source.path, e))? {
        let entry = entry.map_err(|e| copied(&source.path, e))?;
        let (path, name) = (entry.path(), entry.file_name());
        let kept = matches!(path.extension().and_then(|e| e.to_str()), Some("json" | "jinja" | "model" | "txt" | "md"));
        let ours = name == CONFIG || name == "model.safetensors.index.json";
        if kept && !ours && path.is_file() {
            std::fs::copy(&path, target.join(&name)).map_err(|e| copied(&path, e))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overrides_read_and_match() {
        let o = Override::parse("*.mlp.down_proj=6:32", 64).unwrap();
        assert_eq!(o.choice, Some((6, 32)));
        assert!(o.matches("model.layers.3.mlp.down_proj") && !o.matches("model.layers.3.mlp.up_proj"));
        assert_eq!(Override::parse("lm_head=dense", 64).unwrap().choice, None);
        assert_eq!(Override::parse("lm_head=8", 64).unwrap().choice, Some((8, 64)));
        assert!(Override::parse("lm_head", 64).is_err() && Override::parse("x=y", 64).is_err());
    }
}
