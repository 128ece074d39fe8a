//! The thread pool: workers that spin shortly and then park, one barrier per call. A call hands out task numbers from one
//! counter; which thread takes which task never changes a result, and a worker that comes late to a call is not waited for.
//! Knows nothing of the tasks.

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a worker without work spins before it parks: longer than the gap between two operations of one token, far
/// shorter than a person's pause.
const SPIN: Duration = Duration::from_micros(100);

/// Turns of the spin loop between two looks at the clock.
const TURNS: usize = 64;

/// Turns that the caller spins for workers still at their last task before it yields its processor to them.
const PATIENCE: usize = 4096;

/// In the gate: a call is open to workers.
const OPEN: u64 = 1 << 31;

/// In the gate: workers that have entered the call.
const ENTERED: u64 = OPEN - 1;

/// In the gate: one call more.
const CALL: u64 = 1 << 32;

/// A call in flight: the task function and the number of tasks.
#[derive(Clone, Copy)]
struct Job {
    run: *const (dyn Fn(usize) + Sync),
    tasks: usize,
}

struct Shared {
    /// Number of the call (upper half), whether it is open, and how many workers have entered it.
    gate: AtomicU64,
    /// Written by the caller while the gate is shut and nobody is inside, read by workers that have entered.
    job: UnsafeCell<Option<Job>>,
    next: AtomicUsize,
    /// Workers that have left the current call.
    left: AtomicU64,
    panicked: AtomicBool,
    stop: AtomicBool,
    /// Workers that are parked or about to be.
    parked: AtomicUsize,
    lock: Mutex<()>,
    wake: Condvar,
}

// SAFETY: `job` is written only while no worker is inside a call (see `Pool::run`); the function behind it is Sync.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `job` is used only between the start and the end of `Pool::run`, which outlives both.
unsafe impl Send for Shared {}

/// A fixed set of threads; the caller is one of them.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// One call at a time.
    turn: Mutex<()>,
}

impl Pool {
    /// A pool of `threads` threads in all (at least one: the caller).
    pub fn new(threads: usize) -> Pool {
        let shared = Arc::new(Shared {
            gate: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            next: AtomicUsize::new(0),
            left: AtomicU64::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            parked: AtomicUsize::new(0),
            lock: Mutex::new(()),
            wake: Condvar::new(),
        });
        let workers = (1..threads)
            .filter_map(|i| {
                let shared = Arc::clone(&shared);
                // A system that grants fewer threads gives a smaller pool, not a failure: results are the same.
                std::thread::Builder::new().name(format!("reverie-cpu-{i}")).spawn(move || work(&shared)).ok()
            })
            .collect();
        Pool { shared, workers, turn: Mutex::new(()) }
    }

