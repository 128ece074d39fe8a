//! Keys and values on their way into pages: keys transposed, so that the sixteen lanes of a score are sixteen tokens;
//! values as they come, so that the lanes of an output are its elements. The layout itself is the reference's.

use std::ops::Range;

use half::{bf16, f16};
use reverie_tensor::backend::PAGE_TOKENS;
use reverie_tensor::reference::attend::{k_index, v_index};
use reverie_tensor::{DType, Error, KvSpec, KvTarget, Result, Tensor};

use super::{host, split};
use crate::simd::{LANES, Lanes};
use crate::{Cpu, dispatch};

/// An element of a page.
pub(crate) trait Element: Copy + Send + Sync + 'static {
    /// Sixteen elements widened; unsafe as `Lanes::load` is.
    unsafe fn load<S: Lanes>(p: *const Self) -> S::F;
    /// Sixteen elements rounded to nearest even; unsafe as `Lanes::store` is.
    unsafe fn store<S: Lanes>(p: *mut Self, v: S::F);
    /// Zero.
    const ZERO: Self;

    /// The first `n` elements, the other lanes zero.
    #[inline(always)]
    unsafe fn load_n<S: Lanes>(p: *const Self, n: usize) -> S::F {
        // SAFETY: `p` is valid for `n` elements by contract.
        unsafe {
            if n >= LANES {
                return Self::load::<S>(p);
            }
            let mut a = [Self::ZERO; LANES];
            std::ptr::copy_nonoverlapping(p, a.as_mut_ptr(), n);
            Self::load::<S>(a.as_ptr())
        }
    }
    /// Stores the first `n` lanes.
    #[inline(always)]
    unsafe fn store_n<S: Lanes>(p: *mut Self, n: usize, v: S::F) {
        // SAFETY: `p` is valid for `n` elements by contract.
        unsafe {
            if n >= LANES {
                return Self::store::<S>(p, v);
            }
            let mut a = [Self::ZERO; LANES];
            Self::store::<S>(a.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(a.as_ptr(), p, n);
        }
    }
}

impl Element for f32 {
    const ZERO: f32 = 0.0;
    #[inline(always)]
    unsafe fn load<S: Lanes>(p: *const f32) -> S::F {
        // SAFETY: the caller's.
        unsafe { S::load(p) }
    }
    #[inline(always)]
    unsafe fn store<S: Lanes>(p: *mut f32, v: S::F) {
        // SAFETY: the caller's.
        unsafe { S::store(p, v) }
    }
}

