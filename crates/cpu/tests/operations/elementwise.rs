//! Operations that treat each value, or each row, by itself.

use proptest::collection::vec;
use proptest::prelude::*;
use reverie_tensor::backend::Map;
use reverie_tensor::formula::{Formula, MOST_DEPTH, input};
use reverie_tensor::{Act, Backend, Norm, NormKind, Numerics, Operand, Rope, RopeLayout, Tensor};

use super::trial::{Bound, Case, Draw, consuming, cpus, holder, holds, pick, same, tensor};

/// exp within 2 ulp, a division and a product on top; Φ has the reference's own 1.5e-7.
const ACTIVATED: Bound = Bound::Close(1e-6);

pub const ACTS: &[Act] = &[
    Act::Silu,
    Act::GeluTanh,
    Act::Gelu,
    Act::Relu,
    Act::Relu2,
    Act::Identity,
    Act::Clamped { alpha: 1.702, limit: 1.5 },
];

fn width() -> impl Strategy<Value = usize> {
    prop_oneof![4 => 1usize..80, 1 => pick(&[128, 256, 1000, 1024]), 1 => Just(2500)]
}

fn total(lengths: &[usize]) -> usize {
    lengths.iter().sum()
}

pub fn glu() {
    holds(2, (width(), pick(ACTS)), |(d, act), lengths, draw| {
        let n = total(lengths) * d;
        let (gate, up) = (draw.values(n, 8.0), draw.values(n, 2.0));
        Case::new(ACTIVATED, move |b, rows, _| {
            vec![b.glu(&rows.tensor(b, &gate, &[d]), &rows.tensor(b, &up, &[d]), act).unwrap()]
        })
    });
}

pub fn add() {
    holds(1, (width(), holder()), |(d, holder), lengths, draw| {
        let n = total(lengths) * d;
        let (x, y) = (draw.values(n, 8.0), draw.values(n, 8.0));
        Case::new(Bound::Bits, move |b, rows, _| {
            let y = rows.tensor(b, &y, &[d]);
            vec![consuming(b, rows.tensor(b, &x, &[d]), holder, |x| b.add(x, &y).unwrap())]
        })
    });
}

pub fn map() {
    let maps = pick(&[Map::Scale(0.37), Map::Scale(-1e20), Map::Softcap(5.0), Map::Softcap(50.0)]);
    holds(1, (width(), maps, holder()), |(d, map, holder), lengths, draw| {
        let x = draw.values(total(lengths) * d, 20.0);
        let bound = if matches!(map, Map::Scale(_)) { Bound::Bits } else { ACTIVATED };
        Case::new(bound, move |b, rows, _| {
            vec![consuming(b, rows.tensor(b, &x, &[d]), holder, |x| b.map(x, map).unwrap())]
        })
    });
}

pub fn combine() {
    holds(1, (width(), 1usize..6, 1usize..5), |(d, n, m), lengths, draw| {
        let t = total(lengths);
        let xs: Vec<Vec<f32>> = (0..n).map(|_| draw.values(t * d, 2.0)).collect();
        let c = draw.values(t * m * n, 1.0);
        Case::new(Bound::Bits, move |b, rows, _| {
            let xs: Vec<Tensor> = xs.iter().map(|x| rows.tensor(b, x, &[d])).collect();
            b.combine(&xs.iter().collect::<Vec<_>>(), &rows.tensor(b, &c, &[m * n])).unwrap()
        })
    });
}

pub fn concat() {
    holds(1, vec(1usize..70, 1..5), |widths, lengths, draw| {
        let parts: Vec<Vec<f32>> = widths.iter().map(|w| draw.values(total(lengths) * w, 1.0)).collect();
        Case::new(Bound::Bits, move |b, rows, _| {
            let parts: Vec<Tensor> = parts.iter().zip(&widths).map(|(x, w)| rows.tensor(b, x, &[*w])).collect();
            vec![b.concat(&parts.iter().collect::<Vec<_>>()).unwrap()]
        })
    });
}

pub fn rows() {
    holds(1, (width(), 1usize..60), |(d, n), lengths, draw| {
        let x = draw.values(n * d, 1.0);
        let from: Vec<usize> = (0..total(lengths)).map(|_| draw.below(n)).collect();
        Case::new(Bound::Bits, move |b, rows, _| vec![b.rows(&tensor(b, &x, &[n, d]), &rows.of(&from, 1)).unwrap()])
    });
}

