//! Q8_0: 32 weights as an f16 scale and signed bytes. Reads and writes.
//! Source of the layout and of the rounding: ggml, `ggml-quants.c`, `quantize_row_q8_0_ref`.

use half::f16;

use super::{Blocks, QuantEntry, each};
use crate::dtype::DType;
use crate::form::{Grouped, Levels, Scales};

/// The registry's row.
pub const ENTRY: QuantEntry =
    QuantEntry { name: "q8_0", about: "8 bits, f16 scale per 32 (GGUF)", blocks: Some(&BLOCKS), planes: None };

const WEIGHTS: usize = 32;
const BYTES: usize = 34;
const _: () = assert!(BYTES == 2 + WEIGHTS);

static BLOCKS: Blocks = Blocks {
    ggml_type: 8,
    weights: WEIGHTS,
    bytes: BYTES,
    form: Grouped { bits: 8, levels: Levels::Offset(128), block: WEIGHTS, scales: Scales::Float(DType::F16) },
    codes,
    scales,
    quantise: Some(quantise),
};

/// Flipping the top bit turns a signed byte into a code around 128.
const TOP: u8 = 0x80;

fn codes(blocks: &[u8], out: &mut [u8]) {
    each(blocks, out, |[_, _, signed @ ..]: &[u8; BYTES], out: &mut [u8; WEIGHTS]| {
        out.iter_mut().zip(signed).for_each(|(code, byte)| *code = byte ^ TOP);
    });
}

fn scales(blocks: &[u8], out: &mut [u8]) {
    each(blocks, out, |[a, b, ..]: &[u8; BYTES], out: &mut [u8; 2]| *out = [*a, *b]);
}

/// Scale amax/127; levels rounded to nearest, halves away from zero.
fn quantise(weights: &[f32], out: &mut [u8]) {
    for (weights, block) in weights.chunks_exact(WEIGHTS).zip(out.chunks_exact_mut(BYTES)) {
        let scale = weights.iter().fold(0.0f32, |m, w| m.max(w.abs())) / 127.0;
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        block[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
        block[2..].iter_mut().zip(weights).for_each(|(b, w)| *b = (w * inverse).round() as i8 as u8);
    }
}
