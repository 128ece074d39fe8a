//! Paged keys and values, and causal softmax attention over them.

use super::scratch;
use crate::backend::{AttendSpec, Backend, KvSegment, KvSpec, KvTarget, PAGE_TOKENS};
use crate::error::Result;
use crate::tensor::Tensor;

/// Index of key element `d` of token `slot` of head `head` in a page.
pub fn k_index(spec: &KvSpec, head: usize, d: usize, slot: usize) -> usize {
    head * spec.head_elements() + d * PAGE_TOKENS + slot
}

/// Index of value element `d` of token `slot` of head `head` in a page.
pub fn v_index(spec: &KvSpec, head: usize, slot: usize, d: usize) -> usize {
    head * spec.head_elements() + spec.k_dim * PAGE_TOKENS + slot * spec.v_dim + d
}

/// See `Backend::kv_write`.
pub fn write<B: Backend + ?Sized>(
    b: &B,
    k: &Tensor,
    v: &Tensor,
    targets: &mut [KvTarget<'_>],
    spec: &KvSpec,
) -> Result<()> {
    let (kd, vd) = (spec.n_heads * spec.k_dim, spec.n_heads * spec.v_dim);
    let (k, v) = (b.read(k)?, b.read(v)?);
    for target in targets {
        target.reached("kv_write")?;
        for (i, row) in target.rows.clone().enumerate() {
            let position = target.start + i;
            let page = &mut target.pages[position / PAGE_TOKENS];
            let mut bytes = b.read_bytes(page)?;
            let slot = position % PAGE_TOKENS;
            for head in 0..spec.n_heads {
                for d in 0..spec.k_dim {
                    spec.dtype.write(&mut bytes, k_index(spec, head, d, slot), k[row * kd + head * spec.k_dim + d]);
                }
                for d in 0..spec.v_dim {
                    spec.dtype.write(&mut bytes, v_index(spec, head, slot, d), v[row * vd + head * spec.v_dim + d]);
                }
            }
            b.write_bytes(page, &bytes)?;
        }
    }
    Ok(())
}

/// See `Backend::attend`. One softmax over all keys, in f64.
pub fn run<B: Backend + ?Sized>(b: &B, q: &Tensor, segments: &[KvSegment<'_>], spec: &AttendSpec) -> Result<Tensor> {
    let (kv, h, dq, dv) = (&spec.kv, spec.n_heads, spec.q_dim(), spec.v_dim());
    let per_group = h / kv.n_heads;
    let qd = h * dq;
    let t = q.shape().elements() / qd.max(1);
    let q = b.read(q)?;
    let sinks = spec.sinks.as_ref().map(|s| b.read(s)).transpose()?;
    let mut out = vec![0.0f32; t * qd / dq.max(1) * dv];
    for segment in segments {
        let reached = segment.reached("attend", spec.reach)?;
        let read = |(p, page)| if reached.contains(&p) { b.read_bytes(page) } else { Ok(Vec::new()) };
        let pages = segment.pages.iter().enumerate().map(read).collect::<Result<Vec<_>>>()?;
        for (i, row) in segment.rows.clone().enumerate() {
            let position = segment.start + i;
            let first = spec.reach.first(position);
            for head in 0..h {
                let group = head / per_group;
                let query = &q[row * qd + head * dq..row * qd + (head + 1) * dq];
                let mut scores: Vec<f64> = (first..=position)
                    .map(|p| {
                        let page = &pages[p / PAGE_TOKENS];
                        let kept = spec.keep.as_ref().map_or(!0, |k| k.page(row, (head, h), p / PAGE_TOKENS));
                        if kept >> (p % PAGE_TOKENS) & 1 == 0 {
                            return f64::NEG_INFINITY;
                        }
                        let dot: f64 = (0..dq)
                            .map(|d| {
                                let key = kv.dtype.read(page, k_index(kv, group, d, p % PAGE_TOKENS));
                                f64::from(query[d]) * f64::from(key)
                            })
                            .sum();
                        let s = dot * f64::from(spec.scale);
                        spec.softcap.map_or(s, |c| f64::from(c) * (s / f64::from(c)).tanh())
                    })
                    .collect();
                let sink = sinks.as_ref().map(|s| f64::from(s[head]));
                let max = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
                scores.iter_mut().for_each(|s| *s = (*s - max).exp());
                let sum: f64 = scores.iter().sum::<f64>() + sink.map_or(0.0, |s| (s - max).exp());
                for d in 0..dv {
                    let o: f64 = (first..=position)
                        .zip(&scores)
                        .map(|(p, s)| {
                            let at = match spec.latent {
                                Some(_) => k_index(kv, group, d, p % PAGE_TOKENS),
                                None => v_index(kv, group, p % PAGE_TOKENS, d),
                            };
                            s * f64::from(kv.dtype.read(&pages[p / PAGE_TOKENS], at))
                        })
                        .sum();
                    out[(row * h + head) * dv + d] = (o / sum) as f32;
                }
            }
        }
    }
    scratch(b, &out, &[t, h * dv])
}
