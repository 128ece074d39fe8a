//! Work cut into contiguous ranges for the pool. How it is cut never changes a result: every item is computed alone.

use std::marker::PhantomData;
use std::ops::Range;

use reverie_tensor::{Error, Result};

use crate::Cpu;

/// Below this much work (elements touched, about a nanosecond per dozen) waking the pool costs more than it saves.
const WORTH_WAKING: usize = 32 * 1024;

/// Runs `body` over `0..items` in ranges, on the calling thread if there is little to do. `weight` is the number of
/// elements that one item touches.
pub(crate) fn ranges(cpu: &Cpu, items: usize, weight: usize, body: &(dyn Fn(Range<usize>) + Sync)) {
    let work = items.saturating_mul(weight);
    if cpu.threads() == 1 || work < WORTH_WAKING || items < 2 {
        if items > 0 {
            body(0..items);
        }
        return;
    }
    // A few ranges per thread, so that a thread that was held up does not hold up the rest.
    let tasks = items.min(4 * cpu.threads()).min(work.div_ceil(WORTH_WAKING / 4));
    cpu.pool.run(tasks, &|i| body(i * items / tasks..(i + 1) * items / tasks));
}

/// A mutable slice that tasks share, each writing only to parts that no other task touches.
pub(crate) struct Parts<'a, T> {
    start: *mut T,
    len: usize,
    lent: PhantomData<&'a mut [T]>,
}

// SAFETY: the only access is `part`, whose callers promise disjoint parts.
unsafe impl<T: Send> Sync for Parts<'_, T> {}
// SAFETY: as above; it is a mutable borrow in disguise.
unsafe impl<T: Send> Send for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    /// Over this slice.
    pub(crate) fn new(slice: &'a mut [T]) -> Parts<'a, T> {
        Parts { start: slice.as_mut_ptr(), len: slice.len(), lent: PhantomData }
    }

    /// The elements of `range`.
    ///
    /// # Safety
    /// No two parts that live at the same time may overlap.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "a part outside its slice");
        // SAFETY: inside the slice that was lent mutably; disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

/// Checks that the row ranges of a batch's segments lie in `0..rows` and do not overlap; true if they cover all rows.
pub(crate) fn covers(op: &'static str, segments: impl Iterator<Item = Range<usize>>, rows: usize) -> Result<bool> {
    let mut ranges: Vec<_> = segments.filter(|r| !r.is_empty()).collect();
    ranges.sort_by_key(|r| r.start);
    let mut end = 0;
    for r in &ranges {
        if r.start < end || r.end > rows {
            return Err(Error::shape(op, ranges, format!("segments that do not overlap, within {rows} rows")));
        }
        end = r.end;
    }
    Ok(ranges.iter().map(Range::len).sum::<usize>() == rows)
}
