//! Scores of experts and weighted sums of rows. The choice itself is the reference's: it has no arithmetic that a set of
//! instructions could change. Knows nothing of the experts' weights.

use reverie_tensor::{Error, Result, RouteSpec, Routes, Score, Tensor, Term, reference};

use super::norm::row_sum;
use super::{host, split};
use crate::simd::{LANES, Lanes, hmax, math};
use crate::{Cpu, dispatch};

/// See `Backend::route`.
pub(crate) fn route(cpu: &Cpu, logits: &Tensor, spec: &RouteSpec) -> Result<Routes> {
    let (x, e) = (host::f32s("route", logits)?, spec.n_experts);
    if e == 0 || !x.len().is_multiple_of(e) {
        return Err(Error::shape("route", logits.shape(), ("T", e)));
    }
    let mut scores = vec![0.0; x.len()];
    let parts = split::Parts::new(&mut scores);
    // An exponential costs about eight plain elements.
    split::ranges(cpu, x.len() / e, 8 * e, &|rows| {
        for row in rows {
            let (span, score) = (row * e..(row + 1) * e, spec.score);
            // SAFETY: every row is one task's.
            let (x, out) = (&x[span.clone()], unsafe { parts.part(span) });
            dispatch!(cpu.isa, scores_of(x: &[f32], out: &mut [f32], score: Score));
        }
    });
    reference::experts::choose(cpu, &scores, spec)
}

#[inline(always)]
unsafe fn scores_of<S: Lanes>(x: &[f32], out: &mut [f32], score: Score) {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    x.iter().enumerate().for_each(|(k, v)| lanes[k % LANES] = lanes[k % LANES].max(*v));
    // SAFETY: every access is within the two rows, which have one length; the set is the caller's.
    unsafe {
        let max = S::splat(hmax::<S>(S::load(lanes.as_ptr())));
        for k in (0..x.len()).step_by(LANES) {
            let (n, v) = (x.len() - k, S::load_n(x.as_ptr().add(k), x.len() - k));
            let v = match score {
                Score::Sigmoid => math::sigmoid::<S>(v),
                Score::Softmax => math::exp::<S>(S::sub(v, max)),
            };
            S::store_n(out.as_mut_ptr().add(k), n, v);
        }
        if score == Score::Softmax {
            let sum = row_sum::<S>(out, |acc, v, _| S::add(acc, v));
            out.iter_mut().for_each(|v| *v /= sum);
        }
    }
}

/// See `Backend::add_weighted`.
pub(crate) fn add_weighted(cpu: &Cpu, mut base: Tensor, x: &Tensor, terms: &[Term]) -> Result<Tensor> {
    let (d, rows) = (x.width(), base.rows());
    let values = host::f32s("add_weighted", x)?;
    let fits = |t: &Term| (t.to as usize) < rows && (t.from as usize) < values.len() / d.max(1);
    if base.width() != d || !terms.iter().all(fits) {
        return Err(Error::shape("add_weighted", (x.shape(), terms.len()), base.shape()));
    }
    if !terms.is_sorted_by_key(|t| t.to) {
        return Err(Error::value("add_weighted: terms", "out of order", "ascending rows of the sum"));
    }
    if !base.is_unique() {
        let mut own = cpu.out(base.dims())?;
        host::f32s_mut("add_weighted", &mut own)?.copy_from_slice(host::f32s("add_weighted", &base)?);
        base = own;
    }
    let out = split::Parts::new(host::f32s_mut("add_weighted", &mut base)?);
    let per_row = d * terms.len().div_ceil(rows.max(1)).max(1);
    split::ranges(cpu, rows, per_row, &|own| {
        let first = terms.partition_point(|t| (t.to as usize) < own.start);
        for term in terms[first..].iter().take_while(|t| (t.to as usize) < own.end) {
            let (to, from, weight) = (term.to as usize * d, term.from as usize * d, term.weight);
            // SAFETY: every row of the sum is one task's.
            let (y, x) = (unsafe { out.part(to..to + d) }, &values[from..from + d]);
            dispatch!(cpu.isa, add_row(x: &[f32], weight: f32, y: &mut [f32]));
        }
    });
    Ok(base)
}

