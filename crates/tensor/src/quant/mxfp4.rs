//! MXFP4: 32 weights as one exponent byte and 4-bit floats (e2m1), whose doubled values are small integers.
//! As blocks in GGUF (low nibbles first), as planes in MLX (nibbles in order).
//! Sources: OCP Microscaling Formats 1.0; ggml, `ggml-common.h`, `block_mxfp4`; mlx, `fp_quantized.h`.

use super::{Blocks, PlaneSpec, Planes, QuantEntry, bits, each};
use crate::dtype::DType;
use crate::form::{Form, Grouped, Levels, Scales};

/// The registry's row.
pub const ENTRY: QuantEntry = QuantEntry {
    name: "mxfp4",
    about: "4-bit floats, power-of-two scale per 32 (GGUF, MLX)",
    blocks: Some(&BLOCKS),
    planes: Some(&PLANES),
};

const WEIGHTS: usize = 32;
const BYTES: usize = 17;
const _: () = assert!(BYTES == 1 + WEIGHTS / 2);

const FORM: Grouped = Grouped { bits: 4, levels: Levels::Table(LEVELS), block: WEIGHTS, scales: Scales::Exponent };

/// The sixteen e2m1 values, doubled.
pub(super) const LEVELS: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

static BLOCKS: Blocks =
    Blocks { ggml_type: 39, weights: WEIGHTS, bytes: BYTES, form: FORM, codes, scales, quantise: None };

static PLANES: Planes =
    Planes { bits: &[4], groups: &[WEIGHTS], dtypes: &[DType::U8], form: plane_form, value: None, quantise: None };

fn plane_form(_: PlaneSpec) -> Form {
    Form::Grouped(FORM)
}

fn codes(blocks: &[u8], out: &mut [u8]) {
    each(blocks, out, |[_, low_high @ ..]: &[u8; BYTES], out: &mut [u8; WEIGHTS]| bits::nibbles(low_high, out));
}

fn scales(blocks: &[u8], out: &mut [u8]) {
    each(blocks, out, |[exponent, ..]: &[u8; BYTES], out: &mut [u8; 1]| *out = [*exponent]);
}
