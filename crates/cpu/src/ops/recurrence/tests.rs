use reverie_tensor::{Backend, Class, DType, HeadOrder};

use super::super::trial::{Seeded, close, cpus, reference, same, tensor};
use super::*;

/// The recurrence carries rounding along: both sides are f32 chains in different orders, over up to 40 tokens here.
const TOLERANCE: f32 = 4e-5;

#[derive(Clone, Copy, Debug)]
enum Kept {
    None,
    Fixed,
    Head,
    Key,
    Value,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Written {
    Add,
    AddStrength,
    Before,
    Delta,
    LowRank,
}

#[derive(Debug)]
struct Case {
    /// Heads of q, k, v, of the state; Dk, Dv.
    dims: (usize, usize, usize, usize, usize, usize),
    how: (Kept, Written),
    order: HeadOrder,
    unit: bool,
    skip: bool,
    lengths: Vec<usize>,
    seed: u64,
    poison: Option<(usize, f32)>,
}

/// Columns of q, k, v, decay, a, b in one wide row, then one value a head each for decay and strength.
struct Row {
    at: [usize; 6],
    width: usize,
}

impl Case {
    fn new(seed: u64) -> Case {
        let mut s = Seeded::new(seed);
        let (hq, hk, hv, h) = s.pick(&[(1, 1, 1, 1), (2, 2, 4, 4), (4, 2, 2, 4), (3, 3, 3, 3), (2, 2, 6, 6)]);
        let (dk, dv) = s.pick(&[(16, 16), (128, 128), (64, 48), (30, 20), (5, 3), (1, 40), (300, 40), (33, 1)]);
        let written = s.pick(&[Written::Add, Written::AddStrength, Written::Before, Written::Delta, Written::LowRank]);
        let kept = match written {
            Written::LowRank => Kept::Key,
            Written::Delta => s.pick(&[Kept::None, Kept::Fixed, Kept::Head, Kept::Key]),
            _ => s.pick(&[Kept::None, Kept::Fixed, Kept::Head, Kept::Key, Kept::Value]),
        };
        Case {
            dims: (hq, hk, hv, h, dk, dv),
            how: (kept, written),
            order: s.pick(&[HeadOrder::Grouped, HeadOrder::Tiled]),
            // Unbounded keys make the delta rules diverge.
            unit: s.pick(&[true, false]) || matches!(written, Written::Delta | Written::LowRank),
            skip: s.pick(&[true, false]),
            lengths: (0..3).map(|_| s.pick(&[1, 2, 5, 17, 40])).collect(),
            seed,
            poison: None,
        }
    }

    fn row(&self) -> Row {
        let (hq, hk, hv, _, dk, dv) = self.dims;
        let decays = if matches!(self.how.0, Kept::Value) { hv * dv } else { hk * dk };
        let (mut at, mut width) = ([0; 6], 3);
        for (at, n) in at.iter_mut().zip([hq * dk, hk * dk, hv * dv, decays, hk * dk, hk * dk]) {
            (*at, width) = (width, width + n);
        }
        Row { at, width }
    }

