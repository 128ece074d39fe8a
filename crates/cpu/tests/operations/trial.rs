//! How an operation is held against the scalar reference: random shapes and values, every instruction set of this processor,
//! several thread counts, all rows in one call and in many. Knows no operation.

use std::fmt::Debug;
use std::ops::Range;

use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestRunner};
use reverie_cpu::{Cpu, CpuSpec, Isa};
use reverie_tensor::reference::Reference;
use reverie_tensor::{Backend, Class, DType, Numerics, StateSegment, Tensor, Weight};

/// What is strange about the values of a case.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Nothing: all within the scale that the operation asks for.
    Plain,
    /// A few are NaN, infinite, zero of either sign, subnormal or the smallest normal ones.
    Odd,
    /// Half of them are any 32 bits. Sums of such values have no tolerance worth the name, so that only what promises the
    /// reference's bits is held against it; the instruction sets have to agree all the same.
    Wild,
}

/// The values of a case, drawn afresh for every backend that runs it. Shapes shrink, seeds do not.
#[derive(Clone, Copy, Debug)]
struct Values {
    seed: u64,
    kind: Kind,
}

/// Any values.
fn values() -> impl Strategy<Value = Values> {
    let kind = prop_oneof![3 => Just(Kind::Plain), 2 => Just(Kind::Odd), 1 => Just(Kind::Wild)];
    (any::<u64>().no_shrink(), kind).prop_map(|(seed, kind)| Values { seed, kind })
}

/// One of these.
pub fn pick<T: Clone + Debug + 'static>(of: &'static [T]) -> impl Strategy<Value = T> {
    select(of)
}

/// Rows of up to four sequences: few, many, a page or two; now and then none.
fn lengths() -> impl Strategy<Value = Vec<usize>> {
    proptest::collection::vec(prop_oneof![4 => 1usize..6, 3 => 6usize..41, 1 => Just(0), 1 => 60usize..90], 1..4)
        .prop_filter("a row", |lengths| lengths.iter().sum::<usize>() > 0)
}

impl Values {
    fn draw(&self) -> Draw {
        Draw { state: self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, kind: self.kind }
    }
}

/// A stream of seeded values (xorshift64*).
pub struct Draw {
    state: u64,
    kind: Kind,
}

const STRANGE: [u32; 12] = [
    0x7fc0_0000, // NaN
    0xffc1_2345,
    0x7f80_0000, // infinities
    0xff80_0000,
    0x0000_0000, // zeros
    0x8000_0000,
    0x0000_0001, // subnormals
    0x8000_1234,
    0x007f_ffff,
    0x807f_ffff,
    0x0080_0000, // the smallest normals
    0x8080_0000,
];

impl Draw {
    fn next(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() >> 33) as usize % n
    }

    /// Within ±scale, whatever the kind.
    pub fn plain(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|_| ((self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * scale).collect()
    }

    /// Within ±scale but for what the kind adds.
    pub fn values(&mut self, n: usize, scale: f32) -> Vec<f32> {
        let mut values = self.plain(n, scale);
        match self.kind {
            Kind::Plain => {}
            Kind::Odd => {
                for _ in 0..self.below(5).min(n) {
                    let (at, strange) = (self.below(n), STRANGE[self.below(STRANGE.len())]);
                    values[at] = f32::from_bits(strange);
                }
            }
            Kind::Wild => values.iter_mut().step_by(2).for_each(|v| *v = f32::from_bits(self.next() as u32)),
        }
        values
    }
}

/// What "equal" means.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// The same bits, any NaN being any other.
    Bits,
    /// Within this · (1 + |expected|); NaN where NaN is expected and infinity where infinity is.
    Close(f32),
    /// The same for sums whose terms are made in another order: where the expected value is not finite, none is finite, but an
    /// infinity may be a NaN.
    Sums(f32),
    /// Not held against the reference: rounding to int8 comes between.
    Sets,
}

/// The one comparison.
pub fn compare(what: &str, found: &[f32], expected: &[f32], bound: Bound) -> Result<(), TestCaseError> {
    prop_assert_eq!(found.len(), expected.len(), "{}", what);
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        let fits = match bound {
            Bound::Bits => f.to_bits() == e.to_bits() || (f.is_nan() && e.is_nan()),
            Bound::Close(by) => f == e || (f.is_nan() && e.is_nan()) || (f - e).abs() <= by * (1.0 + e.abs()),
            Bound::Sums(_) if !e.is_finite() => !f.is_finite(),
            Bound::Sums(by) => (f - e).abs() <= by * (1.0 + e.abs()),
            Bound::Sets => true,
        };
        prop_assert!(fits, "{}: element {} is {:e}, not {:e} ({:?})", what, i, f, e, bound);
    }
    Ok(())
}

