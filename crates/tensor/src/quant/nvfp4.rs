//! NVFP4: 16 weights as one 8-bit float (e4m3) and 4-bit floats (e2m1), whose doubled values are small integers; in planes. Without a
//! factor over the whole tensor, as MLX writes it.
//! Source: mlx, `fp4.h`, `fp8.h` and `fp_quantized.h`.

use super::{PlaneSpec, Planes, QuantEntry, mxfp4};
use crate::dtype::DType;
use crate::form::{Form, Grouped, Levels, Scales};

/// The registry's row.
pub const ENTRY: QuantEntry = QuantEntry {
    name: "nvfp4",
    about: "4-bit floats, 8-bit float scale per 16 (MLX)",
    blocks: None,
    planes: Some(&PLANES),
};

static PLANES: Planes = Planes { bits: &[4], groups: &[16], dtypes: &[DType::U8], form, value: None, quantise: None };

fn form(spec: PlaneSpec) -> Form {
    Form::Grouped(Grouped { bits: 4, levels: Levels::Table(mxfp4::LEVELS), block: spec.group, scales: Scales::Float8 })
}
