//! Weight panels: sixteen output rows side by side, K in order, codes at their native bits, scales in their native form. The
//! one copy that a loaded matrix has. Knows the compute forms and no file format.
//!
//! A panel of grouped weights goes by slices of 512 k: a slice's scales, then its codes, so that memory is read in one
//! stream. Scales go by units of the format, each field of a unit for sixteen rows side by side. Codes go by units of 32 k: per
//! unit the 4-bit plane, the 2-bit plane, the 1-bit plane (whichever the width needs; 8 bits are one plane of bytes), 64
//! bytes for every bit. A dense panel is `[K][16]` floats.

mod codes;
mod layout;
mod scales;
mod source;

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use reverie_tensor::buffer::Buffer;
use reverie_tensor::{Backend, Class, DType, Error, Form, Levels, Result, Scales, Weight, WeightSource};

use super::split::Parts;
use crate::Cpu;
use crate::simd::LANES;

pub(crate) use codes::{Bytes, Expand, ExpandFloat, Packed, Table, Width, each_quad};
pub(crate) use layout::{Grain, GroupedLayout, GroupedSlice, Layout};
pub(crate) use scales::{DecodeScales, Whole, fetch_ahead, whole_scales};

/// Weights along K of a unit.
pub(crate) const UNIT: usize = 32;

/// Weights along K of a slice: a multiple of the 256 that a unit of scales may serve.
pub(crate) const SLICE: usize = 512;

/// Bytes of one bit of a unit: sixteen rows.
pub(crate) const PLANE: usize = UNIT * LANES / 8;

/// A packed matrix.
pub(crate) struct Panels {
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) form: Form,
    pub(crate) layout: Layout,
    /// Bytes from one panel to the next.
    pub(crate) stride: usize,
    buffer: Buffer,
}

impl Panels {
    /// The panels behind a weight that this backend packed.
    pub(crate) fn of(weight: &Weight) -> Result<&Panels> {
        let any: &(dyn Any + Send + Sync) = &*weight.packed;
        any.downcast_ref::<Panels>().ok_or_else(|| Error::Unsupported {
            backend: "cpu",
            what: format!("use {weight:?}, which another backend packed; pack it again"),
        })
    }

    /// Panels in all.
    pub(crate) fn count(&self) -> usize {
        self.n.div_ceil(LANES)
    }

    /// The bytes of one panel.
    pub(crate) fn panel(&self, i: usize) -> &[u8] {
        self.panels(i, 1)
    }

    /// The bytes of `count` panels.
    pub(crate) fn panels(&self, i: usize, count: usize) -> &[u8] {
        let (all, stride) = (self.buffer.bytes().unwrap_or(&[]), self.stride);
        &all[i * stride..(i + count) * stride]
    }
}

/// See `Backend::packed_bytes`.
pub(crate) fn packed_bytes(n: usize, k: usize, form: &Form) -> usize {
    n.div_ceil(LANES) * LANES * form.row_bytes(k)
}

/// See `Backend::pack`.
pub(crate) fn pack(cpu: &Cpu, source: &dyn WeightSource, bias: Option<&[f32]>, class: Class) -> Result<Weight> {
    let ((n, k), form) = (source.shape(), source.form());
    check(n, k, &form)?;
    if let Some(b) = bias
        && b.len() != n
    {
        return Err(Error::shape("bias of a weight", b.len(), [n]));
    }
    let mut buffer = cpu.memory.take(packed_bytes(n, k, &form), class)?;
    let stride = LANES * form.row_bytes(k);
    let panels = n.div_ceil(LANES);
    let out = Parts::new(buffer.bytes_mut().ok_or_else(|| super::host::elsewhere("pack"))?);
    let next = AtomicUsize::new(0);
    cpu.pool.run(cpu.threads().min(panels), &|_| {
        let mut rows = Rows::new(source, &form);
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= panels {
                return;
            }
            // SAFETY: every panel is taken by one task.
            let panel = unsafe { out.part(i * stride..(i + 1) * stride) };
            rows.pack(i * LANES, panel);
        }
    });
    source.done();
    let bias = bias.map(|b| cpu.upload(b, &[n], DType::F32, class)).transpose()?;
    let panels = Panels { n, k, form: form.clone(), layout: Layout::of(&form), stride, buffer };
    Ok(Weight { n, k, form, bias, packed: Arc::new(panels) })
}

/// See `Backend::unpack`.
pub(crate) fn unpack(weight: &Weight) -> Result<Box<dyn WeightSource + '_>> {
    Ok(Box::new(source::View(Panels::of(weight)?)))
}