/// The same, for a test without cases.
#[track_caller]
pub fn same(what: &str, found: &[f32], expected: &[f32]) {
    compare(what, found, expected, Bound::Bits).unwrap_or_else(|e| panic!("{e}"));
}

/// The rows of one call among the rows of all sequences.
pub struct Rows {
    /// Places of the rows.
    pub places: Vec<usize>,
    /// Rows of the call that each sequence has; possibly none.
    pub parts: Vec<Range<usize>>,
    /// Rows of each sequence that came before.
    pub done: Vec<usize>,
}

impl Rows {
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// The rows of this call out of `x`, whose rows have `width` values.
    pub fn of<T: Copy>(&self, x: &[T], width: usize) -> Vec<T> {
        self.places.iter().flat_map(|&p| &x[p * width..(p + 1) * width]).copied().collect()
    }

    /// The same as a tensor of T rows of this shape.
    pub fn tensor(&self, b: &dyn Backend, x: &[f32], shape: &[usize]) -> Tensor {
        let width = shape.iter().product();
        tensor(b, &self.of(x, width), &[&[self.len()], shape].concat())
    }

    /// The sequences with the slot of each.
    pub fn segments<'a>(&self, slots: &'a mut [Vec<Tensor>]) -> Vec<StateSegment<'a>> {
        self.parts.iter().zip(slots).map(|(rows, s)| StateSegment { rows: rows.clone(), state: &mut s[0] }).collect()
    }
}

/// What a run has on one backend.
#[derive(Default)]
pub struct Held {
    /// What each sequence keeps from call to call; compared at the end.
    pub slots: Vec<Vec<Tensor>>,
    /// Packed once.
    pub weights: Vec<Weight>,
}

/// What a run begins with.
pub type Start = dyn Fn(&dyn Backend) -> Held;

type Call = dyn Fn(&dyn Backend, &Rows, &mut Held) -> Vec<Tensor>;

/// An operation with its values.
pub struct Case {
    pub bound: Bound,
    pub numerics: Numerics,
    pub start: Box<Start>,
    /// The results for these rows, each with as many rows.
    pub call: Box<Call>,
}

impl Case {
    /// One that keeps nothing.
    pub fn new(bound: Bound, call: impl Fn(&dyn Backend, &Rows, &mut Held) -> Vec<Tensor> + 'static) -> Case {
        Case { bound, numerics: Numerics::Exact, start: Box::new(|_| Held::default()), call: Box::new(call) }
    }

    /// One whose sequences each begin with a slot of this shape, out of `values`.
    pub fn with_slots(self, values: Vec<f32>, shape: &[usize]) -> Case {
        let shape = shape.to_vec();
        let start = move |b: &dyn Backend| {
            let slots = values.chunks(shape.iter().product()).map(|v| vec![tensor(b, v, &shape)]).collect();
            Held { slots, weights: Vec::new() }
        };
        Case { start: Box::new(start), ..self }
    }

    /// All results, place by place, and the slots at the end, from calls of `cut` rows of every sequence.
    fn run(&self, b: &dyn Backend, lengths: &[usize], cut: usize) -> Vec<Vec<f32>> {
        let mut held = (self.start)(b);
        let total: usize = lengths.iter().sum();
        let mut results: Vec<Vec<f32>> = Vec::new();
        let mut from = 0usize;
        while from < *lengths.iter().max().expect("a sequence") {
            let mut rows = Rows { places: Vec::new(), parts: Vec::new(), done: Vec::new() };
            let mut base = 0;
            for &n in lengths {
                let part = n.min(from)..n.min(from.saturating_add(cut));
                rows.parts.push(rows.len()..rows.len() + part.len());
                rows.done.push(part.start);
                rows.places.extend(part.map(|t| base + t));
                base += n;
            }
            let out = (self.call)(b, &rows, &mut held);
            results.resize(out.len(), Vec::new());
            for (y, whole) in out.iter().zip(&mut results) {
                let (y, width) = (b.read(y).expect("values"), y.shape().elements() / rows.len());
                whole.resize(total * width, 0.0);
                let own = |i: usize| i * width..(i + 1) * width;
                rows.places.iter().enumerate().for_each(|(i, &place)| whole[own(place)].copy_from_slice(&y[own(i)]));
            }
            from = from.saturating_add(cut);
        }
        results.extend(held.slots.iter().map(|s| s.iter().flat_map(|t| b.read(t).expect("a slot")).collect()));
        results
    }

