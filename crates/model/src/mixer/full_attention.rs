//! Softmax attention over all earlier tokens, a window or a chunk of them: grouped queries, norms on queries, keys and values, biases,
//! any rotary embedding, soft-capped scores, sinks, an output gate; its own keys and values, or another mixer's. Knows no cache
//! scheme: it writes pages and reads them.

use reverie_files::ModelConfig;
use reverie_tensor::formula::input;
use reverie_tensor::{AttendSpec, Class, DType, Formula, Input, KvSpec, Norm, NormKind, Operand, Reach, Rope, Tensor};

use super::{Mixer, MixerEntry, Step, Stream};
use crate::Build;
use crate::error::{Error, Result};
use crate::linear::{Linear, project_some};
use crate::plan::{Lender, MixerSpec, NormSpec, NormWeight};
use crate::rope;
use crate::state::{KvNeed, LayerState, StateKind, StateSpec};

/// The row.
pub const ENTRY: MixerEntry = MixerEntry {
    name: "full_attention",
    aliases: &["attention", "chunked_attention", "sliding_attention"],
    about: "softmax attention: grouped queries, q/k norms, biases, rotary, window or chunk, soft-cap, sinks, output gate",
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
    /// Norm on q and k (`q_norm`, `k_norm`).
    pub qk_norm: Option<(f32, NormWeight)>,
    /// That norm goes over all heads at once instead of each head alone.
    pub flat_qk_norm: bool,
    /// Epsilon of an RMS norm without weight over each head of v.
    pub v_norm: Option<f32>,
    /// There is no `v_proj`: what `k_proj` gives, before its norm, is the value too.
    pub keys_as_values: bool,
    /// The mixer whose keys and values this layer reads; it then has only queries of its own.
    pub reads: Option<Lender>,
    /// Queries grow with their position.
    pub growth: Option<Growth>,
    /// q, k and v must have biases.
    pub qkv_bias: bool,
    /// o must have a bias.
    pub o_bias: bool,
    /// Multiplies all of these; 1 nearly everywhere.
    pub bias_factor: f32,
    /// Keys that are seen.
    pub reach: Reach,
    /// Scores become cap · tanh(score / cap).
    pub softcap: Option<f32>,
    /// A logit per head that joins the softmax (`sinks`).
    pub sinks: bool,
    /// `q_proj` holds, head by head, a query and a gate; the output is multiplied by σ(gate).
    pub output_gate: bool,
    /// q and k, after their norms, and v are held between -clip and clip.
    pub clip: Option<f32>,
    /// The rows of each head of q and k are stored pair by pair (GGUF's llama) and are put back into halves at load.
    pub interleaved_rows: bool,
}

/// A factor on the queries at position p: 1 + beta · ln(1 + ⌊(p + from) / period⌋) (Llama 4; Ministral 3).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Growth {
    /// How much.
    pub beta: f32,
    /// Tokens of a stretch; the first is left alone.
    pub period: usize,
    /// What the first position counts as.
    pub from: usize,
}

impl Growth {
    /// At one position.
    fn at(self, position: u32) -> f32 {
        let stretches = (position as usize + self.from) / self.period.max(1);
        (f64::from(self.beta) * (stretches as f64).ln_1p() + 1.0) as f32
    }
}

/// What a layer of this kind sees, by the kinds' names in `layer_types`.
pub fn reach(config: &ModelConfig, kind: &str) -> Result<Reach> {
    let (field, reach): (_, fn(usize) -> Reach) = match kind {
        "sliding_attention" => ("sliding_window", Reach::Window),
        "chunked_attention" => ("attention_chunk_size", Reach::Chunk),
        "full_attention" | "attention" => return Ok(Reach::All),
        other => {
            let expected = "full_attention, sliding_attention or chunked_attention";
            return Err(Error::config("layer_types", other, expected));
        }
    };
    match config.usize(field)? {
        0 => Err(Error::config(field, 0, "a positive number")),
        n => Ok(reach(n)),
    }
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
        let kind = kinds.as_ref().and_then(|k| k.get(layer)).copied();
        Ok(Spec {
            n_heads,
            n_kv_heads,
            head_dim,
            scale: (head_dim as f32).powf(-0.5),
            rope: Some(rope::from_config(config, head_dim)?),
            qk_norm: match config.flag("use_qk_norm")? {
                true => Some((config.f64_or("rms_norm_eps", 1e-6)? as f32, NormWeight::Plain)),
                false => None,
            },
            flat_qk_norm: false,
            v_norm: None,
            keys_as_values: false,
            reads: None,
            growth: None,
            qkv_bias: bias,
            o_bias: bias,
            bias_factor: 1.0,
            reach: match kind {
                Some(kind @ ("sliding_attention" | "chunked_attention")) => reach(config, kind)?,
                _ => Reach::All,
            },
            softcap: None,
            sinks: false,
            output_gate: false,
            clip: None,
            interleaved_rows: false,
        })
    }
}

