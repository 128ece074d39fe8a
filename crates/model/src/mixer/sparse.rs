//! Softmax attention over chosen blocks of keys: what `nsa` and `moba` share. Keys and values are kept whole; a row chooses its
//! blocks among all of the history, the unfinished last one included. Knows no cache scheme.

use reverie_files::ModelConfig;
use reverie_tensor::{
    AttendSpec, Backend, Choice, ChooseSpec, Class, DType, Input, KvSegment, KvSpec, Norm, Reach, Rope, RouteSpec,
    Score, Tensor, Term,
};

use super::closing::{Closing, ClosingSpec, Gate, Over};
use super::qkv::Narrow;
use super::{Mixer, Step, Stream};
use crate::Build;
use crate::error::{Error, Result};
use crate::linear::{Linear, project};
use crate::plan::{MixerSpec, NormSpec, NormWeight};
use crate::rope;
use crate::state::{KvNeed, LayerState, StateSpec};

/// How blocks are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By the mean key of a block, for every query head; the result is normed by head (`o_norm`), and perhaps gated (`g_proj`).
    Mean {
        /// How.
        gate: Gate,
    },
    /// By the share of attention that a block's mean key takes; that attention, the chosen blocks and a window are three
    /// results, weighed by gates (`g_proj`).
    Share {
        /// Keys of the window; none for no such result.
        window: Option<usize>,
    },
}

/// One layer.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The registry's row.
    pub kind: &'static str,
    /// Query heads.
    pub n_heads: usize,
    /// Key/value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Tokens of a block.
    pub block: usize,
    /// Blocks that a row sees, its own among them.
    pub n_kept: usize,
    /// How they are chosen.
    pub way: Way,
    /// Norm over each head of q and k.
    pub qk_norm: Option<f32>,
    /// Rotary embedding.
    pub rope: Rope,
}

/// A number from 1 to 65536 in `field`.
fn count(config: &ModelConfig, field: &str, default: Option<usize>) -> Result<usize> {
    let found = match default {
        Some(default) => config.optional_usize(field)?.unwrap_or(default),
        None => config.usize(field)?,
    };
    if found == 0 || found > 1 << 16 {
        return Err(Error::config(field, found, "1 to 65536"));
    }
    Ok(found)
}

impl Spec {
    /// Heads from flash-linear-attention's field names, blocks from the two fields named.
    pub fn from_config(
        config: &ModelConfig,
        (kind, way): (&'static str, Way),
        (block, kept): (&str, &str),
    ) -> Result<Spec> {
        let heads = config.spelling(&["num_heads", "num_attention_heads"]);
        let n_heads = count(config, heads, None)?;
        let kv = config.spelling(&["num_kv_heads", "num_key_value_heads"]);
        let n_kv_heads = count(config, kv, Some(n_heads))?;
        if !n_heads.is_multiple_of(n_kv_heads) {
            return Err(Error::config(kv, n_kv_heads, format!("a divisor of the {n_heads} heads")));
        }
        let head_dim = count(config, "head_dim", Some((config.usize("hidden_size")? / n_heads).max(1)))?;
        if !head_dim.is_multiple_of(2) || head_dim > 4096 {
            return Err(Error::config("head_dim", head_dim, "an even number up to 4096"));
        }
        Ok(Spec {
            kind,
            n_heads,
            n_kv_heads,
            head_dim,
            block: count(config, block, None)?,
            n_kept: count(config, kept, None)?,
            way,
            qk_norm: config.optional_bool("qk_norm")?.unwrap_or(false).then_some(1e-6),
            rope: rope::from_config(config, head_dim)?,
        })
    }

    fn need(&self) -> KvNeed {
        KvNeed { n_heads: self.n_kv_heads, k_dim: self.head_dim, v_dim: self.head_dim, reach: Reach::All }
    }
}

impl MixerSpec for Spec {
    fn kind(&self) -> &'static str {
        self.kind
    }

    fn state(&self) -> StateSpec {
        StateSpec { kv: Some(self.need()), slots: Vec::new() }
    }

    fn build(&self, b: &mut Build<'_>) -> Result<Box<dyn Mixer>> {
        let (q, kv, width) = (self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim, b.width());
        let norm = |name: &str| b.norm(&NormSpec::rms(name, 1e-6, NormWeight::Plain), self.head_dim);
        let own = |name: &str| self.qk_norm.map(|_| norm(name)).transpose();
        let of = self.need();
        let (scale, kv_spec) = (
            (self.head_dim as f32).powf(-0.5),
            KvSpec { n_heads: of.n_heads, k_dim: of.k_dim, v_dim: of.v_dim, dtype: DType::F32 },
        );
        Ok(Box::new(Sparse {
            end: match self.way {
                Way::Share { .. } => End::Shares {
                    gates: Box::new(b.linear("g_proj", 3 * self.n_heads, width)?),
                    o: Box::new(b.linear("o_proj", width, q)?),
                },
                Way::Mean { gate } => {
                    let closing = ClosingSpec { norm: &["o_norm"], over: Over::Head, eps: 1e-6, gate, out: "o_proj" };
                    let narrow = || Narrow::build(b, "g_proj", &[("g_proj.0", "g_proj.1")], q);
                    let gate = if gate == Gate::Absent { None } else { Some(narrow()?) };
                    End::Normed(Box::new(closing.build(b, (self.n_heads, self.head_dim), gate)?))
                }
            },
            q: b.linear("q_proj", q, width)?,
            k: b.linear("k_proj", kv, width)?,
            v: b.linear("v_proj", kv, width)?,
            q_norm: own("q_norm")?,
            k_norm: own("k_norm")?,
            rope: self.rope.clone(),
            attend: AttendSpec {
                n_heads: self.n_heads,
                kv: kv_spec,
                scale,
                softcap: None,
                reach: Reach::All,
                sinks: None,
                latent: None,
                keep: None,
            },
            spec: self.clone(),
        }))
    }
}

