//! The machine's read bandwidth, measured with this process's own threads: what decode speed is held against.

use std::hint::black_box;
use std::time::Instant;

use crate::pool::Pool;

/// Bytes read in one pass: far beyond any cache.
const BYTES: usize = 512 << 20;

/// Bytes of one task.
const TASK_BYTES: usize = 4 << 20;

/// Best of `runs` plain reading sums, in bytes per second.
pub fn read_bandwidth(threads: usize, runs: usize) -> f64 {
    let pool = Pool::new(threads.max(1));
    let data: Vec<u64> = (0..BYTES as u64 / 8).collect();
    let per_task = TASK_BYTES / 8;
    let mut best = 0.0f64;
    for _ in 0..runs.max(1) {
        let began = Instant::now();
        pool.run(data.len() / per_task, &|i| {
            // Eight chains keep the loads in flight; the compiler makes vectors of them.
            let mut sums = [0u64; 32];
            for chunk in data[i * per_task..(i + 1) * per_task].chunks_exact(32) {
                for (s, v) in sums.iter_mut().zip(chunk) {
                    *s = s.wrapping_add(*v);
                }
            }
            black_box(sums);
        });
        best = best.max(BYTES as f64 / began.elapsed().as_secs_f64());
    }
    best
}
