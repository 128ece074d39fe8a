//! Q2_K: 256 weights as sixteen 4-bit scale and minimum pairs, two-bit planes, and f16 multipliers of both.
//! Source of the layout: ggml, `ggml-common.h`, `block_q2_K`.

use super::{Blocks, QuantEntry, bits, each};
use crate::form::{Grouped, Levels, Scales, in_halves};

/// The registry's row.
pub const ENTRY: QuantEntry = QuantEntry {
    name: "q2_k",
    about: "2 bits, 4-bit scale and minimum per 16 (GGUF)",
    blocks: Some(&BLOCKS),
    planes: None,
};

const WEIGHTS: usize = 256;
const BYTES: usize = 84;
const _: () = assert!(BYTES == 16 + WEIGHTS / 4 + 4);

static BLOCKS: Blocks = Blocks {
    ggml_type: 10,
    weights: WEIGHTS,
    bytes: BYTES,
    form: Grouped { bits: 2, levels: Levels::Offset(0), block: 16, scales: Scales::Nibbles16 },
    codes,
    scales,
    quantise: None,
};

fn codes(blocks: &[u8], out: &mut [u8]) {
    each(blocks, out, |block: &[u8; BYTES], out: &mut [u8; WEIGHTS]| {
        let (planes, _) = block[16..80].as_chunks();
        planes.iter().zip(out.chunks_exact_mut(128)).for_each(|(planes, out)| bits::crumbs(planes, out));
    });
}

fn scales(blocks: &[u8], out: &mut [u8]) {
    each(blocks, out, |block: &[u8; BYTES], out: &mut [u8; 20]| {
        out[..4].copy_from_slice(&block[80..]);
        out[4..].iter_mut().enumerate().for_each(|(i, o)| *o = block[in_halves(i)]);
    });
}
