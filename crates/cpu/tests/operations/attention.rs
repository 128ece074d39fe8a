//! Operations on pages of keys and values.

use proptest::prelude::*;
use reverie_tensor::backend::PAGE_TOKENS;
use reverie_tensor::dry::Dry;
use reverie_tensor::reference::Reference;
use reverie_tensor::{
    AttendSpec, Backend, Choice, ChooseSpec, Class, DType, Keep, KvSegment, KvSpec, KvTarget, Latent, Numerics, Reach,
    Tensor,
};
use std::sync::Arc;

use super::trial::{Bound, Case, Draw, Held, Rows, compare, cpus, holds, pick, tensor};

const DTYPES: &[DType] = &[DType::F32, DType::F16, DType::BF16];

/// Where sequences begin: at the edges of pages and of chains of pages, and elsewhere.
fn starts() -> impl Strategy<Value = Vec<usize>> {
    let near = pick(&[0usize, 0, 0, 1, 17, 62, 63, 64, 65, 127, 130]);
    let far = pick(&[447usize, 500, 511, 512, 513, 700, 1023, 1024, 1025, 1600]);
    proptest::collection::vec(prop_oneof![2 => near, 1 => far], 3)
}

/// Pages for so many tokens with every slot holding NaN.
fn pages(b: &dyn Backend, spec: &KvSpec, tokens: usize) -> Vec<Tensor> {
    let blank = |_| {
        let mut page = b.alloc(&[spec.page_elements()], spec.dtype, Class::State).unwrap();
        b.write_bytes(&mut page, &vec![0xff; spec.page_bytes()]).unwrap();
        page
    };
    (0..tokens.div_ceil(PAGE_TOKENS).max(1)).map(blank).collect()
}

pub fn kv_write() {
    let dims = (pick(&[1usize, 3, 8]), 1usize..80, 0usize..70);
    holds(1, (dims, pick(DTYPES), starts()), |((g, k_dim, v_dim), dtype, starts), lengths, draw| {
        let spec = KvSpec { n_heads: g, k_dim, v_dim, dtype };
        let t: usize = lengths.iter().sum();
        let k = draw.values(t * g * k_dim, 1e5); // beyond f16
        let v: Vec<f32> = draw.values(t * g * v_dim, 1.0).iter().map(|v| v * v * v * 1e-4).collect(); // below it
        let ends: Vec<usize> = lengths.iter().zip(&starts).map(|(n, start)| start + n).collect();
        let start = move |b: &dyn Backend| Held {
            slots: ends.iter().map(|end| pages(b, &spec, *end)).collect(),
            weights: Vec::new(),
        };
        let case = Case::new(Bound::Bits, move |b, rows, held| {
            let (k, v) = (rows.tensor(b, &k, &[g, k_dim]), rows.tensor(b, &v, &[g, v_dim]));
            let mut targets: Vec<_> = (rows.parts.iter().zip(&mut held.slots).enumerate())
                .map(|(i, (rows_of, pages))| KvTarget { rows: rows_of.clone(), start: starts[i] + rows.done[i], pages })
                .collect();
            b.kv_write(&k, &v, &mut targets, &spec).unwrap();
            Vec::new()
        });
        Case { start: Box::new(start), ..case }
    });
}

/// All keys of the sequences, written in calls that begin, continue and cross pages.
fn written(b: &dyn Backend, spec: &KvSpec, (k, v): (&[Vec<f32>], &[Vec<f32>])) -> Held {
    let one = |(k, v): (&Vec<f32>, &Vec<f32>)| {
        let end = k.len() / (spec.n_heads * spec.k_dim);
        let mut pages = pages(b, spec, end);
        let k = tensor(b, k, &[end, spec.n_heads, spec.k_dim]);
        let v = tensor(b, v, &[end, spec.n_heads, spec.v_dim]);
        let cut = end * 2 / 3;
        for (rows, start) in [(0..cut, 0), (cut..end, cut)] {
            b.kv_write(&k, &v, &mut [KvTarget { rows, start, pages: &mut pages }], spec).unwrap();
        }
        pages
    };
    Held { slots: k.iter().zip(v).map(one).collect(), weights: Vec::new() }
}

/// What the sequences of a call see.
fn segments<'a>(rows: &Rows, starts: &[usize], held: &'a Held) -> Vec<KvSegment<'a>> {
    let one = |(i, pages): (usize, &'a Vec<Tensor>)| KvSegment {
        rows: rows.parts[i].clone(),
        start: starts[i] + rows.done[i],
        pages,
    };
    held.slots.iter().enumerate().map(one).collect()
}

