//! Operations on packed weights, and what brings tokens to experts and back.

use std::rc::Rc;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use reverie_tensor::formula::input;
use reverie_tensor::{
    Act, Backend, Class, Form, Group, GroupRank, Input, Norm, NormKind, Numerics, RouteGroups, RouteSpec, Score,
    Tensor, Term,
};

use super::elementwise::ACTS;
use super::synthetic::{Random, Synthetic, all_forms};
use super::trial::{Bound, Case, Draw, Held, Holder, Rows, Start, consuming, holder, holds, pick, same, tensor};

/// A weight's form, rows, length of a row, and whether some of its floats are not finite.
type Stored = (Form, usize, usize, bool);

/// Weights of any form that share a length.
fn stored(count: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Stored>> {
    let rows = || prop_oneof![4 => 1usize..70, 1 => 100usize..300];
    let length = (1usize..4, 1usize..300);
    (vec((select(all_forms()), rows(), proptest::bool::weighted(0.2)), count), length).prop_map(
        |(all, (units, any))| {
            let grouped = all.iter().any(|(form, ..)| matches!(form, Form::Grouped(_)));
            let k = if grouped { 256 * units } else { any };
            all.into_iter().map(|(form, n, spoilt)| (form, n, k, spoilt)).collect()
        },
    )
}

/// Each weight, and a bias for some.
type Sources = Rc<Vec<(Synthetic, Option<Vec<f32>>)>>;

fn sources(draw: &mut Draw, stored: &[Stored]) -> Sources {
    let one = |(form, n, k, spoilt): &Stored| {
        let mut random = Random::new(draw.below(1 << 30) as u64);
        let mut source = Synthetic::new(*n, *k, form.clone(), &mut random);
        if *spoilt {
            source.spoil(&mut random);
        }
        (source, (draw.below(2) == 0).then(|| draw.values(*n, 1.0)))
    };
    Rc::new(stored.iter().map(one).collect())
}

fn packed(sources: &Sources) -> Box<Start> {
    let sources = sources.clone();
    Box::new(move |b| {
        let weights = sources.iter().map(|(s, bias)| b.pack(s, bias.as_deref(), Class::Weights).unwrap()).collect();
        Held { weights, slots: Vec::new() }
    })
}

/// Values of which a few are far larger than the rest, as activations are.
fn activations(draw: &mut Draw, n: usize) -> Vec<f32> {
    let mut x = draw.values(n, 1.0);
    x.iter_mut().skip(draw.below(50)).step_by(50).for_each(|v| *v *= 30.0);
    x
}

/// What stands before a product.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Before {
    Nothing,
    Norm(NormKind),
    Glu(Act),
    Act(Act),
    SigmoidGate,
}

fn before() -> impl Strategy<Value = Before> {
    prop_oneof![
        4 => Just(Before::Nothing),
        1 => pick(&[Before::Norm(NormKind::Rms), Before::Norm(NormKind::Layer), Before::SigmoidGate]),
        1 => pick(ACTS).prop_map(Before::Glu),
        1 => pick(ACTS).prop_map(Before::Act),
    ]
}

/// The operands of a product and how they meet it.
struct Operands {
    before: Before,
    k: usize,
    x: Vec<f32>,
    other: Vec<f32>,
    weight: Vec<f32>,
}

impl Operands {
    fn new(draw: &mut Draw, before: Before, (t, k): (usize, usize)) -> Operands {
        let (x, other) = (activations(draw, t * k), activations(draw, t * k));
        Operands { before, k, x, other, weight: draw.values(k, 1.0) }
    }

    /// A product of the reference's bits; what stands before it is held against the reference on its own, and here against the two
    /// operations one after the other.
    fn bound(&self) -> Bound {
        if self.before == Before::Nothing { Bound::Bits } else { Bound::Sets }
    }

