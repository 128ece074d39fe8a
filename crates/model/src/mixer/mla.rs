//! Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434), absorbed: what is kept of a token is its normed latent and one
//! rotated key, shared by all heads. Queries are carried into the latent's space and results out of it, head by head, in
//! prefill and decode alike. Knows no cache scheme.

use reverie_files::ModelConfig;
use reverie_tensor::formula::input;
use reverie_tensor::quant::{Plain, Rows, Turned};
use reverie_tensor::{
    AttendSpec, Backend, Choice, ChooseSpec, Class, DType, Group, Input, Keep, KvSegment, KvSpec, Latent, Norm,
    Operand, Reach, Rope, RopeLayout, Tensor, Weight,
};

use super::{Mixer, MixerEntry, Step, Stream};
use crate::Build;
use crate::error::{Error, Result};
use crate::linear::{Linear, project};
use crate::plan::{MixerSpec, NormSpec, NormWeight};
use crate::rope;
use crate::state::{KvNeed, LayerState, StateKind, StateSpec};

/// The row.
pub const ENTRY: MixerEntry = MixerEntry {
    name: "mla",
    aliases: &["latent_attention"],
    about: "multi-head latent attention over a cache of latents (DeepSeek-V2, V3)",
    state: &[StateKind::Kv],
    spec: |config, _| Ok(Box::new(Spec::from_config(config)?)),
};

/// One latent attention layer.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Query heads.
    pub n_heads: usize,
    /// Width of the latent that queries come from; none where they come from the stream.
    pub q_rank: Option<usize>,
    /// Width of the latent of keys and values.
    pub kv_rank: usize,
    /// Elements of a head's query and key that are not rotated.
    pub nope_dim: usize,
    /// Elements that are; the key's are shared by all heads.
    pub rope_dim: usize,
    /// Width of a head's value.
    pub v_dim: usize,
    /// Multiplies q·k.
    pub scale: f32,
    /// None for a layer without positions.
    pub rope: Option<Rope>,
    /// Of the norms of the latents.
    pub eps: f32,
    /// A projection to one number a head, whose σ multiplies the head's result.
    pub head_gate: Option<&'static str>,
    /// Keys that are seen.
    pub reach: Reach,
    /// Chooses the tokens that a row sees.
    pub indexer: Option<Indexer>,
}

/// The lightning indexer (DeepSeek-V3.2): heads of its own over a small key of its own choose the tokens for all heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Indexer {
    /// Its heads.
    pub n_heads: usize,
    /// Width of its queries and keys, of which the layer's rotated width comes first.
    pub dim: usize,
    /// Tokens that a row sees.
    pub n_kept: usize,
}

/// A width from 1 to 65536.
fn width(config: &ModelConfig, field: &str) -> Result<usize> {
    match config.usize(field)? {
        n if n > 0 && n <= 1 << 16 => Ok(n),
        n => Err(Error::config(field, n, "1 to 65536")),
    }
}

impl Spec {
    /// From DeepSeek's field names; rotary pairs are neighbours unless `rope_interleave` says no.
    pub fn from_config(config: &ModelConfig) -> Result<Spec> {
        let (nope_dim, rope_dim) = (width(config, "qk_nope_head_dim")?, width(config, "qk_rope_head_dim")?);
        if !rope_dim.is_multiple_of(2) {
            return Err(Error::config("qk_rope_head_dim", rope_dim, "an even number"));
        }
        let interleaved = config.optional_bool("rope_interleave")?.unwrap_or(true);
        let layout = if interleaved { RopeLayout::Interleaved } else { RopeLayout::Halves };
        Ok(Spec {
            n_heads: width(config, "num_attention_heads")?,
            q_rank: config.optional_usize("q_lora_rank")?.map(|_| width(config, "q_lora_rank")).transpose()?,
            kv_rank: width(config, "kv_lora_rank")?,
            nope_dim,
            rope_dim,
            v_dim: width(config, "v_head_dim")?,
            scale: ((nope_dim + rope_dim) as f32).powf(-0.5) * rope::score_factor(config)?,
            rope: Some(Rope { layout, ..rope::from_config(config, rope_dim)? }),
            eps: 1e-6,
            reach: Reach::All,
            indexer: None,
            head_gate: None,
        })
    }

