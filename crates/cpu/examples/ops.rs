//! Speed of the operations that are not products: attention at depth, attention prefill, the gated delta rule. Each against
//! a plain read in the same run, so that a busy machine shows in both; the share of the time in which the process had its cores
//! is printed beside. Usage: `ops [seconds a row] [instruction set] [threads] [words that a row starts with]`.

use std::time::{Duration, Instant};

use reverie_cpu::{Cpu, CpuSpec, Isa, pool::Pool};
use reverie_tensor::backend::{HeadOrder, PAGE_TOKENS};
use reverie_tensor::{
    AttendSpec, Backend, Class, DType, DeltaSpec, KvSegment, KvSpec, KvTarget, Numerics, Result, StateSegment, Tensor,
};

const HEADS: (usize, usize, usize) = (16, 8, 128);

/// Seconds of a call, repeated for a while.
struct Timing {
    best: f64,
    median: f64,
    /// Time on a core over time passed, times the threads that should have had one; none where the system does not say.
    share: Option<f64>,
}

impl std::fmt::Display for Timing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:8.1} µs (median {:8.1}", self.best * 1e6, self.median * 1e6)?;
        match self.share {
            Some(share) => write!(f, ", {:3.0} % of a core)", share * 100.0),
            None => write!(f, ")"),
        }
    }
}

/// Nanoseconds that the calling thread has run.
fn on_core() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_whitespace().next()?.parse().ok()
}

fn time(budget: Duration, mut call: impl FnMut() -> Result<()>) -> Result<Timing> {
    call()?;
    let (start, before, mut runs) = (Instant::now(), on_core(), Vec::new());
    while runs.len() < 3 || start.elapsed() < budget {
        let at = Instant::now();
        call()?;
        runs.push(at.elapsed().as_secs_f64());
    }
    let share = before.zip(on_core()).map(|(b, a)| (a - b) / 1e9 / start.elapsed().as_secs_f64());
    runs.sort_by(f64::total_cmp);
    Ok(Timing { best: runs[0], median: runs[runs.len() / 2], share })
}

fn noise(n: usize, scale: f32) -> Vec<f32> {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * scale
    };
    (0..n).map(|_| next()).collect()
}

fn tensor(cpu: &Cpu, shape: &[usize], scale: f32) -> Result<Tensor> {
    cpu.upload(&noise(shape.iter().product(), scale), shape, DType::F32, Class::Scratch)
}

/// Reads a buffer on all threads.
fn probe(threads: usize, budget: Duration) -> Result<f64> {
    let (pool, bytes) = (Pool::new(threads), vec![1u64; 32 << 20]);
    let timing = time(budget, || {
        pool.run(64, &|i| {
            let part = &bytes[i * bytes.len() / 64..(i + 1) * bytes.len() / 64];
            std::hint::black_box(part.iter().fold(0u64, |a, b| a.wrapping_add(*b)));
        });
        Ok(())
    })?;
    Ok(bytes.len() as f64 * 8.0 / timing.best / 1e9)
}

fn attention(dtype: DType) -> AttendSpec {
    let (h, g, d) = HEADS;
    let kv = KvSpec { n_heads: g, k_dim: d, v_dim: d, dtype };
    AttendSpec { n_heads: h, kv, scale: 1.0 / (d as f32).sqrt(), softcap: None, window: None, sinks: None }
}

fn pages(cpu: &Cpu, spec: &KvSpec, keys: usize) -> Result<Vec<Tensor>> {
    let page = || cpu.alloc(&[spec.page_elements()], spec.dtype, Class::State);
    let mut pages = (0..keys.div_ceil(PAGE_TOKENS)).map(|_| page()).collect::<Result<Vec<_>>>()?;
    let k = tensor(cpu, &[keys, spec.n_heads, spec.k_dim], 1.0)?;
    let v = tensor(cpu, &[keys, spec.n_heads, spec.v_dim], 1.0)?;
    cpu.kv_write(&k, &v, &mut [KvTarget { rows: 0..keys, start: 0, pages: &mut pages }], spec)?;
    Ok(pages)
}

fn decode(cpu: &Cpu, dtype: DType, depth: usize, budget: Duration, read: f64) -> Result<()> {
    let spec = attention(dtype);
    let bytes = 2 * HEADS.1 * HEADS.2 * depth * dtype.size();
    // As many layers as leave the caches cold, as the weights between them would.
    let layers = ((160 << 20) / bytes).clamp(2, 28);
    let layers = (0..layers).map(|_| pages(cpu, &spec.kv, depth)).collect::<Result<Vec<_>>>()?;
    let q = tensor(cpu, &[1, HEADS.0, HEADS.2], 1.0)?;
    let mut layer = (0..layers.len()).cycle();
    let timing = time(budget, || {
        let pages = &layers[layer.next().unwrap_or(0)];
        cpu.attend(&q, &[KvSegment { rows: 0..1, start: depth - 1, pages }], &spec).map(drop)
    })?;
    let speed = bytes as f64 / timing.best / 1e9;
    println!("{timing} {speed:5.1} GB/s = {:3.0} % of the read probe", 100.0 * speed / read);
    Ok(())
}

