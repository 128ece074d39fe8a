//! Linear recurrences, token by token and head by head, as `recurrence.rs` states them.

use super::scratch;
use crate::backend::{Backend, StateSegment};
use crate::error::{Error, Result};
use crate::recurrence::{Decay, Heads, Read, Recurrence, RecurrenceSpec, Rule};
use crate::tensor::Tensor;

/// Values of an operand with how its heads lie.
struct Values {
    x: Vec<f32>,
    pitch: usize,
    at: usize,
    n: usize,
}

impl Values {
    fn of<B: Backend + ?Sized>(b: &B, heads: &Heads<'_>, rows: usize) -> Result<Values> {
        let x = b.read(heads.x)?;
        Ok(Values { pitch: x.len() / rows.max(1), x, at: heads.at, n: heads.n })
    }

    /// `dim` values that state head `j` reads at row `t`.
    fn head(&self, t: usize, j: usize, dim: usize, spec: &RecurrenceSpec) -> &[f32] {
        let own = spec.order.shared_head(j, self.n, spec.n_heads);
        &self.x[t * self.pitch + self.at + own * dim..][..dim]
    }
}

/// See `Backend::recurrence`.
pub fn run<B: Backend + ?Sized>(
    b: &B,
    x: &Recurrence<'_>,
    segments: &mut [StateSegment<'_>],
    spec: &RecurrenceSpec,
) -> Result<Tensor> {
    let rows = check(x, spec)?;
    let (h, dk, dv) = (spec.n_heads, spec.k_dim, spec.v_dim);
    let (q, k, v) = (Values::of(b, &x.q, rows)?, Values::of(b, &x.k, rows)?, Values::of(b, &x.v, rows)?);
    let strength = match x.rule {
        Rule::Add(Some(s)) | Rule::Delta(Some(s)) => Some(b.read(s)?),
        _ => None,
    };
    let low = match &x.rule {
        Rule::LowRank(a, c) => Some((Values::of(b, a, rows)?, Values::of(b, c, rows)?)),
        _ => None,
    };
    let (flat, wide) = match &x.decay {
        Decay::None => (None, None),
        Decay::Fixed(d) | Decay::Head(d) => (Some(b.read(d)?), None),
        Decay::Key(d) | Decay::Value(d) => (None, Some(Values::of(b, d, rows)?)),
    };
    let bonus = match &spec.read {
        Read::After => None,
        Read::Before(bonus) => Some(b.read(bonus)?),
    };
    let skip = spec.skip.as_ref().map(|s| b.read(s)).transpose()?;
    let mut out = vec![0.0f32; rows * h * dv];
    for segment in segments {
        let mut state = b.read(segment.state)?;
        if state.len() != h * dk * dv {
            return Err(Error::shape("recurrence state", segment.state.shape(), [h, dk, dv]));
        }
        for t in segment.rows.clone() {
            for j in 0..h {
                let qt = unit(q.head(t, j, dk, spec), spec.unit_eps, spec.q_scale);
                let kt = unit(k.head(t, j, dk, spec), spec.unit_eps, 1.0);
                let vt = v.head(t, j, dv, spec);
                let beta = strength.as_ref().map_or(1.0, |s| s[t * h + j]);
                let decay = |i: usize, col: usize| match &x.decay {
                    Decay::None => 1.0,
                    Decay::Fixed(_) => flat.as_ref().map_or(1.0, |f| f[j]),
                    Decay::Head(_) => flat.as_ref().map_or(1.0, |f| f[t * h + j]),
                    Decay::Key(_) => wide.as_ref().map_or(1.0, |w| w.head(t, j, dk, spec)[i]),
                    Decay::Value(_) => wide.as_ref().map_or(1.0, |w| w.head(t, j, dv, spec)[col]),
                };
                let s = &mut state[j * dk * dv..(j + 1) * dk * dv];
                for col in 0..dv {
                    let mut read = 0.0f32;
                    if let Some(bonus) = &bonus {
                        for i in 0..dk {
                            read += qt[i] * (s[i * dv + col] + bonus[j * dk + i] * kt[i] * vt[col]);
                        }
                    }
                    let kept: Vec<f32> = (0..dk).map(|i| s[i * dv + col] * decay(i, col)).collect();
                    let gain = match x.rule {
                        Rule::Add(_) => beta * vt[col],
                        Rule::Delta(_) => beta * (vt[col] - (0..dk).map(|i| kt[i] * kept[i]).sum::<f32>()),
                        Rule::LowRank(..) => vt[col],
                    };
                    let second = low.as_ref().map(|(a, c)| {
                        let a = a.head(t, j, dk, spec);
                        ((0..dk).map(|i| a[i] * s[i * dv + col]).sum::<f32>(), c.head(t, j, dk, spec))
                    });
                    for i in 0..dk {
                        let mut new = kept[i] + kt[i] * gain;
                        if let Some((seen, c)) = &second {
                            new += c[i] * seen;
                        }
                        s[i * dv + col] = new;
                        if bonus.is_none() {
                            read += qt[i] * new;
                        }
                    }
                    out[(t * h + j) * dv + col] = read + skip.as_ref().map_or(0.0, |d| d[j] * vt[col]);
                }
            }
        }
        let bytes: Vec<u8> = state.iter().flat_map(|v| v.to_le_bytes()).collect();
        b.write_bytes(segment.state, &bytes)?;
    }
    scratch(b, &out, &[rows, h, dv])
}

/// T, once every operand is known to hold what the heads will read.
pub fn check(x: &Recurrence<'_>, spec: &RecurrenceSpec) -> Result<usize> {
    let rows = x.q.x.dims().first().copied().unwrap_or(0);
    let h = spec.n_heads;
    if h == 0 || spec.k_dim == 0 || spec.v_dim == 0 {
        return Err(Error::shape("recurrence", (h, spec.k_dim, spec.v_dim), "heads and widths above zero"));
    }
    let heads = |what: &'static str, o: &Heads<'_>, dim: usize| {
        let n = o.x.shape().elements();
        let pitch = n / rows.max(1);
        if o.n == 0 || !h.is_multiple_of(o.n) || n != pitch * rows || (rows > 0 && o.at + o.n * dim > pitch) {
            let expected = format!("{rows} rows of {} + {} heads of {dim}, shared by {h}", o.at, o.n);
            return Err(Error::shape(what, o.x.shape(), expected));
        }
        Ok(())
    };
    let each = |what: &'static str, x: &Tensor, n: usize| {
        if x.shape().elements() == n { Ok(()) } else { Err(Error::shape(what, x.shape(), [n])) }
    };
    heads("recurrence q", &x.q, spec.k_dim)?;
    heads("recurrence k", &x.k, spec.k_dim)?;
    heads("recurrence v", &x.v, spec.v_dim)?;
    match &x.decay {
        Decay::None => {}
        Decay::Fixed(d) => each("recurrence decay", d, h)?,
        Decay::Head(d) => each("recurrence decay", d, rows * h)?,
        Decay::Key(d) => heads("recurrence decay", d, spec.k_dim)?,
        Decay::Value(d) => heads("recurrence decay", d, spec.v_dim)?,
    }
    match &x.rule {
        Rule::Add(s) | Rule::Delta(s) => s.map_or(Ok(()), |s| each("recurrence strength", s, rows * h))?,
        Rule::LowRank(a, b) => {
            heads("recurrence a", a, spec.k_dim)?;
            heads("recurrence b", b, spec.k_dim)?;
        }
    }
    if let Read::Before(bonus) = &spec.read {
        each("recurrence bonus", bonus, h * spec.k_dim)?;
    }
    if let Some(skip) = &spec.skip {
        each("recurrence skip", skip, h)?;
    }
    let fits = match (&x.rule, &x.decay, &spec.read) {
        (Rule::Add(_), _, _) => true,
        (Rule::Delta(_), Decay::Value(_), _) => false,
        (Rule::Delta(_), _, read) => matches!(read, Read::After),
        (Rule::LowRank(..), decay, read) => matches!((decay, read), (Decay::Key(_), Read::After)),
    };
    if !fits {
        let found = format!("{:?} with {:?} and {:?}", x.rule, x.decay, spec.read);
        return Err(Error::value("recurrence", found, "a rule with the decays and reads that it is defined for"));
    }
    Ok(rows)
}

/// x, or x / √(Σx² + eps), times scale.
fn unit(x: &[f32], eps: Option<f32>, scale: f32) -> Vec<f32> {
    let inv = eps.map_or(1.0, |eps| 1.0 / (x.iter().map(|v| v * v).sum::<f32>() + eps).sqrt());
    x.iter().map(|v| v * inv * scale).collect()
}
