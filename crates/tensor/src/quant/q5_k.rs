//! Q5_K: 256 weights as f16 multipliers, eight 6-bit scale and minimum pairs, a plane of fifth bits and nibble planes.
//! Source of the layout: ggml, `ggml-common.h`, `block_q5_K`.

use super::{Blocks, QuantEntry, bits, each};
use crate::form::{Grouped, Levels, Scales};

/// The registry's row.
pub const ENTRY: QuantEntry = QuantEntry {
    name: "q5_k",
    about: "5 bits, 6-bit scale and minimum per 32 (GGUF)",
    blocks: Some(&BLOCKS),
    planes: None,
};

const WEIGHTS: usize = 256;
const BYTES: usize = 176;
const _: () = assert!(BYTES == 4 + 12 + WEIGHTS / 8 + WEIGHTS / 2);

static BLOCKS: Blocks = Blocks {
    ggml_type: 13,
    weights: WEIGHTS,
    bytes: BYTES,
    form: Grouped { bits: 5, levels: Levels::Offset(0), block: 32, scales: Scales::Six8 },
    codes,
    scales,
    quantise: None,
};

fn codes(blocks: &[u8], out: &mut [u8]) {
    each(blocks, out, |block: &[u8; BYTES], out: &mut [u8; WEIGHTS]| {
        let (parts, _) = block[16..].as_chunks::<32>();
        if let [fifth, quarters @ ..] = parts {
            quarters.iter().zip(out.chunks_exact_mut(64)).for_each(|(quarter, out)| bits::nibbles(quarter, out));
            bits::planes_onto::<4>(fifth, out);
        }
    });
}

fn scales(blocks: &[u8], out: &mut [u8]) {
    each(blocks, out, |block: &[u8; BYTES], out: &mut [u8; 16]| out.copy_from_slice(&block[..16]));
}