#[inline(always)]
unsafe fn add_row<S: Lanes>(x: &[f32], weight: f32, y: &mut [f32]) {
    let (p, o) = (x.as_ptr(), y.as_mut_ptr());
    for k in (0..x.len()).step_by(LANES) {
        let n = x.len() - k;
        // SAFETY: within both rows, which have one length; the set is the caller's.
        unsafe { S::store_n(o.add(k), n, S::fma(S::load_n(p.add(k), n), S::splat(weight), S::load_n(o.add(k), n))) };
    }
}

#[cfg(test)]
mod tests {
    use reverie_tensor::{Backend, GroupRank, RouteGroups};

    use super::super::trial::{Seeded, close, cpus, reference, same, tensor};
    use super::*;

    fn spec(seeded: &mut Seeded, b: &dyn Backend) -> RouteSpec {
        let n_groups = seeded.pick(&[1, 2, 4]);
        let n_experts = n_groups * seeded.pick(&[2, 5, 16]);
        let n_kept = 1 + seeded.below(n_groups);
        let vector = |seeded: &mut Seeded| tensor(b, &seeded.values(n_experts, 0.3), &[n_experts]);
        RouteSpec {
            n_experts,
            n_active: 1 + seeded.below(n_experts / n_groups * n_kept),
            score: seeded.pick(&[Score::Softmax, Score::Sigmoid]),
            bias: (seeded.below(2) == 0).then(|| vector(seeded)),
            groups: (n_groups > 1).then(|| RouteGroups {
                n_groups,
                n_kept,
                rank: seeded.pick(&[GroupRank::Best, GroupRank::BestTwo]),
            }),
            normalise: seeded.pick(&[None, Some(0.0), Some(1e-6)]),
            scale: seeded.pick(&[1.0, 2.5]),
            per_expert: (seeded.below(3) == 0).then(|| vector(seeded)),
        }
    }

    #[test]
    fn routes_as_the_reference() {
        for seed in 0..60 {
            let all = cpus();
            let mut seeded = Seeded::new(seed);
            let spec = spec(&mut seeded, &all[0]);
            let t = 1 + seeded.below(70);
            let logits = seeded.values(t * spec.n_experts, 4.0);
            let run = |b: &dyn Backend| b.route(&tensor(b, &logits, &[t, spec.n_experts]), &spec).unwrap();
            let (first, truth) = (run(&all[0]), run(&reference()));
            assert_eq!(first.experts, truth.experts, "{spec:?}");
            close("weights", &first.weights, &truth.weights, 2e-6);
            for cpu in &all[1..] {
                let own = run(cpu);
                assert_eq!(own.experts, first.experts);
                same("weights", &own.weights, &first.weights);
            }
        }
    }

    #[test]
    fn the_choice_by_hand() {
        let b = reference();
        let base = RouteSpec {
            n_experts: 4,
            n_active: 2,
            score: Score::Sigmoid,
            bias: None,
            groups: None,
            normalise: None,
            scale: 1.0,
            per_expert: None,
        };
        let choose = |spec: &RouteSpec, scores: &[f32]| reference::experts::choose(&b, scores, spec).unwrap();
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
        assert!(reference::experts::choose(&b, &[0.0; 4], &few).is_err());
    }

    #[test]
    fn weighted_sums_as_the_reference() {
        for seed in 0..20 {
            let mut seeded = Seeded::new(seed);
            let (t, r, d) = (1 + seeded.below(40), 1 + seeded.below(90), 1 + seeded.below(400));
            let (base, x) = (seeded.values(t * d, 1.0), seeded.values(r * d, 1.0));
            let mut terms: Vec<Term> = (0..seeded.below(200))
                .map(|_| Term {
                    to: seeded.below(t) as u32,
                    from: seeded.below(r) as u32,
                    weight: seeded.values(1, 1.0)[0],
                })
                .collect();
            terms.sort_by_key(|t| t.to);
            let run = |b: &dyn Backend| {
                let y = b.add_weighted(tensor(b, &base, &[t, d]), &tensor(b, &x, &[r, d]), &terms).unwrap();
                b.read(&y).unwrap()
            };
            let truth = run(&reference());
            cpus().iter().for_each(|cpu| same("a chain of fused sums", &run(cpu), &truth));
        }
    }
}
