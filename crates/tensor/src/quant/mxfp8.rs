//! MXFP8: 32 weights as one exponent byte and 8-bit floats (e4m3), in planes. Their values are no small integers, and have four bits of
//! mantissa: every one is a bf16, and that is how they are held and computed with.
//! Sources: OCP Microscaling Formats 1.0; mlx, `fp8.h` and `fp_quantized.h`.

use super::{PlaneSpec, Planes, QuantEntry};
use crate::dtype::DType;
use crate::form::{Form, float8};

/// The registry's row.
pub const ENTRY: QuantEntry = QuantEntry {
    name: "mxfp8",
    about: "8-bit floats, power-of-two scale per 32, held as bf16 (MLX)",
    blocks: None,
    planes: Some(&PLANES),
};

static PLANES: Planes =
    Planes { bits: &[8], groups: &[32], dtypes: &[DType::U8], form, value: Some(value), quantise: None };

fn form(_: PlaneSpec) -> Form {
    Form::Dense(DType::BF16)
}

/// The float times 2^(scale - 127).
fn value(code: u8, scale: u8) -> f32 {
    let power = if scale == 0 { f32::from_bits(1 << 22) } else { f32::from_bits(u32::from(scale) << 23) };
    float8(code) * power
}
