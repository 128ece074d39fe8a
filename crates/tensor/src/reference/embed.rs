//! Table rows by id.

use super::scratch;
use crate::backend::{Backend, Weight};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// See `Backend::embed`.
pub fn run<B: Backend + ?Sized>(b: &B, table: &Weight, ids: &[u32], scale: f32) -> Result<Tensor> {
    let source = b.unpack(table)?;
    let mut out = vec![0.0; ids.len() * table.k];
    for (&id, row) in ids.iter().zip(out.chunks_mut(table.k)) {
        if id as usize >= table.n {
            return Err(Error::value("token id", id, format!("an id below {}", table.n)));
        }
        source.row_f32(id as usize, row);
        row.iter_mut().for_each(|v| *v *= scale);
    }
    scratch(b, &out, &[ids.len(), table.k])
}
