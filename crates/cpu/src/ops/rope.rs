//! Rotary embedding, in place where the tensor is unshared. The turns of a row are computed once for all its heads, by
//! the one function that every backend uses, and applied with the reference's operations: the same bits as there.

use reverie_tensor::reference::rope::turn;
use reverie_tensor::{Error, Result, Rope, RopeLayout, Tensor};

use super::{host, split};
use crate::simd::{LANES, Lanes};
use crate::{Cpu, dispatch};

/// Frequencies whose turns are held at a time: on the stack, so that no head width needs a workspace.
const TABLE: usize = 64;

/// See `Backend::rope`.
pub(crate) fn run(cpu: &Cpu, mut x: Tensor, positions: &[u32], rope: &Rope) -> Result<Tensor> {
    let (&[t, h, d], half) = (x.dims(), rope.freqs.len()) else {
        return Err(Error::shape("rope", x.shape(), "[T, H, D]"));
    };
    if positions.len() != t || 2 * half > d {
        return Err(Error::shape("rope", (positions.len(), 2 * half), (t, d)));
    }
    if !x.is_unique() {
        let mut y = cpu.out(x.dims())?;
        host::f32s_mut("rope", &mut y)?.copy_from_slice(host::f32s("rope", &x)?);
        x = y;
    }
    let values = split::Parts::new(host::f32s_mut("rope", &mut x)?);
    // A turn costs about thirty plain elements, a rotation two.
    split::ranges(cpu, t, 30 * half + 2 * h * d, &|rows| {
        // SAFETY: the ranges of rows are disjoint.
        let part = unsafe { values.part(rows.start * h * d..rows.end * h * d) };
        let task = Rows { positions: &positions[rows], rope, n_heads: h, width: d };
        dispatch!(cpu.isa, rotate_rows(task: Rows<'_>, part: &mut [f32]));
    });
    Ok(x)
}

struct Rows<'a> {
    positions: &'a [u32],
    rope: &'a Rope,
    n_heads: usize,
    width: usize,
}

#[inline(always)]
unsafe fn rotate_rows<S: Lanes>(task: Rows<'_>, x: &mut [f32]) {
    let (d, half) = (task.width, task.rope.freqs.len());
    let (mut cos, mut sin) = ([0.0f32; TABLE], [0.0f32; TABLE]);
    for (row, &position) in x.chunks_exact_mut((task.n_heads * d).max(1)).zip(task.positions) {
        for (block, freqs) in task.rope.freqs.chunks(TABLE).enumerate() {
            for ((c, s), &freq) in cos.iter_mut().zip(&mut sin).zip(freqs) {
                (*c, *s) = turn(position, freq, task.rope.magnitude);
            }
            let (first, n) = (block * TABLE, freqs.len());
            for head in row.chunks_exact_mut(d) {
                match task.rope.layout {
                    RopeLayout::Halves => {
                        let (low, high) = head.split_at_mut(half);
                        // SAFETY: the set is the caller's.
                        unsafe {
                            rotate_halves::<S>(&mut low[first..first + n], &mut high[first..first + n], &cos, &sin)
                        }
                    }
                    RopeLayout::Interleaved => {
                        for (i, pair) in head[2 * first..2 * (first + n)].chunks_exact_mut(2).enumerate() {
                            let (a, b) = (pair[0], pair[1]);
                            pair[0] = a * cos[i] - b * sin[i];
                            pair[1] = b * cos[i] + a * sin[i];
                        }
                    }
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn rotate_halves<S: Lanes>(low: &mut [f32], high: &mut [f32], cos: &[f32; TABLE], sin: &[f32; TABLE]) {
    let n = low.len().min(high.len()).min(TABLE);
    // SAFETY: every access is within the first `n` elements of all four; the set is the caller's.
    unsafe {
        for i in (0..n).step_by(LANES) {
            let (pa, pb, n) = (low.as_mut_ptr().add(i), high.as_mut_ptr().add(i), n - i);
            let (c, s) = (S::load_n(cos.as_ptr().add(i), n), S::load_n(sin.as_ptr().add(i), n));
            let (a, b) = (S::load_n(pa, n), S::load_n(pb, n));
            S::store_n(pa, n, S::sub(S::mul(a, c), S::mul(b, s)));
            S::store_n(pb, n, S::add(S::mul(b, c), S::mul(a, s)));
        }
    }
}