/// Sixteen chains against one.
pub fn dot() {
    holds(1, (width(), 1usize..5), |(d, h), lengths, draw| {
        let n = total(lengths) * h * d;
        let (x, y) = (draw.values(n, 1.0), draw.values(n, 1.0));
        Case::new(Bound::Close(1e-6 * (d as f32).sqrt().max(8.0)), move |b, rows, _| {
            vec![b.dot(&rows.tensor(b, &x, &[h, d]), &rows.tensor(b, &y, &[h, d])).unwrap()]
        })
    });
}

pub fn softmax() {
    holds(1, (width(), 1usize..4, holder()), |(d, h, holder), lengths, draw| {
        let x = draw.values(total(lengths) * h * d, 20.0);
        Case::new(Bound::Close(2e-6), move |b, rows, _| {
            vec![consuming(b, rows.tensor(b, &x, &[h, d]), holder, |x| b.softmax(x).unwrap())]
        })
    });
}

/// Formulas whose values stay where a tolerance says something.
fn tame() -> impl Strategy<Value = (Formula, Bound)> {
    let formulas = prop_oneof![
        Just((input(0) + input(1) * input(2)).sigmoid() - input(3)),
        Just((input(0) * input(3)).softplus().exp().min(50.0) / (input(2).abs() + 0.5)),
        Just((input(1).log_sigmoid() / 16.0).max(input(2)).exp() * (-input(0)).tanh()),
        Just((input(3).abs().sqrt() - (input(0) + (input(1) - input(2))).act(Act::Silu)).softcap(3.0)),
    ];
    formulas.prop_map(|f| (f, Bound::Close(3e-6)))
}

/// Any formula at all.
fn any_formula() -> impl Strategy<Value = (Formula, Bound)> {
    let leaf = prop_oneof![4 => (0usize..4).prop_map(input), 1 => (-3.0f32..3.0).prop_map(Formula::from)];
    let all = leaf.prop_recursive(6, 24, 2, |inner| {
        prop_oneof![
            inner.clone().prop_map(Formula::exp),
            inner.clone().prop_map(Formula::sigmoid),
            inner.clone().prop_map(Formula::tanh),
            inner.clone().prop_map(Formula::softplus),
            inner.clone().prop_map(Formula::sqrt),
            inner.clone().prop_map(Formula::abs),
            (inner.clone(), pick(ACTS)).prop_map(|(f, act)| f.act(act)),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| a + b),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| a - b),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| a * b),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| a / b),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| a.max(b)),
            (inner.clone(), inner).prop_map(|(a, b)| a.min(b)),
        ]
    });
    all.prop_filter("a stack that is held", |f| f.depth() <= MOST_DEPTH).prop_map(|f| (f, Bound::Sets))
}

pub fn pointwise() {
    let shapes = (prop_oneof![tame(), any_formula()], 1usize..9, prop_oneof![1usize..40, Just(200)]);
    holds(3, shapes, |((formula, bound), heads, per_head), lengths, draw| {
        let (t, w) = (total(lengths), heads * per_head);
        let (each, wide) = (draw.values(t * w, 4.0), draw.values(t * (w + 7), 2.0));
        let (row, stretch) = (draw.values(w, 2.0), draw.values(t * heads, 2.0));
        Case::new(bound, move |b, rows, _| {
            let (each, wide) = (rows.tensor(b, &each, &[w]), rows.tensor(b, &wide, &[w + 7]));
            let (row, stretch) = (tensor(b, &row, &[w]), rows.tensor(b, &stretch, &[heads]));
            let operands =
                [Operand::Each(&each), Operand::Columns(&wide, 5), Operand::Row(&row), Operand::Stretch(&stretch)];
            vec![b.pointwise(&[rows.len(), w], &operands[..formula.inputs()], &formula).unwrap()]
        })
    });
}

/// How a row is normalised, and by how many weights.
type HowNormed = ((NormKind, f32), (usize, usize), (bool, bool, bool));

fn normed() -> impl Strategy<Value = HowNormed> {
    let kinds = pick(&[(NormKind::Rms, 1e-6), (NormKind::Rms, 0.1), (NormKind::Layer, 1e-5)]);
    (kinds, (1usize..5, width()), (any::<bool>(), any::<bool>(), any::<bool>()))
}

