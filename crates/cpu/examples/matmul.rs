//! Speed of matrix products by shape, form, rows and instruction set, against the read bandwidth probed in the same run.
//! `matmul [form=…] [isa=…] [rows=1,4,…] [threads=1,2] [shape=NxK,…] [secs=0.5] [copies=1] [clock=cpu] [exact]`
//! `clock=cpu` counts the time that the kernel gave this thread (Linux, one thread): for a machine that others use too.

use std::time::{Duration, Instant};

use reverie_cpu::{Cpu, CpuSpec, Isa, probe};
use reverie_tensor::{Backend, Class, DType, Form, Grouped, Input, Levels, Numerics, Scales, WeightSource};

/// Weights that are a cheap function of their place.
struct Noise(usize, usize, Form);

fn fill(seed: usize, out: &mut [u8], mask: u8) {
    let mut z = seed as u64 ^ 0x9e37_79b9_7f4a_7c15;
    for eight in out.chunks_mut(8) {
        z = z.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(1);
        let bytes = (z ^ (z >> 29)).to_le_bytes();
        eight.iter_mut().zip(bytes).for_each(|(o, b)| *o = b & mask);
    }
}

impl WeightSource for Noise {
    fn shape(&self) -> (usize, usize) {
        (self.0, self.1)
    }
    fn form(&self) -> Form {
        self.2.clone()
    }
    fn row_f32(&self, _row: usize, out: &mut [f32]) {
        out.fill(0.0);
    }
    fn row_codes(&self, row: usize, out: &mut [u8]) {
        if let Form::Grouped(g) = &self.2 {
            fill(row, out, ((1u32 << g.bits) - 1) as u8);
        }
    }
    fn row_scales(&self, row: usize, out: &mut [u8]) {
        let Form::Grouped(g) = &self.2 else { return };
        fill(row, out, 0xff);
        match g.scales {
            Scales::Float(d) | Scales::FloatBias(d) => ordinary(d, out),
            Scales::Exponent => out.iter_mut().for_each(|e| *e = 112 + *e % 16),
            Scales::Float8 => out.iter_mut().for_each(|f| *f = 16 + *f % 64),
            kind => out.chunks_mut(kind.unit_bytes()).for_each(|unit| {
                let two = matches!(kind, Scales::Nibbles16 | Scales::Six8);
                ordinary(DType::F16, &mut unit[..if two { 4 } else { 2 }]);
            }),
        }
    }
    fn row_dense(&self, row: usize, out: &mut [u8]) {
        let Form::Dense(d) = &self.2 else { return };
        fill(row, out, 0xff);
        ordinary(*d, out);
    }
}

/// Makes small ordinary floats of random bytes: subnormal ones would be slow for a reason that no model has.
fn ordinary(d: DType, bytes: &mut [u8]) {
    let top = if d == DType::F16 { 0x24 } else { 0x3c };
    bytes.chunks_mut(d.size()).for_each(|f| f[d.size() - 1] = f[d.size() - 1] & 0x81 | top);
}

fn forms() -> Vec<(&'static str, Form)> {
    let grouped = |bits, levels, block, scales| Form::Grouped(Grouped { bits, levels, block, scales });
    let affine = |bits| grouped(bits, Levels::Offset(0), 64, Scales::FloatBias(DType::BF16));
    vec![
        ("affine4", affine(4)),
        ("q4_0", grouped(4, Levels::Offset(8), 32, Scales::Float(DType::F16))),
        ("q8_0", grouped(8, Levels::Offset(128), 32, Scales::Float(DType::F16))),
        ("q4_k", grouped(4, Levels::Offset(0), 32, Scales::Six8)),
        ("q6_k", grouped(6, Levels::Offset(32), 16, Scales::Byte16)),
        ("bf16", Form::Dense(DType::BF16)),
        ("affine2", affine(2)),
        ("affine3", affine(3)),
        ("affine5", affine(5)),
        ("affine6", affine(6)),
        ("affine8", affine(8)),
        ("q2_k", grouped(2, Levels::Offset(0), 16, Scales::Nibbles16)),
        ("q3_k", grouped(3, Levels::Offset(4), 16, Scales::Six16)),
        (
            "iq4_nl",
            grouped(
                4,
                Levels::Table([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]),
                32,
                Scales::Float(DType::F16),
            ),
        ),
        (
            "mxfp4",
            grouped(4, Levels::Table([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12]), 32, Scales::Exponent),
        ),
        ("f32", Form::Dense(DType::F32)),
        ("f16", Form::Dense(DType::F16)),
    ]
}

