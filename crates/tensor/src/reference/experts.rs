//! Routing to experts, products of groups of rows, weighted sums of rows.

use super::{linear, scratch, sigmoid};
use crate::backend::{Backend, Input};
use crate::error::{Error, Result};
use crate::experts::{Group, GroupRank, RouteSpec, Routes, Score, Term};
use crate::tensor::Tensor;

/// See `Backend::route`.
pub fn route<B: Backend + ?Sized>(b: &B, logits: &Tensor, spec: &RouteSpec) -> Result<Routes> {
    let mut scores = b.read(logits)?;
    for row in scores.chunks_mut(spec.n_experts.max(1)) {
        match spec.score {
            Score::Sigmoid => row.iter_mut().for_each(|v| *v = sigmoid(*v)),
            Score::Softmax => {
                let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                row.iter_mut().for_each(|v| *v = (*v - max).exp());
                let sum: f64 = row.iter().map(|v| f64::from(*v)).sum();
                row.iter_mut().for_each(|v| *v = (f64::from(*v) / sum) as f32);
            }
        }
    }
    choose(b, &scores, spec)
}

/// The choice, and the weights, from scores `[T, E]`. A score that is not a number is never preferred.
pub fn choose<B: Backend + ?Sized>(b: &B, scores: &[f32], spec: &RouteSpec) -> Result<Routes> {
    let (e, k) = (spec.n_experts, spec.n_active);
    check(scores.len(), spec)?;
    let vector = |t: &Option<Tensor>| -> Result<Option<Vec<f32>>> {
        match t {
            Some(t) if t.shape().elements() != e => Err(Error::shape("route", t.shape(), [e])),
            Some(t) => b.read(t).map(Some),
            None => Ok(None),
        }
    };
    let (bias, per_expert) = (vector(&spec.bias)?, vector(&spec.per_expert)?);
    let t = scores.len() / e;
    let mut routes = Routes { n_active: k, experts: Vec::with_capacity(t * k), weights: Vec::with_capacity(t * k) };
    let mut order = vec![0.0; e];
    for row in scores.chunks_exact(e) {
        for (i, (o, s)) in order.iter_mut().zip(row).enumerate() {
            let s = s + bias.as_ref().map_or(0.0, |b| b[i]);
            *o = if s.is_nan() { f32::NEG_INFINITY } else { s };
        }
        if let Some(groups) = spec.groups {
            let size = e / groups.n_groups;
            let ranks: Vec<f32> = order.chunks_exact(size).map(|g| rank(g, groups.rank)).collect();
            let kept = top(&ranks, &vec![true; groups.n_groups], groups.n_kept);
            let open: Vec<bool> = (0..e).map(|i| kept.contains(&(i / size))).collect();
            push(&mut routes, top(&order, &open, k));
        } else {
            push(&mut routes, top(&order, &vec![true; e], k));
        }
        let chosen = routes.experts.len() - k;
        let own = &routes.experts[chosen..];
        let sum = own.iter().fold(0.0, |sum, &i| sum + row[i as usize]);
        let weights = own.iter().map(|&i| {
            let share = spec.normalise.map_or(row[i as usize], |eps| row[i as usize] / (sum + eps));
            share * spec.scale * per_expert.as_ref().map_or(1.0, |p| p[i as usize])
        });
        routes.weights.extend(weights);
    }
    Ok(routes)
}

/// Refuses what would leave a token without its experts.
fn check(scores: usize, spec: &RouteSpec) -> Result<()> {
    let (e, k) = (spec.n_experts, spec.n_active);
    let available = match spec.groups {
        Some(g) if g.n_groups == 0 || !e.is_multiple_of(g.n_groups) || g.n_kept > g.n_groups => 0,
        Some(g) => e / g.n_groups * g.n_kept,
        None => e,
    };
    if e == 0 || !scores.is_multiple_of(e) {
        return Err(Error::shape("route", scores, ("T", e)));
    }
    if k == 0 || k > available {
        return Err(Error::value("route: experts of a token", k, format!("1 to {available}")));
    }
    Ok(())
}

fn push(routes: &mut Routes, mut chosen: Vec<usize>) {
    chosen.sort_unstable();
    routes.experts.extend(chosen.into_iter().map(|i| i as u32));
}

fn rank(group: &[f32], by: GroupRank) -> f32 {
    let n = if by == GroupRank::Best { 1 } else { 2 };
    top(group, &vec![true; group.len()], n.min(group.len())).into_iter().fold(0.0, |sum, i| sum + group[i])
}

/// The places of the `n` largest among the open ones, best first, the lower place where two are equal.
fn top(values: &[f32], open: &[bool], n: usize) -> Vec<usize> {
    let mut found: Vec<usize> = Vec::with_capacity(n);
    for _ in 0..n {
        let free = (0..values.len()).filter(|i| open[*i] && !found.contains(i));
        let best = free.fold(None, |best: Option<usize>, i| match best {
            Some(b) if values[i] <= values[b] => Some(b),
            _ => Some(i),
        });
        found.extend(best);
    }
    found
}

/// See `Backend::linear_groups`.
pub fn linear_groups<B: Backend + ?Sized>(b: &B, input: Input<'_>, groups: &[Group<'_>]) -> Result<Vec<Tensor>> {
    let Some(first) = groups.first() else { return Ok(Vec::new()) };
    let x = linear::materialise(b, input)?;
    let k = first.weights.first().map_or(1, |w| w.k);
    let x = {
        let rows = x.shape().elements() / k.max(1);
        x.reshape(&[rows, k])?
    };
    let mut out = vec![Vec::new(); first.weights.len()];
    for group in groups {
        let rows: Vec<usize> = group.rows.iter().map(|&r| r as usize).collect();
        let own = b.rows(&x, &rows)?;
        for (out, y) in out.iter_mut().zip(linear::run(b, Input::Plain(&own), &group.weights)?) {
            out.extend(b.read(&y)?);
        }
    }
    out.iter().zip(&first.weights).map(|(values, w)| scratch(b, values, &[values.len() / w.n, w.n])).collect()
}

/// See `Backend::add_weighted`.
pub fn add_weighted<B: Backend + ?Sized>(b: &B, base: &Tensor, x: &Tensor, terms: &[Term]) -> Result<Tensor> {
    let d = x.width();
    if base.width() != d {
        return Err(Error::shape("add_weighted", x.shape(), base.shape()));
    }
    let (mut y, x) = (b.read(base)?, b.read(x)?);
    for term in terms {
        let (to, from) = (term.to as usize * d, term.from as usize * d);
        let (Some(to), Some(from)) = (y.get_mut(to..to + d), x.get(from..from + d)) else {
            return Err(Error::shape("add_weighted", term, (base.rows(), x.len() / d)));
        };
        to.iter_mut().zip(from).for_each(|(y, x)| *y = x.mul_add(term.weight, *y));
    }
    scratch(b, &y, base.dims())
}
