//! Operations that keep a slot for each sequence and go token by token.

use proptest::prelude::*;
use reverie_tensor::{
    Act, Backend, Class, ConvSpec, DType, Decay, HeadOrder, Heads, Numerics, Read, Recurrence, RecurrenceSpec,
    RgLruSpec, Rule, ScanInput, ScanSpec, StateSegment,
};

use super::trial::{Bound, Case, Held, cpus, holds, pick, tensor};

fn channels() -> impl Strategy<Value = usize> {
    prop_oneof![4 => 1usize..70, 1 => pick(&[200, 300, 1024])]
}

fn total(lengths: &[usize]) -> usize {
    lengths.iter().sum()
}

/// The sums have the reference's bits; the activations are within a few ulp.
pub fn conv() {
    let acts = pick(&[None, None, Some(Act::Silu), Some(Act::Relu)]);
    holds(1, (1usize..8, channels(), acts, any::<bool>()), |(kernel, c, act, bias), lengths, draw| {
        let x = draw.values(total(lengths) * c, 2.0);
        let slots = draw.values(lengths.len() * (kernel - 1) * c, 2.0);
        let (taps, bias) = (draw.values(kernel * c, 1.0), bias.then(|| draw.values(c, 1.0)));
        let bound = if act.is_some() { Bound::Close(2e-6) } else { Bound::Bits };
        let n = lengths.len();
        let start = move |b: &dyn Backend| {
            let each = (kernel - 1) * c;
            let slot = |i: usize| vec![tensor(b, &slots[i * each..(i + 1) * each], &[kernel - 1, c])];
            Held { slots: (0..n).map(slot).collect(), weights: Vec::new() }
        };
        let case = Case::new(bound, move |b, rows, held| {
            let bias = bias.as_ref().map(|v| tensor(b, v, &[c]));
            let spec = ConvSpec { taps: tensor(b, &taps, &[kernel, c]), bias, act };
            vec![b.conv(&rows.tensor(b, &x, &[c]), &mut rows.segments(&mut held.slots), &spec).unwrap()]
        });
        Case { start: Box::new(start), ..case }
    });
}

/// Rounding is carried along, over up to 90 tokens here.
pub fn selective_scan() {
    holds(1, (prop_oneof![1usize..20, Just(64)], channels()), |(n, c), lengths, draw| {
        let t = total(lengths);
        let input =
            [draw.values(t * c, 2.0), draw.values(t * c, 4.0), draw.values(t * n, 1.0), draw.values(t * n, 1.0)];
        let rate: Vec<f32> = draw.plain(n * c, 2.0).iter().map(|r| -r.abs()).collect();
        let (skip, slots) = (draw.values(c, 1.0), draw.values(lengths.len() * n * c, 1.0));
        Case::new(Bound::Close(4e-5), move |b, rows, held| {
            let spec = ScanSpec { rate: tensor(b, &rate, &[n, c]), skip: tensor(b, &skip, &[c]) };
            let of = |i: usize, width: usize| rows.tensor(b, &input[i], &[width]);
            let (x, dt, write, read) = (of(0, c), of(1, c), of(2, n), of(3, n));
            let input = ScanInput { x: &x, dt: &dt, b: &write, c: &read };
            vec![b.selective_scan(input, &mut rows.segments(&mut held.slots), &spec).unwrap()]
        })
        .with_slots(slots, &[n, c])
    });
}

/// √(1 - a²) loses digits where a is near 1.
pub fn rg_lru() {
    holds(1, (1usize..6, 1usize..66, pick(&[0u32, 9])), |(h, d, start), lengths, draw| {
        let (t, c) = (total(lengths), h * d);
        let x = draw.values(t * c, 2.0);
        let positions: Vec<u32> = lengths.iter().flat_map(|&n| start..start + n as u32).collect();
        let rate: Vec<f32> = draw.plain(c, 4.0).iter().map(|r| -r.abs() - 0.05).collect();
        let gates = [(); 2].map(|()| (draw.values(c * d, 0.5), draw.values(c, 1.0)));
        let slots = draw.values(lengths.len() * c, 1.0);
        Case::new(Bound::Close(5e-5), move |b, rows, held| {
            let gate = |i: usize| (tensor(b, &gates[i].0, &[h, d, d]), tensor(b, &gates[i].1, &[c]));
            let spec = RgLruSpec { rate: tensor(b, &rate, &[c]), input_gate: gate(0), decay_gate: gate(1) };
            let at: Vec<u32> = rows.of(&positions, 1);
            let segments = &mut rows.segments(&mut held.slots);
            vec![b.rg_lru(&rows.tensor(b, &x, &[c]), &at, segments, &spec).unwrap()]
        })
        .with_slots(slots, &[c])
    });
}

