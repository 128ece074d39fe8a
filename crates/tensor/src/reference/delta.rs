//! The gated delta rule as a recurrence, token by token (arXiv 2412.06464; normalisation and gates as in Hugging Face
//! transformers' qwen3_next):
//! S ← e^g S;  u = β (v - kᵀS);  S ← S + k uᵀ;  o = qᵀS.

use super::elementwise::{sigmoid, softplus};
use super::scratch;
use crate::backend::{Backend, DeltaSpec, StateSegment};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// See `Backend::gated_delta`.
pub fn run<B: Backend + ?Sized>(
    b: &B,
    mixed: &Tensor,
    (a, beta): (&Tensor, &Tensor),
    segments: &mut [StateSegment<'_>],
    spec: &DeltaSpec,
) -> Result<Tensor> {
    let (hk, hv, dk, dv) = (spec.n_k_heads, spec.n_v_heads, spec.k_dim, spec.v_dim);
    let width = 2 * hk * dk + hv * dv;
    if mixed.width() != width || a.width() != hv || beta.width() != hv {
        return Err(Error::shape("gated_delta", (mixed.width(), a.width(), beta.width()), (width, hv, hv)));
    }
    let (x, a, beta) = (b.read(mixed)?, b.read(a)?, b.read(beta)?);
    let (rate, dt_bias) = (b.read(&spec.rate)?, b.read(&spec.dt_bias)?);
    let rows = mixed.rows();
    let mut out = vec![0.0f32; rows * hv * dv];
    for segment in segments {
        let mut state = b.read(segment.state)?;
        if state.len() != hv * dk * dv {
            return Err(Error::shape("gated_delta state", segment.state.shape(), [hv, dk, dv]));
        }
        for t in segment.rows.clone() {
            let row = &x[t * width..(t + 1) * width];
            for j in 0..hv {
                let kh = spec.order.key_head(j, hk, hv);
                let q = unit(&row[kh * dk..(kh + 1) * dk], spec.norm_eps, spec.q_scale);
                let k = unit(&row[(hk + kh) * dk..(hk + kh + 1) * dk], spec.norm_eps, 1.0);
                let v = &row[2 * hk * dk + j * dv..2 * hk * dk + (j + 1) * dv];
                let g = rate[j] * softplus(a[t * hv + j] + dt_bias[j]);
                let (decay, write) = (g.exp(), sigmoid(beta[t * hv + j]));
                let s = &mut state[j * dk * dv..(j + 1) * dk * dv];
                s.iter_mut().for_each(|v| *v *= decay);
                for col in 0..dv {
                    let seen: f32 = (0..dk).map(|i| k[i] * s[i * dv + col]).sum();
                    let u = write * (v[col] - seen);
                    let mut o = 0.0;
                    for i in 0..dk {
                        s[i * dv + col] += k[i] * u;
                        o += q[i] * s[i * dv + col];
                    }
                    out[(t * hv + j) * dv + col] = o;
                }
            }
        }
        let bytes: Vec<u8> = state.iter().flat_map(|v| v.to_le_bytes()).collect();
        b.write_bytes(segment.state, &bytes)?;
    }
    scratch(b, &out, &[rows, hv, dv])
}

/// x / sqrt(Σx² + eps), times scale.
fn unit(x: &[f32], eps: f32, scale: f32) -> Vec<f32> {
    let inv = 1.0 / (x.iter().map(|v| v * v).sum::<f32>() + eps).sqrt();
    x.iter().map(|v| v * inv * scale).collect()
}
