//! Which keys the rows of sparse attention see: single tokens by an index of their own, or whole blocks by the mean of their keys.

use std::sync::Arc;

use super::attend::{k_index, v_index};
use super::scratch;
use crate::backend::{Backend, Choice, ChooseSpec, Keep, KvSegment, PAGE_TOKENS, Reach};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// A sequence's pages, read.
struct Pages<'a> {
    spec: &'a ChooseSpec,
    bytes: Vec<Vec<u8>>,
}

impl Pages<'_> {
    fn key(&self, head: usize, position: usize, d: usize) -> f64 {
        let kv = &self.spec.kv;
        let at = k_index(kv, head, d, position % PAGE_TOKENS);
        f64::from(kv.dtype.read(&self.bytes[position / PAGE_TOKENS], at))
    }

    fn value(&self, head: usize, position: usize, d: usize) -> f64 {
        let kv = &self.spec.kv;
        let at = v_index(kv, head, position % PAGE_TOKENS, d);
        f64::from(kv.dtype.read(&self.bytes[position / PAGE_TOKENS], at))
    }

    /// Means over every whole block below `end`: `[blocks, n]` of what `of` gives for a position and an element.
    fn means(&self, end: usize, n: usize, of: impl Fn(usize, usize) -> f64) -> Vec<Vec<f64>> {
        let size = self.spec.block;
        let mean = |block: usize, d: usize| (block * size..(block + 1) * size).map(|p| of(p, d)).sum::<f64>();
        (0..end / size).map(|b| (0..n).map(|d| mean(b, d) / size as f64).collect()).collect()
    }
}

