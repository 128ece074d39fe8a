//! A backend made of the reference alone: weights as rows of codes and scales, everything else by the default bodies.

use std::sync::Arc;

use crate::backend::{Backend, Numerics, Weight};
use crate::buffer::{Class, Memory};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::form::{Form, WeightSource};
use crate::tensor::Tensor;

/// The scalar reference as a backend.
pub struct Reference {
    memory: Memory,
    numerics: Numerics,
}

impl Reference {
    /// A reference with its own memory.
    pub fn new(numerics: Numerics) -> Reference {
        Reference { memory: Memory::host(), numerics }
    }
}

/// Rows as the source gave them.
struct Rows {
    n: usize,
    k: usize,
    form: Form,
    values: Vec<f32>,
    codes: Vec<u8>,
    scales: Vec<u8>,
    dense: Vec<u8>,
}

struct RowsView<'a>(&'a Rows);

impl WeightSource for RowsView<'_> {
    fn shape(&self) -> (usize, usize) {
        (self.0.n, self.0.k)
    }
    fn form(&self) -> Form {
        self.0.form.clone()
    }
    fn row_f32(&self, row: usize, out: &mut [f32]) {
        out.copy_from_slice(&self.0.values[row * self.0.k..(row + 1) * self.0.k]);
    }
    fn row_codes(&self, row: usize, out: &mut [u8]) {
        out.copy_from_slice(&self.0.codes[row * self.0.k..(row + 1) * self.0.k]);
    }
    fn row_scales(&self, row: usize, out: &mut [u8]) {
        let n = out.len();
        out.copy_from_slice(&self.0.scales[row * n..(row + 1) * n]);
    }
    fn row_dense(&self, row: usize, out: &mut [u8]) {
        let n = out.len();
        out.copy_from_slice(&self.0.dense[row * n..(row + 1) * n]);
    }
}

impl Backend for Reference {
    fn name(&self) -> &'static str {
        "reference"
    }

    fn numerics(&self) -> Numerics {
        self.numerics
    }

    fn memory(&self) -> &Memory {
        &self.memory
    }

    fn alloc(&self, shape: &[usize], dtype: DType, class: Class) -> Result<Tensor> {
        let mut t = Tensor::host(&self.memory, shape, dtype, class)?;
        if let Some(bytes) = t.host_bytes_mut() {
            bytes.fill(0);
        }
        Ok(t)
    }

    fn upload(&self, values: &[f32], shape: &[usize], dtype: DType, class: Class) -> Result<Tensor> {
        let mut t = Tensor::host(&self.memory, shape, dtype, class)?;
        if t.shape().elements() != values.len() {
            return Err(Error::shape("upload", values.len(), t.shape()));
        }
        if let Some(bytes) = t.host_bytes_mut() {
            values.iter().enumerate().for_each(|(i, &v)| dtype.write(bytes, i, v));
        }
        Ok(t)
    }

    fn read(&self, x: &Tensor) -> Result<Vec<f32>> {
        let bytes = self.read_bytes(x)?;
        Ok((0..x.shape().elements()).map(|i| x.dtype().read(&bytes, i)).collect())
    }

    fn read_bytes(&self, x: &Tensor) -> Result<Vec<u8>> {
        x.host_bytes().map(<[u8]>::to_vec).ok_or_else(|| not_here("read a tensor that is not on the host"))
    }

    fn write_bytes(&self, x: &mut Tensor, bytes: &[u8]) -> Result<()> {
        let len = x.len_bytes();
        let target = x.host_bytes_mut().ok_or_else(|| not_here("write a tensor that is shared or not on the host"))?;
        if bytes.len() != len {
            return Err(Error::shape("write_bytes", bytes.len(), len));
        }
        target.copy_from_slice(bytes);
        Ok(())
    }

    fn copy(&self, x: &Tensor, class: Class) -> Result<Tensor> {
        let mut t = Tensor::host(&self.memory, x.dims(), x.dtype(), class)?;
        let bytes = self.read_bytes(x)?;
        self.write_bytes(&mut t, &bytes)?;
        Ok(t)
    }

    fn pack(&self, source: &dyn WeightSource, bias: Option<&[f32]>, class: Class) -> Result<Weight> {
        let ((n, k), form) = (source.shape(), source.form());
        let mut rows = Rows {
            n,
            k,
            form: form.clone(),
            values: vec![0.0; n * k],
            codes: Vec::new(),
            scales: Vec::new(),
            dense: Vec::new(),
        };
        for r in 0..n {
            source.row_f32(r, &mut rows.values[r * k..(r + 1) * k]);
        }
        match &form {
            Form::Dense(d) => {
                rows.dense = vec![0; n * k * d.size()];
                rows.dense.chunks_mut(k * d.size()).enumerate().for_each(|(r, out)| source.row_dense(r, out));
            }
            Form::Grouped(g) => {
                rows.codes = vec![0; n * k];
                rows.codes.chunks_mut(k).enumerate().for_each(|(r, out)| source.row_codes(r, out));
                let per_row = g.row_scale_bytes(k);
                rows.scales = vec![0; n * per_row];
                rows.scales.chunks_mut(per_row).enumerate().for_each(|(r, out)| source.row_scales(r, out));
            }
        }
        source.done();
        let bias = bias.map(|b| self.upload(b, &[b.len()], DType::F32, class)).transpose()?;
        Ok(Weight { n, k, form, bias, packed: Arc::new(rows) })
    }

    fn unpack<'a>(&'a self, weight: &'a Weight) -> Result<Box<dyn WeightSource + 'a>> {
        let rows = weight.packed.downcast_ref::<Rows>().ok_or_else(|| not_here("unpack another backend's weight"))?;
        Ok(Box::new(RowsView(rows)))
    }

    fn packed_bytes(&self, n: usize, k: usize, form: &Form) -> usize {
        n * form.row_bytes(k)
    }
}

fn not_here(what: &str) -> Error {
    Error::Unsupported { backend: "reference", what: what.to_owned() }
}