/// What is made of the results.
enum End {
    /// One for each of the three gates of every head, added.
    Shares { gates: Box<Linear>, o: Box<Linear> },
    /// One, normed.
    Normed(Box<Closing>),
}

/// A layer with its weights.
struct Sparse {
    spec: Spec,
    end: End,
    q: Linear,
    k: Linear,
    v: Linear,
    q_norm: Option<Norm>,
    k_norm: Option<Norm>,
    rope: Rope,
    attend: AttendSpec,
}

impl Sparse {
    /// `[T, H·Dh]` to normed and rotated `[T, H, Dh]`.
    fn heads(&self, step: &Step<'_>, x: Tensor, norm: Option<&Norm>) -> Result<Tensor> {
        let dim = self.spec.head_dim;
        let (t, n) = (x.rows(), x.width() / dim);
        let x = x.reshape(&[t, n, dim])?;
        let x = match norm {
            Some(norm) => step.backend.norm(&x, norm)?,
            None => x,
        };
        Ok(step.backend.rope(x, step.positions, &self.rope)?)
    }

    /// What a row's own blocks give, and all that is added to it.
    fn mixed(
        &self,
        be: &dyn Backend,
        q: &Tensor,
        segments: &[KvSegment<'_>],
        (kv, gates): (KvSpec, Option<&Tensor>),
    ) -> Result<Tensor> {
        let (spec, t, h) = (&self.spec, q.dims()[0], self.spec.n_heads);
        let attend = AttendSpec { kv, ..self.attend.clone() };
        let choose = |choice| ChooseSpec {
            n_heads: h,
            kv,
            block: spec.block,
            n_kept: spec.n_kept,
            scale: self.attend.scale,
            choice,
        };
        let Way::Share { window } = spec.way else {
            // One block of a row means no choice at all.
            let keep = match spec.n_kept {
                1 => None,
                _ => Some(be.choose(q, segments, &choose(Choice::Mean))?.0),
            };
            return Ok(be.attend(q, segments, &AttendSpec { keep, ..attend })?);
        };
        let (keep, pooled) = be.choose(q, segments, &choose(Choice::Share))?;
        let chosen = be.attend(q, segments, &AttendSpec { keep: Some(keep), ..attend.clone() })?;
        let slid = match window {
            Some(n) => Some(be.attend(q, segments, &AttendSpec { reach: Reach::Window(n), ..attend })?),
            None => None,
        };
        let gates = gates.ok_or_else(|| reverie_tensor::Error::shape("gates", "none", 3))?;
        let weights = open(be, gates, 3 * t * h)?;
        let mut y = be.alloc(&[t * h, spec.head_dim], DType::F32, Class::Scratch)?;
        // The gates stand head by head: compressed, chosen, window.
        for (which, x) in [(1, Some(chosen)), (0, pooled), (2, slid)] {
            let Some(x) = x else { continue };
            let term = |i: usize| Term { to: i as u32, from: i as u32, weight: weights[3 * i + which] };
            let terms: Vec<Term> = (0..t * h).map(term).collect();
            y = be.add_weighted(y, &x.reshape(&[t * h, spec.head_dim])?, &terms)?;
        }
        Ok(y.reshape(&[t, h * spec.head_dim])?)
    }
}

/// σ of every element.
fn open(be: &dyn Backend, gates: &Tensor, n: usize) -> Result<Vec<f32>> {
    let alone = RouteSpec::alone(Score::Sigmoid);
    Ok(be.route(&gates.clone().reshape(&[n, 1])?, &alone)?.weights)
}

impl Mixer for Sparse {
    fn forward(&self, step: &Step<'_>, stream: Stream<'_>, states: &mut [&mut LayerState]) -> Result<Tensor> {
        let be = step.backend;
        let [q, k, v] = project(be, stream.input(), [&self.q, &self.k, &self.v])?;
        let gates = match &self.end {
            End::Shares { gates, .. } => Some(gates.as_ref()),
            End::Normed(closing) => closing.gate(),
        };
        let gates = gates.map(|gates| project(be, stream.input(), [gates])).transpose()?.map(|[gates]| gates);
        let q = self.heads(step, q, self.q_norm.as_ref())?;
        let k = self.heads(step, k, self.k_norm.as_ref())?;
        let (mut pages, kv) = step.pages(states, self.spec.kind)?;
        step.kv_write(&k, &v, &mut pages, &kv)?;
        let segments = step.kv_segments(&pages);
        let y = self.mixed(be, &q, &segments, (kv, gates.as_ref()))?;
        match &self.end {
            End::Shares { o, .. } => stream.close(be, o, Input::Plain(&y)),
            End::Normed(closing) => {
                let y = y.reshape(&[q.dims()[0], self.spec.n_heads, self.spec.head_dim])?;
                closing.finish(step, stream, y, gates)
            }
        }
    }
}