    /// With a lightning indexer.
    pub fn indexed(mut self, config: &ModelConfig) -> Result<Spec> {
        let indexer = Indexer {
            n_heads: width(config, "index_n_heads")?,
            dim: width(config, "index_head_dim")?,
            n_kept: config.usize("index_topk")?,
        };
        if indexer.dim < self.rope_dim {
            return Err(Error::config("index_head_dim", indexer.dim, format!("at least {}", self.rope_dim)));
        }
        if indexer.n_kept == 0 {
            return Err(Error::config("index_topk", 0, "at least 1"));
        }
        if self.q_rank.is_none() {
            return Err(Error::config("q_lora_rank", "nothing", "the latent that the indexer's queries come from"));
        }
        self.indexer = Some(indexer);
        Ok(self)
    }

    /// From flash-linear-attention's field names.
    pub fn flash(config: &ModelConfig) -> Result<Spec> {
        let n_heads = width(config, config.spelling(&["num_heads", "num_attention_heads"]))?;
        let reach = match config.optional_usize("window_size")? {
            Some(0) => return Err(Error::config("window_size", 0, "a positive number, or null")),
            window => Reach::window(window),
        };
        let mut fields = config.fields().clone();
        fields.insert("num_attention_heads".into(), n_heads.into());
        fields.insert("rope_interleave".into(), false.into());
        Ok(Spec { eps: 1e-5, reach, ..Spec::from_config(&ModelConfig::new(config.path(), fields))? })
    }

    /// The projection `leaf` `[H · (first + second), k]` cut into its first and its second part of every head.
    fn halves(&self, b: &Build<'_>, leaf: &str, (first, second): (usize, usize), k: usize) -> Result<[Linear; 2]> {
        let (h, all) = (self.n_heads, first + second);
        let rows = |from: usize, n: usize| (0..h).flat_map(move |i| (0..n).map(move |j| i * all + from + j)).collect();
        let cut = |from, n| b.linear_rows(leaf, h * all, k, rows(from, n));
        Ok([cut(0, first)?, cut(first, second)?])
    }

    /// Of every head, the matrix `[kv_rank, nope_dim]` that carries its query into the latent's space, and the matrix
    /// `[v_dim, kv_rank]` that carries its result out.
    fn heads(&self, b: &Build<'_>) -> Result<(Vec<Weight>, Vec<Weight>)> {
        let (rank, nope, v, h) = (self.kv_rank, self.nope_dim, self.v_dim, self.n_heads);
        let apart = [("k_b_proj", "v_b_proj"), ("embed_q", "unembed_out")];
        if let Some((keys, values)) = apart.into_iter().find(|(keys, _)| b.has(&format!("{keys}.weight"))) {
            // GGUF and MLX store both as they are used.
            let each = |leaf: &str, n: usize, k: usize| -> Result<Vec<Weight>> {
                let one = |i: usize| {
                    let rows = Rows::range(b.matrix(leaf, h * n, k)?, i * n..(i + 1) * n)?;
                    b.pack(&rows, None)
                };
                (0..h).map(one).collect()
            };
            return Ok((each(keys, rank, nope)?, each(values, v, rank)?));
        }
        let all = || b.matrix("kv_b_proj", h * (nope + v), rank);
        let (mut into, mut out) = (Vec::with_capacity(h), Vec::with_capacity(h));
        for first in (0..h).map(|i| i * (nope + v)) {
            // Codes in groups along a row cannot be turned: a quantised matrix is kept as floats here.
            let dense = matches!(all()?.form(), reverie_tensor::Form::Dense(_));
            let keys = if dense { all()? } else { Box::new(Plain(all()?)) };
            into.push(b.pack(&Turned::new(keys, first..first + nope)?, None)?);
            out.push(b.pack(&Rows::range(all()?, first + nope..first + nope + v)?, None)?);
        }
        Ok((into, out))
    }
}

