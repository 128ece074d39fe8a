//! Weight matrices over borrowed bytes: blocks, planes and plain floats, each shown as a `WeightSource`; and views that
//! select or join rows of any of them. Lengths are checked once, when a matrix is made.

mod view;

pub use view::{Joined, Plain, Rows, Turned};

use super::{Blocks, PlaneSpec, PlaneValue, Planes, bits, values};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::form::{Form, WeightSource};

/// Refuses rows that no compute form takes.
fn check_k(what: &str, n: usize, k: usize, step: usize) -> Result<()> {
    if k == 0 || !k.is_multiple_of(step) {
        return Err(Error::value(
            format!("row length of {what} [{n}, {k}]"),
            k,
            format!("a multiple of {step} above 0"),
        ));
    }
    Ok(())
}

/// Refuses a byte length that contradicts the shape.
fn check_len(what: String, found: usize, (n, row): (usize, usize), detail: String) -> Result<()> {
    match n.checked_mul(row) {
        Some(expected) if expected == found => Ok(()),
        expected => Err(Error::Length { what, found, expected: expected.unwrap_or(usize::MAX), detail }),
    }
}

/// A matrix of self-contained blocks.
#[derive(Clone, Copy, Debug)]
pub struct BlockMatrix<'a> {
    blocks: &'static Blocks,
    bytes: &'a [u8],
    n: usize,
    k: usize,
}

impl<'a> BlockMatrix<'a> {
    /// `bytes` holds N rows of K weights, one after another.
    pub fn new(blocks: &'static Blocks, bytes: &'a [u8], (n, k): (usize, usize)) -> Result<Self> {
        check_k("a block matrix", n, k, blocks.weights)?;
        let detail = format!("[{n}, {k}] in blocks of {} bytes for {} weights", blocks.bytes, blocks.weights);
        check_len("block matrix".into(), bytes.len(), (n, blocks.row_bytes(k)), detail)?;
        Ok(BlockMatrix { blocks, bytes, n, k })
    }

    fn row(&self, row: usize) -> &'a [u8] {
        let len = self.blocks.row_bytes(self.k);
        &self.bytes[row * len..][..len]
    }
}

impl WeightSource for BlockMatrix<'_> {
    fn shape(&self) -> (usize, usize) {
        (self.n, self.k)
    }
    fn form(&self) -> Form {
        Form::Grouped(self.blocks.form.clone())
    }
    fn row_f32(&self, row: usize, out: &mut [f32]) {
        self.blocks.dequantise(self.row(row), out);
    }
    fn row_codes(&self, row: usize, out: &mut [u8]) {
        (self.blocks.codes)(self.row(row), out);
    }
    fn row_scales(&self, row: usize, out: &mut [u8]) {
        (self.blocks.scales)(self.row(row), out);
    }
    fn row_dense(&self, _row: usize, _out: &mut [u8]) {
        unreachable!("the form says so: blocks have no dense rows");
    }
}

/// The tensors of a matrix in planes.
#[derive(Clone, Copy, Debug)]
pub struct PlaneBytes<'a> {
    /// `[N, K · bits / 8]` bytes.
    pub codes: &'a [u8],
    /// `[N, K / group]` scales.
    pub scales: &'a [u8],
    /// `[N, K / group]` biases; empty where the format has none.
    pub biases: &'a [u8],
}

/// A matrix whose codes, scales and biases are separate tensors.
#[derive(Clone, Debug)]
pub struct PlaneMatrix<'a> {
    form: Form,
    value: Option<PlaneValue>,
    spec: PlaneSpec,
    bytes: PlaneBytes<'a>,
    n: usize,
    k: usize,
}

impl<'a> PlaneMatrix<'a> {
    /// Checks the spec against the format and the lengths against the shape.
    pub fn new(planes: &Planes, spec: PlaneSpec, bytes: PlaneBytes<'a>, (n, k): (usize, usize)) -> Result<Self> {
        let what = format!("a matrix [{n}, {k}] of {} bits in groups of {}", spec.bits, spec.group);
        let form = planes.check(&what, spec)?;
        check_k(&what, n, k, spec.group.max(32))?;
        let (size, groups) = (spec.dtype.size(), k / spec.group);
        check_len("codes".into(), bytes.codes.len(), (n, k / 8 * usize::from(spec.bits)), what.clone())?;
        check_len("scales".into(), bytes.scales.len(), (n, groups * size), what.clone())?;
        let bias_row = if form.has_bias() { groups * size } else { 0 };
        check_len("biases".into(), bytes.biases.len(), (n, bias_row), what)?;
        Ok(PlaneMatrix { form, value: planes.value, spec, bytes, n, k })
    }

    /// Row `row` of a tensor that has N rows.
    fn row<'b>(&self, tensor: &'b [u8], row: usize) -> &'b [u8] {
        let len = tensor.len() / self.n;
        &tensor[row * len..][..len]
    }

    /// The weights of a row whose codes and scales are bytes.
    fn weights(&self, value: PlaneValue, row: usize) -> impl Iterator<Item = f32> {
        let codes = self.row(self.bytes.codes, row).chunks_exact(self.spec.group);
        let groups = codes.zip(self.row(self.bytes.scales, row));
        groups.flat_map(move |(codes, &scale)| codes.iter().map(move |&code| value(code, scale)))
    }
}

