//! What the tests of operations share: seeded numbers, every way to run on this processor, and what "equal" means.

use reverie_tensor::reference::Reference;
use reverie_tensor::{Backend, Class, DType, Numerics, StateSegment, Tensor};

use crate::{Cpu, CpuSpec, Isa};

/// Seeded numbers (xorshift64*).
pub(crate) struct Seeded(u64);

impl Seeded {
    pub(crate) fn new(seed: u64) -> Seeded {
        Seeded(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() >> 33) as usize % n
    }

    /// One of these.
    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// Values in -scale..scale.
    pub(crate) fn values(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|_| ((self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * scale).collect()
    }
}

/// Every instruction set with one thread, and the best with two, three and four.
pub(crate) fn cpus() -> Vec<Cpu> {
    let one = |isa, threads| {
        Cpu::new(CpuSpec { threads: Some(threads), numerics: Numerics::Exact, isa: Some(isa) }).expect("a detected set")
    };
    let mut cpus: Vec<Cpu> = Isa::available().into_iter().map(|isa| one(isa, 1)).collect();
    cpus.extend((2..=4).map(|threads| one(Isa::detect(), threads)));
    cpus
}

/// The scalar reference.
pub(crate) fn reference() -> Reference {
    Reference::new(Numerics::Exact)
}

/// An f32 tensor of these values on any backend.
pub(crate) fn tensor(b: &dyn Backend, values: &[f32], shape: &[usize]) -> Tensor {
    b.upload(values, shape, DType::F32, Class::Scratch).expect("an upload")
}

/// Equal bits, any NaN being any other.
#[track_caller]
pub(crate) fn same(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!(f.to_bits() == e.to_bits() || (f.is_nan() && e.is_nan()), "{what}: element {i} is {f:e}, not {e:e}");
    }
}

/// Within `tolerance · (1 + |expected|)`; NaN where NaN is expected and infinity where infinity is.
#[track_caller]
pub(crate) fn close(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        let fits = f == e || (f.is_nan() && e.is_nan()) || (f - e).abs() <= tolerance * (1.0 + e.abs());
        assert!(fits, "{what}: element {i} is {f:e}, expected {e:e} within {tolerance:e}");
    }
}

/// A recurrent operation over sequences of these lengths, in calls of `cut` rows of every sequence. `call` gets the places of its
/// rows among the rows of all sequences and gives `width` values a row. Gives the result, in the order of the places, and
/// the slots at the end.
pub(crate) fn in_pieces(
    b: &dyn Backend,
    (slots, shape): (&[f32], &[usize]),
    (lengths, cut): (&[usize], usize),
    width: usize,
    call: impl Fn(&[usize], &mut [StateSegment<'_>]) -> Tensor,
) -> (Vec<f32>, Vec<f32>) {
    let each = shape.iter().product::<usize>();
    let mut slots: Vec<Tensor> = slots.chunks(each).map(|v| tensor(b, v, shape)).collect();
    let mut y = vec![0.0; lengths.iter().sum::<usize>() * width];
    let mut done = 0;
    while done < *lengths.iter().max().expect("a sequence") {
        let (mut places, mut rows, mut base) = (Vec::new(), Vec::new(), 0);
        for &n in lengths {
            let part = n.min(done)..n.min(done.saturating_add(cut));
            rows.push(places.len()..places.len() + part.len());
            places.extend(part.map(|t| base + t));
            base += n;
        }
        let mut segments: Vec<_> =
            rows.into_iter().zip(&mut slots).map(|(rows, state)| StateSegment { rows, state }).collect();
        let out = call(&places, &mut segments);
        for (row, &place) in b.read(&out).expect("values").chunks(width).zip(&places) {
            y[place * width..(place + 1) * width].copy_from_slice(row);
        }
        done = done.saturating_add(cut);
    }
    (y, slots.iter().flat_map(|s| b.read(s).expect("values")).collect())
}