    /// Runs `op` on the fused input, and makes sure that the plain one gives the same.
    fn on(&self, b: &dyn Backend, rows: &Rows, op: impl Fn(Input<'_>) -> Vec<Tensor>) -> Vec<Tensor> {
        let (x, other) = (rows.tensor(b, &self.x, &[self.k]), rows.tensor(b, &self.other, &[self.k]));
        let weight = Some(tensor(b, &self.weight, &[self.k]));
        let shape = [rows.len(), self.k];
        let norm = |kind| Norm { kind, weight: weight.clone(), bias: weight.clone(), eps: 1e-5 };
        let (fused, plain) = match self.before {
            Before::Nothing => return op(Input::Plain(&x)),
            Before::Norm(kind) => (op(Input::Normed(&x, &norm(kind))), b.norm(&x, &norm(kind))),
            Before::Glu(act) => (op(Input::Glu(&x, &other, act)), b.glu(&x, &other, act)),
            Before::Act(act) => {
                let plain = b.pointwise(&shape, &[reverie_tensor::Operand::Each(&x)], &input(0).act(act));
                (op(Input::Activated(&x, act)), plain)
            }
            Before::SigmoidGate => {
                let operands = [&x, &other].map(reverie_tensor::Operand::Each);
                let plain = b.pointwise(&shape, &operands, &(input(0) * input(1).sigmoid()));
                (op(Input::SigmoidGated(&x, &other)), plain)
            }
        };
        for (fused, apart) in fused.iter().zip(op(Input::Plain(&plain.unwrap()))) {
            same("fused and apart", &b.read(fused).unwrap(), &b.read(&apart).unwrap());
        }
        fused
    }
}

const NUMERICS: &[Numerics] = &[Numerics::Int8, Numerics::Exact];

pub fn linear() {
    holds(5, (stored(1..3), before(), pick(NUMERICS)), |(stored, before, numerics), lengths, draw| {
        let operands = Operands::new(draw, before, (lengths.iter().sum(), stored[0].2));
        let sources = sources(draw, &stored);
        let start = packed(&sources);
        let case = Case::new(operands.bound(), move |b, rows, held| {
            operands.on(b, rows, |input| b.linear(input, &held.weights.iter().collect::<Vec<_>>()).unwrap())
        });
        Case { start, numerics, ..case }
    });
}

pub fn linear_add() {
    let shapes = (stored(1..2), before(), pick(NUMERICS), holder());
    holds(2, shapes, |(stored, before, numerics, holder), lengths, draw| {
        let (t, n) = (lengths.iter().sum(), stored[0].1);
        let operands = Operands::new(draw, before, (t, stored[0].2));
        let (residual, sources) = (draw.values(t * n, 1.0), sources(draw, &stored));
        let start = packed(&sources);
        let case = Case::new(operands.bound(), move |b, rows, held| {
            operands.on(b, rows, |input| {
                let residual = rows.tensor(b, &residual, &[n]);
                vec![consuming(b, residual, holder, |r| b.linear_add(input, &held.weights[0], r).unwrap())]
            })
        });
        Case { start, numerics, ..case }
    });
}

/// Every row goes to some of the groups; what it gets there stands side by side, zeros where it was not.
pub fn linear_groups() {
    let shapes = (stored(1..3), before(), pick(NUMERICS), 1usize..5);
    holds(2, shapes, |(stored, before, numerics, n_groups), lengths, draw| {
        let t: usize = lengths.iter().sum();
        let operands = Operands::new(draw, before, (t, stored[0].2));
        let all: Vec<Stored> = (0..n_groups).flat_map(|_| stored.clone()).collect();
        let sources = sources(draw, &all);
        let goes: Vec<bool> = (0..t * n_groups).map(|_| draw.below(3) > 0).collect();
        let start = packed(&sources);
        let places = stored.len();
        let case = Case::new(operands.bound(), move |b, rows, held| {
            let goes = rows.of(&goes, n_groups);
            let own = |g: usize| (0..rows.len() as u32).rev().filter(|r| goes[*r as usize * n_groups + g]).collect();
            let all = held.weights.chunks(places).enumerate();
            let groups: Vec<Group<'_>> =
                all.map(|(g, weights)| Group { weights: weights.iter().collect(), rows: own(g) }).collect();
            let found = operands.on(b, rows, |input| b.linear_groups(input, &groups).unwrap());
            let side_by_side = |y: &Tensor| {
                let (n, y) = (y.width(), b.read(y).unwrap());
                let mut out = vec![0.0; rows.len() * n_groups * n];
                let to = groups.iter().enumerate().flat_map(|(g, group)| group.rows.iter().map(move |r| (g, *r)));
                for ((g, row), y) in to.zip(y.chunks(n)) {
                    out[(row as usize * n_groups + g) * n..][..n].copy_from_slice(y);
                }
                tensor(b, &out, &[rows.len(), n_groups * n])
            };
            found.iter().map(side_by_side).collect()
        });
        Case { start, numerics, ..case }
    });
}

pub fn embed() {
    holds(3, stored(1..2), |stored, lengths, draw| {
        let sources = sources(draw, &stored);
        let ids: Vec<u32> = (0..lengths.iter().sum()).map(|_| draw.below(stored[0].1) as u32).collect();
        let start = packed(&sources);
        let case = Case::new(Bound::Bits, move |b, rows, held| {
            vec![b.embed(&held.weights[0], &rows.of(&ids, 1), 0.7).unwrap()]
        });
        Case { start, ..case }
    });
}

type HowRouted = ((usize, usize), (Score, GroupRank), Option<f32>, f32, (bool, bool));

fn routed() -> impl Strategy<Value = HowRouted> {
    let ways = pick(&[
        (Score::Softmax, GroupRank::Best),
        (Score::Softmax, GroupRank::BestTwo),
        (Score::Sigmoid, GroupRank::Best),
        (Score::Sigmoid, GroupRank::BestTwo),
    ]);
    let normalise = pick(&[None, Some(0.0f32), Some(1e-6)]);
    let shape = (pick(&[1usize, 2, 4]), prop_oneof![2usize..20, Just(128)]);
    (shape, ways, normalise, pick(&[1.0f32, 2.5]), (any::<bool>(), any::<bool>()))
}

pub fn route() {
    holds(2, routed(), |((n_groups, each), (score, rank), normalise, scale, (bias, per_expert)), lengths, draw| {
        let (e, n_kept) = (n_groups * each, 1 + draw.below(n_groups));
        let n_active = 1 + draw.below((each * n_kept).min(12));
        // Logits on a grid, off zero: two scores are equal in every bit or clearly apart, and σ(-x) meets no σ(x).
        let grid = |v: f32| if v.abs() < 5.0 && v != 0.0 { ((v * 32.0).round() + 0.37) / 32.0 } else { v };
        let logits: Vec<f32> = draw.values(lengths.iter().sum::<usize>() * e, 4.0).into_iter().map(grid).collect();
        let bias = bias.then(|| draw.plain(e, 0.3));
        let per_expert = per_expert.then(|| draw.values(e, 0.3));
        Case::new(Bound::Close(2e-6), move |b, rows, _| {
            let vector = |v: &Option<Vec<f32>>| v.as_ref().map(|v| tensor(b, v, &[e]));
            let spec = RouteSpec {
                n_experts: e,
                n_active,
                score,
                bias: vector(&bias),
                groups: (n_groups > 1).then_some(RouteGroups { n_groups, n_kept, rank }),
                normalise,
                scale,
                per_expert: vector(&per_expert),
            };
            let routes = b.route(&rows.tensor(b, &logits, &[e]), &spec).unwrap();
            let experts: Vec<f32> = routes.experts.iter().map(|e| *e as f32).collect();
            [experts, routes.weights].map(|v| tensor(b, &v, &[rows.len(), n_active])).into()
        })
    });
}

pub fn add_weighted() {
    holds(1, (prop_oneof![1usize..70, Just(400)], 1usize..90, 0usize..200, holder()), |shape, lengths, draw| {
        let (d, r, n, holder): (usize, usize, usize, Holder) = shape;
        let t: usize = lengths.iter().sum();
        let (base, x, weights) = (draw.values(t * d, 1.0), draw.values(r * d, 1.0), draw.values(n, 1.0));
        let terms: Vec<(usize, u32, f32)> =
            weights.into_iter().map(|w| (draw.below(t), draw.below(r) as u32, w)).collect();
        Case::new(Bound::Bits, move |b, rows, _| {
            let own = |(to, place): (usize, &usize)| {
                let mine = terms.iter().filter(|(p, ..)| p == place);
                mine.map(|&(_, from, weight)| Term { to: to as u32, from, weight }).collect::<Vec<_>>()
            };
            let terms: Vec<Term> = rows.places.iter().enumerate().flat_map(own).collect();
            let x = tensor(b, &x, &[r, d]);
            vec![consuming(b, rows.tensor(b, &base, &[d]), holder, |y| b.add_weighted(y, &x, &terms).unwrap())]
        })
    });
}

#[test]
fn the_choice_by_hand() {
    let b = reverie_tensor::reference::Reference::new(Numerics::Exact);
    let base = RouteSpec { n_experts: 4, n_active: 2, ..RouteSpec::alone(Score::Sigmoid) };
    let choose =
        |spec: &RouteSpec, scores: &[f32]| reverie_tensor::reference::experts::choose(&b, scores, spec).unwrap();
    // The lower index where two are equal, and what is not a number comes last.
    assert_eq!(choose(&base, &[0.5, 0.5, 0.5, f32::NAN]).experts, [0, 1]);
    assert_eq!(choose(&base, &[f32::NAN; 4]).experts, [0, 1]);
    // The bias chooses and does not weigh.
    let biased = RouteSpec { bias: Some(tensor(&b, &[0.0, 0.0, 0.0, 1.0], &[4])), ..base.clone() };
    let routes = choose(&biased, &[0.5, 0.2, 0.1, 0.05]);
    assert_eq!((routes.experts, routes.weights), (vec![0, 3], vec![0.5, 0.05]));
    // The best pair wins the group, though the best single expert is elsewhere.
    let groups = |rank| RouteSpec { groups: Some(RouteGroups { n_groups: 2, n_kept: 1, rank }), ..base.clone() };
    assert_eq!(choose(&groups(GroupRank::BestTwo), &[0.9, 0.0, 0.5, 0.6]).experts, [2, 3]);
    assert_eq!(choose(&groups(GroupRank::Best), &[0.9, 0.0, 0.5, 0.6]).experts, [0, 1]);
    // Too few experts to choose from.
    let few = RouteSpec { n_active: 3, ..groups(GroupRank::Best) };
    assert!(reverie_tensor::reference::experts::choose(&b, &[0.0; 4], &few).is_err());
}