impl Element for f16 {
    const ZERO: f16 = f16::ZERO;
    #[inline(always)]
    unsafe fn load<S: Lanes>(p: *const f16) -> S::F {
        // SAFETY: the caller's; an f16 is its sixteen bits.
        unsafe { S::load_f16(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store<S: Lanes>(p: *mut f16, v: S::F) {
        // SAFETY: the caller's.
        unsafe { S::store_f16(p.cast(), v) }
    }
}

impl Element for bf16 {
    const ZERO: bf16 = bf16::ZERO;
    #[inline(always)]
    unsafe fn load<S: Lanes>(p: *const bf16) -> S::F {
        // SAFETY: the caller's; a bf16 is its sixteen bits.
        unsafe { S::load_bf16(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store<S: Lanes>(p: *mut bf16, v: S::F) {
        // SAFETY: the caller's.
        unsafe { S::store_bf16(p.cast(), v) }
    }
}

/// Checks that pages of this spec can be: a float dtype, heads, keys; keys that hold their values have none beside them.
pub(crate) fn check(op: &'static str, spec: &KvSpec) -> Result<()> {
    if !spec.dtype.is_float() {
        return Err(Error::value(format!("{op}: page dtype"), spec.dtype, "f32, f16 or bf16"));
    }
    if spec.n_heads == 0 || spec.k_dim == 0 {
        return Err(Error::shape(op, (spec.n_heads, spec.k_dim, spec.v_dim), "heads and keys above zero"));
    }
    Ok(())
}

/// Checks that a page is what the spec says.
pub(crate) fn check_page(op: &'static str, page: &Tensor, spec: &KvSpec) -> Result<()> {
    if page.dtype() != spec.dtype || page.shape().elements() != spec.page_elements() {
        return Err(Error::shape(op, (page.dtype(), page.shape()), (spec.dtype, spec.page_elements())));
    }
    Ok(())
}

/// Neighbouring rows that go into neighbouring slots of one page.
struct Piece<'a> {
    row: usize,
    n: usize,
    slot: usize,
    page: split::Parts<'a, u8>,
}

/// What an element of a key costs beside its value: a cache line of its own, whatever the number of tokens.
const KEY_LINE: usize = 32;

/// See `Backend::kv_write`.
pub(crate) fn write(cpu: &Cpu, k: &Tensor, v: &Tensor, targets: &mut [KvTarget<'_>], spec: &KvSpec) -> Result<()> {
    check("kv_write", spec)?;
    let (kd, vd) = (spec.n_heads * spec.k_dim, spec.n_heads * spec.v_dim);
    let (k, v) = (host::f32s("kv_write", k)?, host::f32s("kv_write", v)?);
    let t = k.len() / kd;
    if k.len() != t * kd || v.len() != t * vd {
        return Err(Error::shape("kv_write", (k.len(), v.len()), ("T times", kd, vd)));
    }
    split::covers("kv_write", targets.iter().map(|t| t.rows.clone()), t)?;
    let mut pieces = Vec::new();
    for target in targets.iter_mut() {
        let (start, end) = (target.start, target.start + target.rows.len());
        let reached = target.reached("kv_write")?;
        for (i, page) in target.pages.iter_mut().enumerate().take(reached.end).skip(reached.start) {
            let from = start.max(i * PAGE_TOKENS);
            let to = end.min((i + 1) * PAGE_TOKENS);
            check_page("kv_write", page, spec)?;
            if !page.is_unique() {
                let what = format!("write keys to page {i}, which other handles share; copy the page first");
                return Err(Error::Unsupported { backend: "cpu", what });
            }
            let bytes = page.host_bytes_mut().ok_or_else(|| host::elsewhere("kv_write"))?;
            let (row, slot) = (target.rows.start + from - start, from % PAGE_TOKENS);
            pieces.push(Piece { row, n: to - from, slot, page: split::Parts::new(bytes) });
        }
    }
    let tokens = pieces.iter().map(|p| p.n).max().unwrap_or(0);
    let weight = tokens * (spec.k_dim + spec.v_dim) + KEY_LINE * spec.k_dim;
    split::lanes(cpu, pieces.len() * spec.n_heads, weight, &|parts| {
        for part in parts {
            let (piece, head) = (&pieces[part / spec.n_heads], part % spec.n_heads);
            let bytes = spec.head_elements() * spec.dtype.size();
            // SAFETY: every head of every page is one task's.
            let block = unsafe { piece.page.part(head * bytes..(head + 1) * bytes) }.as_mut_ptr();
            let rows = piece.row..piece.row + piece.n;
            let task = Block { k, v, rows, slot: piece.slot, head, spec: *spec };
            dispatch!(cpu.isa, write_block(task: Block<'_>, block: *mut u8));
        }
    });
    Ok(())
}

/// Rows of one head that go into its block of one page.
struct Block<'a> {
    k: &'a [f32],
    v: &'a [f32],
    rows: Range<usize>,
    slot: usize,
    head: usize,
    spec: KvSpec,
}

#[inline(always)]
unsafe fn write_block<S: Lanes>(task: Block<'_>, block: *mut u8) {
    // SAFETY: the caller's; `check` let only these dtypes pass, and pages are aligned to 64.
    unsafe {
        match task.spec.dtype {
            DType::F16 => write_elements::<S, f16>(task, block.cast()),
            DType::BF16 => write_elements::<S, bf16>(task, block.cast()),
            _ => write_elements::<S, f32>(task, block.cast()),
        }
    }
}

#[inline(always)]
unsafe fn write_elements<S: Lanes, E: Element>(task: Block<'_>, block: *mut E) {
    let Block { k, v, rows, slot, head, spec } = task;
    let (kd, vd) = (spec.n_heads * spec.k_dim, spec.n_heads * spec.v_dim);
    // SAFETY: the block holds `head_elements`; the rows were checked against k and v.
    unsafe {
        let mut square = [[E::ZERO; LANES]; PAGE_TOKENS];
        for d in (0..spec.k_dim).step_by(LANES) {
            let n = (spec.k_dim - d).min(LANES);
            for (line, row) in square.iter_mut().zip(rows.clone()) {
                let keys = &k[row * kd + head * spec.k_dim + d..][..n];
                E::store::<S>(line.as_mut_ptr(), S::load_n(keys.as_ptr(), n));
            }
            for i in 0..n {
                let column = block.add(k_index(&spec, 0, d + i, slot));
                for (t, line) in square.iter().enumerate().take(rows.len()) {
                    *column.add(t) = line[i];
                }
            }
        }
        for (t, row) in rows.enumerate() {
            let values = &v[row * vd + head * spec.v_dim..][..spec.v_dim];
            let out = block.add(v_index(&spec, 0, slot + t, 0));
            for d in (0..spec.v_dim).step_by(LANES) {
                let n = spec.v_dim - d;
                E::store_n::<S>(out.add(d), n, S::load_n(values.as_ptr().add(d), n));
            }
        }
    }
}