/// Time that this thread has run, as Linux counts it.
fn on_cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux with schedstat");
    let nanos = text.split_whitespace().next().and_then(|t| t.parse().ok()).expect("nanoseconds");
    Duration::from_nanos(nanos)
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let find = |key: &str| args.iter().find_map(|a| a.strip_prefix(key)).map(str::to_owned);
    let list = |key: &str, default: &str| -> Vec<String> {
        find(key).unwrap_or(default.into()).split(',').map(str::to_owned).collect()
    };
    let secs: f64 = find("secs=").map_or(0.4, |s| s.parse().expect("seconds"));
    let numerics = if args.iter().any(|a| a == "exact") { Numerics::Exact } else { Numerics::Int8 };
    let zero = Instant::now();
    let now = || if find("clock=").is_some() { on_cpu() } else { zero.elapsed() };
    let wanted = list("form=", "affine4,q4_0,q8_0,q4_k,q6_k,bf16");
    for threads in list("threads=", "1,2") {
        let threads: usize = threads.parse().expect("threads");
        let limit = probe::read_bandwidth(threads, 4).expect("memory");
        println!("{threads} threads: reads {:.1} GB/s", limit / 1e9);
        for isa in Isa::available() {
            if !list("isa=", "avx2,avx512").iter().any(|i| isa.name().starts_with(i.as_str())) {
                continue;
            }
            for (name, form) in forms().into_iter().filter(|(n, _)| wanted.iter().any(|w| w == n)) {
                for shape in list("shape=", "151936x1024,3072x1024,1024x3072") {
                    let (n, k) = shape.split_once('x').expect("NxK");
                    let (n, k): (usize, usize) = (n.parse().expect("N"), k.parse().expect("K"));
                    let cpu = Cpu::new(CpuSpec { threads: Some(threads), numerics, isa: Some(isa) }).expect("cpu");
                    let bytes = cpu.packed_bytes(n, k, &form);
                    // Enough copies that nothing stays in a cache.
                    let copies =
                        find("copies=").map_or((256usize << 20).div_ceil(bytes), |c| c.parse().expect("copies"));
                    let began = now();
                    let weights: Vec<_> = (0..copies)
                        .map(|_| cpu.pack(&Noise(n, k, form.clone()), None, Class::Weights).expect("packs"))
                        .collect();
                    let pack = (copies * bytes) as f64 / (now() - began).as_secs_f64();
                    print!("{name:8} {:12} {n:6}x{k:<5} pack {:4.1} GB/s", isa.name(), pack / 1e9);
                    for rows in list("rows=", "1,4,32,512") {
                        let rows: usize = rows.parse().expect("rows");
                        let x: Vec<f32> = (0..rows * k).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect();
                        let x = cpu.upload(&x, &[rows, k], DType::F32, Class::Scratch).expect("x");
                        let (mut best, mut runs, began) = (f64::MAX, 0, Instant::now());
                        let from = now();
                        while began.elapsed().as_secs_f64() < secs || runs < 3 {
                            // All weights in turn, for at least ten milliseconds: reading the clock is not free.
                            let (first, wall, start) = (runs, Instant::now(), now());
                            while runs == first || wall.elapsed() < Duration::from_millis(10) {
                                let w = &weights[runs % copies];
                                std::hint::black_box(cpu.linear(Input::Plain(&x), &[w]).expect("y"));
                                runs += 1;
                            }
                            best = best.min((now() - start).as_secs_f64() / (runs - first) as f64);
                        }
                        if find("clock=").is_some() {
                            // The kernel counts in ticks: only the mean means something.
                            best = (now() - from).as_secs_f64() / runs as f64;
                        }
                        let (rate, macs) = (bytes as f64 / best, (n * k * rows) as f64 / best);
                        print!(
                            " | T={rows} {:5.1} GB/s {:3.0}% {:6.1} G/s",
                            rate / 1e9,
                            100.0 * rate / limit,
                            macs / 1e9
                        );
                    }
                    println!();
                }
            }
        }
    }
}
