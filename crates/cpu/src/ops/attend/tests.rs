use std::sync::Arc;

use reverie_tensor::dry::Dry;
use reverie_tensor::{AttendSpec, Backend, Class, DType, Keep, KvSegment, KvSpec, KvTarget, Latent, Reach, Tensor};

use super::super::trial::{Seeded, close, cpus, reference, same, tensor};
use super::*;

/// Softmax weights by a polynomial within 2 ulp and sums of at most some thousand terms in f32, against f64.
const TOLERANCE: f32 = 4e-6;

/// The same where the key is long: the rounding of a score grows with the chain that made it.
fn tolerance(spec: &AttendSpec) -> f32 {
    TOLERANCE * (1.0 + spec.kv.k_dim as f32 / 128.0)
}

struct Sequence {
    start: usize,
    /// Rows that attend; the keys before them are written too.
    rows: usize,
    k: Vec<f32>,
    v: Vec<f32>,
    q: Vec<f32>,
}

impl Sequence {
    fn new(seeded: &mut Seeded, spec: &AttendSpec, start: usize, rows: usize) -> Sequence {
        let (kv, end) = (&spec.kv, start + rows);
        Sequence {
            start,
            rows,
            k: seeded.values(end * kv.n_heads * kv.k_dim, 2.0),
            v: seeded.values(end * kv.n_heads * kv.v_dim, 2.0),
            q: seeded.values(rows * spec.n_heads * spec.q_dim(), 2.0),
        }
    }

    /// Pages with every slot beyond the keys holding NaN.
    fn pages(&self, b: &dyn Backend, spec: &AttendSpec) -> Vec<Tensor> {
        let (kv, end) = (&spec.kv, self.start + self.rows);
        let mut pages: Vec<Tensor> = (0..end.div_ceil(PAGE_TOKENS))
            .map(|_| {
                let mut page = b.alloc(&[kv.page_elements()], kv.dtype, Class::State).unwrap();
                b.write_bytes(&mut page, &vec![0xff; kv.page_bytes()]).unwrap();
                page
            })
            .collect();
        let k = tensor(b, &self.k, &[end, kv.n_heads, kv.k_dim]);
        let v = tensor(b, &self.v, &[end, kv.n_heads, kv.v_dim]);
        // In two calls, so that pages are begun, continued and crossed.
        let cut = end * 2 / 3;
        for (rows, start) in [(0..cut, 0), (cut..end, cut)] {
            b.kv_write(&k, &v, &mut [KvTarget { rows, start, pages: &mut pages }], kv).unwrap();
        }
        pages
    }
}

/// All sequences in one call.
fn attend(b: &dyn Backend, spec: &AttendSpec, sequences: &[&Sequence]) -> Vec<f32> {
    let pages: Vec<_> = sequences.iter().map(|s| s.pages(b, spec)).collect();
    let (mut segments, mut row, mut q) = (Vec::new(), 0, Vec::new());
    for (s, pages) in sequences.iter().zip(&pages) {
        segments.push(KvSegment { rows: row..row + s.rows, start: s.start, pages });
        row += s.rows;
        q.extend_from_slice(&s.q);
    }
    let q = tensor(b, &q, &[row, spec.n_heads, spec.q_dim()]);
    b.read(&b.attend(&q, &segments, spec).unwrap()).unwrap()
}

/// Every row of a sequence in a call of its own.
fn one_by_one(b: &dyn Backend, spec: &AttendSpec, s: &Sequence) -> Vec<f32> {
    let pages = s.pages(b, spec);
    let width = spec.n_heads * spec.q_dim();
    let mut out = Vec::new();
    for (i, q) in s.q.chunks(width).enumerate() {
        let own = |k: &Keep| {
            let words = k.n_groups * k.n_pages;
            Keep { bits: k.bits[i * words..(i + 1) * words].into(), ..k.clone() }
        };
        let spec = &AttendSpec { keep: spec.keep.as_ref().map(own), ..spec.clone() };
        let q = tensor(b, q, &[1, spec.n_heads, spec.q_dim()]);
        let segment = KvSegment { rows: 0..1, start: s.start + i, pages: &pages };
        out.extend(b.read(&b.attend(&q, &[segment], spec).unwrap()).unwrap());
    }
    out
}

fn spec(heads: (usize, usize), dims: (usize, usize), dtype: DType) -> AttendSpec {
    let kv = KvSpec { n_heads: heads.1, k_dim: dims.0, v_dim: dims.1, dtype };
    AttendSpec {
        n_heads: heads.0,
        kv,
        scale: 0.3 / (dims.0 as f32).sqrt(),
        softcap: None,
        reach: Reach::All,
        sinks: None,
        latent: None,
        keep: None,
    }
}

