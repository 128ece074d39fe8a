//! Weights by name, whatever file they lie in: raw views, matrices as the engine's `WeightSource`, small tensors as f32.
//! Bits and groups are worked out from the packed shapes and held against the config for every tensor.
//! It refuses to know what a tensor is for; it only remembers which names were used.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use reverie_tensor::quant::source::floats;
use reverie_tensor::quant::{self, BlockMatrix, DenseMatrix, PlaneBytes, PlaneMatrix, PlaneSpec, QuantEntry};
use reverie_tensor::{DType, Form, WeightSource};

use crate::element::{Element, Storage};
use crate::error::{Error, Result, excerpt};
use crate::gguf::Gguf;
use crate::mmap::FileBytes;
use crate::quantisation::{Choice, Quantisation, Rule};
use crate::safetensors::SafeTensors;

/// All tensors of a checkpoint.
#[derive(Debug)]
pub struct Weights {
    path: PathBuf,
    files: Vec<FileBytes>,
    tensors: BTreeMap<String, Slot>,
    quantisation: Quantisation,
    rows: Vec<QuantEntry>,
}

#[derive(Debug)]
struct Slot {
    file: usize,
    shape: Vec<usize>,
    storage: Storage,
    range: Range<usize>,
    used: AtomicBool,
}

/// One tensor as the file holds it.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Its name.
    pub name: &'a str,
    /// Extents, outermost first. A packed tensor of planes shows its words, not its weights.
    pub shape: &'a [usize],
    /// How its data is stored.
    pub storage: Storage,
    /// Its data.
    pub bytes: &'a [u8],
}

/// A matrix over mapped bytes. It gives them back while its rows are pulled, so that a large matrix never lies in memory
/// twice, mapped and packed.
struct Mapped<'a, S> {
    source: S,
    /// The tensors that it reads, with rows of one length each.
    held: Vec<(&'a FileBytes, Range<usize>)>,
    /// Rows that are given back together.
    stride: usize,
}

/// Bytes that are given back together: many pages, few system calls.
const RELEASE_BYTES: usize = 1 << 20;

impl<'a, S: WeightSource> Mapped<'a, S> {
    fn new(source: S, held: Vec<(&'a FileBytes, Range<usize>)>) -> Self {
        let (n, _) = source.shape();
        let bytes: usize = held.iter().map(|(_, range)| range.len()).sum();
        let stride = (RELEASE_BYTES / (bytes / n.max(1)).max(1)).max(1);
        Mapped { source, held, stride }
    }

    /// Every reader walks upwards, so whoever reaches a multiple of the stride leaves a stride of rows behind. If another reader
    /// still wants one of those, its page comes from the file again.
    fn pulled(&self, row: usize) {
        if row == 0 || !row.is_multiple_of(self.stride) {
            return;
        }
        let (n, _) = self.source.shape();
        for (file, range) in &self.held {
            let row_bytes = range.len() / n;
            let (first, last) = ((row - self.stride) * row_bytes, row * row_bytes);
            file.release(range.start + first..range.start + last);
        }
    }
}

impl<S: WeightSource> WeightSource for Mapped<'_, S> {
    fn shape(&self) -> (usize, usize) {
        self.source.shape()
    }
    fn form(&self) -> Form {
        self.source.form()
    }
    fn row_f32(&self, row: usize, out: &mut [f32]) {
        self.source.row_f32(row, out);
        self.pulled(row);
    }
    fn row_codes(&self, row: usize, out: &mut [u8]) {
        self.source.row_codes(row, out);
        self.pulled(row);
    }
    fn row_scales(&self, row: usize, out: &mut [u8]) {
        self.source.row_scales(row, out);
    }
    fn row_dense(&self, row: usize, out: &mut [u8]) {
        self.source.row_dense(row, out);
        self.pulled(row);
    }
    fn done(&self) {
        self.held.iter().for_each(|(file, range)| file.release(range.clone()));
    }
}

/// A matrix of the checkpoint.
pub type Matrix<'a> = Box<dyn WeightSource + 'a>;

