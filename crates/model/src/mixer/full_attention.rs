//! Softmax attention over all earlier tokens, or over a window of them: grouped queries, norms on queries and keys, biases,
//! any rotary embedding, soft-capped scores, sinks, an output gate. Knows no cache scheme: it writes pages and reads them.

use reverie_files::ModelConfig;
use reverie_tensor::{AttendSpec, DType, Input, KvSegment, KvSpec, KvTarget, Norm, Rope, Tensor};

use super::{Mixer, MixerEntry, Step, Stream};
use crate::Build;
use crate::error::{Error, Result};
use crate::linear::{Linear, project};
use crate::plan::{MixerSpec, NormSpec, NormWeight};
use crate::rope;
use crate::state::{KvNeed, LayerState, StateKind, StateSpec};

/// The row.
pub const ENTRY: MixerEntry = MixerEntry {
    name: "full_attention",
    aliases: &["attention", "sliding_attention", "chunked_attention"],
    about: "softmax attention: grouped queries, q/k norms, biases, rotary, window, soft-cap, sinks, output gate",
    state: &[StateKind::Kv],
    spec: |config, layer| Ok(Box::new(Spec::from_config(config, layer)?)),
};

/// One attention layer.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Query heads.
    pub n_heads: usize,
    /// Key/value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Multiplies q·k.
    pub scale: f32,
    /// None for a layer without positions.
    pub rope: Option<Rope>,
    /// Norm over each head of q and k (`q_norm`, `k_norm`).
    pub qk_norm: Option<(f32, NormWeight)>,
    /// q, k and v must have biases.
    pub qkv_bias: bool,
    /// o must have a bias.
    pub o_bias: bool,
    /// Keys further back are not seen.
    pub window: Option<usize>,
    /// Scores become cap · tanh(score / cap).
    pub softcap: Option<f32>,
    /// A logit per head that joins the softmax (`sinks`).
    pub sinks: bool,
    /// `q_proj` holds, head by head, a query and a gate; the output is multiplied by σ(gate).
    pub output_gate: bool,
    /// The rows of each head of q and k are stored pair by pair (GGUF's llama) and are put back into halves at load.
    pub interleaved_rows: bool,
}

impl Spec {
    /// From the field names that most configs share.
    pub fn from_config(config: &ModelConfig, layer: usize) -> Result<Spec> {
        let width = config.usize("hidden_size")?;
        let n_heads = config.usize("num_attention_heads")?;
        let n_kv_heads = config.optional_usize("num_key_value_heads")?.unwrap_or(n_heads);
        if n_heads > 1 << 16 {
            return Err(Error::config("num_attention_heads", n_heads, "1 to 65536"));
        }
        if n_heads == 0 || n_kv_heads == 0 || !n_heads.is_multiple_of(n_kv_heads) {
            return Err(Error::config(
                "num_key_value_heads",
                n_kv_heads,
                format!("a divisor of num_attention_heads = {n_heads}"),
            ));
        }
        let head_dim = match config.optional_usize("head_dim")? {
            Some(d) => d,
            None if width.is_multiple_of(n_heads) => width / n_heads,
            None => {
                return Err(Error::config(
                    "head_dim",
                    "nothing",
                    format!("a value, since hidden_size = {width} is no multiple of num_attention_heads = {n_heads}"),
                ));
            }
        };
        if head_dim == 0 || head_dim > 4096 || !head_dim.is_multiple_of(2) {
            return Err(Error::config("head_dim", head_dim, "an even number up to 4096"));
        }
        let bias = config.optional_bool("attention_bias")?.unwrap_or(false);
        let kinds = config.optional_texts("layer_types")?;
        let sliding = kinds.as_ref().and_then(|k| k.get(layer)).is_some_and(|k| *k == "sliding_attention");
        Ok(Spec {
            n_heads,
            n_kv_heads,
            head_dim,
            scale: (head_dim as f32).powf(-0.5),
            rope: Some(rope::from_config(config, head_dim)?),
            qk_norm: None,
            qkv_bias: bias,
            o_bias: bias,
            window: if sliding { Some(config.usize("sliding_window")?) } else { None },
            softcap: None,
            sinks: false,
            output_gate: false,
            interleaved_rows: false,
        })
    }
}

impl Spec {
    /// The projection of `heads` heads that are rotated, with its rows in halves.
    fn rotated(&self, b: &Build<'_>, leaf: &str, heads: usize) -> Result<Linear> {
        let (dim, n) = (self.head_dim, heads * self.head_dim);
        if !self.interleaved_rows {
            return b.linear(leaf, n, b.width());
        }
        let stored = |row: usize| {
            let (head, at) = (row / dim, row % dim);
            head * dim + at % (dim / 2) * 2 + at / (dim / 2)
        };
        b.linear_rows(leaf, n, b.width(), (0..n).map(stored).collect())
    }
}