pub fn wkv() {
    holds(1, channels(), |c, lengths, draw| {
        let t = total(lengths);
        let (mut k, v) = (draw.values(t * c, 6.0), draw.values(t * c, 2.0));
        k[0] = -300.0; // The first token counts in full even so.
        let decay: Vec<f32> = draw.plain(c, 1.0).iter().map(|d| -d.abs()).collect();
        let first = draw.values(c, 1.0);
        let slots = vec![0.0; lengths.len() * 3 * c];
        Case::new(Bound::Close(1e-5), move |b, rows, held| {
            let kv = (&rows.tensor(b, &k, &[c]), &rows.tensor(b, &v, &[c]));
            let rates = (&tensor(b, &decay, &[c]), &tensor(b, &first, &[c]));
            vec![b.wkv(kv, rates, &mut rows.segments(&mut held.slots)).unwrap()]
        })
        .with_slots(slots, &[3, c])
    });
}

pub fn exp_gates() {
    holds(1, 1usize..40, |h, lengths, draw| {
        let t = total(lengths);
        let (input, forget) = (draw.values(t * h, 15.0), draw.values(t * h, 3.0));
        let slots = draw.plain(lengths.len() * h, 2.0);
        Case::new(Bound::Close(2e-5), move |b, rows, held| {
            let (input, forget) = (rows.tensor(b, &input, &[h]), rows.tensor(b, &forget, &[h]));
            b.exp_gates(&input, &forget, &mut rows.segments(&mut held.slots)).unwrap().into()
        })
        .with_slots(slots, &[h])
    });
}

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

/// Which decay a rule may stand beside.
fn rules() -> impl Strategy<Value = (Kept, Written)> {
    use Kept::*;
    let by = |written: Written, kept: &'static [Kept]| pick(kept).prop_map(move |kept| (kept, written));
    prop_oneof![
        by(Written::Add, &[None, Fixed, Head, Key, Value]),
        by(Written::AddStrength, &[None, Fixed, Head, Key, Value]),
        by(Written::Before, &[None, Fixed, Head, Key, Value]),
        by(Written::Delta, &[None, Fixed, Head, Key]),
        by(Written::LowRank, &[Key]),
    ]
}

