use reverie_tensor::Backend;
use reverie_tensor::backend::HeadOrder;

use super::super::trial::{Seeded, close, cpus, reference, same, tensor};
use super::*;

/// The recurrence carries rounding along: both sides are f32 chains in different orders, over up to 40 tokens here.
const TOLERANCE: f32 = 2e-5;

struct Case {
    /// Key heads, value heads, Dk, Dv.
    dims: (usize, usize, usize, usize),
    order: HeadOrder,
    lengths: Vec<usize>,
    mixed: Vec<f32>,
    gates: (Vec<f32>, Vec<f32>),
    states: Vec<f32>,
    rate: Vec<f32>,
    dt_bias: Vec<f32>,
}

impl Case {
    fn new(seed: u64) -> Case {
        let mut seeded = Seeded::new(seed);
        let (hk, hv) = seeded.pick(&[(1, 1), (2, 4), (3, 3), (2, 6)]);
        let (dk, dv) = seeded.pick(&[(16, 16), (128, 128), (64, 48), (30, 20), (5, 3), (300, 40)]);
        let lengths: Vec<usize> = (0..3).map(|_| seeded.pick(&[1, 2, 5, 17, 40])).collect();
        let t: usize = lengths.iter().sum();
        Case {
            dims: (hk, hv, dk, dv),
            order: seeded.pick(&[HeadOrder::Grouped, HeadOrder::Tiled]),
            mixed: seeded.values(t * (2 * hk * dk + hv * dv), 2.0),
            gates: (seeded.values(t * hv, 4.0), seeded.values(t * hv, 4.0)),
            states: seeded.values(lengths.len() * hv * dk * dv, 1.0),
            rate: seeded.values(hv, 1.0).iter().map(|r| -r.abs()).collect(),
            dt_bias: seeded.values(hv, 1.0),
            lengths,
        }
    }

    /// The result and the slots, in calls of `cut` rows of every sequence.
    fn run(&self, b: &dyn Backend, cut: usize) -> (Vec<f32>, Vec<f32>) {
        let (hk, hv, dk, dv) = self.dims;
        let (width, slot) = (2 * hk * dk + hv * dv, hv * dk * dv);
        let spec = DeltaSpec {
            n_k_heads: hk,
            n_v_heads: hv,
            k_dim: dk,
            v_dim: dv,
            q_scale: 1.0 / (dk as f32).sqrt(),
            norm_eps: 1e-6,
            order: self.order,
            rate: tensor(b, &self.rate, &[hv]),
            dt_bias: tensor(b, &self.dt_bias, &[hv]),
        };
        let slots = (0..self.lengths.len()).map(|i| &self.states[i * slot..(i + 1) * slot]);
        let mut slots: Vec<Tensor> = slots.map(|v| tensor(b, v, &[hv, dk, dv])).collect();
        let mut y = vec![0.0; self.mixed.len() / width * hv * dv];
        let mut done = 0;
        while done < *self.lengths.iter().max().unwrap() {
            let (mut x, mut gates) = (Vec::new(), (Vec::new(), Vec::new()));
            let (mut places, mut rows, mut base) = (Vec::new(), Vec::new(), 0);
            for &n in &self.lengths {
                let part = n.min(done)..n.min(done.saturating_add(cut));
                rows.push(places.len()..places.len() + part.len());
                for t in part.map(|t| base + t) {
                    x.extend_from_slice(&self.mixed[t * width..(t + 1) * width]);
                    gates.0.extend_from_slice(&self.gates.0[t * hv..(t + 1) * hv]);
                    gates.1.extend_from_slice(&self.gates.1[t * hv..(t + 1) * hv]);
                    places.push(t);
                }
                base += n;
            }
            let t = places.len();
            let mut segments: Vec<_> =
                rows.into_iter().zip(&mut slots).map(|(rows, state)| StateSegment { rows, state }).collect();
            let gates = (tensor(b, &gates.0, &[t, hv]), tensor(b, &gates.1, &[t, hv]));
            let mixed = tensor(b, &x, &[t, width]);
            let out = b.gated_delta(&mixed, (&gates.0, &gates.1), &mut segments, &spec).unwrap();
            for (row, &place) in b.read(&out).unwrap().chunks(hv * dv).zip(&places) {
                y[place * hv * dv..(place + 1) * hv * dv].copy_from_slice(row);
            }
            done = done.saturating_add(cut);
        }
        (y, slots.iter().flat_map(|s| b.read(s).unwrap()).collect())
    }
}

#[test]
fn as_the_reference_whole_and_in_pieces() {
    let cpus = cpus();
    for seed in 0..16 {
        let case = Case::new(seed);
        let expected = case.run(&reference(), usize::MAX);
        let first = case.run(&cpus[0], usize::MAX);
        close(&format!("seed {seed} {:?}", case.dims), &first.0, &expected.0, TOLERANCE);
        close("the slots", &first.1, &expected.1, TOLERANCE);
        for cpu in &cpus {
            for cut in [usize::MAX, 1, 7] {
                let found = case.run(cpu, cut);
                same(&format!("seed {seed}, cut at {cut}, {}", cpu.isa().name()), &found.0, &first.0);
                same("the slots", &found.1, &first.1);
            }
        }
    }
}

#[test]
fn nan_and_infinity_stay_in_their_sequence_and_head() {
    for (at, value) in [(3, f32::NAN), (200, f32::INFINITY), (2 * 2 * 16 + 5, f32::NAN)] {
        let mut case = Case::new(1);
        case = Case { dims: (2, 4, 16, 16), lengths: vec![3, 2], ..case };
        let mut seeded = Seeded::new(9);
        case.mixed = seeded.values(5 * (64 + 64), 1.0);
        case.gates = (seeded.values(20, 2.0), seeded.values(20, 2.0));
        case.states = seeded.values(2 * 4 * 256, 1.0);
        (case.rate, case.dt_bias) = (vec![-0.5; 4], vec![0.1; 4]);
        case.mixed[at] = value;
        let expected = case.run(&reference(), usize::MAX);
        for cpu in &cpus() {
            let found = case.run(cpu, usize::MAX);
            close("the result", &found.0, &expected.0, TOLERANCE);
            close("the slots", &found.1, &expected.1, TOLERANCE);
        }
    }
}

#[test]
fn a_key_head_too_wide_for_the_stack_is_refused() {
    let cpu = &cpus()[0];
    let (dk, one) = (2000, tensor(cpu, &[0.0], &[1]));
    let spec = DeltaSpec {
        n_k_heads: 1,
        n_v_heads: 1,
        k_dim: dk,
        v_dim: 1,
        q_scale: 1.0,
        norm_eps: 1e-6,
        order: HeadOrder::Grouped,
        rate: one.clone(),
        dt_bias: one,
    };
    let mixed = cpu.alloc(&[1, 2 * dk + 1], reverie_tensor::DType::F32, reverie_tensor::Class::Scratch).unwrap();
    let gate = tensor(cpu, &[0.0], &[1, 1]);
    let mut state = cpu.alloc(&[1, dk, 1], reverie_tensor::DType::F32, reverie_tensor::Class::State).unwrap();
    let mut segments = [StateSegment { rows: 0..1, state: &mut state }];
    assert!(cpu.gated_delta(&mixed, (&gate, &gate), &mut segments, &spec).unwrap_err().to_string().contains("1024"));
}