/// See `Backend::choose`.
pub fn run<B: Backend + ?Sized>(
    b: &B,
    q: &Tensor,
    segments: &[KvSegment<'_>],
    spec: &ChooseSpec,
) -> Result<(Keep, Option<Tensor>)> {
    let (kv, h) = (&spec.kv, spec.n_heads);
    if spec.block == 0 || h == 0 || kv.n_heads == 0 || !h.is_multiple_of(kv.n_heads) || spec.n_kept == 0 {
        return Err(Error::shape("choose", (spec.block, h, spec.n_kept), "blocks, heads and a choice above zero"));
    }
    let (t, dim) = (q.dims().first().copied().unwrap_or(0), q.width());
    let q = b.read(q)?;
    let n_pages = segments.iter().map(|s| s.pages.len()).max().unwrap_or(0);
    let n_groups = match spec.choice {
        Choice::Index { .. } => 1,
        Choice::Mean => h,
        Choice::Share => kv.n_heads,
    };
    let weights = match &spec.choice {
        Choice::Index { weights, .. } => b.read(weights)?,
        _ => Vec::new(),
    };
    let mut bits = vec![0u64; t * n_groups * n_pages];
    let mut pooled = vec![0.0f32; if matches!(spec.choice, Choice::Share) { t * h * kv.v_dim } else { 0 }];
    for segment in segments {
        let end = segment.start + segment.rows.len();
        segment.reached("choose", Reach::All)?;
        let bytes = segment.pages.iter().map(|p| b.read_bytes(p)).collect::<Result<_>>()?;
        let pages = Pages { spec, bytes };
        let means = |head: usize| match spec.choice {
            Choice::Index { .. } => Vec::new(),
            _ => pages.means(end, dim, |p, d| pages.key(head, p, d)),
        };
        let keys: Vec<_> = (0..kv.n_heads).map(means).collect();
        let values: Vec<_> = match spec.choice {
            Choice::Share => {
                let of = |head| pages.means(end, kv.v_dim, |p, d| pages.value(head, p, d));
                (0..kv.n_heads).map(of).collect()
            }
            _ => Vec::new(),
        };
        for (i, row) in segment.rows.clone().enumerate() {
            let position = segment.start + i;
            let query = |head: usize| &q[(row * h + head) * dim..(row * h + head + 1) * dim];
            let dot = |head: usize, key: &[f64]| -> f64 {
                query(head).iter().zip(key).map(|(q, k)| f64::from(*q) * k).sum::<f64>()
            };
            for group in 0..n_groups {
                let heads = group * h / n_groups..(group + 1) * h / n_groups;
                let kv_head = heads.start / (h / kv.n_heads);
                let scores: Vec<f64> = match spec.choice {
                    Choice::Index { first, .. } => (0..=position)
                        .map(|p| {
                            let one = |head: usize| {
                                let s: f64 = query(head)
                                    .iter()
                                    .enumerate()
                                    .map(|(d, q)| f64::from(*q) * pages.key(kv_head, p, first + d))
                                    .sum();
                                s.max(0.0) * f64::from(weights[row * h + head])
                            };
                            heads.clone().map(one).sum()
                        })
                        .collect(),
                    Choice::Mean => keys[kv_head].iter().map(|k| dot(group, k)).collect(),
                    Choice::Share => {
                        let whole = (position + 1) / spec.block;
                        let mut shares = vec![0.0; whole];
                        for head in heads.clone() {
                            let own = softmax(keys[kv_head][..whole].iter().map(|k| dot(head, k)), spec.scale);
                            shares.iter_mut().zip(&own).for_each(|(s, o)| *s += o / heads.len() as f64);
                            for d in 0..kv.v_dim {
                                let o: f64 = own.iter().zip(&values[kv_head]).map(|(w, v)| w * v[d]).sum();
                                pooled[(row * h + head) * kv.v_dim + d] = o as f32;
                            }
                        }
                        shares
                    }
                };
                let words = &mut bits[(row * n_groups + group) * n_pages..][..n_pages];
                for block in kept(&scores, position, spec) {
                    for p in block * spec.block..((block + 1) * spec.block).min(position + 1) {
                        words[p / PAGE_TOKENS] |= 1 << (p % PAGE_TOKENS);
                    }
                }
            }
        }
    }
    let pooled = match spec.choice {
        Choice::Share => Some(scratch(b, &pooled, &[t, h * kv.v_dim])?),
        _ => None,
    };
    Ok((Keep { n_groups, n_pages, bits: Arc::from(bits) }, pooled))
}

fn softmax(scores: impl Iterator<Item = f64>, scale: f32) -> Vec<f64> {
    let scores: Vec<f64> = scores.map(|s| s * f64::from(scale)).collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let e: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.into_iter().map(|e| e / sum).collect()
}

/// Of blocks that all must be seen, as many as there is room for. flash-linear-attention's kernel (`parallel_nsa_kernel_topk`) ranks
/// them as equals, above all others, so that what stays depends on its sorting network alone: `spec.block` blocks at a time are
/// sorted, and the better half of what was found before is merged with the better half of those.
fn first_of_equals(forced: &[usize], own: usize, spec: &ChooseSpec) -> Vec<usize> {
    let width = spec.block.next_power_of_two().max(2 * spec.n_kept);
    let stages = width.ilog2();
    let mut best: Vec<usize> = Vec::new();
    for first in (0..=own).step_by(width) {
        let mut cells: Vec<usize> = (first..first + width).collect();
        for stage in 1..stages {
            merge(&mut cells, forced, stage, |at| at >> stage & 1 == 1);
        }
        if first > 0 {
            merge(&mut cells, forced, stages, |_| false);
            cells[..width / 2].copy_from_slice(&best[..width / 2]);
        }
        merge(&mut cells, forced, stages, |_| true);
        best = cells;
    }
    best.truncate(spec.n_kept);
    best
}

/// The last `stage` rounds of a bitonic network: two cells change places if the left one is better, where `falls` if it is not.
fn merge(cells: &mut [usize], forced: &[usize], stage: u32, falls: impl Fn(usize) -> bool) {
    for stride in (0..stage).rev().map(|i| 1 << i) {
        for left in (0..cells.len()).filter(|left| left & stride == 0) {
            let right = left + stride;
            let better = forced.contains(&cells[left]) && !forced.contains(&cells[right]);
            if better != falls(left) {
                cells.swap(left, right);
            }
        }
    }
}

/// The blocks that a row at `position` sees: those it must, then the best of those that it may, the earlier where two are
/// equal.
fn kept(scores: &[f64], position: usize, spec: &ChooseSpec) -> Vec<usize> {
    let own = position / spec.block;
    let (mut found, candidates) = match spec.choice {
        Choice::Index { .. } => (Vec::new(), position + 1),
        Choice::Mean => (vec![own], own),
        Choice::Share => {
            let mut forced = vec![own];
            forced.extend((own > 0).then_some(0));
            forced.extend((own > 1).then(|| own - 1));
            if forced.len() > spec.n_kept {
                forced = first_of_equals(&forced, own, spec);
            }
            (forced, own)
        }
    };
    let mut order: Vec<usize> = (0..candidates.min(scores.len())).filter(|b| !found.contains(b)).collect();
    let rank = |b: usize| if scores[b].is_nan() { f64::NEG_INFINITY } else { scores[b] };
    order.sort_by(|&a, &b| rank(b).total_cmp(&rank(a)).then(a.cmp(&b)));
    let room = spec.n_kept.saturating_sub(found.len());
    found.extend(order.into_iter().take(room));
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::KvSpec;
    use crate::dtype::DType;

    /// What flash-linear-attention 0.6.0's kernel keeps for rows of block 0, 1, 2 and on, blocks of 8 tokens.
    #[test]
    fn too_few_for_those_that_must_be_seen_are_kept_as_the_published_kernel_keeps_them() {
        let kv = KvSpec { n_heads: 1, k_dim: 1, v_dim: 1, dtype: DType::F32 };
        let spec = |n_kept| ChooseSpec { n_heads: 1, kv, block: 8, n_kept, scale: 1.0, choice: Choice::Share };
        let found = |own: usize, n_kept: usize| {
            let mut found = kept(&vec![0.0; own], 8 * own + 7, &spec(n_kept));
            found.sort_unstable();
            found
        };
        let one = [0, 1, 1, 2, 0, 0, 0, 0, 8, 9, 9, 10, 11, 12, 14, 15, 16];
        for (own, block) in one.into_iter().enumerate() {
            assert_eq!(found(own, 1), [block], "own {own}");
        }
        let two = [(0, 1), (1, 2), (2, 3), (0, 3), (0, 5), (0, 5), (0, 6), (0, 8), (8, 9), (9, 10), (10, 11), (11, 12)];
        for (own, (a, b)) in two.into_iter().enumerate() {
            assert_eq!(found(own + 1, 2), [a, b], "own {}", own + 1);
        }
        assert_eq!(found(5, 3), [0, 4, 5]);
        assert_eq!(found(0, 2), [0]);
    }
}