fn any_spec(seeded: &mut Seeded) -> AttendSpec {
    let heads = seeded.pick(&[(1, 1), (4, 2), (6, 1), (3, 3), (14, 2), (16, 1)]);
    let dims =
        seeded.pick(&[(16, 16), (24, 40), (64, 64), (72, 56), (128, 128), (80, 16), (144, 128), (20, 7), (576, 512)]);
    let mut spec = spec(heads, dims, seeded.pick(&[DType::F32, DType::F16, DType::BF16]));
    if seeded.below(3) == 0 {
        spec.kv.v_dim = 0;
        spec.latent =
            Some(Latent { query: dims.0 - seeded.below(dims.0 / 2), value: dims.0 - seeded.below(dims.0 / 2) });
    }
    spec.scale *= seeded.pick(&[1.0, 8.0]);
    spec.softcap = seeded.pick(&[None, Some(3.0), Some(30.0)]);
    let (window, chunk) = (Reach::Window, Reach::Chunk);
    let all = [
        Reach::All,
        window(1),
        window(5),
        window(64),
        window(600),
        chunk(1),
        chunk(7),
        chunk(64),
        chunk(100),
        chunk(600),
    ];
    spec.reach = seeded.pick(&all);
    if seeded.below(2) == 0 {
        spec.sinks = Some(tensor(&reference(), &seeded.values(heads.0, 3.0), &[heads.0]));
    }
    spec
}

/// A random choice of keys for every row and group, its own key always among them.
fn any_keep(seeded: &mut Seeded, spec: &AttendSpec, s: &Sequence) -> Option<Keep> {
    let n_groups = [1, spec.kv.n_heads, spec.n_heads][seeded.below(4).checked_sub(1)?];
    let n_pages = (s.start + s.rows).div_ceil(PAGE_TOKENS);
    let mut bits = vec![0u64; s.rows * n_groups * n_pages];
    for (i, word) in bits.iter_mut().enumerate() {
        *word = seeded.pick(&[0, 0, !0, 0xf0f0, 1 << 63]) ^ (1 << seeded.below(64));
        let own = s.start + i / n_pages / n_groups;
        if own / PAGE_TOKENS == i % n_pages {
            *word |= 1 << (own % PAGE_TOKENS);
        }
    }
    Some(Keep { n_groups, n_pages, bits: bits.into() })
}

#[test]
fn as_the_reference_on_random_shapes() {
    let cpus = cpus();
    for seed in 0..60 {
        let mut seeded = Seeded::new(seed);
        let mut spec = any_spec(&mut seeded);
        let start = seeded.pick(&[0, 0, 1, 17, 63, 64, 130, 500, 700]);
        let rows = seeded.pick(&[1, 1, 2, 3, 9, 40, 70]);
        let s = Sequence::new(&mut seeded, &spec, start, rows);
        spec.keep = any_keep(&mut seeded, &spec, &s);
        let expected = attend(&reference(), &spec, &[&s]);
        let first = attend(&cpus[0], &spec, &[&s]);
        close(&format!("seed {seed} {spec:?} {start}+{rows}"), &first, &expected, tolerance(&spec));
        for cpu in &cpus[1..] {
            let what = format!("seed {seed}, {} × {}", cpu.isa().name(), cpu.threads());
            same(&what, &attend(cpu, &spec, &[&s]), &first);
        }
    }
}

#[test]
fn page_and_span_boundaries() {
    let cpus = cpus();
    for keys in [1, 2, 63, 64, 65, 127, 128, 129, 511, 512, 513, 1023, 1024, 1025, 1600] {
        let mut seeded = Seeded::new(keys as u64);
        let spec = spec((4, 2), (32, 48), DType::F16);
        let s = Sequence::new(&mut seeded, &spec, keys - 1, 1);
        let first = attend(&cpus[0], &spec, &[&s]);
        close(&format!("{keys} keys"), &first, &attend(&reference(), &spec, &[&s]), TOLERANCE);
        for cpu in &cpus[1..] {
            same(&format!("{keys} keys"), &attend(cpu, &spec, &[&s]), &first);
        }
    }
}

#[test]
fn many_rows_are_each_row_alone() {
    let cpus = cpus();
    let cpu = cpus.last().unwrap();
    for seed in 100..125 {
        let mut seeded = Seeded::new(seed);
        let mut spec = any_spec(&mut seeded);
        let start = seeded.pick(&[0, 5, 63, 440, 1000]);
        let rows = seeded.pick(&[2, 5, 33, 64, 130]);
        let s = Sequence::new(&mut seeded, &spec, start, rows);
        spec.keep = any_keep(&mut seeded, &spec, &s);
        let alone = one_by_one(cpu, &spec, &s);
        for cpu in &cpus {
            same(&format!("seed {seed} {spec:?} {start}+{rows}"), &attend(cpu, &spec, &[&s]), &alone);
        }
    }
}

#[test]
fn neighbours_change_nothing() {
    for cpu in &cpus() {
        let mut seeded = Seeded::new(7);
        let mut spec = spec((8, 2), (64, 64), DType::F16);
        spec.reach = Reach::Window(700);
        let lengths = [(0, 3), (1300, 1), (511, 2), (64, 70), (900, 1)];
        let sequences: Vec<_> = lengths.iter().map(|&(s, r)| Sequence::new(&mut seeded, &spec, s, r)).collect();
        let together = attend(cpu, &spec, &sequences.iter().collect::<Vec<_>>());
        let alone: Vec<f32> = sequences.iter().flat_map(|s| attend(cpu, &spec, &[s])).collect();
        same("a batch of five", &together, &alone);
    }
}