impl MixerSpec for Spec {
    fn kind(&self) -> &'static str {
        ENTRY.name
    }

    fn state(&self) -> StateSpec {
        let kv = KvNeed { n_heads: self.n_kv_heads, k_dim: self.head_dim, v_dim: self.head_dim };
        StateSpec { kv: Some(kv), slots: Vec::new() }
    }

    fn build(&self, b: &mut Build<'_>) -> Result<Box<dyn Mixer>> {
        let (q_width, kv_width) = (self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim);
        let width = b.width();
        let (q, gate) = if self.output_gate {
            let per_head = |first: usize| {
                let dim = self.head_dim;
                (0..self.n_heads).flat_map(move |h| (0..dim).map(move |i| h * 2 * dim + first * dim + i)).collect()
            };
            let q = b.linear_rows("q_proj", 2 * q_width, width, per_head(0))?;
            (q, Some(b.linear_rows("q_proj", 2 * q_width, width, per_head(1))?))
        } else {
            (self.rotated(b, "q_proj", self.n_heads)?, None)
        };
        let norm = |b: &mut Build<'_>, name: &str| -> Result<Option<Norm>> {
            let Some((eps, weight)) = self.qk_norm else { return Ok(None) };
            b.norm(&NormSpec::rms(name, eps, weight), self.head_dim).map(Some)
        };
        let mixer = Attention {
            q,
            gate,
            k: self.rotated(b, "k_proj", self.n_kv_heads)?,
            v: b.linear("v_proj", kv_width, width)?,
            o: b.linear("o_proj", width, q_width)?,
            q_norm: norm(b, "q_norm")?,
            k_norm: norm(b, "k_norm")?,
            rope: self.rope.clone(),
            attend: AttendSpec {
                n_heads: self.n_heads,
                kv: KvSpec { n_heads: self.n_kv_heads, k_dim: self.head_dim, v_dim: self.head_dim, dtype: DType::F32 },
                scale: self.scale,
                softcap: self.softcap,
                window: self.window,
                sinks: if self.sinks { Some(b.vector("sinks", self.n_heads)?) } else { None },
            },
        };
        let biased = |what: &str, wanted: bool, linear: &Linear| match (wanted, &linear.weight.bias) {
            (true, None) => {
                Err(Error::config("attention_bias", "true", format!("a tensor '{}'", b.name(&format!("{what}.bias")))))
            }
            _ => Ok(()),
        };
        for (what, wanted, linear) in [
            ("q_proj", self.qkv_bias, &mixer.q),
            ("k_proj", self.qkv_bias, &mixer.k),
            ("v_proj", self.qkv_bias, &mixer.v),
            ("o_proj", self.o_bias, &mixer.o),
        ] {
            biased(what, wanted, linear)?;
        }
        Ok(Box::new(mixer))
    }
}

/// An attention layer with its weights.
struct Attention {
    q: Linear,
    gate: Option<Linear>,
    k: Linear,
    v: Linear,
    o: Linear,
    q_norm: Option<Norm>,
    k_norm: Option<Norm>,
    rope: Option<Rope>,
    /// The page dtype stands in the state's pages and is put in at each step.
    attend: AttendSpec,
}

impl Attention {
    /// `[T, H·Dh]` to normed and rotated `[T, H, Dh]`.
    fn heads(&self, step: &Step<'_>, x: Tensor, norm: Option<&Norm>) -> Result<Tensor> {
        let dim = self.attend.kv.k_dim;
        let (t, h) = (x.rows(), x.width() / dim);
        let mut x = x.reshape(&[t, h, dim])?;
        if let Some(norm) = norm {
            x = step.backend.norm(&x, norm)?;
        }
        match &self.rope {
            Some(rope) => Ok(step.backend.rope(x, step.positions, rope)?),
            None => Ok(x),
        }
    }
}

impl Mixer for Attention {
    fn forward(&self, step: &Step<'_>, stream: Stream<'_>, states: &mut [&mut LayerState]) -> Result<Tensor> {
        let be = step.backend;
        let input = stream.input();
        let (q, k, v, gate) = match &self.gate {
            None => {
                let [q, k, v] = project(be, input, [&self.q, &self.k, &self.v])?;
                (q, k, v, None)
            }
            Some(gate) => {
                let [q, k, v, g] = project(be, input, [&self.q, &self.k, &self.v, gate])?;
                (q, k, v, Some(g))
            }
        };
        let q = self.heads(step, q, self.q_norm.as_ref())?;
        let k = self.heads(step, k, self.k_norm.as_ref())?;
        let mut pages: Vec<_> = states.iter_mut().filter_map(|s| s.kv.as_mut()).collect();
        let Some(kv) = pages.first().map(|p| p.spec) else {
            return Err(Error::Pairing {
                cache: "none",
                holds: "nothing",
                mixer: ENTRY.name.into(),
                needs: "key/value",
            });
        };
        let mut targets: Vec<_> = pages
            .iter_mut()
            .zip(step.rows)
            .map(|(p, r)| KvTarget { rows: r.range.clone(), start: r.start, pages: &mut p.pages })
            .collect();
        be.kv_write(&k, &v, &mut targets, &kv)?;
        let segments: Vec<_> = pages
            .iter()
            .zip(step.rows)
            .map(|(p, r)| KvSegment { rows: r.range.clone(), start: r.start, pages: &p.pages })
            .collect();
        let y = be.attend(&q, &segments, &AttendSpec { kv, ..self.attend.clone() })?;
        let closing = match &gate {
            Some(gate) => Input::SigmoidGated(&y, gate),
            None => Input::Plain(&y),
        };
        stream.close(be, &self.o, closing)
    }
}