/// Sixteen f32 chains against one f64 sum, over at most some thousand terms.
fn norm_case(
    ((kind, eps), (g, d), (weight, bias, grouped)): HowNormed,
    lengths: &[usize],
    draw: &mut Draw,
    gated: Gated,
) -> Case {
    let t = total(lengths);
    let (x, z) = (draw.values(t * g * d, 5.0), draw.values(t * g * d, 3.0));
    let own = if grouped { vec![g, d] } else { vec![d] };
    let n = own.iter().product();
    let (w, c) = (weight.then(|| draw.values(n, 2.0)), bias.then(|| draw.values(n, 1.0)));
    // Few elements less their own mean are whatever rounding left, over √eps.
    let bound = match kind {
        NormKind::Layer if d < 6 => Bound::Sets,
        _ => Bound::Close(4e-6),
    };
    Case::new(bound, move |b, rows, _| {
        let vector = |v: &Option<Vec<f32>>| v.as_ref().map(|v| tensor(b, v, &own));
        let norm = Norm { kind, weight: vector(&w), bias: vector(&c), eps };
        let x = rows.tensor(b, &x, &[g, d]);
        vec![match gated {
            Gated::No => b.norm(&x, &norm).unwrap(),
            Gated::Yes => b.gated_norm(&x, &rows.tensor(b, &z, &[g, d]), &norm).unwrap(),
        }]
    })
}

#[derive(Clone, Copy)]
enum Gated {
    No,
    Yes,
}

pub fn norm() {
    holds(2, normed(), |how, lengths, draw| norm_case(how, lengths, draw, Gated::No));
}

pub fn gated_norm() {
    holds(1, normed(), |how, lengths, draw| norm_case(how, lengths, draw, Gated::Yes));
}

pub fn rope() {
    let layouts = pick(&[RopeLayout::Halves, RopeLayout::Interleaved]);
    let shapes = (layouts, (1usize..80, 0usize..90, 1usize..5), pick(&[1.0f32, 1.2]), holder());
    holds(1, shapes, |(layout, (half, rest, h), magnitude, holder), lengths, draw| {
        let (t, d) = (total(lengths), 2 * half + rest);
        let freqs = (0..half).map(|i| 1e4f32.powf(-(i as f32) / half as f32)).collect();
        let rope = Rope { freqs, magnitude, layout };
        let positions: Vec<u32> = (0..t).map(|_| draw.below(1 << 20) as u32).collect();
        let x = draw.values(t * h * d, 3.0);
        Case::new(Bound::Bits, move |b, rows, _| {
            let at: Vec<u32> = rows.of(&positions, 1);
            vec![consuming(b, rows.tensor(b, &x, &[h, d]), holder, |x| b.rope(x, &at, &rope).unwrap())]
        })
    });
}

#[test]
fn what_does_not_fit_is_refused() {
    let cpu = &cpus(Numerics::Exact)[0];
    let x = tensor(cpu, &[1.0; 12], &[3, 4]);
    let bad = |inputs: &[Operand<'_>]| cpu.pointwise(&[3, 4], inputs, &input(0)).unwrap_err().to_string();
    assert!(bad(&[]).contains("pointwise"));
    assert!(bad(&[Operand::Columns(&x, 1)]).contains("Columns"));
    assert!(bad(&[Operand::Row(&x)]).contains("Row"));
    assert!(cpu.pointwise(&[3, 5], &[Operand::Stretch(&x)], &input(0)).is_err());
    let norm = Norm { kind: NormKind::Rms, weight: Some(tensor(cpu, &[1.0; 8], &[8])), bias: None, eps: 1e-6 };
    assert!(cpu.norm(&tensor(cpu, &[1.0; 9], &[1, 9]), &norm).unwrap_err().to_string().contains("[8]"));
    assert!(cpu.rows(&x, &[3]).is_err());
    assert!(cpu.concat(&[&x, &tensor(cpu, &[1.0; 4], &[2, 2])]).is_err());
    assert!(cpu.combine(&[&x, &x], &tensor(cpu, &[0.0; 9], &[3, 3])).is_err(), "three coefficients for two inputs");
}

#[test]
fn selected_rows_are_those_rows() {
    let cpu = &cpus(Numerics::Exact)[0];
    let values: Vec<f32> = (0..12).map(|i| i as f32).collect();
    let y = cpu.rows(&tensor(cpu, &values, &[4, 3]), &[3, 0, 3]).unwrap();
    same("rows", &cpu.read(&y).unwrap(), &[&values[9..], &values[..3], &values[9..]].concat());
}
