//! Speed of the operations that are not products: attention at depth, attention prefill, the gated delta rule. Each
//! against a plain read in the same run, so that a busy machine shows in both; the share of the time in which the
//! process had its cores is printed beside. Usage: `ops [seconds a row] [instruction set] [threads] [words that a row
//! starts with]`.

use std::time::{Duration, Instant};

use reverie_cpu::{Cpu, CpuSpec, Isa, pool::Pool};
use reverie_tensor::backend::PAGE_TOKENS;
use reverie_tensor::{
    Act, AttendSpec, Backend, Class, ConvSpec, DType, Decay, HeadOrder, Heads, KvSegment, KvSpec, KvTarget, Norm,
    NormKind, Numerics, Read, Recurrence, RecurrenceSpec, Result, Rope, RopeLayout, Rule, StateSegment, Tensor,
};

/// Query heads, key heads, width of a head.
type Counts = (usize, usize, usize);

const HEADS: Counts = (16, 8, 128);

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

fn attention((h, g, d): Counts, dtype: DType) -> AttendSpec {
    let kv = KvSpec { n_heads: g, k_dim: d, v_dim: d, dtype };
    AttendSpec {
        n_heads: h,
        kv,
        scale: 1.0 / (d as f32).sqrt(),
        softcap: None,
        reach: reverie_tensor::Reach::All,
        sinks: None,
        latent: None,
        keep: None,
    }
}

fn pages(cpu: &Cpu, spec: &KvSpec, keys: usize) -> Result<Vec<Tensor>> {
    let page = || cpu.alloc(&[spec.page_elements()], spec.dtype, Class::State);
    let mut pages = (0..keys.div_ceil(PAGE_TOKENS)).map(|_| page()).collect::<Result<Vec<_>>>()?;
    let k = tensor(cpu, &[keys, spec.n_heads, spec.k_dim], 1.0)?;
    let v = tensor(cpu, &[keys, spec.n_heads, spec.v_dim], 1.0)?;
    cpu.kv_write(&k, &v, &mut [KvTarget { rows: 0..keys, start: 0, pages: &mut pages }], spec)?;
    Ok(pages)
}

fn decode(cpu: &Cpu, (heads, dtype, depth): (Counts, DType, usize), budget: Duration, read: f64) -> Result<()> {
    let spec = attention(heads, dtype);
    let bytes = 2 * heads.1 * heads.2 * depth * dtype.size();
    // As many layers as leave the caches cold, as the weights between them would.
    let layers = ((160 << 20) / bytes).clamp(2, 28);
    let layers = (0..layers).map(|_| pages(cpu, &spec.kv, depth)).collect::<Result<Vec<_>>>()?;
    let q = tensor(cpu, &[1, heads.0, heads.2], 1.0)?;
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
    let spec = attention(HEADS, dtype);
    let pages = pages(cpu, &spec.kv, start + rows)?;
    let q = tensor(cpu, &[rows, HEADS.0, HEADS.2], 1.0)?;
    let timing =
        time(budget, || cpu.attend(&q, &[KvSegment { rows: 0..rows, start, pages: &pages }], &spec).map(drop))?;
    // q·k and weights·v over the keys that each row sees.
    let seen: usize = (start + 1..=start + rows).sum();
    println!("{timing} {:5.1} GMAC/s", (2 * HEADS.0 * HEADS.2 * seen) as f64 / 1e9 / timing.best);
    Ok(())
}

