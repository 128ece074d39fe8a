//! Work cut into contiguous ranges for the pool. How it is cut never changes a result: every item is computed alone.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

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

/// As `ranges`, a range a thread, the first the calling thread's: the same items go to the same thread at every call, so that what it
/// wrote is in its caches.
pub(crate) fn lanes(cpu: &Cpu, items: usize, weight: usize, body: &(dyn Fn(Range<usize>) + Sync)) {
    let lanes = if items.saturating_mul(weight) < WORTH_WAKING { 1 } else { cpu.threads().min(items) };
    cpu.pool.run(lanes, &|i| body(i * items / lanes..(i + 1) * items / lanes));
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

/// Numbers that lanes take, each once: first those of a stretch of their own, in runs that grow shorter towards its end, so that
/// a lane reads memory in long runs and seldom meets another; then, one by one, what others have left.
pub(crate) struct Stretches {
    count: usize,
    /// How many of each lane's stretch are taken, and more.
    taken: Vec<Taken>,
}

/// A counter with a cache line of its own.
#[repr(align(64))]
struct Taken(AtomicUsize);

impl Stretches {
    pub(crate) fn new(count: usize, lanes: usize) -> Stretches {
        Stretches { count, taken: (0..lanes).map(|_| Taken(AtomicUsize::new(0))).collect() }
    }

    /// The numbers of a lane's stretch.
    fn of(&self, lane: usize) -> Range<usize> {
        let edge = |lane| lane * self.count / self.taken.len();
        edge(lane)..edge(lane + 1)
    }

    /// All numbers that this lane takes, one after another.
    pub(crate) fn each(&self, lane: usize) -> impl Iterator<Item = usize> {
        std::iter::from_fn(move || self.take(lane)).flatten()
    }

    /// The next numbers for this lane.
    pub(crate) fn take(&self, lane: usize) -> Option<Range<usize>> {
        let lanes = self.taken.len();
        (lane..lane + lanes).map(|l| l % lanes).find_map(|l| {
            let (own, taken) = (self.of(l), &self.taken[l].0);
            let left = own.len().saturating_sub(taken.load(Ordering::Relaxed));
            let run = if l == lane { left.div_ceil(4) } else { left.min(1) };
            let from = own.start + if run > 0 { taken.fetch_add(run, Ordering::Relaxed) } else { own.len() };
            (from < own.end).then(|| from..own.end.min(from + run))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_take_every_number_once() {
        for (count, lanes) in [(0, 2), (1, 4), (7, 3), (108, 2), (1000, 4)] {
            let (stretches, hits) =
                (Stretches::new(count, lanes), Vec::from_iter((0..count).map(|_| AtomicUsize::new(0))));
            std::thread::scope(|scope| {
                for lane in 0..lanes {
                    let (stretches, hits) = (&stretches, &hits);
                    scope.spawn(move || {
                        for i in stretches.each(lane) {
                            hits[i].fetch_add(1, Ordering::Relaxed);
                        }
                    });
                }
            });
            assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1), "{count} numbers, {lanes} lanes");
        }
    }

    #[test]
    fn a_lane_alone_takes_its_own_in_shrinking_runs_and_then_the_others() {
        let stretches = Stretches::new(20, 2);
        let runs = Vec::from_iter(std::iter::from_fn(|| stretches.take(1)));
        let own = [10..13, 13..15, 15..17, 17..18, 18..19, 19..20];
        assert_eq!(runs[..own.len()], own);
        assert_eq!(runs[own.len()..], Vec::from_iter((0..10).map(|i| i..i + 1)));
    }
}