impl Weights {
    /// The tensors of safetensors files, with what the config says about them and the formats to accept.
    pub fn from_safetensors(path: &Path, all: SafeTensors, quantisation: Quantisation, rows: &[QuantEntry]) -> Weights {
        let tensors = all.tensors.into_iter().map(|(name, (file, stored))| {
            let storage = Storage::Plain(stored.element);
            (name, Slot { file, shape: stored.shape, storage, range: stored.range, used: AtomicBool::new(false) })
        });
        let tensors = tensors.collect();
        Weights { path: path.to_owned(), files: all.files, tensors, quantisation, rows: rows.to_vec() }
    }

    /// The tensors of GGUF files.
    pub fn from_gguf(path: &Path, all: Gguf) -> Weights {
        let tensors = all.tensors.into_iter().map(|(name, (file, stored))| {
            let (shape, storage, range) = (stored.shape, stored.storage, stored.range);
            (name, Slot { file, shape, storage, range, used: AtomicBool::new(false) })
        });
        let (path, tensors) = (path.to_owned(), tensors.collect());
        Weights { path, files: all.files, tensors, quantisation: Quantisation::default(), rows: Vec::new() }
    }

    /// The folder or file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files that the tensors lie in.
    pub fn files(&self) -> &[FileBytes] {
        &self.files
    }

    /// What the config says about quantisation.
    pub fn quantisation(&self) -> &Quantisation {
        &self.quantisation
    }