    fn check(&self, cpus: &[Cpu], lengths: &[usize], kind: Kind) -> Result<(), TestCaseError> {
        let first = self.run(&cpus[0], lengths, usize::MAX);
        if self.bound == Bound::Bits || (kind != Kind::Wild && self.bound != Bound::Sets) {
            let expected = self.run(&Reference::new(self.numerics), lengths, usize::MAX);
            for (i, (found, expected)) in first.iter().zip(&expected).enumerate() {
                compare(&format!("result {i} of {}", first.len()), found, expected, self.bound)?;
            }
        }
        let cuts = if lengths.iter().sum::<usize>() < 50 { [usize::MAX, 1, 7] } else { [usize::MAX, 33, 7] };
        for cpu in cpus {
            for cut in cuts {
                for (i, (found, first)) in self.run(cpu, lengths, cut).iter().zip(&first).enumerate() {
                    let what = format!("result {i}, {} × {}, cut at {cut}", cpu.isa().name(), cpu.threads());
                    compare(&what, found, first, Bound::Bits)?;
                }
            }
        }
        Ok(())
    }
}

/// Holds an operation of these shapes to its reference and to itself. `build` gets a shape, the rows of each sequence and where its
/// values come from. `share` is its part of the cases: 1 is 24 of them, and PROPTEST_CASES raises all in proportion. Without
/// that variable the cases are the same in every run.
pub fn holds<P: Debug>(share: u32, shapes: impl Strategy<Value = P>, build: impl Fn(P, &[usize], &mut Draw) -> Case) {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse::<u32>().ok());
    let config = Config {
        cases: asked.unwrap_or(24) * share,
        failure_persistence: None,
        max_shrink_iters: 300,
        rng_seed: asked.map_or(RngSeed::Fixed(1), |_| RngSeed::Random),
        ..Config::default()
    };
    let sets = [Numerics::Exact, Numerics::Int8].map(|numerics| (numerics, cpus(numerics)));
    let outcome = TestRunner::new(config).run(&(lengths(), values(), shapes), |(lengths, values, shape)| {
        let case = build(shape, &lengths, &mut values.draw());
        let (_, cpus) = sets.iter().find(|(n, _)| *n == case.numerics).expect("both");
        case.check(cpus, &lengths, values.kind)
    });
    outcome.unwrap_or_else(|e| panic!("{e}"));
}

/// A CPU of this set and these threads.
pub fn cpu(isa: Isa, threads: usize, numerics: Numerics) -> Cpu {
    Cpu::new(CpuSpec { threads: Some(threads), numerics, isa: Some(isa) }).expect("a detected set")
}

/// Every instruction set with one thread, and the best with two, three and four.
pub fn cpus(numerics: Numerics) -> Vec<Cpu> {
    let mut cpus: Vec<Cpu> = Isa::available().into_iter().map(|isa| cpu(isa, 1, numerics)).collect();
    cpus.extend((2..=4).map(|threads| cpu(Isa::detect(), threads, numerics)));
    cpus
}

/// An f32 tensor of these values on any backend.
pub fn tensor(b: &dyn Backend, values: &[f32], shape: &[usize]) -> Tensor {
    b.upload(values, shape, DType::F32, Class::Scratch).expect("an upload")
}

/// An operation that may use the storage of what it consumes: it does where nobody else holds it, and else leaves it alone.
pub fn consuming(b: &dyn Backend, x: Tensor, shared: Holder, op: impl FnOnce(Tensor) -> Tensor) -> Tensor {
    let place = x.host_bytes().expect("on the host").as_ptr();
    if shared == Holder::Alone {
        let y = op(x);
        assert!(b.name() == "reference" || y.host_bytes().expect("on the host").as_ptr() == place, "not in place");
        return y;
    }
    let (kept, before) = (x.clone(), b.read(&x).expect("values"));
    let y = op(x);
    same("a shared tensor", &b.read(&kept).expect("values"), &before);
    y
}

/// Who holds a tensor besides the operation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Holder {
    Alone,
    Shared,
}

pub fn holder() -> impl Strategy<Value = Holder> {
    pick(&[Holder::Alone, Holder::Shared])
}