/// Both sides are f32 chains in different orders; rounding is carried along over up to 90 tokens.
pub fn recurrence() {
    // Heads of q, k, v, and of the state.
    let heads = pick(&[(1, 1, 1, 1), (2, 2, 4, 4), (4, 2, 2, 4), (3, 3, 3, 3), (2, 2, 6, 6)]);
    let sizes = prop_oneof![3 => (1usize..40, 1usize..50), 1 => pick(&[(128, 128), (64, 48), (300, 40), (33, 1)])];
    let order = pick(&[HeadOrder::Grouped, HeadOrder::Tiled]);
    let shapes = (heads, sizes, rules(), order, any::<bool>(), any::<bool>());
    holds(2, shapes, |((hq, hk, hv, h), (dk, dv), (kept, written), order, unit, skip), lengths, draw| {
        // Unbounded keys make the delta rules diverge.
        let unit = unit || matches!(written, Written::Delta | Written::LowRank);
        let t = total(lengths);
        let decays = if matches!(kept, Kept::Value) { hv * dv } else { hk * dk };
        // Columns of q, k, v, decay, a, b in one wide row.
        let (mut at, mut width) = ([0; 6], 3);
        for (at, n) in at.iter_mut().zip([hq * dk, hk * dk, hv * dv, decays, hk * dk, hk * dk]) {
            (*at, width) = (width, width + n);
        }
        let mut wide = draw.values(t * width, 1.0);
        let low = draw.plain(t * width, 0.3 / (dk as f32).sqrt());
        for (i, row) in wide.chunks_mut(width).enumerate() {
            // Decays within 0.4 to 1; a and b short.
            row[at[3]..at[4]].iter_mut().for_each(|d| *d = 0.7 + 0.3 * *d);
            row[at[4]..].copy_from_slice(&low[i * width + at[4]..(i + 1) * width]);
        }
        let decays: Vec<f32> = draw.values(t.max(1) * h, 0.3).iter().map(|d| 0.7 + d).collect();
        let strengths: Vec<f32> = draw.values(t * h, 0.5).iter().map(|d| 0.5 + d).collect();
        let (bonus, skips) = (draw.values(h * dk, 1.0), draw.values(h, 1.0));
        let slots = draw.values(lengths.len() * h * dk * dv, 1.0);
        Case::new(Bound::Sums(5e-5), move |b, rows, held| {
            let spec = RecurrenceSpec {
                n_heads: h,
                k_dim: dk,
                v_dim: dv,
                order,
                unit_eps: unit.then_some(1e-6),
                q_scale: 1.0 / (dk as f32).sqrt(),
                read: match written {
                    Written::Before => Read::Before(tensor(b, &bonus, &[h, dk])),
                    _ => Read::After,
                },
                skip: skip.then(|| tensor(b, &skips, &[h])),
            };
            let fixed = tensor(b, &decays[..h], &[h]);
            let (x, own) = (rows.tensor(b, &wide, &[width]), rows.tensor(b, &decays, &[h]));
            let strength = rows.tensor(b, &strengths, &[h]);
            let heads = |i: usize, n: usize| Heads { x: &x, at: at[i], n };
            let operands = Recurrence {
                q: heads(0, hq),
                k: heads(1, hk),
                v: heads(2, hv),
                decay: match kept {
                    Kept::None => Decay::None,
                    Kept::Fixed => Decay::Fixed(&fixed),
                    Kept::Head => Decay::Head(&own),
                    Kept::Key => Decay::Key(heads(3, hk)),
                    Kept::Value => Decay::Value(heads(3, hv)),
                },
                rule: match written {
                    Written::Add | Written::Before => Rule::Add(None),
                    Written::AddStrength => Rule::Add(Some(&strength)),
                    Written::Delta => Rule::Delta(Some(&strength)),
                    Written::LowRank => Rule::LowRank(heads(4, hk), heads(5, hk)),
                },
            };
            vec![b.recurrence(&operands, &mut rows.segments(&mut held.slots), &spec).unwrap()]
        })
        .with_slots(slots, &[h, dk, dv])
    });
}

#[test]
fn a_shared_slot_is_refused() {
    let cpu = &cpus(Numerics::Exact)[0];
    let spec = ConvSpec { taps: tensor(cpu, &[1.0; 8], &[2, 4]), bias: None, act: None };
    let mut state = tensor(cpu, &[0.0; 4], &[1, 4]);
    let _other = state.clone();
    let mut segments = [StateSegment { rows: 0..1, state: &mut state }];
    let refused = cpu.conv(&tensor(cpu, &[1.0; 4], &[1, 4]), &mut segments, &spec).unwrap_err().to_string();
    assert!(refused.contains("share"), "{refused}");
}

#[test]
fn what_the_kernel_cannot_hold_or_the_rule_does_not_define_is_refused() {
    let cpu = &cpus(Numerics::Exact)[0];
    let refusal = |dk: usize, kept: Kept| {
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
        let decay = if matches!(kept, Kept::Value) { Decay::Value(at(0)) } else { Decay::None };
        let x = Recurrence { q: at(0), k: at(dk), v: at(2 * dk), decay, rule: Rule::Delta(None) };
        let mut segments = [StateSegment { rows: 0..1, state: &mut state }];
        cpu.recurrence(&x, &mut segments, &spec).unwrap_err().to_string()
    };
    assert!(refusal(2000, Kept::None).contains("1024"));
    assert!(refusal(4, Kept::Value).contains("Value"));
}