impl WeightSource for PlaneMatrix<'_> {
    fn shape(&self) -> (usize, usize) {
        (self.n, self.k)
    }
    fn form(&self) -> Form {
        self.form.clone()
    }
    fn row_f32(&self, row: usize, out: &mut [f32]) {
        let form = match (&self.form, self.value) {
            (Form::Dense(dtype), Some(value)) => {
                return out.iter_mut().zip(self.weights(value, row)).for_each(|(o, w)| *o = dtype.rounded(w));
            }
            (Form::Dense(_), None) => unreachable!("dense planes say what a code is worth"),
            (Form::Grouped(form), _) => form,
        };
        // Group by group, so that nothing is allocated.
        let (block, bits, size) = (form.block, form.bits, self.spec.dtype.size());
        let (codes, scales) = (self.row(self.bytes.codes, row), self.row(self.bytes.scales, row));
        let biases = self.row(self.bytes.biases, row);
        let (mut group, mut unit) = ([0; 128], [0; 8]);
        let units = codes.chunks_exact(block * usize::from(bits) / 8).zip(out.chunks_exact_mut(block)).enumerate();
        for (i, (packed, out)) in units {
            bits::unpack(bits, packed, &mut group[..block]);
            let span = i * size..(i + 1) * size;
            let used = form.scales.unit_bytes();
            unit[..size].copy_from_slice(&scales[span.clone()]);
            if !biases.is_empty() {
                unit[size..used].copy_from_slice(&biases[span]);
            }
            values(form, &group[..block], &unit[..used], out);
        }
    }
    fn row_codes(&self, row: usize, out: &mut [u8]) {
        bits::unpack(self.spec.bits, self.row(self.bytes.codes, row), out);
    }
    fn row_scales(&self, row: usize, out: &mut [u8]) {
        let scales = self.row(self.bytes.scales, row);
        if self.bytes.biases.is_empty() {
            out.copy_from_slice(scales);
            return;
        }
        let size = self.spec.dtype.size();
        let pairs = scales.chunks_exact(size).zip(self.row(self.bytes.biases, row).chunks_exact(size));
        for (out, (scale, bias)) in out.chunks_exact_mut(2 * size).zip(pairs) {
            let (out_scale, out_bias) = out.split_at_mut(size);
            out_scale.copy_from_slice(scale);
            out_bias.copy_from_slice(bias);
        }
    }
    fn row_dense(&self, row: usize, out: &mut [u8]) {
        let (Form::Dense(dtype), Some(value)) = (&self.form, self.value) else {
            unreachable!("the form says so: these planes have no dense rows")
        };
        self.weights(value, row).enumerate().for_each(|(i, w)| dtype.write(out, i, w));
    }
}

/// A matrix of plain floats.
#[derive(Clone, Copy, Debug)]
pub struct DenseMatrix<'a> {
    dtype: DType,
    bytes: &'a [u8],
    n: usize,
    k: usize,
}

impl<'a> DenseMatrix<'a> {
    /// `bytes` holds N rows of K little-endian floats.
    pub fn new(dtype: DType, bytes: &'a [u8], (n, k): (usize, usize)) -> Result<Self> {
        if !dtype.is_float() {
            return Err(Error::value("element type of a dense matrix", dtype, "f32, f16 or bf16"));
        }
        let detail = format!("[{n}, {k}] {dtype}");
        check_len("dense matrix".into(), bytes.len(), (n, k.saturating_mul(dtype.size())), detail)?;
        Ok(DenseMatrix { dtype, bytes, n, k })
    }

    fn row(&self, row: usize) -> &'a [u8] {
        let len = self.k * self.dtype.size();
        &self.bytes[row * len..][..len]
    }
}

impl WeightSource for DenseMatrix<'_> {
    fn shape(&self) -> (usize, usize) {
        (self.n, self.k)
    }
    fn form(&self) -> Form {
        Form::Dense(self.dtype)
    }
    fn row_f32(&self, row: usize, out: &mut [f32]) {
        floats(self.dtype, self.row(row), out);
    }
    fn row_codes(&self, _row: usize, _out: &mut [u8]) {
        unreachable!("the form says so: dense weights have no codes");
    }
    fn row_scales(&self, _row: usize, _out: &mut [u8]) {
        unreachable!("the form says so: dense weights have no scales");
    }
    fn row_dense(&self, row: usize, out: &mut [u8]) {
        out.copy_from_slice(self.row(row));
    }
}

/// Little-endian floats to f32. `bytes` has `out.len()` elements of a float dtype.
pub fn floats(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        DType::F32 => {
            let (words, _) = bytes.as_chunks::<4>();
            out.iter_mut().zip(words).for_each(|(o, w)| *o = f32::from_le_bytes(*w));
        }
        DType::BF16 => {
            let (words, _) = bytes.as_chunks::<2>();
            out.iter_mut().zip(words).for_each(|(o, w)| *o = f32::from_bits(u32::from(u16::from_le_bytes(*w)) << 16));
        }
        _ => out.iter_mut().enumerate().for_each(|(i, o)| *o = dtype.read(bytes, i)),
    }
}
