//! Q4_0: 32 weights as an f16 scale and 4-bit codes around 8, low nibbles first. Reads and writes.
//! Source of the layout and of the rounding: ggml, `ggml-quants.c`, `quantize_row_q4_0_ref`.

use half::f16;

use super::{Blocks, QuantEntry, bits, each};
use crate::dtype::DType;
use crate::form::{Grouped, Levels, Scales};

/// The registry's row.
pub const ENTRY: QuantEntry =
    QuantEntry { name: "q4_0", about: "4 bits, f16 scale per 32 (GGUF)", blocks: Some(&BLOCKS), planes: None };

const WEIGHTS: usize = 32;
const BYTES: usize = 18;
const _: () = assert!(BYTES == 2 + WEIGHTS / 2);

static BLOCKS: Blocks = Blocks {
    ggml_type: 2,
    weights: WEIGHTS,
    bytes: BYTES,
    form: Grouped { bits: 4, levels: Levels::Offset(8), block: WEIGHTS, scales: Scales::Float(DType::F16) },
    codes,
    scales,
    quantise: Some(quantise),
};

fn codes(blocks: &[u8], out: &mut [u8]) {
    each(blocks, out, |[_, _, low_high @ ..]: &[u8; BYTES], out: &mut [u8; WEIGHTS]| bits::nibbles(low_high, out));
}

fn scales(blocks: &[u8], out: &mut [u8]) {
    each(blocks, out, |[a, b, ..]: &[u8; BYTES], out: &mut [u8; 2]| *out = [*a, *b]);
}

/// The weight of largest magnitude becomes code 0 (level -8); the others are rounded to the nearest code.
fn quantise(weights: &[f32], out: &mut [u8]) {
    for (weights, block) in weights.chunks_exact(WEIGHTS).zip(out.chunks_exact_mut(BYTES)) {
        let edge = weights.iter().fold(0.0f32, |m, &w| if w.abs() > m.abs() { w } else { m });
        let scale = edge / -8.0;
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        let code = |w: f32| ((w * inverse + 8.5) as u8).min(15);
        block[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
        for (i, byte) in block[2..].iter_mut().enumerate() {
            *byte = code(weights[i]) | code(weights[i + WEIGHTS / 2]) << 4;
        }
    }
}