impl Spec {
    /// Keys and values of a token.
    fn need(&self) -> KvNeed {
        KvNeed { n_heads: self.n_kv_heads, k_dim: self.head_dim, v_dim: self.head_dim, reach: self.reach }
    }

    /// Rows `rows` of the projection `leaf` `[n, D]`, which in a checkpoint with a stacked `qkv_proj` are those from `first` on.
    fn part(&self, b: &Build<'_>, leaf: &str, (first, n): (usize, usize), rows: Option<Vec<usize>>) -> Result<Linear> {
        let width = b.input();
        if b.has("qkv_proj.weight") {
            let all = (self.n_heads + 2 * self.n_kv_heads) * self.head_dim;
            let rows = rows.unwrap_or_else(|| (0..n).collect());
            return b.linear_rows("qkv_proj", all, width, rows.into_iter().map(|r| first + r).collect());
        }
        match rows {
            Some(rows) => b.linear_rows(leaf, n, width, rows),
            None => b.linear(leaf, n, width),
        }
    }

    /// Where the rows of `heads` rotated heads are stored, if not in halves.
    fn stored(&self, heads: usize) -> Option<Vec<usize>> {
        let dim = self.head_dim;
        let at = move |row: usize| row / dim * dim + row % dim % (dim / 2) * 2 + row % dim / (dim / 2);
        self.interleaved_rows.then(|| (0..heads * dim).map(at).collect())
    }

    /// Half `which` of every head of `q_proj`: queries, or gates.
    fn half(&self, b: &Build<'_>, which: usize) -> Result<Linear> {
        let (dim, n) = (self.head_dim, 2 * self.n_heads * self.head_dim);
        let rows = (0..self.n_heads).flat_map(|h| (0..dim).map(move |i| (2 * h + which) * dim + i));
        b.linear_rows("q_proj", n, b.input(), rows.collect())
    }

    fn norm(&self, b: &Build<'_>, name: &str, heads: usize) -> Result<Option<Norm>> {
        let Some((eps, weight)) = self.qk_norm else { return Ok(None) };
        let over = if self.flat_qk_norm { heads * self.head_dim } else { self.head_dim };
        b.norm(&NormSpec::rms(name, eps, weight), over).map(Some)
    }

    fn own(&self, b: &Build<'_>) -> Result<Option<Own>> {
        if self.reads.is_some() {
            return Ok(None);
        }
        let (q_width, kv_width) = (self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim);
        Ok(Some(Own {
            k: self.part(b, "k_proj", (q_width, kv_width), self.stored(self.n_kv_heads))?,
            v: match self.keys_as_values {
                true => None,
                false => Some(self.part(b, "v_proj", (q_width + kv_width, kv_width), None)?),
            },
            k_norm: self.norm(b, "k_norm", self.n_kv_heads)?,
            v_norm: self.v_norm.map(|eps| Norm { kind: NormKind::Rms, weight: None, bias: None, eps }),
        }))
    }
}

impl MixerSpec for Spec {
    fn kind(&self) -> &'static str {
        ENTRY.name
    }

    fn state(&self) -> StateSpec {
        StateSpec { kv: self.reads.is_none().then(|| self.need()), slots: Vec::new() }
    }

    fn reads(&self) -> Option<(Lender, KvNeed)> {
        self.reads.clone().map(|lender| (lender, self.need()))
    }

    fn build(&self, b: &mut Build<'_>) -> Result<Box<dyn Mixer>> {
        let b = &b.biased(self.bias_factor);
        let (q_width, kv) = (self.n_heads * self.head_dim, self.need());
        let (q, gate) = if self.output_gate {
            (self.half(b, 0)?, Some(self.half(b, 1)?))
        } else {
            (self.part(b, "q_proj", (0, q_width), self.stored(self.n_heads))?, None)
        };
        let mixer = Attention {
            q,
            gate,
            q_norm: self.norm(b, "q_norm", self.n_heads)?,
            own: self.own(b)?,
            o: b.linear("o_proj", b.width(), q_width)?,
            flat_norm: self.flat_qk_norm,
            rope: self.rope.clone(),
            growth: self.growth,
            clip: self.clip.map(|clip| input(0).max(-clip).min(clip)),
            attend: AttendSpec {
                n_heads: self.n_heads,
                kv: KvSpec { n_heads: kv.n_heads, k_dim: kv.k_dim, v_dim: kv.v_dim, dtype: DType::F32 },
                scale: self.scale,
                softcap: self.softcap,
                reach: self.reach,
                latent: None,
                keep: None,
                sinks: if self.sinks { Some(b.vector("sinks", self.n_heads)?) } else { None },
            },
        };
        let (k, v) = (mixer.own.as_ref().map(|o| &o.k), mixer.own.as_ref().and_then(|o| o.v.as_ref()));
        for (what, wanted, linear) in [
            ("q_proj", self.qkv_bias, Some(&mixer.q)),
            ("k_proj", self.qkv_bias, k),
            ("v_proj", self.qkv_bias, v),
            ("o_proj", self.o_bias, Some(&mixer.o)),
        ] {
            if wanted && linear.is_some_and(|l| l.weight.bias.is_none()) {
                let expected = format!("a tensor '{}'", b.name(&format!("{what}.bias")));
                return Err(Error::config("attention_bias", "true", expected));
            }
        }
        Ok(Box::new(mixer))
    }
}