fn prefill(cpu: &Cpu, dtype: DType, (start, rows): (usize, usize), budget: Duration) -> Result<()> {
    let spec = attention(dtype);
    let pages = pages(cpu, &spec.kv, start + rows)?;
    let q = tensor(cpu, &[rows, HEADS.0, HEADS.2], 1.0)?;
    let timing = time(budget, || {
        cpu.attend(&q, &[KvSegment { rows: 0..rows, start, pages: &pages }], &spec).map(drop)
    })?;
    // q·k and weights·v over the keys that each row sees.
    let seen: usize = (start + 1..=start + rows).sum();
    println!("{timing} {:5.1} GMAC/s", (2 * HEADS.0 * HEADS.2 * seen) as f64 / 1e9 / timing.best);
    Ok(())
}

fn delta(cpu: &Cpu, rows: usize, budget: Duration, read: f64) -> Result<()> {
    let (hk, hv, d) = (16, 32, 128);
    let spec = DeltaSpec {
        n_k_heads: hk,
        n_v_heads: hv,
        k_dim: d,
        v_dim: d,
        q_scale: 1.0 / (d as f32).sqrt(),
        norm_eps: 1e-6,
        order: HeadOrder::Grouped,
        rate: cpu.upload(&vec![-0.5; hv], &[hv], DType::F32, Class::Scratch)?,
        dt_bias: tensor(cpu, &[hv], 1.0)?,
    };
    let mixed = tensor(cpu, &[rows, (2 * hk + hv) * d], 1.0)?;
    let gates = (tensor(cpu, &[rows, hv], 1.0)?, tensor(cpu, &[rows, hv], 1.0)?);
    let layers = if rows == 1 { 64 } else { 1 };
    let mut states =
        (0..layers).map(|_| cpu.alloc(&[hv, d, d], DType::F32, Class::State)).collect::<Result<Vec<_>>>()?;
    let mut layer = (0..layers).cycle();
    let timing = time(budget, || {
        let state = &mut states[layer.next().unwrap_or(0)];
        cpu.gated_delta(&mixed, (&gates.0, &gates.1), &mut [StateSegment { rows: 0..rows, state }], &spec).map(drop)
    })?;
    let elements = (hv * d * d) as f64 / 1e9;
    if rows == 1 {
        let speed = 8.0 * elements / timing.best;
        println!("{timing} {speed:5.1} GB/s read and written = {:3.0} % of the read probe", 100.0 * speed / read);
    } else {
        println!("{timing} {:5.1} G operations/s", 4.0 * elements * rows as f64 / timing.best);
    }
    Ok(())
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let budget = Duration::from_secs_f64(args.first().and_then(|s| s.parse().ok()).unwrap_or(0.4));
    let wanted_threads: Option<usize> = args.get(2).and_then(|s| s.parse().ok());
    let row = |name: String| {
        let wanted = args.get(3).is_none_or(|a| name.starts_with(a.as_str()));
        if wanted {
            print!("  {name:32}");
        }
        wanted
    };
    for isa in Isa::available().into_iter().rev().filter(|i| args.get(1).is_none_or(|a| i.name().starts_with(a.as_str()))) {
        for threads in [1, 2].into_iter().filter(|&t| wanted_threads.is_none_or(|w| w == t)) {
            let cpu = Cpu::new(CpuSpec { threads: Some(threads), numerics: Numerics::Exact, isa: Some(isa) })?;
            let read = probe(threads, budget)?;
            println!("{}, {threads} threads: read probe {read:.1} GB/s", isa.name());
            for (dtype, depth) in
                [(DType::F16, 128), (DType::F16, 1024), (DType::F16, 4096), (DType::BF16, 4096), (DType::F32, 4096)]
            {
                if row(format!("attend decode {dtype} depth {depth}")) {
                    decode(&cpu, dtype, depth, budget, read)?;
                }
            }
            for (start, rows) in [(0, 512), (3584, 512)] {
                if row(format!("attend prefill f16 {start}+{rows}")) {
                    prefill(&cpu, DType::F16, (start, rows), budget)?;
                }
            }
            for rows in [1, 512] {
                if row(format!("delta {rows} rows")) {
                    delta(&cpu, rows, budget, read)?;
                }
            }
        }
    }
    Ok(())
}
