//! Table rows by id, out of the panels. Knows nothing of tokens beyond their number.

use reverie_tensor::{Backend, Error, Result, Tensor, Weight};

use super::{host, split};
use crate::Cpu;

/// See `Backend::embed`.
pub(crate) fn run(cpu: &Cpu, table: &Weight, ids: &[u32], scale: f32) -> Result<Tensor> {
    if let Some(id) = ids.iter().find(|&&id| id as usize >= table.n) {
        return Err(Error::value("token id", id, format!("an id below {}", table.n)));
    }
    let source = cpu.unpack(table)?;
    let k = table.k;
    let mut y = cpu.out(&[ids.len(), k])?;
    let out = split::Parts::new(host::f32s_mut("embed", &mut y)?);
    // A row of a panel shares its cache lines with fifteen others: it costs about sixteen plain ones.
    split::ranges(cpu, ids.len(), 16 * k, &|range| {
        for i in range {
            // SAFETY: every row is written by one task.
            let row = unsafe { out.part(i * k..(i + 1) * k) };
            source.row_f32(ids[i] as usize, row);
            row.iter_mut().for_each(|v| *v *= scale);
        }
    });
    Ok(y)
}
