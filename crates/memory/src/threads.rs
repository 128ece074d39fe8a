//! Several jobs at once, on threads that end with them. What the jobs do is theirs to know.

use std::sync::{Mutex, PoisonError};

/// Runs `work` on every job, on at most `n` threads, this one among them; hands back the first error that is found.
///
/// # Errors
/// That of a job; the thread that had it takes no more, the others go on.
pub fn together<J: Send, E: Send>(n: usize, jobs: Vec<J>, work: impl Fn(J) -> Result<(), E> + Sync) -> Result<(), E> {
    let n = jobs.len().min(n);
    let queue = Mutex::new(jobs.into_iter());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let run = || std::iter::from_fn(next).try_for_each(&work);
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..n).map(|_| scope.spawn(run)).collect();
        let own = run();
        others.into_iter().map(|t| t.join().unwrap_or_else(|p| std::panic::resume_unwind(p))).fold(own, Result::and)
    })
}