impl MixerSpec for Spec {
    fn kind(&self) -> &'static str {
        ENTRY.name
    }

    fn state(&self) -> StateSpec {
        let index = self.indexer.map_or(0, |i| i.dim);
        let kv = KvNeed { n_heads: 1, k_dim: self.kv_rank + self.rope_dim + index, v_dim: 0, reach: self.reach };
        StateSpec { kv: Some(kv), slots: Vec::new() }
    }

    fn build(&self, b: &mut Build<'_>) -> Result<Box<dyn Mixer>> {
        let norm = |name: &str, n| b.norm(&NormSpec::rms(name, self.eps, NormWeight::Plain), n);
        let halves = (self.nope_dim, self.rope_dim);
        let (q_latent, [q_nope, q_rope]) = match self.q_rank {
            Some(rank) => {
                let latent = (b.linear("q_a_proj", rank, b.width())?, norm("q_a_layernorm", rank)?);
                (Some(latent), self.halves(b, "q_b_proj", halves, rank)?)
            }
            None => (None, self.halves(b, "q_proj", halves, b.width())?),
        };
        let (rank, rope) = (self.kv_rank, self.rope_dim);
        let [latent, k_rope] = if b.has("k_rope.weight") {
            [b.linear("kv_a_proj", rank, b.width())?, b.linear("k_rope", rope, b.width())?]
        } else {
            let rows = |rows: std::ops::Range<usize>| {
                b.linear_rows("kv_a_proj_with_mqa", rank + rope, b.width(), rows.collect())
            };
            [rows(0..rank)?, rows(rank..rank + rope)?]
        };
        let index = match self.indexer {
            Some(spec) => Some(Index {
                spec,
                q: b.linear("indexer.wq_b", spec.n_heads * spec.dim, self.q_rank.unwrap_or(0))?,
                k: b.linear("indexer.wk", spec.dim, b.width())?,
                k_norm: b.norm(&NormSpec::layer("indexer.k_norm", 1e-6), spec.dim)?,
                weights: b.linear_f32("indexer.weights_proj", spec.n_heads, b.width())?,
                rope: self.rope.clone().map(|r| Rope { layout: RopeLayout::Halves, ..r }),
            }),
            None => None,
        };
        let need = self.state().kv.map_or(0, |kv| kv.k_dim);
        let (into, out_of) = self.heads(b)?;
        Ok(Box::new(Mla {
            q_latent,
            q_nope,
            q_rope,
            latent,
            index,
            latent_norm: norm("kv_a_layernorm", rank)?,
            k_rope,
            into,
            out_of,
            o: b.linear("o_proj", b.width(), self.n_heads * self.v_dim)?,
            head_gate: self.head_gate.map(|leaf| b.linear(leaf, self.n_heads, b.width())).transpose()?,
            rope: self.rope.clone(),
            attend: AttendSpec {
                n_heads: self.n_heads,
                kv: KvSpec { n_heads: 1, k_dim: need, v_dim: 0, dtype: DType::F32 },
                scale: self.scale,
                softcap: None,
                reach: self.reach,
                sinks: None,
                latent: Some(Latent { query: rank + rope, value: rank }),
                keep: None,
            },
        }))
    }
}

/// A latent attention layer with its weights.
struct Mla {
    q_latent: Option<(Linear, Norm)>,
    q_nope: Linear,
    q_rope: Linear,
    latent: Linear,
    latent_norm: Norm,
    k_rope: Linear,
    /// Of every head, into the latent's space.
    into: Vec<Weight>,
    /// Of every head, out of it.
    out_of: Vec<Weight>,
    o: Linear,
    index: Option<Index>,
    head_gate: Option<Linear>,
    rope: Option<Rope>,
    /// The page dtype stands in the state's pages and is put in at each step.
    attend: AttendSpec,
}

/// x `[T, H·K]` times a matrix `[N, K]` a head: `[T, H·N]`.
fn by_head(be: &dyn Backend, x: Tensor, weights: &[Weight]) -> Result<Tensor> {
    let (t, h) = (x.rows(), weights.len());
    let (k, n) = weights.first().map_or((0, 0), |w| (w.k, w.n));
    let x = x.reshape(&[t * h, k])?;
    let rows = |head: usize| (0..t).map(move |row| (row * h + head) as u32).collect();
    let groups: Vec<_> = weights.iter().enumerate().map(|(i, w)| Group { weights: vec![w], rows: rows(i) }).collect();
    let missing = || reverie_tensor::Error::shape("products by head", 0, 1);
    let y = be.linear_groups(Input::Plain(&x), &groups)?.pop().ok_or_else(missing)?;
    // Results come head by head.
    let back: Vec<usize> = (0..t * h).map(|i| i % h * t + i / h).collect();
    Ok(be.rows(&y, &back)?.reshape(&[t, h * n])?)
}