#[test]
fn infinity_and_nan_go_where_the_reference_has_them() {
    for (what, at, value) in [
        ("NaN in q", 0, f32::NAN),
        ("NaN in a key", 1, f32::NAN),
        ("NaN in a value", 2, f32::NAN),
        ("infinite q", 0, f32::INFINITY),
        ("infinite key", 1, f32::NEG_INFINITY),
        ("infinite value", 2, f32::INFINITY),
    ] {
        let mut seeded = Seeded::new(3);
        let spec = spec((2, 1), (16, 16), DType::F32);
        let mut s = Sequence::new(&mut seeded, &spec, 60, 10);
        [&mut s.q, &mut s.k, &mut s.v][at][16 * 5 + 3] = value;
        let expected = attend(&reference(), &spec, &[&s]);
        for cpu in &cpus() {
            close(what, &attend(cpu, &spec, &[&s]), &expected, TOLERANCE);
        }
    }
}

#[test]
fn a_chain_of_scores_of_minus_infinity_weighs_nothing() {
    let mut seeded = Seeded::new(4);
    let spec = spec((1, 1), (16, 16), DType::F32);
    let mut s = Sequence::new(&mut seeded, &spec, 600, 1);
    s.q.fill(0.5);
    s.k[..520 * 16].fill(f32::NEG_INFINITY);
    let expected = attend(&reference(), &spec, &[&s]);
    assert!(expected.iter().all(|v| v.is_finite()));
    for cpu in &cpus() {
        close("after a whole chain of nothing", &attend(cpu, &spec, &[&s]), &expected, TOLERANCE);
    }
}

#[test]
fn the_dry_run_knows_the_workspace() {
    for threads in [1, 2, 4] {
        for (rows, start) in [(1usize, 4000usize), (3, 2000), (40, 0), (200, 600)] {
            let spec = spec((8, 2), (64, 64), DType::F16);
            let set = crate::CpuSpec { threads: Some(threads), ..Default::default() };
            let peak = |b: &dyn Backend| {
                let kv = &spec.kv;
                let page = b.alloc(&[kv.page_elements()], kv.dtype, Class::State).unwrap();
                let pages = vec![page; (start + rows).div_ceil(PAGE_TOKENS)];
                let q = b.alloc(&[rows, 8, 64], DType::F32, Class::Scratch).unwrap();
                let segment = KvSegment { rows: 0..rows, start, pages: &pages };
                b.attend(&q, &[segment], &spec).unwrap();
                b.memory().usage().peak
            };
            let cpu = Arc::new(Cpu::new(set).unwrap());
            assert_eq!(peak(&Dry::new(cpu.clone())), peak(cpu.as_ref()), "{threads} threads, {rows} rows");
        }
    }
}

#[test]
fn refusals() {
    let cpu = &cpus()[0];
    let mut seeded = Seeded::new(1);
    let spec = spec((4, 2), (16, 16), DType::F16);
    let s = Sequence::new(&mut seeded, &spec, 70, 2);
    let pages = s.pages(cpu, &spec);
    let q = tensor(cpu, &s.q, &[2, 4, 16]);
    let segment = |rows: Range<usize>, pages| KvSegment { rows, start: 70, pages };
    assert!(cpu.attend(&q, &[segment(0..2, &pages[..1])], &spec).is_err(), "too few pages");
    assert!(cpu.attend(&q, &[segment(0..3, &pages)], &spec).is_err(), "rows beyond the batch");
    assert!(cpu.attend(&q, &[segment(0..2, &pages), segment(1..2, &pages)], &spec).is_err(), "a row twice");
    let odd = AttendSpec { n_heads: 3, ..spec.clone() };
    assert!(cpu.attend(&q, &[segment(0..2, &pages)], &odd).is_err(), "heads that do not divide");
    let wide = AttendSpec { kv: KvSpec { dtype: DType::F32, ..spec.kv }, ..spec.clone() };
    assert!(cpu.attend(&q, &[segment(0..2, &pages)], &wide).is_err(), "pages of another type");
    let shared = pages.clone();
    let mut pages = pages;
    let (k, v) = (tensor(cpu, &s.k[..64], &[2, 2, 16]), tensor(cpu, &s.v[..64], &[2, 2, 16]));
    let mut targets = [KvTarget { rows: 0..2, start: 70, pages: &mut pages }];
    let refused = cpu.kv_write(&k, &v, &mut targets, &spec.kv).unwrap_err().to_string();
    assert!(refused.contains("page 1") && refused.contains("share"), "{refused}");
    drop(shared);
    cpu.kv_write(&k, &v, &mut targets, &spec.kv).unwrap();
}