    /// Every tensor, by name.
    pub fn iter(&self) -> impl Iterator<Item = View<'_>> {
        self.tensors.iter().map(|(name, slot)| self.show(name, slot))
    }

    /// The names of all tensors, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// True if there is a tensor of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Names that nothing has asked for.
    pub fn unused(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().filter(|(_, slot)| !slot.used.load(Ordering::Relaxed)).map(|(name, _)| name.as_str())
    }

    /// Bytes of all tensors.
    pub fn total_bytes(&self) -> u64 {
        self.tensors.values().map(|slot| slot.range.len() as u64).sum()
    }

    /// The tensor as the file holds it. Counts as used.
    pub fn view(&self, name: &str) -> Result<View<'_>> {
        let (name, slot) = self.find(name)?;
        Ok(self.show(name, slot))
    }

    /// A weight matrix `[N, K]`; leading extents of a stacked tensor count as rows. Planes need the config to say bits and
    /// group; where the caller knows the shape, `matrix_shaped` does not.
    pub fn matrix(&self, name: &str) -> Result<Matrix<'_>> {
        self.open(name, None)
    }

    /// A weight matrix of a known shape: anything else is refused.
    pub fn matrix_shaped(&self, name: &str, (n, k): (usize, usize)) -> Result<Matrix<'_>> {
        let matrix = self.open(name, Some(k))?;
        if matrix.shape() != (n, k) {
            let found = format!("{:?}", <[usize; 2]>::from(matrix.shape()));
            let expected = format!("[{n}, {k}], as the config has it");
            return Err(self.refuse(name, "shape", found, expected));
        }
        Ok(matrix)
    }

    /// A tensor of any shape as f32: its extents (those of the weights, also where they are packed) and its values.
    pub fn tensor_f32(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        let view = self.view(name)?;
        let mut shape = view.shape.to_vec();
        if let (Storage::Plain(element @ (Element::I64 | Element::I32)), None) = (view.storage, self.planes_of(name)) {
            return Ok((shape, self.whole_numbers(name, element, view.bytes)?));
        }
        if let (Storage::Plain(element), None) = (view.storage, self.planes_of(name)) {
            let dtype = self.float(name, element)?;
            let mut values = vec![0.0; view.bytes.len() / dtype.size()];
            floats(dtype, view.bytes, &mut values);
            return Ok((shape, values));
        }
        let matrix = self.matrix(name)?;
        let (n, k) = matrix.shape();
        if let Some(last) = shape.last_mut() {
            *last = k;
        }
        let mut values = vec![0.0; n * k];
        values.chunks_exact_mut(k).enumerate().for_each(|(row, out)| matrix.row_f32(row, out));
        Ok((shape, values))
    }

    /// A small tensor as f32, whatever its extents.
    pub fn vector(&self, name: &str) -> Result<Vec<f32>> {
        Ok(self.tensor_f32(name)?.1)
    }

    /// A small tensor of a known number of elements: anything else is refused.
    pub fn vector_shaped(&self, name: &str, n: usize) -> Result<Vec<f32>> {
        let (shape, values) = self.tensor_f32(name)?;
        if values.len() != n {
            return Err(self.refuse(
                name,
                "shape",
                format!("{shape:?}"),
                format!("{n} elements, as the config has it"),
            ));
        }
        Ok(values)
    }

    fn show<'a>(&'a self, name: &'a str, slot: &'a Slot) -> View<'a> {
        // Every range was checked against its file when the header was read.
        let bytes = self.files.get(slot.file).and_then(|file| file.bytes().get(slot.range.clone())).unwrap_or_default();
        View { name, shape: &slot.shape, storage: slot.storage, bytes }
    }

    fn find(&self, name: &str) -> Result<(&str, &Slot)> {
        let Some((name, slot)) = self.tensors.get_key_value(name) else {
            return Err(Error::NoTensor { path: self.path.clone(), name: excerpt(name), hint: self.hint(name) });
        };
        slot.used.store(true, Ordering::Relaxed);
        Ok((name, slot))
    }

    /// Names that end as the missing one does, else a few of any kind.
    fn hint(&self, name: &str) -> String {
        let ending = name.rsplitn(3, '.').take(2).collect::<Vec<_>>();
        let close = |other: &&String| other.rsplitn(3, '.').take(2).eq(ending.iter().copied());
        let mut some: Vec<_> = self.tensors.keys().filter(close).take(3).collect();
        if some.is_empty() {
            some = self.tensors.keys().take(3).collect();
        }
        let some: Vec<_> = some.iter().map(|n| format!("'{}'", excerpt(n))).collect();
        format!("; it holds {} tensors, such as {}", self.tensors.len(), some.join(", "))
    }

    /// The file that holds a tensor, for messages.
    fn file_of(&self, name: &str) -> &Path {
        let file = self.tensors.get(name).and_then(|slot| self.files.get(slot.file));
        file.map_or(&self.path, |file| file.path())
    }

    fn refuse(&self, name: &str, what: &str, found: impl std::fmt::Display, expected: impl Into<String>) -> Error {
        Error::format(self.file_of(name), format!("{what} of tensor '{}'", excerpt(name)), found, expected)
    }

    fn wrap(&self, name: &str) -> impl FnOnce(reverie_tensor::Error) -> Error {
        let (path, name) = (self.file_of(name).to_owned(), excerpt(name));
        move |source| Error::Tensor { path, name, source }
    }

    /// Whole numbers that f32 holds exactly.
    fn whole_numbers(&self, name: &str, element: Element, bytes: &[u8]) -> Result<Vec<f32>> {
        const EXACT: u64 = 1 << 24;
        let number = |b: &[u8]| match (element, b.first_chunk::<8>(), b.first_chunk::<4>()) {
            (Element::I64, Some(b), _) => i64::from_le_bytes(*b),
            (_, _, Some(b)) => i64::from(i32::from_le_bytes(*b)),
            _ => i64::MAX,
        };
        let exact = |b: &[u8]| match number(b) {
            n if n.unsigned_abs() <= EXACT => Ok(n as f32),
            n => Err(self.refuse(name, "value", n, "whole numbers up to 16777216")),
        };
        bytes.chunks_exact(if element == Element::I64 { 8 } else { 4 }).map(exact).collect()
    }

    fn float(&self, name: &str, element: Element) -> Result<DType> {
        element.dtype().filter(|dtype| dtype.is_float()).ok_or_else(|| {
            let expected = "F32, F16 or BF16, or U32 codes with .scales beside them";
            self.refuse(name, "element type", element.name(), expected)
        })
    }

    fn held(&self, slot: &Slot) -> Vec<(&FileBytes, Range<usize>)> {
        self.files.get(slot.file).map(|file| (file, slot.range.clone())).into_iter().collect()
    }

    /// Rows and row length of a tensor: the last extent, and the product of the others.
    fn rows_of(&self, name: &str, shape: &[usize]) -> Result<(usize, usize)> {
        match shape.split_last() {
            // The product was checked when the header was read; without zeros no part of it is larger.
            Some((&k, rows)) if !rows.is_empty() && !shape.contains(&0) => Ok((rows.iter().product(), k)),
            _ => {
                Err(self.refuse(name, "shape", format!("{shape:?}"), "a matrix: at least two extents, none of them 0"))
            }
        }
    }

    fn open(&self, name: &str, k: Option<usize>) -> Result<Matrix<'_>> {
        if !self.contains(name) && self.contains(&format!("{name}_blocks")) {
            return self.open_blocks(name);
        }
        let (name, slot) = self.find(name)?;
        let view = self.show(name, slot);
        let shape = self.rows_of(name, view.shape)?;
        match slot.storage {
            Storage::Blocks(_, blocks) => {
                let source = BlockMatrix::new(blocks, view.bytes, shape).map_err(self.wrap(name))?;
                Ok(Box::new(Mapped::new(source, self.held(slot))))
            }
            Storage::Plain(_) if self.planes_of(name).is_some() => self.open_planes(name, slot, k),
            Storage::Plain(element) => {
                let dtype = self.float(name, element)?;
                if let Rule::Own(choice) = self.quantisation.of(module_of(name)) {
                    return Err(self.refuse(
                        name,
                        "element type",
                        element.name(),
                        format!("{choice}, as the config has it"),
                    ));
                }
                let source = DenseMatrix::new(dtype, view.bytes, shape).map_err(self.wrap(name))?;
                Ok(Box::new(Mapped::new(source, self.held(slot))))
            }
        }
    }

    /// The name of the scales, if the tensor is packed codes with scales beside them.
    fn planes_of(&self, name: &str) -> Option<String> {
        let slot = self.tensors.get(name)?;
        let scales = format!("{}.scales", module_of(name));
        (matches!(slot.storage, Storage::Plain(Element::U32)) && self.contains(&scales)).then_some(scales)
    }

    fn open_planes<'a>(&'a self, name: &'a str, slot: &'a Slot, k: Option<usize>) -> Result<Matrix<'a>> {
        let module = module_of(name);
        let (scales_name, scales) = self.find(&format!("{module}.scales"))?;
        let (n, words) = self.rows_of(name, &slot.shape)?;
        let (scale_rows, groups) = self.rows_of(scales_name, &scales.shape)?;
        if scale_rows != n || groups == 0 || slot.shape.len() != scales.shape.len() {
            let expected = format!("{:?} without the last extent, as '{name}' has it", slot.shape);
            return Err(self.refuse(scales_name, "shape", format!("{:?}", scales.shape), expected));
        }
        let choice = self.choice(name, (words, groups), k)?;
        let planes = quant::find(&self.rows, &choice.mode).and_then(|row| row.planes).ok_or_else(|| {
            let known: Vec<_> = self.rows.iter().filter(|row| row.planes.is_some()).map(|row| row.name).collect();
            self.refuse(
                name,
                "quantisation mode",
                format!("'{}'", excerpt(&choice.mode)),
                format!("one of {}", known.join(", ")),
            )
        })?;
        let dtype = match scales.storage {
            Storage::Plain(element) => element.dtype().unwrap_or(DType::U32),
            Storage::Blocks(..) => DType::U32,
        };
        let spec = PlaneSpec { bits: choice.bits, group: choice.group, dtype };
        let form = planes.check(&format!("'{}'", excerpt(name)), spec).map_err(self.wrap(scales_name))?;
        let whole = format!("{module}.global_scale");
        if self.contains(&whole) {
            return Err(self.refuse(&whole, "factor over a whole tensor", "one", "none: it is not read"));
        }
        let mut held = self.held(slot);
        held.extend(self.held(scales));
        let mut biases: &[u8] = &[];
        if form.has_bias() {
            let (biases_name, slot) = self.find(&format!("{module}.biases"))?;
            if slot.shape != scales.shape || slot.storage.name() != scales.storage.name() {
                let found = format!("{} {:?}", slot.storage.name(), slot.shape);
                let expected = format!("{} {:?}, as the scales have it", scales.storage.name(), scales.shape);
                return Err(self.refuse(biases_name, "type and shape", found, expected));
            }
            biases = self.show(biases_name, slot).bytes;
            held.extend(self.held(slot));
        }
        let (codes, scales) = (self.show(name, slot).bytes, self.show(scales_name, scales).bytes);
        let bytes = PlaneBytes { codes, scales, biases };
        let k = groups.saturating_mul(choice.group);
        let source = PlaneMatrix::new(planes, spec, bytes, (n, k)).map_err(self.wrap(name))?;
        Ok(Box::new(Mapped::new(source, held)))
    }

    /// MXFP4 as gpt-oss stores it: `_blocks` `[.., N, K / 32, 16]` of nibbles in order, `_scales` `[.., N, K / 32]`.
    fn open_blocks(&self, name: &str) -> Result<Matrix<'_>> {
        let (blocks_name, blocks) = self.find(&format!("{name}_blocks"))?;
        let (scales_name, scales) = self.find(&format!("{name}_scales"))?;
        let (n, groups) = self.rows_of(scales_name, &scales.shape)?;
        let is_bytes = |slot: &Slot| matches!(slot.storage, Storage::Plain(Element::U8));
        if blocks.shape.split_last() != Some((&16, scales.shape.as_slice())) || !is_bytes(blocks) {
            let expected = format!("{:?} and 16 bytes each, U8", scales.shape);
            return Err(self.refuse(blocks_name, "shape", format!("{:?}", blocks.shape), expected));
        }
        if !is_bytes(scales) {
            return Err(self.refuse(scales_name, "element type", scales.storage.name(), "U8 exponents"));
        }
        let planes = quant::find(&self.rows, "mxfp4").and_then(|row| row.planes);
        let planes = planes.ok_or_else(|| self.refuse(blocks_name, "format", "mxfp4", "one that this build reads"))?;
        let spec = PlaneSpec { bits: 4, group: 32, dtype: DType::U8 };
        let held = self.held(blocks).into_iter().chain(self.held(scales)).collect();
        let (codes, scales) = (self.show(blocks_name, blocks).bytes, self.show(scales_name, scales).bytes);
        let k = groups.saturating_mul(32);
        let source = PlaneMatrix::new(planes, spec, PlaneBytes { codes, scales, biases: &[] }, (n, k))
            .map_err(self.wrap(blocks_name))?;
        Ok(Box::new(Mapped::new(source, held)))
    }

    /// Bits and group of packed codes. A row of `words` u32 with `groups` scales fixes bits · group = 32 · words / groups;
    /// a known K fixes both. Whatever the shapes fix, the config must say too.
    fn choice(&self, name: &str, (words, groups): (usize, usize), k: Option<usize>) -> Result<Choice> {
        let shapes = format!("{words} words and {groups} scales a row");
        let packed_bits = words.checked_mul(32).filter(|bits| bits.is_multiple_of(groups));
        let Some(packed_bits) = packed_bits else {
            return Err(self.refuse(name, "packed shape", shapes, "whole groups of codes"));
        };
        let said = match self.quantisation.of(module_of(name)) {
            Rule::Unsaid => None,
            Rule::General(choice) | Rule::Own(choice) => Some(choice),
            Rule::Dense => {
                return Err(self.refuse(
                    name,
                    "packed codes",
                    shapes,
                    "plain weights: the config says false for this module",
                ));
            }
        };
        let detected = match k {
            Some(k) if k > 0 && packed_bits.is_multiple_of(k) && k.is_multiple_of(groups) => {
                Some((packed_bits / k, k / groups))
            }
            Some(k) => {
                return Err(self.refuse(
                    name,
                    "packed shape",
                    shapes,
                    format!("codes and groups that divide rows of {k} weights"),
                ));
            }
            None => None,
        };
        match (said, detected) {
            (Some(said), Some((bits, group))) if (usize::from(said.bits), said.group) != (bits, group) => {
                let found = format!("{bits} bits in groups of {group} ({shapes})");
                Err(self.refuse(name, "quantisation", found, format!("{said}, as the config has it")))
            }
            (Some(said), None) if usize::from(said.bits).checked_mul(said.group) != Some(packed_bits / groups) => {
                let found = format!("{} bits a group ({shapes})", packed_bits / groups);
                Err(self.refuse(name, "quantisation", found, format!("{said}, as the config has it")))
            }
            (Some(said), _) => Ok(said.clone()),
            (None, Some((bits, group))) => {
                let bits = u8::try_from(bits).map_err(|_| self.refuse(name, "bits", bits, "2 to 8"))?;
                Ok(Choice { mode: "affine".into(), bits, group })
            }
            (None, None) => {
                let expected = "a `quantization` object with bits and group_size in config.json";
                Err(self.refuse(name, "quantisation", "packed codes, and nothing about them in the config", expected))
            }
        }
    }
}

/// A tensor's module: its name without `.weight`.
fn module_of(name: &str) -> &str {
    name.strip_suffix(".weight").unwrap_or(name)
}

#[cfg(test)]
mod tests;