fn delta(cpu: &Cpu, rows: usize, budget: Duration, read: f64) -> Result<()> {
    let (hk, hv, d) = (16, 32, 128);
    let spec = RecurrenceSpec {
        n_heads: hv,
        k_dim: d,
        v_dim: d,
        order: HeadOrder::Grouped,
        unit_eps: Some(1e-6),
        q_scale: 1.0 / (d as f32).sqrt(),
        read: Read::After,
        skip: None,
    };
    let mixed = tensor(cpu, &[rows, (2 * hk + hv) * d], 1.0)?;
    let kept = cpu.upload(&vec![0.9; rows * hv], &[rows, hv], DType::F32, Class::Scratch)?;
    let written = cpu.upload(&vec![0.5; rows * hv], &[rows, hv], DType::F32, Class::Scratch)?;
    let operands = Recurrence {
        q: Heads { x: &mixed, at: 0, n: hk },
        k: Heads { x: &mixed, at: hk * d, n: hk },
        v: Heads { x: &mixed, at: 2 * hk * d, n: hv },
        decay: Decay::Head(&kept),
        rule: Rule::Delta(Some(&written)),
    };
    let layers = if rows == 1 { 64 } else { 1 };
    let mut states =
        (0..layers).map(|_| cpu.alloc(&[hv, d, d], DType::F32, Class::State)).collect::<Result<Vec<_>>>()?;
    let mut layer = (0..layers).cycle();
    let timing = time(budget, || {
        let state = &mut states[layer.next().unwrap_or(0)];
        cpu.recurrence(&operands, &mut [StateSegment { rows: 0..rows, state }], &spec).map(drop)
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

/// The light operations, at the sizes of a 0.6B model.
fn others(cpu: &Cpu, rows: usize, budget: Duration) -> Result<()> {
    let row = |name: &str, elements: usize, timing: Timing| {
        println!("    {name:38}{timing} {:5.2} G elements/s", (rows * elements) as f64 / timing.best / 1e9);
    };
    let (h, g, d) = HEADS;
    let x = tensor(cpu, &[rows, 1024], 1.0)?;
    let norm = Norm { kind: NormKind::Rms, weight: Some(tensor(cpu, &[1024], 1.0)?), bias: None, eps: 1e-6 };
    row("RMS norm", 1024, time(budget, || cpu.norm(&x, &norm).map(drop))?);
    let (gate, up) = (tensor(cpu, &[rows, 3072], 3.0)?, tensor(cpu, &[rows, 3072], 1.0)?);
    row("glu, silu", 3072, time(budget, || cpu.glu(&gate, &up, Act::Silu).map(drop))?);
    row("glu, gelu tanh", 3072, time(budget, || cpu.glu(&gate, &up, Act::GeluTanh).map(drop))?);
    row("glu, gelu", 3072, time(budget, || cpu.glu(&gate, &up, Act::Gelu).map(drop))?);
    let freqs = (0..d / 2).map(|i| 1e6f32.powf(-2.0 * i as f32 / d as f32)).collect();
    let rope = Rope { freqs, magnitude: 1.0, layout: RopeLayout::Halves };
    let positions: Vec<u32> = (0..rows as u32).map(|p| p + 3000).collect();
    let mut turned = Some(tensor(cpu, &[rows, h, d], 1.0)?);
    let timing = time(budget, || {
        if let Some(q) = turned.take() {
            turned = Some(cpu.rope(q, &positions, &rope)?);
        }
        Ok(())
    })?;
    row("rope", h * d, timing);
    let spec = attention(HEADS, DType::F16).kv;
    let (k, v) = (tensor(cpu, &[rows, g, d], 1.0)?, tensor(cpu, &[rows, g, d], 1.0)?);
    let mut pages = pages(cpu, &spec, rows + 30)?;
    let timing =
        time(budget, || cpu.kv_write(&k, &v, &mut [KvTarget { rows: 0..rows, start: 30, pages: &mut pages }], &spec))?;
    row("kv write", 2 * g * d, timing);
    let channels = 8192;
    let spec = ConvSpec { taps: tensor(cpu, &[4, channels], 1.0)?, bias: None, act: Some(Act::Silu) };
    let (x, mut state) = (tensor(cpu, &[rows, channels], 1.0)?, tensor(cpu, &[3, channels], 1.0)?);
    let timing =
        time(budget, || cpu.conv(&x, &mut [StateSegment { rows: 0..rows, state: &mut state }], &spec).map(drop))?;
    row("conv, 4 taps, silu", channels, timing);
    Ok(())
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let budget = Duration::from_secs_f64(args.first().and_then(|s| s.parse().ok()).unwrap_or(0.4));
    let wanted_threads: Option<usize> = args.get(2).and_then(|s| s.parse().ok());
    let row = |name: String| {
        let wanted = args.get(3).is_none_or(|a| name.starts_with(a.as_str()));
        if wanted {
            print!("  {name:40}");
        }
        wanted
    };
    for isa in
        Isa::available().into_iter().rev().filter(|i| args.get(1).is_none_or(|a| i.name().starts_with(a.as_str())))
    {
        for threads in [1, 2].into_iter().filter(|&t| wanted_threads.is_none_or(|w| w == t)) {
            let cpu = Cpu::new(CpuSpec { threads: Some(threads), numerics: Numerics::Exact, isa: Some(isa) })?;
            let read = probe(threads, budget)?;
            println!("{}, {threads} threads: read probe {read:.1} GB/s", isa.name());
            for (heads, dtype, depth) in [
                (HEADS, DType::F16, 128),
                (HEADS, DType::F16, 1024),
                (HEADS, DType::F16, 4096),
                (HEADS, DType::BF16, 4096),
                (HEADS, DType::F32, 4096),
                ((8, 2, 256), DType::F16, 4096),
                ((4, 1, 256), DType::F16, 4096),
                ((32, 4, 64), DType::F16, 4096),
            ] {
                if row(format!("attend decode {dtype} {}/{}×{} depth {depth}", heads.0, heads.1, heads.2)) {
                    decode(&cpu, (heads, dtype, depth), budget, read)?;
                }
            }
            for (start, rows) in [(0, 512), (3584, 512)] {
                if row(format!("attend prefill f16 {start}+{rows}")) {
                    prefill(&cpu, DType::F16, (start, rows), budget)?;
                }
            }
            for rows in [1, 512] {
                if row(format!("others {rows} rows")) {
                    println!();
                    others(&cpu, rows, budget)?;
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
