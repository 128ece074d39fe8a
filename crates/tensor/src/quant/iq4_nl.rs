//! IQ4_NL: 32 weights as an f16 scale and 4-bit codes into sixteen unevenly spaced levels.
//! Source of the layout and of the levels: ggml, `ggml-common.h`, `block_iq4_nl` and `kvalues_iq4nl`.

use super::{Blocks, QuantEntry, bits, each};
use crate::dtype::DType;
use crate::form::{Grouped, Levels, Scales};

/// The registry's row.
pub const ENTRY: QuantEntry = QuantEntry {
    name: "iq4_nl",
    about: "4 bits into 16 uneven levels, f16 scale per 32 (GGUF)",
    blocks: Some(&BLOCKS),
    planes: None,
};

const WEIGHTS: usize = 32;
const BYTES: usize = 18;
const _: () = assert!(BYTES == 2 + WEIGHTS / 2);

static BLOCKS: Blocks = Blocks {
    ggml_type: 20,
    weights: WEIGHTS,
    bytes: BYTES,
    form: Grouped { bits: 4, levels: Levels::Table(LEVELS), block: WEIGHTS, scales: Scales::Float(DType::F16) },
    codes,
    scales,
    quantise: None,
};

const LEVELS: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

fn codes(blocks: &[u8], out: &mut [u8]) {
    each(blocks, out, |[_, _, low_high @ ..]: &[u8; BYTES], out: &mut [u8; WEIGHTS]| bits::nibbles(low_high, out));
}

fn scales(blocks: &[u8], out: &mut [u8]) {
    each(blocks, out, |[a, b, ..]: &[u8; BYTES], out: &mut [u8; 2]| *out = [*a, *b]);
}
