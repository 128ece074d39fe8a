//! The machine's read bandwidth, measured with this process's own threads: what decode speed is held against.

use std::hint::black_box;
use std::time::Instant;

use reverie_tensor::{Class, DType, Memory, Result, Tensor};

use crate::pool::Pool;

/// Bytes read in one pass: far beyond any cache.
const BYTES: usize = 512 << 20;

/// Bytes of one task.
const TASK_BYTES: usize = 4 << 20;

/// Best of `runs` plain reading sums, in bytes per second, over memory of the kind that weights lie in.
///
/// # Errors
/// Where the system has not that much memory.
pub fn read_bandwidth(threads: usize, runs: usize) -> Result<f64> {
    let pool = Pool::new(threads.max(1));
    let mut data = Tensor::host(&Memory::host(), &[BYTES / 4], DType::F32, Class::Weights)?;
    // Memory that was never written is one page of zeros, again and again.
    data.host_slice_mut::<u32>().unwrap_or_default().iter_mut().zip(0..).for_each(|(word, i)| *word = i);
    let data = data.host_slice::<u32>().unwrap_or_default();
    let per_task = TASK_BYTES / 4;
    let mut best = 0.0f64;
    for _ in 0..runs.max(1) {
        let began = Instant::now();
        pool.run(data.len() / per_task, &|i| {
            // Eight chains keep the loads in flight; the compiler makes vectors of them.
            let mut sums = [0u32; 64];
            for chunk in data[i * per_task..(i + 1) * per_task].chunks_exact(64) {
                for (s, v) in sums.iter_mut().zip(chunk) {
                    *s = s.wrapping_add(*v);
                }
            }
            black_box(sums);
        });
        best = best.max(BYTES as f64 / began.elapsed().as_secs_f64());
    }
    Ok(best)
}