/// Refuses shapes and forms that the panels cannot hold.
fn check(n: usize, k: usize, form: &Form) -> Result<()> {
    let refuse = |what: &str, found: String, expected: &str| Err(Error::value(what, found, expected));
    if n == 0 || k == 0 || n.checked_mul(k).and_then(|e| e.checked_mul(8)).is_none() {
        return refuse(
            "shape of a weight",
            format!("[{n}, {k}]"),
            "both extents at least 1, and a size that fits memory",
        );
    }
    let g = match form {
        Form::Dense(d) if d.is_float() => return Ok(()),
        Form::Dense(d) => return refuse("type of a dense weight", d.to_string(), "f32, f16 or bf16"),
        Form::Grouped(g) => g,
    };
    if !matches!(g.bits, 2 | 3 | 4 | 5 | 6 | 8) {
        return refuse("bits of a weight", g.bits.to_string(), "2, 3, 4, 5, 6 or 8");
    }
    if matches!(g.levels, Levels::Table(_)) && g.bits != 4 {
        return refuse("bits of table levels", g.bits.to_string(), "4");
    }
    if let Levels::Offset(zero) = g.levels
        && !(-255..=255).contains(&zero)
    {
        return refuse("zero of integer levels", zero.to_string(), "-255 to 255");
    }
    // Their sums are to fit the halves of an i32.
    if g.scales == Scales::Nibbles16 && (g.bits != 2 || !matches!(g.levels, Levels::Offset(0..=3))) {
        return refuse(
            "codes under nibbles for scales",
            format!("{} bits, {:?}", g.bits, g.levels),
            "2 bits and a zero of 0 to 3",
        );
    }
    let blocks: &[usize] = match g.scales {
        Scales::Float(d) if d.is_float() => &[16, 32, 64, 128],
        Scales::FloatBias(d) if d.is_float() => &[32, 64, 128],
        Scales::Float8 => &[16, 32, 64, 128],
        Scales::Float(d) | Scales::FloatBias(d) => return refuse("type of a scale", d.to_string(), "f32, f16 or bf16"),
        Scales::Exponent | Scales::Six8 => &[32],
        Scales::Nibbles16 | Scales::Six16 | Scales::Byte16 => &[16],
    };
    if !blocks.contains(&g.block) {
        return refuse(
            "block of a weight's scales",
            g.block.to_string(),
            &format!("one of {blocks:?} for {:?}", g.scales),
        );
    }
    let multiple = g.block.max(UNIT).max(g.scales.unit_weights(g.block));
    if !k.is_multiple_of(multiple) {
        return refuse(
            "length of a weight's rows",
            k.to_string(),
            &format!("a multiple of {multiple} for this format"),
        );
    }
    Ok(())
}

/// Sixteen rows pulled from a source, and the way into a panel.
struct Rows<'a> {
    source: &'a dyn WeightSource,
    form: &'a Form,
    n: usize,
    k: usize,
    /// Codes, or the floats of a dense row: sixteen rows one after another.
    values: Vec<u8>,
    scales: Vec<u8>,
}

impl<'a> Rows<'a> {
    fn new(source: &'a dyn WeightSource, form: &'a Form) -> Rows<'a> {
        let (n, k) = source.shape();
        let (row, scale_row) = match form {
            Form::Dense(d) => (k * d.size(), 0),
            Form::Grouped(g) => (k, g.row_scale_bytes(k)),
        };
        Rows { source, form, n, k, values: vec![0; LANES * row], scales: vec![0; LANES * scale_row] }
    }

    /// Pulls rows `first..first + 16` and writes them into `panel`; rows beyond the matrix are zeros.
    fn pack(&mut self, first: usize, panel: &mut [u8]) {
        let row = self.values.len() / LANES;
        for (i, out) in self.values.chunks_exact_mut(row).enumerate() {
            match self.form {
                _ if first + i >= self.n => out.fill(0),
                Form::Dense(_) => self.source.row_dense(first + i, out),
                Form::Grouped(_) => self.source.row_codes(first + i, out),
            }
        }
        match self.form {
            Form::Dense(d) => match d.size() {
                2 => scales::interleave::<2>(&self.values, row, panel),
                _ => scales::interleave::<4>(&self.values, row, panel),
            },
            Form::Grouped(g) => {
                let row = self.scales.len() / LANES;
                for (i, out) in self.scales.chunks_exact_mut(row).enumerate() {
                    if first + i < self.n { self.source.row_scales(first + i, out) } else { out.fill(0) }
                }
                for (i, out) in panel.chunks_mut(LANES * g.row_bytes(SLICE)).enumerate() {
                    let (at, len) = (i * SLICE, (self.k - i * SLICE).min(SLICE));
                    let (scales_out, codes_out) = out.split_at_mut(LANES * g.row_scale_bytes(len));
                    scales::pack(g, &self.scales[g.row_scale_bytes(at)..], row, scales_out);
                    codes::pack(g.bits, &self.values[at..], self.k, codes_out);
                }
            }
        }
    }
}
