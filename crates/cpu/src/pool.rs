//! The thread pool: workers that spin shortly and then park, one barrier per call. A call hands out task numbers from one
//! counter; which thread takes which task never changes a result. Knows nothing of the tasks.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Turns of the spin loop before a waiting worker parks: about 50 µs, longer than the gap between two operations of
/// one token and far shorter than a person's pause.
const SPINS: usize = 20_000;

/// A call in flight: the task function and its counter.
struct Job {
    run: *const (dyn Fn(usize) + Sync),
    tasks: usize,
}

// SAFETY: the pointer is used only between the start and the end of `Pool::run`, which outlives both.
unsafe impl Send for Job {}
// SAFETY: the function behind it is Sync.
unsafe impl Sync for Job {}

struct Shared {
    /// Even while idle; a change starts a call.
    epoch: AtomicUsize,
    job: Mutex<Option<Job>>,
    next: AtomicUsize,
    /// Workers that have finished the current call.
    done: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
    sleepers: Mutex<()>,
    wake: Condvar,
}

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
            epoch: AtomicUsize::new(0),
            job: Mutex::new(None),
            next: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            sleepers: Mutex::new(()),
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

    /// Runs `task(0..tasks)`, each once, on all threads; returns when all are done.
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
        // SAFETY: only the lifetime is erased; every worker has left the function before this call returns.
        let run: *const (dyn Fn(usize) + Sync) =
            unsafe { std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const (dyn Fn(usize) + Sync)>(task) };
        s.next.store(0, Ordering::Relaxed);
        s.done.store(0, Ordering::Relaxed);
        *s.job.lock().unwrap_or_else(PoisonError::into_inner) = Some(Job { run, tasks });
        {
            let _asleep = s.sleepers.lock().unwrap_or_else(PoisonError::into_inner);
            s.epoch.fetch_add(1, Ordering::Release);
        }
        s.wake.notify_all();
        let own = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drain(s, task, tasks)));
        let mut spins = 0usize;
        while s.done.load(Ordering::Acquire) < self.workers.len() {
            spins += 1;
            if spins > SPINS { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
        *s.job.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if let Err(panic) = own {
            std::panic::resume_unwind(panic);
        }
        assert!(!s.panicked.swap(false, Ordering::Relaxed), "a task of the pool panicked");
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
        let mut spins = 0;
        while s.epoch.load(Ordering::Acquire) == seen {
            spins += 1;
            if spins < SPINS {
                std::hint::spin_loop();
                continue;
            }
            let mut asleep = s.sleepers.lock().unwrap_or_else(PoisonError::into_inner);
            while s.epoch.load(Ordering::Acquire) == seen {
                asleep = s.wake.wait(asleep).unwrap_or_else(PoisonError::into_inner);
            }
        }
        seen = s.epoch.load(Ordering::Acquire);
        if s.stop.load(Ordering::Relaxed) {
            return;
        }
        let job = s.job.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|j| (j.run, j.tasks));
        if let Some((run, tasks)) = job {
            // SAFETY: the caller of `run` waits for `done` before the function can end.
            let task = unsafe { &*run };
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drain(s, task, tasks))).is_err() {
                s.panicked.store(true, Ordering::Relaxed);
            }
        }
        s.done.fetch_add(1, Ordering::Release);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        {
            let _asleep = self.shared.sleepers.lock().unwrap_or_else(PoisonError::into_inner);
            self.shared.epoch.fetch_add(1, Ordering::Release);
        }
        self.shared.wake.notify_all();
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
    fn a_parked_pool_wakes() {
        let pool = Pool::new(2);
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(20));
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
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            pool.run(64, &|i| assert!(i != 13));
        }));
        assert!(caught.is_err());
        pool.run(4, &|_| {});
    }
}
