//! Q3_K: 256 weights as a plane of third bits, two-bit planes, sixteen 6-bit scales and their f16 multiplier; codes
//! around 4. Source of the layout: ggml, `ggml-common.h`, `block_q3_K`.

use super::{Blocks, QuantEntry, bits, each};
use crate::form::{Grouped, Levels, Scales};

/// The registry's row.
pub const ENTRY: QuantEntry =
    QuantEntry { name: "q3_k", about: "3 bits, 6-bit scale per 16 (GGUF)", blocks: Some(&BLOCKS), planes: None };

const WEIGHTS: usize = 256;
const BYTES: usize = 110;
const _: () = assert!(BYTES == WEIGHTS / 8 + WEIGHTS / 4 + 12 + 2);

static BLOCKS: Blocks = Blocks {
    ggml_type: 11,
    weights: WEIGHTS,
    bytes: BYTES,
    form: Grouped { bits: 3, levels: Levels::Offset(4), block: 16, scales: Scales::Six16 },
    codes,
    scales,
    quantise: None,
};

fn codes(blocks: &[u8], out: &mut [u8]) {
    each(blocks, out, |block: &[u8; BYTES], out: &mut [u8; WEIGHTS]| {
        let (parts, _) = block[..96].as_chunks();
        if let [third, first_half, second_half] = parts {
            bits::crumbs(first_half, &mut out[..128]);
            bits::crumbs(second_half, &mut out[128..]);
            bits::planes_onto::<2>(third, out);
        }
    });
}

fn scales(blocks: &[u8], out: &mut [u8]) {
    each(blocks, out, |block: &[u8; BYTES], out: &mut [u8; 14]| {
        out[..2].copy_from_slice(&block[108..]);
        out[2..].copy_from_slice(&block[96..108]);
    });
}