    /// Threads in all, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `task(0..tasks)`, each once, on all threads that come in time; returns when all are done.
    ///
    /// # Panics
    /// If a task panics.
    pub fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        if self.workers.is_empty() || tasks <= 1 {
            (0..tasks).for_each(task);
            return;
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let s = &*self.shared;
        // SAFETY: only the lifetime is erased; every worker that entered has left before this call returns.
        let run: *const (dyn Fn(usize) + Sync) =
            unsafe { std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const (dyn Fn(usize) + Sync)>(task) };
        // SAFETY: the gate is shut and the last call's workers have left: nobody reads the job.
        unsafe { *s.job.get() = Some(Job { run, tasks }) };
        s.next.store(0, Ordering::Relaxed);
        s.left.store(0, Ordering::Relaxed);
        s.open();
        let own = catch_unwind(AssertUnwindSafe(|| drain(s, task, tasks)));
        let entered = s.gate.fetch_and(!OPEN, Ordering::AcqRel) & ENTERED;
        let mut turns = 0usize;
        while s.left.load(Ordering::Acquire) < entered {
            turns += 1;
            if turns > PATIENCE { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
        if let Err(panic) = own {
            s.panicked.store(false, Ordering::Relaxed);
            resume_unwind(panic);
        }
        assert!(!s.panicked.swap(false, Ordering::Relaxed), "a task of the pool panicked");
    }
}

impl Shared {
    /// Opens the gate for the next call and wakes who is parked.
    fn open(&self) {
        let gate = self.gate.load(Ordering::Relaxed);
        // Sequentially consistent, as are the worker's steps in `wait`: either it sees the gate or this sees it parked.
        self.gate.store((gate & !(OPEN | ENTERED)).wrapping_add(CALL) | OPEN, Ordering::SeqCst);
        if self.parked.load(Ordering::SeqCst) > 0 {
            drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
            self.wake.notify_all();
        }
    }

    /// Waits for a call later than `seen` and gives the gate as it then was.
    fn wait(&self, seen: u64) -> u64 {
        let fresh = |gate: u64| gate & OPEN != 0 && gate / CALL != seen;
        let began = Instant::now();
        while began.elapsed() < SPIN {
            for _ in 0..TURNS {
                let gate = self.gate.load(Ordering::Acquire);
                if fresh(gate) {
                    return gate;
                }
                std::hint::spin_loop();
            }
        }
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.parked.fetch_add(1, Ordering::SeqCst);
        let gate = loop {
            let gate = self.gate.load(Ordering::SeqCst);
            if fresh(gate) {
                break gate;
            }
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        };
        self.parked.fetch_sub(1, Ordering::SeqCst);
        gate
    }

    /// Enters the call that `gate` shows, unless it has been shut meanwhile.
    fn enter(&self, mut gate: u64) -> Option<Job> {
        let call = gate / CALL;
        while gate & OPEN != 0 && gate / CALL == call {
            match self.gate.compare_exchange_weak(gate, gate + 1, Ordering::AcqRel, Ordering::Acquire) {
                // SAFETY: entered: the caller waits for this worker, and writes the job only before and after.
                Ok(_) => return unsafe { *self.job.get() },
                Err(now) => gate = now,
            }
        }
        None
    }
}

fn drain(s: &Shared, task: &(dyn Fn(usize) + Sync), tasks: usize) {
    loop {
        let i = s.next.fetch_add(1, Ordering::Relaxed);
        if i >= tasks {
            return;
        }
        task(i);
    }
}

fn work(s: &Shared) {
    let mut seen = 0;
    loop {
        let gate = s.wait(seen);
        seen = gate / CALL;
        if s.stop.load(Ordering::Relaxed) {
            return;
        }
        if let Some(job) = s.enter(gate) {
            // SAFETY: the caller of `run` waits until this worker has left before the function can end.
            let task = unsafe { &*job.run };
            if catch_unwind(AssertUnwindSafe(|| drain(s, task, job.tasks))).is_err() {
                s.panicked.store(true, Ordering::Relaxed);
            }
            s.left.fetch_add(1, Ordering::Release);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.open();
        for worker in self.workers.drain(..) {
            // A worker that panicked has said so already.
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        let pool = Pool::new(3);
        for tasks in [0, 1, 2, 7, 1000] {
            let hits: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
            pool.run(tasks, &|i| {
                hits[i].fetch_add(1, Ordering::Relaxed);
            });
            assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn calls_in_quick_succession_never_mix() {
        let pool = Pool::new(4);
        for call in 0..20_000usize {
            let sum = AtomicUsize::new(0);
            let tasks = 2 + call % 9;
            pool.run(tasks, &|i| {
                sum.fetch_add(call + i, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), tasks * call + tasks * (tasks - 1) / 2);
        }
    }

    #[test]
    fn callers_on_several_threads_take_turns() {
        let pool = Pool::new(3);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let sum = AtomicUsize::new(0);
                        pool.run(10, &|i| {
                            sum.fetch_add(i, Ordering::Relaxed);
                        });
                        assert_eq!(sum.into_inner(), 45);
                    }
                });
            }
        });
    }

    #[test]
    fn a_parked_pool_wakes() {
        let pool = Pool::new(2);
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(20));
            let sum = AtomicUsize::new(0);
            pool.run(100, &|i| {
                sum.fetch_add(i, Ordering::Relaxed);
            });
            assert_eq!(sum.load(Ordering::Relaxed), 4950);
        }
    }

    #[test]
    fn a_panic_in_a_task_reaches_the_caller_and_the_pool_lives() {
        let pool = Pool::new(2);
        let caught = catch_unwind(AssertUnwindSafe(|| {
            pool.run(64, &|i| assert!(i != 13));
        }));
        assert!(caught.is_err());
        pool.run(4, &|_| {});
    }
}