/// A lightning indexer with its weights.
struct Index {
    spec: Indexer,
    q: Linear,
    k: Linear,
    k_norm: Norm,
    weights: Linear,
    rope: Option<Rope>,
}

impl Index {
    /// The choice for rows whose queries come from `q` and whose weights come from the stream; none while everything is seen.
    fn keep(
        &self,
        step: &Step<'_>,
        (q, input): (Tensor, Input<'_>),
        segments: &[KvSegment<'_>],
        (kv, first): (KvSpec, usize),
    ) -> Result<Option<Keep>> {
        if step.rows.iter().all(|r| r.start + r.range.len() <= self.spec.n_kept) {
            return Ok(None);
        }
        let q = rotated(step, q, self.spec.n_heads, self.rope.as_ref())?;
        let [weights] = project(step.backend, input, [&self.weights])?;
        let choice = Choice::Index { first, weights };
        let (n_heads, n_kept) = (self.spec.n_heads, self.spec.n_kept);
        let spec = ChooseSpec { n_heads, kv, block: 1, n_kept, scale: 1.0, choice };
        Ok(Some(step.backend.choose(&q, segments, &spec)?.0))
    }
}

/// `[T, H·D]` to rotated `[T, H, D]`.
fn rotated(step: &Step<'_>, x: Tensor, heads: usize, rope: Option<&Rope>) -> Result<Tensor> {
    let (t, d) = (x.rows(), x.width() / heads);
    let x = x.reshape(&[t, heads, d])?;
    match rope {
        Some(rope) => Ok(step.backend.rope(x, step.positions, rope)?),
        None => Ok(x),
    }
}

impl Mixer for Mla {
    fn forward(&self, step: &Step<'_>, stream: Stream<'_>, states: &mut [&mut LayerState]) -> Result<Tensor> {
        let (be, h) = (step.backend, self.attend.n_heads);
        let t = stream.x.rows();
        let [latent, k_rope] = project(be, stream.input(), [&self.latent, &self.k_rope])?;
        let q_down = match &self.q_latent {
            Some((down, _)) => Some(project(be, stream.input(), [down])?),
            None => None,
        };
        let q_input = match (&q_down, &self.q_latent) {
            (Some([x]), Some((_, norm))) => Input::Normed(x, norm),
            _ => stream.input(),
        };
        let [q_nope, q_rope] = project(be, q_input, [&self.q_nope, &self.q_rope])?;
        let (rank, rope) = (self.latent.n(), self.k_rope.n());
        let k_rope = rotated(step, k_rope, 1, self.rope.as_ref())?.reshape(&[t, rope])?;
        let latent = be.norm(&latent, &self.latent_norm)?;
        let k = match &self.index {
            Some(index) => {
                let [k] = project(be, stream.input(), [&index.k])?;
                let k = rotated(step, be.norm(&k, &index.k_norm)?, 1, index.rope.as_ref())?;
                be.concat(&[&latent, &k_rope, &k.reshape(&[t, index.spec.dim])?])?
            }
            None => be.concat(&[&latent, &k_rope])?,
        };
        let q_rope = rotated(step, q_rope, h, self.rope.as_ref())?.reshape(&[t * h, rope])?;
        let q = by_head(be, q_nope, &self.into)?.reshape(&[t * h, rank])?;
        let q = be.concat(&[&q, &q_rope])?.reshape(&[t, h, rank + rope])?;

        let (mut pages, kv) = step.pages(states, ENTRY.name)?;
        let nothing = be.alloc(&[t, 0], DType::F32, Class::Scratch)?;
        step.kv_write(&k, &nothing, &mut pages, &kv)?;
        let segments = step.kv_segments(&pages);
        let keep = match &self.index {
            Some(index) => {
                let [q] = project(be, q_input, [&index.q])?;
                index.keep(step, (q, stream.input()), &segments, (kv, rank + rope))?
            }
            None => None,
        };
        let y = be.attend(&q, &segments, &AttendSpec { kv, keep, ..self.attend.clone() })?;
        let mut y = by_head(be, y, &self.out_of)?;
        if let Some(gate) = &self.head_gate {
            let [g] = project(be, stream.input(), [gate])?;
            let gated = input(0) * input(1).sigmoid();
            y = be.pointwise(y.dims(), &[Operand::Each(&y), Operand::Stretch(&g)], &gated)?;
        }
        stream.close(be, &self.o, Input::Plain(&y))
    }
}
