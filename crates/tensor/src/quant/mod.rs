//! Weight formats: how the bytes of a file become integer codes with scales. One file a format, one row each in `QUANTS`.
//! A row says where codes and scales lie; the values follow from them in one place, so no format dequantises by itself.
//! It refuses to know files, tensor names and kernels. What several formats share lies in the folders `bits` and `source`.

pub mod affine;
pub mod bits;
pub mod iq4_nl;
pub mod mxfp4;
pub mod mxfp8;
pub mod nvfp4;
pub mod q2_k;
pub mod q3_k;
pub mod q4_0;
pub mod q4_1;
pub mod q4_k;
pub mod q5_0;
pub mod q5_1;
pub mod q5_k;
pub mod q6_k;
pub mod q8_0;
pub mod source;

pub use source::{BlockMatrix, DenseMatrix, Joined, Plain, PlaneBytes, PlaneMatrix, Rows, Turned};

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::form::{Form, Grouped, Levels};

/// Every format of this build, by name.
pub static QUANTS: &[QuantEntry] = &[
    affine::ENTRY,
    iq4_nl::ENTRY,
    mxfp4::ENTRY,
    mxfp8::ENTRY,
    nvfp4::ENTRY,
    q2_k::ENTRY,
    q3_k::ENTRY,
    q4_0::ENTRY,
    q4_1::ENTRY,
    q4_k::ENTRY,
    q5_0::ENTRY,
    q5_1::ENTRY,
    q5_k::ENTRY,
    q6_k::ENTRY,
    q8_0::ENTRY,
];

/// A weight format.
#[derive(Clone, Copy, Debug)]
pub struct QuantEntry {
    /// The word that a config or a command line spells; also the name of the format's file.
    pub name: &'static str,
    /// One line for people.
    pub about: &'static str,
    /// How it lies in one tensor of self-contained blocks (GGUF), if it can.
    pub blocks: Option<&'static Blocks>,
    /// How it lies in several tensors (MLX), if it can.
    pub planes: Option<&'static Planes>,
}

/// Finite weights in, whole blocks out.
pub type WriteBlocks = fn(&[f32], &mut [u8]);

/// One row of finite weights in, codes, scales and biases out.
pub type WritePlanes = fn(PlaneSpec, &[f32], PlaneRow<'_>);

/// A code and a scale byte in, a weight out.
pub type PlaneValue = fn(u8, u8) -> f32;

/// Rows made of self-contained blocks: codes and scales side by side.
#[derive(Debug)]
pub struct Blocks {
    /// GGUF's number for the type.
    pub ggml_type: u32,
    /// Weights in a block.
    pub weights: usize,
    /// Bytes of a block.
    pub bytes: usize,
    /// The compute form.
    pub form: Grouped,
    /// Whole blocks in, one code a byte out.
    pub codes: fn(&[u8], &mut [u8]),
    /// Whole blocks in, scale bytes out, as `form.scales` lays them out.
    pub scales: fn(&[u8], &mut [u8]),
    /// How it is written; none where the project only reads the format.
    pub quantise: Option<WriteBlocks>,
}

/// Rows whose codes, scales and perhaps biases are separate tensors: codes packed from the lowest bit up, without gaps.
#[derive(Debug)]
pub struct Planes {
    /// Widths of a code.
    pub bits: &'static [u8],
    /// Weights that share a scale.
    pub groups: &'static [usize],
    /// Types of a scale (and of a bias).
    pub dtypes: &'static [DType],
    /// The compute form of a checked spec.
    pub form: fn(PlaneSpec) -> Form,
    /// What a code of 8 bits is worth with its scale byte, where codes are no small integers: the form is then dense.
    pub value: Option<PlaneValue>,
    /// How it is written; none where the project only reads the format.
    pub quantise: Option<WritePlanes>,
}

/// The three choices that a format in planes leaves open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlaneSpec {
    /// Bits of a code.
    pub bits: u8,
    /// Weights that share a scale.
    pub group: usize,
    /// Type of a scale.
    pub dtype: DType,
}

/// Room for one row of K weights in planes.
#[derive(Debug)]
pub struct PlaneRow<'a> {
    /// K · bits / 8 bytes.
    pub codes: &'a mut [u8],
    /// K / group scales.
    pub scales: &'a mut [u8],
    /// K / group biases; empty where the format has none.
    pub biases: &'a mut [u8],
}

/// The row of that name.
pub fn find<'a>(rows: &'a [QuantEntry], name: &str) -> Option<&'a QuantEntry> {
    rows.iter().find(|row| row.name == name)
}

/// The blocks with that GGUF type number, with their row.
pub fn find_ggml(rows: &[QuantEntry], ggml_type: u32) -> Option<(&QuantEntry, &'static Blocks)> {
    rows.iter().find_map(|row| row.blocks.filter(|b| b.ggml_type == ggml_type).map(|b| (row, b)))
}

impl Blocks {
    /// Bytes of a row of `k` weights.
    pub fn row_bytes(&self, k: usize) -> usize {
        k / self.weights * self.bytes
    }

    /// The values of whole blocks: `level · scale (+ bias)`, each operation rounded to f32 (as gguf-py's `quants.py` does).
    /// `out` has `weights` elements for each block.
    pub fn dequantise(&self, blocks: &[u8], out: &mut [f32]) {
        for (block, out) in blocks.chunks_exact(self.bytes).zip(out.chunks_exact_mut(self.weights)) {
            let mut codes = [0; MAX_BLOCK];
            let mut scales = [0; MAX_BLOCK_SCALES];
            let codes = &mut codes[..self.weights];
            let scales = &mut scales[..self.form.row_scale_bytes(self.weights)];
            (self.codes)(block, codes);
            (self.scales)(block, scales);
            values(&self.form, codes, scales, out);
        }
    }