/// An attention layer with its weights.
struct Attention {
    q: Linear,
    gate: Option<Linear>,
    q_norm: Option<Norm>,
    /// None where another layer's keys and values are read.
    own: Option<Own>,
    o: Linear,
    flat_norm: bool,
    rope: Option<Rope>,
    growth: Option<Growth>,
    clip: Option<Formula>,
    /// The page dtype stands in the state's pages and is put in at each step.
    attend: AttendSpec,
}

/// Where keys and values come from.
struct Own {
    k: Linear,
    v: Option<Linear>,
    k_norm: Option<Norm>,
    v_norm: Option<Norm>,
}

impl Attention {
    /// `[T, H·Dh]` to normed and rotated `[T, H, Dh]`.
    fn heads(&self, step: &Step<'_>, mut x: Tensor, norm: Option<&Norm>) -> Result<Tensor> {
        let dim = self.attend.kv.k_dim;
        let (t, h) = (x.rows(), x.width() / dim);
        if let Some(norm) = norm.filter(|_| self.flat_norm) {
            x = step.backend.norm(&x, norm)?;
        }
        let mut x = x.reshape(&[t, h, dim])?;
        if let Some(norm) = norm.filter(|_| !self.flat_norm) {
            x = step.backend.norm(&x, norm)?;
        }
        let x = self.clipped(step, x)?;
        match &self.rope {
            Some(rope) => Ok(step.backend.rope(x, step.positions, rope)?),
            None => Ok(x),
        }
    }

    fn clipped(&self, step: &Step<'_>, x: Tensor) -> Result<Tensor> {
        match &self.clip {
            Some(formula) => Ok(step.backend.pointwise(x.dims(), &[Operand::Each(&x)], formula)?),
            None => Ok(x),
        }
    }

    fn grown(&self, step: &Step<'_>, q: Tensor) -> Result<Tensor> {
        let Some(growth) = self.growth else { return Ok(q) };
        let factors: Vec<f32> = step.positions.iter().map(|&p| growth.at(p)).collect();
        let factors = step.backend.upload(&factors, &[factors.len(), 1], DType::F32, Class::Scratch)?;
        Ok(step.backend.combine(&[&q], &factors)?.remove(0))
    }
}

impl Mixer for Attention {
    fn forward(&self, step: &Step<'_>, stream: Stream<'_>, states: &mut [&mut LayerState]) -> Result<Tensor> {
        let be = step.backend;
        let (k, v) = (self.own.as_ref().map(|o| &o.k), self.own.as_ref().and_then(|o| o.v.as_ref()));
        let [q, gate, k, v] = project_some(be, stream.input(), [Some(&self.q), self.gate.as_ref(), k, v])?;
        let q = q.ok_or_else(|| reverie_tensor::Error::shape("attention", "no queries", 1))?;
        let q = self.heads(step, q, self.q_norm.as_ref())?;
        let q = self.grown(step, q)?;
        let (mut pages, kv) = step.pages(states, ENTRY.name)?;
        if let (Some(own), Some(k)) = (&self.own, k) {
            // Where one projection serves both, the value is what came before the key's norm.
            let v = v.unwrap_or_else(|| k.clone());
            let v = match &own.v_norm {
                Some(norm) => be.norm(&v.reshape(&[k.rows(), kv.n_heads, kv.v_dim])?, norm)?,
                None => v,
            };
            let v = self.clipped(step, v)?;
            let k = self.heads(step, k, own.k_norm.as_ref())?;
            step.kv_write(&k, &v, &mut pages, &kv)?;
        }
        let segments = step.kv_segments(&pages);
        let y = be.attend(&q, &segments, &AttendSpec { kv, ..self.attend.clone() })?;
        let closing = match &gate {
            Some(gate) => Input::SigmoidGated(&y, gate),
            None => Input::Plain(&y),
        };
        stream.close(be, &self.o, closing)
    }
}
