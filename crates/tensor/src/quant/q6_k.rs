//! Q6_K: 256 weights as nibble planes, two-bit planes of the upper bits, sixteen signed byte scales and their f16
//! multiplier; codes around 32. Source of the layout: ggml, `ggml-common.h`, `block_q6_K`.

use super::{Blocks, QuantEntry, bits, each};
use crate::form::{Grouped, Levels, Scales};

/// The registry's row.
pub const ENTRY: QuantEntry =
    QuantEntry { name: "q6_k", about: "6 bits, 8-bit scale per 16 (GGUF)", blocks: Some(&BLOCKS), planes: None };

const WEIGHTS: usize = 256;
const BYTES: usize = 210;
const _: () = assert!(BYTES == WEIGHTS / 2 + WEIGHTS / 4 + 16 + 2);

static BLOCKS: Blocks = Blocks {
    ggml_type: 14,
    weights: WEIGHTS,
    bytes: BYTES,
    form: Grouped { bits: 6, levels: Levels::Offset(32), block: 16, scales: Scales::Byte16 },
    codes,
    scales,
    quantise: None,
};

fn codes(blocks: &[u8], out: &mut [u8]) {
    each(blocks, out, |block: &[u8; BYTES], out: &mut [u8; WEIGHTS]| {
        let (low, _) = block[..128].as_chunks::<64>();
        let (high, _) = block[128..192].as_chunks::<32>();
        for ((low, high), out) in low.iter().zip(high).zip(out.chunks_exact_mut(128)) {
            bits::nibbles(low, out);
            bits::crumbs_onto(high, out);
        }
    });
}

fn scales(blocks: &[u8], out: &mut [u8]) {
    each(blocks, out, |block: &[u8; BYTES], out: &mut [u8; 18]| {
        out[..2].copy_from_slice(&block[208..]);
        out[2..].copy_from_slice(&block[192..208]);
    });
}
