//! Q5_0: 32 weights as an f16 scale, a word of fifth bits and nibbles; codes around 16.
//! Source of the layout: ggml, `ggml-common.h`, `block_q5_0`.

use super::{Blocks, QuantEntry, bits, each};
use crate::dtype::DType;
use crate::form::{Grouped, Levels, Scales};

/// The registry's row.
pub const ENTRY: QuantEntry =
    QuantEntry { name: "q5_0", about: "5 bits, f16 scale per 32 (GGUF)", blocks: Some(&BLOCKS), planes: None };

const WEIGHTS: usize = 32;
const BYTES: usize = 22;
const _: () = assert!(BYTES == 2 + 4 + WEIGHTS / 2);

static BLOCKS: Blocks = Blocks {
    ggml_type: 6,
    weights: WEIGHTS,
    bytes: BYTES,
    form: Grouped { bits: 5, levels: Levels::Offset(16), block: WEIGHTS, scales: Scales::Float(DType::F16) },
    codes,
    scales,
    quantise: None,
};

fn codes(blocks: &[u8], out: &mut [u8]) {
    each(blocks, out, |[_, _, a, b, c, d, low_high @ ..]: &[u8; BYTES], out: &mut [u8; WEIGHTS]| {
        bits::nibbles(low_high, out);
        bits::fifth_bits_onto(&[*a, *b, *c, *d], out);
    });
}

fn scales(blocks: &[u8], out: &mut [u8]) {
    each(blocks, out, |[a, b, ..]: &[u8; BYTES], out: &mut [u8; 2]| *out = [*a, *b]);
}
