//! The softmax of a row: its largest value, one chain a lane of exponentials, joined in one order. Knows rows only.

use reverie_tensor::{Error, Result, Tensor};

use super::{host, norm, split};
use crate::simd::{LANES, Lanes, math};
use crate::{Cpu, dispatch};

/// See `Backend::softmax`.
pub(crate) fn run(cpu: &Cpu, x: Tensor) -> Result<Tensor> {
    let d = x.width();
    if d == 0 {
        return Err(Error::shape("softmax", x.shape(), "rows of at least one value"));
    }
    let rows = x.rows().max(1);
    let mut x = x;
    let mut y = if x.is_unique() { None } else { Some(cpu.out(x.dims())?) };
    if let Some(y) = &mut y {
        host::f32s_mut("softmax", y)?.copy_from_slice(host::f32s("softmax", &x)?);
    }
    let mut y = y.unwrap_or(x);
    let out = split::Parts::new(host::f32s_mut("softmax", &mut y)?);
    split::ranges(cpu, rows, 8 * d, &|rows| {
        // SAFETY: the ranges of rows are disjoint.
        let part = unsafe { out.part(rows.start * d..rows.end * d) };
        dispatch!(cpu.isa, rows_of(part: &mut [f32], d: usize));
    });
    Ok(y)
}

#[inline(always)]
unsafe fn rows_of<S: Lanes>(x: &mut [f32], d: usize) {
    for row in x.chunks_exact_mut(d) {
        let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        // SAFETY: every access is within the row; the set is the caller's.
        unsafe {
            let top = S::splat(top);
            for k in (0..d).step_by(LANES) {
                let p = row.as_mut_ptr().add(k);
                S::store_n(p, d - k, math::exp::<S>(S::sub(S::load_n(p, d - k), top)));
            }
            let sum = S::splat(norm::row_sum::<S>(row, |acc, v, _| S::add(acc, v)));
            for k in (0..d).step_by(LANES) {
                let p = row.as_mut_ptr().add(k);
                S::store_n(p, d - k, S::div(S::load_n(p, d - k), sum));
            }
        }
    }
}