    /// Rows of weights to blocks. Refused where the format cannot be written or a weight is not finite.
    pub fn quantise(&self, name: &str, weights: &[f32], out: &mut [u8]) -> Result<()> {
        let quantise = self.quantise.ok_or_else(|| cannot_write(name))?;
        let n_blocks = weights.len() / self.weights;
        if !weights.len().is_multiple_of(self.weights) || out.len() != n_blocks * self.bytes {
            return Err(Error::shape(
                "quantise",
                (weights.len(), out.len()),
                (n_blocks * self.weights, n_blocks * self.bytes),
            ));
        }
        finite(weights)?;
        quantise(weights, out);
        Ok(())
    }
}

impl Planes {
    /// Checks the three choices against what the format takes. `what` names the tensor or module in the error.
    pub fn check(&self, what: &str, spec: PlaneSpec) -> Result<Form> {
        if !self.bits.contains(&spec.bits) {
            return Err(Error::value(format!("bits of {what}"), spec.bits, format!("one of {:?}", self.bits)));
        }
        if !self.groups.contains(&spec.group) {
            return Err(Error::value(format!("group size of {what}"), spec.group, format!("one of {:?}", self.groups)));
        }
        if !self.dtypes.contains(&spec.dtype) {
            let names: Vec<_> = self.dtypes.iter().map(|d| d.name()).collect();
            return Err(Error::value(
                format!("scale type of {what}"),
                spec.dtype,
                format!("one of {}", names.join(", ")),
            ));
        }
        Ok((self.form)(spec))
    }

    /// The form of a format that leaves no choice open.
    pub fn only(&self) -> Option<Form> {
        let (&[bits], &[group], &[dtype]) = (self.bits, self.groups, self.dtypes) else { return None };
        Some((self.form)(PlaneSpec { bits, group, dtype }))
    }

    /// One row of weights to planes. Refused where the format cannot be written or a weight is not finite.
    pub fn quantise(&self, name: &str, spec: PlaneSpec, row: &[f32], out: PlaneRow<'_>) -> Result<()> {
        let quantise = self.quantise.ok_or_else(|| cannot_write(name))?;
        let form = self.check(name, spec)?;
        let scale_bytes = row.len() / spec.group * spec.dtype.size();
        let found = (row.len() % spec.group, out.codes.len(), out.scales.len(), out.biases.len());
        let bias_bytes = if form.has_bias() { scale_bytes } else { 0 };
        let expected = (0, row.len() * usize::from(spec.bits) / 8, scale_bytes, bias_bytes);
        if found != expected {
            return Err(Error::shape("quantise (K mod group, codes, scales, biases)", found, expected));
        }
        finite(row)?;
        quantise(spec, row, out);
        Ok(())
    }
}

/// Weights in the largest block, and its scale bytes.
const MAX_BLOCK: usize = 256;
const MAX_BLOCK_SCALES: usize = 20;

fn cannot_write(name: &str) -> Error {
    Error::value("format to write", name, "a format that this build quantises to: affine, q4_0 or q8_0")
}

fn finite(weights: &[f32]) -> Result<()> {
    match weights.iter().position(|w| !w.is_finite()) {
        Some(at) => Err(Error::value(format!("weight {at}"), weights[at], "a finite number: the source is damaged")),
        None => Ok(()),
    }
}

/// `level · scale (+ bias)` for one row or block: `codes` and `out` have K elements, `scales` the scale bytes.
pub fn values(form: &Grouped, codes: &[u8], scales: &[u8], out: &mut [f32]) {
    const BLOCKS: usize = MAX_BLOCK / 16;
    let weights = form.scales.unit_weights(form.block);
    let units = codes.chunks_exact(weights).zip(scales.chunks_exact(form.scales.unit_bytes()));
    for ((codes, unit), out) in units.zip(out.chunks_exact_mut(weights)) {
        let (mut s, mut b) = ([0.0; BLOCKS], [0.0; BLOCKS]);
        let n_blocks = weights / form.block;
        form.decode_scales(unit, &mut s[..n_blocks], &mut b[..n_blocks]);
        let blocks = codes.chunks_exact(form.block).zip(out.chunks_exact_mut(form.block));
        for ((codes, out), (&s, &b)) in blocks.zip(s.iter().zip(&b)) {
            match form.levels {
                Levels::Offset(zero) => {
                    out.iter_mut().zip(codes).for_each(|(o, &c)| *o = (i32::from(c) - zero) as f32 * s);
                }
                Levels::Table(t) => {
                    out.iter_mut().zip(codes).for_each(|(o, &c)| *o = f32::from(t[usize::from(c & 15)]) * s);
                }
            }
            // Not added where there is none: -0 + 0 would be +0.
            if form.scales.has_bias() {
                out.iter_mut().for_each(|o| *o += b);
            }
        }
    }
}

/// Runs `one` over whole blocks: `B` bytes of the format in, `W` bytes (codes or scales) out.
pub(crate) fn each<const B: usize, const W: usize>(
    blocks: &[u8],
    out: &mut [u8],
    one: impl Fn(&[u8; B], &mut [u8; W]),
) {
    let (blocks, _) = blocks.as_chunks::<B>();
    let (out, _) = out.as_chunks_mut::<W>();
    for (block, out) in blocks.iter().zip(out) {
        one(block, out);
    }
}

#[cfg(test)]
mod tests;
