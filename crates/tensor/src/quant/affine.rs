//! MLX's affine format: contiguous codes of 2 to 8 bits, a float scale and a float bias per group of 32, 64 or 128 weights,
//! in three tensors. Reads and writes. Source of the layout and of the rounding: mlx, `backend/cpu/quantized.cpp`.

use super::{PlaneRow, PlaneSpec, Planes, QuantEntry, bits};
use crate::dtype::DType;
use crate::form::{Form, Grouped, Levels, Scales};

/// The registry's row.
pub const ENTRY: QuantEntry = QuantEntry {
    name: "affine",
    about: "2 to 8 bits, float scale and bias per 32, 64 or 128 (MLX)",
    blocks: None,
    planes: Some(&PLANES),
};

static PLANES: Planes = Planes {
    bits: &[2, 3, 4, 5, 6, 8],
    groups: &[32, 64, 128],
    dtypes: &[DType::F32, DType::F16, DType::BF16],
    form,
    value: None,
    quantise: Some(quantise),
};

fn form(spec: PlaneSpec) -> Form {
    let scales = Scales::FloatBias(spec.dtype);
    Form::Grouped(Grouped { bits: spec.bits, levels: Levels::Offset(0), block: spec.group, scales })
}

const TWO_TO_23: f32 = (1 << 23) as f32;

/// Below this a scale would vanish in f16.
const SMALLEST_SCALE: f32 = 1e-7;

/// The end of the range with the larger magnitude becomes the bias and is met exactly; the scale is bent so that zero falls
/// on a code. Codes are rounded with the unrounded f32 scale and bias.
fn quantise(spec: PlaneSpec, row: &[f32], out: PlaneRow<'_>) {
    let top = ((1u32 << spec.bits) - 1) as f32;
    let mut codes = [0; 128];
    let packed = spec.group * usize::from(spec.bits) / 8;
    for (i, (group, packed)) in row.chunks_exact(spec.group).zip(out.codes.chunks_exact_mut(packed)).enumerate() {
        let (min, max) = range(group);
        let span = ((max - min) / top).max(SMALLEST_SCALE);
        let (edge, mut scale) = if min.abs() > max.abs() { (min, span) } else { (max, -span) };
        let steps = (edge / scale).round_ties_even();
        let mut bias = 0.0;
        if steps != 0.0 {
            scale = edge / steps;
            bias = edge;
        }
        let codes = &mut codes[..spec.group];
        for (code, &weight) in codes.iter_mut().zip(group) {
            // At this size the last bit of a float is worth 1: adding rounds to the nearest code, ties to even.
            *code = (((weight - bias) / scale).clamp(0.0, top) + TWO_TO_23).to_bits() as u8;
        }
        bits::pack(spec.bits, codes, packed);
        spec.dtype.write(out.scales, i, scale);
        spec.dtype.write(out.biases, i, bias);
    }
}

/// Smallest and largest weight, kept in eight lanes so that the compiler can compare eight at a time.
fn range(group: &[f32]) -> (f32, f32) {
    let (mut low, mut high) = ([f32::INFINITY; 8], [f32::NEG_INFINITY; 8]);
    for eight in group.as_chunks::<8>().0 {
        for ((low, high), &w) in low.iter_mut().zip(&mut high).zip(eight) {
            *low = if w < *low { w } else { *low };
            *high = if w > *high { w } else { *high };
        }
    }
    (low.into_iter().fold(f32::INFINITY, f32::min), high.into_iter().fold(f32::NEG_INFINITY, f32::max))
}
