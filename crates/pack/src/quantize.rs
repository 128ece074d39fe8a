//! Dense folder in, MLX affine folder out. Matrices are read, quantised and written row by row; nothing is held whole. Each file
//! appears whole or not at all, config.json last: a folder that was cut short does not load.

use std::collections::BTreeMap;
use std::path::Path;

use reverie_files::{
    Checkpoint, Choice, Element, Origin, Quantisation, SafeTensorsWriter, Storage, TensorSpec, View, write_json,
};
use reverie_tensor::WeightSource;
use reverie_tensor::quant::{PlaneRow, PlaneSpec, Planes, affine};

use crate::error::{Error, Result};

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
    /// Module name ("model.layers.0.mlp.down_proj"); `*` stands for any text.
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

/// Progress: a tensor is done.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// The tensor.
    pub name: &'a str,
    /// Source bytes done so far.
    pub done_bytes: u64,
    /// Source bytes in all.
    pub total_bytes: u64,
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Matrices quantised.
    pub quantised: usize,
    /// Tensors kept as they were.
    pub kept: usize,
    /// Bytes of tensors read.
    pub source_bytes: u64,
    /// Bytes of tensors written.
    pub target_bytes: u64,
}

/// What happens to one tensor.
enum Fate {
    Keep(Element),
    Quantise { module: String, spec: PlaneSpec, n: usize, k: usize },
}