    /// The result and the slots, in calls of `cut` rows of every sequence.
    fn run(&self, b: &dyn Backend, cut: usize) -> (Vec<f32>, Vec<f32>) {
        let (hq, hk, hv, h, dk, dv) = self.dims;
        let (row, slot, t) = (self.row(), h * dk * dv, self.lengths.iter().sum::<usize>());
        let mut s = Seeded::new(self.seed + 1000);
        let mut wide = s.values(t * row.width, 1.0);
        let keyed = s.values(t * row.width, 0.3);
        for i in 0..t {
            let at = i * row.width;
            // Decays within 0.4 to 1; a and b short.
            wide[at + row.at[3]..at + row.at[4]].iter_mut().for_each(|d| *d = 0.7 + 0.3 * *d);
            let low = at + row.at[4]..at + row.width;
            let shorter = (dk as f32).sqrt();
            wide[low.clone()].iter_mut().zip(&keyed[low]).for_each(|(x, k)| *x = k / shorter);
        }
        if let Some((at, value)) = self.poison {
            wide[at] = value;
        }
        let decays: Vec<f32> = s.values(t * h, 0.3).iter().map(|d| 0.7 + d).collect();
        let strengths: Vec<f32> = s.values(t * h, 0.5).iter().map(|d| 0.5 + d).collect();
        let (fixed, bonus, skip) = (&decays[..h], s.values(h * dk, 1.0), s.values(h, 1.0));
        let states = s.values(self.lengths.len() * slot, 1.0);
        let spec = RecurrenceSpec {
            n_heads: h,
            k_dim: dk,
            v_dim: dv,
            order: self.order,
            unit_eps: self.unit.then_some(1e-6),
            q_scale: 1.0 / (dk as f32).sqrt(),
            read: match self.how.1 {
                Written::Before => Read::Before(tensor(b, &bonus, &[h, dk])),
                _ => Read::After,
            },
            skip: self.skip.then(|| tensor(b, &skip, &[h])),
        };
        let fixed = tensor(b, fixed, &[h]);
        let slots = (0..self.lengths.len()).map(|i| &states[i * slot..(i + 1) * slot]);
        let mut slots: Vec<Tensor> = slots.map(|v| tensor(b, v, &[h, dk, dv])).collect();
        let mut y = vec![0.0; t * h * dv];
        let mut done = 0;
        while done < *self.lengths.iter().max().unwrap() {
            let (mut places, mut rows, mut base) = (Vec::new(), Vec::new(), 0);
            for &n in &self.lengths {
                let part = n.min(done)..n.min(done.saturating_add(cut));
                rows.push(places.len()..places.len() + part.len());
                places.extend(part.map(|t| base + t));
                base += n;
            }
            let pick = |x: &[f32], width: usize| -> Vec<f32> {
                places.iter().flat_map(|&p| x[p * width..(p + 1) * width].to_vec()).collect()
            };
            let n = places.len();
            let x = tensor(b, &pick(&wide, row.width), &[n, row.width]);
            let kept = tensor(b, &pick(&decays, h), &[n, h]);
            let strength = tensor(b, &pick(&strengths, h), &[n, h]);
            let heads = |i: usize, n: usize| Heads { x: &x, at: row.at[i], n };
            let operands = Recurrence {
                q: heads(0, hq),
                k: heads(1, hk),
                v: heads(2, hv),
                decay: match self.how.0 {
                    Kept::None => Decay::None,
                    Kept::Fixed => Decay::Fixed(&fixed),
                    Kept::Head => Decay::Head(&kept),
                    Kept::Key => Decay::Key(heads(3, hk)),
                    Kept::Value => Decay::Value(heads(3, hv)),
                },
                rule: match self.how.1 {
                    Written::Add | Written::Before => Rule::Add(None),
                    Written::AddStrength => Rule::Add(Some(&strength)),
                    Written::Delta => Rule::Delta(Some(&strength)),
                    Written::LowRank => Rule::LowRank(heads(4, hk), heads(5, hk)),
                },
            };
            let mut segments: Vec<_> =
                rows.into_iter().zip(&mut slots).map(|(rows, state)| StateSegment { rows, state }).collect();
            let out = b.recurrence(&operands, &mut segments, &spec).unwrap();
            for (row, &place) in b.read(&out).unwrap().chunks(h * dv).zip(&places) {
                y[place * h * dv..(place + 1) * h * dv].copy_from_slice(row);
            }
            done = done.saturating_add(cut);
        }
        (y, slots.iter().flat_map(|s| b.read(s).unwrap()).collect())
    }
}

#[test]
fn as_the_reference_whole_and_in_pieces() {
    let cpus = cpus();
    for seed in 0..60 {
        let case = Case::new(seed);
        let expected = case.run(&reference(), usize::MAX);
        let first = case.run(&cpus[0], usize::MAX);
        let what = format!("seed {seed} {:?} {:?}", case.dims, case.how);
        close(&what, &first.0, &expected.0, TOLERANCE);
        close(&what, &first.1, &expected.1, TOLERANCE);
        for cpu in &cpus {
            for cut in [usize::MAX, 1, 7] {
                let found = case.run(cpu, cut);
                same(&format!("{what}, cut at {cut}, {}", cpu.isa().name()), &found.0, &first.0);
                same("the slots", &found.1, &first.1);
            }
        }
    }
}

#[test]
fn nan_and_infinity_stay_in_their_sequence_and_head() {
    for (seed, value) in [(3, f32::NAN), (4, f32::INFINITY), (8, f32::NAN)] {
        let mut case = Case { dims: (2, 2, 4, 4, 16, 16), lengths: vec![3, 2], ..Case::new(seed) };
        // A value of the first token of the first sequence.
        case.poison = Some((case.row().at[2] + 5, value));
        let expected = case.run(&reference(), usize::MAX);
        for cpu in &cpus() {
            let found = case.run(cpu, usize::MAX);
            close("the result", &found.0, &expected.0, TOLERANCE);
            close("the slots", &found.1, &expected.1, TOLERANCE);
        }
    }
}

#[test]
fn what_the_kernel_cannot_hold_or_the_rule_does_not_define_is_refused() {
    let cpu = &cpus()[0];
    let refusal = |dk: usize, by_columns: bool| {
        let x = cpu.alloc(&[1, 2 * dk + 2], DType::F32, Class::Scratch).unwrap();
        let mut state = cpu.alloc(&[1, dk, 1], DType::F32, Class::State).unwrap();
        let spec = RecurrenceSpec {
            n_heads: 1,
            k_dim: dk,
            v_dim: 1,
            order: HeadOrder::Grouped,
            unit_eps: None,
            q_scale: 1.0,
            read: Read::After,
            skip: None,
        };
        let at = |at| Heads { x: &x, at, n: 1 };
        let decay = if by_columns { Decay::Value(at(0)) } else { Decay::None };
        let x = Recurrence { q: at(0), k: at(dk), v: at(2 * dk), decay, rule: Rule::Delta(None) };
        let mut segments = [StateSegment { rows: 0..1, state: &mut state }];
        cpu.recurrence(&x, &mut segments, &spec).unwrap_err().to_string()
    };
    assert!(refusal(2000, false).contains("1024"));
    assert!(refusal(4, true).contains("Value"));
}