/// Keys and values of sequences that end here, out of `values`.
fn keys(
    (lengths, starts): (&[usize], &[usize]),
    spec: &KvSpec,
    mut values: impl FnMut(usize) -> Vec<f32>,
) -> [Vec<Vec<f32>>; 2] {
    let ends: Vec<usize> = lengths.iter().zip(starts).map(|(n, start)| start + n).collect();
    [spec.k_dim, spec.v_dim].map(|dim| ends.iter().map(|end| values(end * spec.n_heads * dim)).collect())
}

/// A random choice of keys for every row and group, its own key always among them.
fn any_keep(draw: &mut Draw, n_groups: usize, lengths: &[usize], starts: &[usize]) -> Keep {
    let own: Vec<usize> = lengths.iter().zip(starts).flat_map(|(n, start)| *start..start + n).collect();
    let n_pages = own.iter().max().map_or(0, |last| last / PAGE_TOKENS + 1);
    let mut bits = vec![0u64; own.len() * n_groups * n_pages];
    for (i, word) in bits.iter_mut().enumerate() {
        *word = [0, 0, !0, 0xf0f0, 1 << 63][draw.below(5)] ^ (1 << draw.below(64));
        let own = own[i / n_pages / n_groups];
        if own / PAGE_TOKENS == i % n_pages {
            *word |= 1 << (own % PAGE_TOKENS);
        }
    }
    Keep { n_groups, n_pages, bits: bits.into() }
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

fn specs() -> impl Strategy<Value = AttendSpec> {
    let heads = pick(&[(1, 1), (4, 2), (6, 1), (3, 3), (14, 2), (16, 1)]);
    let dims = prop_oneof![
        3 => (1usize..80, 1usize..80),
        1 => pick(&[(64, 64), (128, 128), (80, 16), (144, 128), (576, 512)]),
    ];
    let latent = proptest::option::weighted(0.3, (0.5f64..1.0, 0.5f64..1.0));
    let (louder, softcap) = (pick(&[1.0f32, 8.0]), pick(&[None, Some(3.0f32), Some(30.0)]));
    let sizes = || prop_oneof![3 => pick(&[1usize, 5, 7, 64, 100, 600]), 1 => 1usize..700];
    let reach = prop_oneof![Just(Reach::All), sizes().prop_map(Reach::Window), sizes().prop_map(Reach::Chunk)];
    let all = ((heads, dims, pick(DTYPES)), latent, louder, softcap, reach);
    all.prop_map(|((heads, dims, dtype), latent, louder, softcap, reach)| {
        let mut spec = AttendSpec { softcap, reach, ..spec(heads, dims, dtype) };
        spec.scale *= louder;
        if let Some(shares) = latent {
            let part = |share: f64| ((dims.0 as f64 * share) as usize).max(1);
            spec.kv.v_dim = 0;
            spec.latent = Some(Latent { query: part(shares.0), value: part(shares.1) });
        }
        spec
    })
}

/// Softmax weights by a polynomial within 2 ulp and sums of at most some thousand terms in f32, against f64. The rounding of a
/// score grows with the chain that made it.
fn tolerance(spec: &AttendSpec) -> Bound {
    Bound::Sums(4e-6 * (1.0 + spec.kv.k_dim as f32 / 128.0))
}

pub fn attend() {
    let groups = pick(&[None, None, Some(0usize), Some(1), Some(2)]);
    holds(3, (specs(), starts(), any::<bool>(), groups), |(spec, starts, sinks, groups), lengths, draw| {
        let (h, dim) = (spec.n_heads, spec.q_dim());
        let q = draw.values(lengths.iter().sum::<usize>() * h * dim, 2.0);
        // What a choice leaves out of a page is multiplied by zero, so that it has to be finite.
        let values = |n| if groups.is_some() { draw.plain(n, 2.0) } else { draw.values(n, 2.0) };
        let [k, v] = keys((lengths, &starts), &spec.kv, values);
        let sinks = sinks.then(|| draw.values(h, 3.0));
        let keep = groups.map(|g| any_keep(draw, [1, spec.kv.n_heads, h][g], lengths, &starts));
        let kv = spec.kv;
        let case = Case::new(tolerance(&spec), move |b, rows, held| {
            let own = |k: &Keep| Keep { bits: rows.of(&k.bits, k.n_groups * k.n_pages).into(), ..k.clone() };
            let spec = AttendSpec {
                sinks: sinks.as_ref().map(|s| tensor(b, s, &[h])),
                keep: keep.as_ref().map(own),
                ..spec.clone()
            };
            vec![b.attend(&rows.tensor(b, &q, &[h, dim]), &segments(rows, &starts, held), &spec).unwrap()]
        });
        Case { start: Box::new(move |b| written(b, &kv, (&k, &v))), ..case }
    });
}

#[derive(Clone, Copy, Debug)]
enum Chosen {
    Index,
    Mean,
    Share,
}

pub fn choose() {
    let shapes = (pick(&[Chosen::Index, Chosen::Mean, Chosen::Share]), pick(&[4usize, 16, 32]), 1usize..6, starts());
    holds(1, shapes, |(chosen, block, n_kept, starts), lengths, draw| {
        let starts: Vec<usize> = starts.iter().map(|s| s % 200).collect();
        let (h, dim) = (4, 12);
        let n_heads = if matches!(chosen, Chosen::Index) { 1 } else { 2 };
        let kv = KvSpec { n_heads, k_dim: dim, v_dim: 5, dtype: DType::F32 };
        let block = if matches!(chosen, Chosen::Index) { 1 } else { block };
        let t = lengths.iter().sum::<usize>();
        let (q, weights) = (draw.plain(t * h * dim, 2.0), draw.plain(t * h, 1.0));
        let [k, v] = keys((lengths, &starts), &kv, |n| draw.plain(n, 2.0));
        let case = Case::new(Bound::Bits, move |b, rows, held| {
            let choice = match chosen {
                Chosen::Index => Choice::Index { first: 0, weights: rows.tensor(b, &weights, &[h]) },
                Chosen::Mean => Choice::Mean,
                Chosen::Share => Choice::Share,
            };
            let spec = ChooseSpec { n_heads: h, kv, block, n_kept: n_kept + 2, scale: 0.3, choice };
            let q = rows.tensor(b, &q, &[h, dim]);
            let (keep, pooled) = b.choose(&q, &segments(rows, &starts, held), &spec).unwrap();
            let quarters = |w: &u64| [0, 16, 32, 48].map(|by| f32::from((w >> by) as u16));
            let bits: Vec<f32> = keep.bits.iter().flat_map(quarters).collect();
            let bits = tensor(b, &bits, &[rows.len(), bits.len() / rows.len()]);
            [Some(bits), pooled].into_iter().flatten().collect()
        });
        Case { start: Box::new(move |b| written(b, &kv, (&k, &v))), ..case }
    });
}

#[test]
fn a_chain_of_scores_of_minus_infinity_weighs_nothing() {
    let spec = spec((1, 1), (16, 16), DType::F32);
    let keys: Vec<f32> = (0..601 * 16).map(|i| if i < 520 * 16 { f32::NEG_INFINITY } else { (i % 7) as f32 }).collect();
    let run = |b: &dyn Backend| {
        let held = written(b, &spec.kv, (std::slice::from_ref(&keys), &[vec![0.25; 601 * 16]]));
        let segment = KvSegment { rows: 0..1, start: 600, pages: &held.slots[0] };
        b.read(&b.attend(&tensor(b, &[0.5; 16], &[1, 1, 16]), &[segment], &spec).unwrap()).unwrap()
    };
    let expected = run(&Reference::new(Numerics::Exact));
    assert!(expected.iter().all(|v| v.is_finite()));
    for cpu in &cpus(Numerics::Exact) {
        compare("after a whole chain of nothing", &run(cpu), &expected, Bound::Close(4e-6)).unwrap();
    }
}

#[test]
fn the_dry_run_knows_the_workspace() {
    for threads in [1, 2, 4] {
        for (rows, start) in [(1usize, 4000usize), (3, 2000), (40, 0), (200, 600)] {
            let spec = spec((8, 2), (64, 64), DType::F16);
            let set = reverie_cpu::CpuSpec { threads: Some(threads), ..Default::default() };
            let peak = |b: &dyn Backend| {
                let kv = &spec.kv;
                let page = b.alloc(&[kv.page_elements()], kv.dtype, Class::State).unwrap();
                let pages = vec![page; (start + rows).div_ceil(PAGE_TOKENS)];
                let q = b.alloc(&[rows, 8, 64], DType::F32, Class::Scratch).unwrap();
                let segment = KvSegment { rows: 0..rows, start, pages: &pages };
                b.attend(&q, &[segment], &spec).unwrap();
                b.memory().usage().peak
            };
            let cpu = Arc::new(reverie_cpu::Cpu::new(set).unwrap());
            assert_eq!(peak(&Dry::new(cpu.clone())), peak(cpu.as_ref()), "{threads} threads, {rows} rows");
        }
    }
}

#[test]
fn refusals() {
    let cpu = &cpus(Numerics::Exact)[0];
    let spec = spec((4, 2), (16, 16), DType::F16);
    let values = vec![0.5; 72 * 32];
    let pages = written(cpu, &spec.kv, (std::slice::from_ref(&values), std::slice::from_ref(&values))).slots.remove(0);
    let q = tensor(cpu, &[0.5; 128], &[2, 4, 16]);
    let segment = |rows: std::ops::Range<usize>, pages| KvSegment { rows, start: 70, pages };
    assert!(cpu.attend(&q, &[segment(0..2, &pages[..1])], &spec).is_err(), "too few pages");
    assert!(cpu.attend(&q, &[segment(0..3, &pages)], &spec).is_err(), "rows beyond the batch");
    assert!(cpu.attend(&q, &[segment(0..2, &pages), segment(1..2, &pages)], &spec).is_err(), "a row twice");
    let odd = AttendSpec { n_heads: 3, ..spec.clone() };
    assert!(cpu.attend(&q, &[segment(0..2, &pages)], &odd).is_err(), "heads that do not divide");
    let wide = AttendSpec { kv: KvSpec { dtype: DType::F32, ..spec.kv }, ..spec.clone() };
    assert!(cpu.attend(&q, &[segment(0..2, &pages)], &wide).is_err(), "pages of another type");
    let shared = pages.clone();
    let mut pages = pages;
    let (k, v) = (tensor(cpu, &values[..64], &[2, 2, 16]), tensor(cpu, &values[..64], &[2, 2, 16]));
    let mut targets = [KvTarget { rows: 0..2, start: 70, pages: &mut pages }];
    let refused = cpu.kv_write(&k, &v, &mut targets, &spec.kv).unwrap_err().to_string();
    assert!(refused.contains("page 1") && refused.contains("share"), "{refused}");
    drop(shared);
    cpu.kv_write(&k, &v, &mut targets, &spec.kv).unwrap();
}

#[test]
fn pages_out_of_reach_may_be_gone_and_others_are_missed_by_name() {
    let keys: Vec<f32> = (0..300 * 32).map(|i| (i % 23) as f32 * 0.1 - 1.0).collect();
    let reference = Reference::new(Numerics::Exact);
    for reach in [Reach::Window(1), Reach::Window(40), Reach::Window(100), Reach::Chunk(70), Reach::All] {
        let spec = AttendSpec { reach, ..spec((4, 2), (16, 16), DType::F16) };
        let all: Vec<&dyn Backend> = vec![&reference];
        let sets = cpus(Numerics::Exact);
        for b in all.into_iter().chain(sets.iter().map(|cpu| cpu as &dyn Backend)) {
            let mut pages =
                written(b, &spec.kv, (std::slice::from_ref(&keys), std::slice::from_ref(&keys))).slots.remove(0);
            let q = tensor(b, &[0.5; 3 * 64], &[3, 4, 16]);
            let run = |pages: &[Tensor]| b.attend(&q, &[KvSegment { rows: 0..3, start: 255, pages }], &spec);
            let want = b.read(&run(&pages).unwrap()).unwrap();
            let first = reach.first(255) / PAGE_TOKENS;
            pages[..first].fill(Tensor::hole(DType::F16));
            assert_eq!(b.read(&run(&pages).unwrap()).unwrap(), want, "{reach:?}");
            pages[first] = Tensor::hole(DType::F16);
            let refused = run(&pages).unwrap_err().to_string();
            assert!(refused.contains(&format!("page {first}")) && refused.contains("given back"), "{refused}");
            let (k, v) = (tensor(b, &keys[..32], &[1, 2, 16]), tensor(b, &keys[..32], &[1, 2, 16]));
            let start = first * PAGE_TOKENS;
            let mut targets = [KvTarget { rows: 0..1, start, pages: &mut pages }];
            let refused = b.kv_write(&k, &v, &mut targets, &spec.kv).unwrap_err().to_string();
            assert!(refused.contains(&format!("page {first}")) && refused.contains("given back"), "{refused}");
        }
    }
}