/// Quantises `source` into the new folder `target`. `hear` follows the tensors.
pub fn quantize(
    source: &Checkpoint,
    target: &Path,
    spec: &QuantizeSpec,
    hear: &mut dyn FnMut(Step<'_>),
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
    if target.exists() && target.read_dir().is_ok_and(|mut d| d.next().is_some()) {
        let expected = "a folder that is empty or does not exist yet";
        return Err(Error::Source {
            path: target.to_owned(),
            found: "a folder with files in it".into(),
            expected: expected.into(),
        });
    }
    let planes = affine::ENTRY.planes.ok_or_else(|| Error::Value {
        what: "affine".into(),
        found: "no planes".into(),
        expected: "a format in planes".into(),
    })?;
    let (mut fates, mut specs, mut modules) = (Vec::new(), Vec::new(), BTreeMap::new());
    let mut plan = Plan::default();
    for view in source.weights.iter() {
        let fate = fate(&view, spec, planes)?;
        plan.source_bytes += view.bytes.len() as u64;
        match &fate {
            Fate::Keep(element) => {
                plan.kept += 1;
                specs.push(TensorSpec { name: view.name.into(), element: *element, shape: view.shape.to_vec() });
            }
            Fate::Quantise { module, spec: own, n, k } => {
                plan.quantised += 1;
                let scale = Element::parse(&own.dtype.name().to_uppercase()).unwrap_or(Element::F32);
                let words = k * own.bits as usize / 32;
                let named = |leaf: &str| format!("{module}.{leaf}");
                specs.push(TensorSpec { name: named("weight"), element: Element::U32, shape: vec![*n, words] });
                for leaf in ["scales", "biases"] {
                    specs.push(TensorSpec { name: named(leaf), element: scale, shape: vec![*n, k / own.group] });
                }
                if (own.bits, own.group) != (spec.bits, spec.group) {
                    modules.insert(module.clone(), Some(Choice { bits: own.bits, group: own.group, ..choice(spec) }));
                }
            }
        }
        fates.push((view, fate));
    }
    let module =
        |o: &&Override| fates.iter().any(|(v, _)| v.name.strip_suffix(".weight").is_some_and(|m| o.matches(m)));
    if let Some(idle) = spec.overrides.iter().find(|o| !module(o)) {
        return Err(Error::Value {
            what: "override".into(),
            found: format!("'{}', which no module's name matches", idle.pattern),
            expected: "a whole name such as model.layers.0.mlp.down_proj, with * for any text".into(),
        });
    }
    plan.target_bytes = specs.iter().filter_map(TensorSpec::bytes).sum();
    let mut writer = SafeTensorsWriter::create(target, &specs, spec.shard_bytes, &[("format", "mlx")])?;
    let mut done = 0;
    for (view, fate) in &fates {
        match fate {
            Fate::Keep(_) => writer.append(view.name, view.bytes)?,
            Fate::Quantise { module, spec, n, k } => {
                let matrix = source.weights.matrix_shaped(view.name, (*n, *k))?;
                rows(matrix.as_ref(), planes, (module, *spec), &mut writer)?;
                matrix.done();
            }
        }
        done += view.bytes.len() as u64;
        hear(Step { name: view.name, done_bytes: done, total_bytes: plan.source_bytes });
    }
    writer.finish()?;
    let quantisation = Quantisation::new(choice(spec), modules).to_json();
    let mut fields = config.fields().clone();
    fields.insert("quantization".into(), quantisation.clone());
    fields.insert("quantization_config".into(), quantisation);
    copy_beside(source, target)?;
    write_json(&target.join("config.json"), &fields.into())?;
    Ok(plan)
}

fn choice(spec: &QuantizeSpec) -> Choice {
    Choice { bits: spec.bits, group: spec.group, mode: "affine".into() }
}

/// Matrices of projections and embeddings are quantised where K allows it; vectors, convolutions and the rest are kept.
fn fate(view: &View<'_>, spec: &QuantizeSpec, planes: &Planes) -> Result<Fate> {
    let Storage::Plain(element) = view.storage else {
        return Err(Error::Value {
            what: view.name.into(),
            found: "packed blocks".into(),
            expected: "plain floats".into(),
        });
    };
    let (Some(module), &[n, k], Some(dtype)) = (view.name.strip_suffix(".weight"), view.shape, element.dtype()) else {
        return Ok(Fate::Keep(element));
    };
    let own = spec.overrides.iter().find(|o| o.matches(module)).map(|o| o.choice);
    let Some((bits, group)) = own.unwrap_or(Some((spec.bits, spec.group))) else { return Ok(Fate::Keep(element)) };
    let plane = PlaneSpec { bits, group, dtype };
    planes.check(module, plane)?;
    if !dtype.is_float() || n == 0 || !k.is_multiple_of(group) || !k.is_multiple_of(32) {
        return Ok(Fate::Keep(element));
    }
    Ok(Fate::Quantise { module: module.into(), spec: plane, n, k })
}

/// One matrix, row blocks on all threads, written in order.
fn rows(
    matrix: &dyn WeightSource,
    planes: &Planes,
    (module, spec): (&str, PlaneSpec),
    writer: &mut SafeTensorsWriter,
) -> Result<()> {
    let (n, _) = matrix.shape();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let starts: Vec<usize> = (0..n).step_by(ROWS).collect();
    for wave in starts.chunks(threads) {
        let blocks = std::thread::scope(|scope| {
            let workers: Vec<_> = wave
                .iter()
                .map(|&start| scope.spawn(move || block(matrix, planes, (module, spec), start..n.min(start + ROWS))))
                .collect();
            workers
                .into_iter()
                .map(|w| w.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect::<Result<Vec<_>>>()
        })?;
        for [codes, scales, biases] in blocks {
            writer.append(&format!("{module}.weight"), &codes)?;
            writer.append(&format!("{module}.scales"), &scales)?;
            writer.append(&format!("{module}.biases"), &biases)?;
        }
    }
    Ok(())
}

/// Codes, scales and biases of some rows.
fn block(
    matrix: &dyn WeightSource,
    planes: &Planes,
    (module, spec): (&str, PlaneSpec),
    range: std::ops::Range<usize>,
) -> Result<[Vec<u8>; 3]> {
    let (_, k) = matrix.shape();
    let (code_bytes, scale_bytes) = (k * spec.bits as usize / 8, k / spec.group * spec.dtype.size());
    let mut codes = vec![0; range.len() * code_bytes];
    let mut scales = vec![0; range.len() * scale_bytes];
    let mut biases = scales.clone();
    let mut weights = vec![0.0; k];
    let out = codes.chunks_mut(code_bytes).zip(scales.chunks_mut(scale_bytes)).zip(biases.chunks_mut(scale_bytes));
    for (row, ((codes, scales), biases)) in range.zip(out) {
        matrix.row_f32(row, &mut weights);
        planes.quantise(module, spec, &weights, PlaneRow { codes, scales, biases })?;
    }
    Ok([codes, scales, biases])
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
        let ours = name == "config.json" || name == "model.safetensors.index.json";
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
