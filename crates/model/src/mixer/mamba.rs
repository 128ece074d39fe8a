//! Mamba (S6, arXiv 2312.00752): a short causal convolution, a selective scan whose step, input and output come from each token, a
//! gate on the way out; optional RMS norms on step, input and output (falcon-mamba and jamba have them).

use reverie_files::ModelConfig;
use reverie_tensor::{Act, ConvSpec, Input, Norm, NormKind, ScanInput, ScanSpec, Tensor};

use super::{Mixer, MixerEntry, Step, Stream};
use crate::Build;
use crate::error::{Error, Result};
use crate::linear::{Linear, project};
use crate::plan::{MixerSpec, NormSpec, NormWeight};
use crate::state::{LayerState, SlotNeed, StateKind, StateSpec};

/// The row.
pub const ENTRY: MixerEntry = MixerEntry {
    name: "mamba",
    aliases: &["mamba1", "s6"],
    about: "Mamba: causal convolution and selective scan (S6), norms on step, input and output",
    state: &[StateKind::Recurrent],
    spec: |config, _| Ok(Box::new(Spec::from_config(config)?)),
};

/// How decay rates lie in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rates {
    /// ln(-rate), as transformers stores them.
    Log,
    /// The rate itself, as GGUF does.
    Plain,
}

impl Rates {
    /// The rates.
    pub fn read(self, mut stored: Vec<f32>) -> Vec<f32> {
        if self == Rates::Log {
            stored.iter_mut().for_each(|a| *a = -a.exp());
        }
        stored
    }
}

/// RMS norms on what the scan takes from a token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum InnerNorms {
    /// None.
    Absent,
    /// Without weights, with this epsilon.
    Plain(f32),
    /// With weights `dt_layernorm`, `b_layernorm`, `c_layernorm`, with this epsilon.
    Weighted(f32),
}

/// One Mamba layer.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Channels of the scan.
    pub inner: usize,
    /// States of a channel.
    pub states: usize,
    /// Width that the step is projected through.
    pub dt_rank: usize,
    /// Taps of the convolution.
    pub kernel: usize,
    /// The convolution must have a bias.
    pub conv_bias: bool,
    /// The outer projections must have biases.
    pub proj_bias: bool,
    /// On step, input and output of the scan.
    pub norms: InnerNorms,
    /// How the file stores `A_log`.
    pub rates: Rates,
}

impl Spec {
    /// From the field names of mamba or of jamba.
    pub fn from_config(config: &ModelConfig) -> Result<Spec> {
        let count = |names: &[&str], default: usize| {
            let field = config.spelling(names);
            match config.usize_or(field, default)? {
                n if n > 0 && n <= 1 << 20 => Ok(n),
                n => Err(Error::config(field, n, "1 to 1048576")),
            }
        };
        let flag = |names: &[&str], default: bool| -> Result<bool> {
            Ok(config.optional_bool(config.spelling(names))?.unwrap_or(default))
        };
        let act = config.optional_text("hidden_act")?.unwrap_or("silu");
        if act != "silu" && act != "swish" {
            return Err(Error::config("hidden_act", act, "silu, the only one that this mixer computes"));
        }
        let width = config.usize("hidden_size")?;
        let rank = config.spelling(&["time_step_rank", "mamba_dt_rank"]);
        let auto = !config.has(rank) || config.get(rank).is_some_and(|v| v == "auto");
        Ok(Spec {
            inner: inner_width(config)?,
            states: count(&["state_size", "mamba_d_state"], 16)?,
            dt_rank: if auto { width.div_ceil(16) } else { count(&[rank], 0)? },
            kernel: count(&["conv_kernel", "mamba_d_conv"], 4)?,
            conv_bias: flag(&["use_conv_bias", "mamba_conv_bias"], true)?,
            proj_bias: flag(&["use_bias", "mamba_proj_bias"], false)?,
            norms: InnerNorms::Absent,
            rates: Rates::Log,
        })
    }
}

/// Channels of a Mamba layer: `mamba_d_ssm`, or the width times `expand`, cut to a whole number.
pub fn inner_width(config: &ModelConfig) -> Result<usize> {
    match config.optional_usize("mamba_d_ssm")? {
        Some(n) if n > 0 && n <= 1 << 20 => return Ok(n),
        Some(n) => return Err(Error::config("mamba_d_ssm", n, "1 to 1048576")),
        None => {}
    }
    let field = config.spelling(&["expand", "mamba_expand"]);
    let (expand, width) = (config.f64_or(field, 2.0)?, config.usize("hidden_size")?);
    let inner = (expand * width as f64) as usize;
    if inner == 0 || inner > 1 << 20 {
        return Err(Error::config(field, expand, "a factor that makes hidden_size 1 to 1048576 channels"));
    }
    Ok(inner)
}

impl MixerSpec for Spec {
    fn kind(&self) -> &'static str {
        ENTRY.name
    }

    fn state(&self) -> StateSpec {
        StateSpec {
            kv: None,
            slots: vec![
                SlotNeed { name: "conv", shape: vec![self.kernel - 1, self.inner] },
                SlotNeed { name: "scan", shape: vec![self.states, self.inner] },
            ],
        }
    }

    fn build(&self, b: &mut Build<'_>) -> Result<Box<dyn Mixer>> {
        let (width, c, n) = (b.width(), self.inner, self.states);
        if self.proj_bias {
            b.values("in_proj.bias", 2 * c)?;
            b.values("out_proj.bias", width)?;
        }
        let rows = |leaf: &str, of: (usize, usize), rows: std::ops::Range<usize>| {
            b.linear_rows(leaf, of.0, of.1, rows.collect())
        };
        let (outer, inner) = ((2 * c, width), (self.dt_rank + 2 * n, c));
        let norm = |name: &str, dim: usize| match self.norms {
            InnerNorms::Absent => Ok(None),
            InnerNorms::Plain(eps) => Ok(Some(Norm { kind: NormKind::Rms, weight: None, bias: None, eps })),
            InnerNorms::Weighted(eps) => b.norm(&NormSpec::rms(name, eps, NormWeight::Plain), dim).map(Some),
        };
        let stored = self.rates.read(b.values("A_log", c * n)?);
        let rate: Vec<f32> = (0..n * c).map(|i| stored[i % c * n + i / c]).collect();
        Ok(Box::new(Mamba {
            x: rows("in_proj", outer, 0..c)?,
            z: rows("in_proj", outer, c..2 * c)?,
            conv: ConvSpec {
                taps: b.conv_taps("conv1d.weight", c, self.kernel)?,
                bias: if self.conv_bias { Some(b.vector("conv1d.bias", c)?) } else { None },
                act: Some(Act::Silu),
            },
            low: rows("x_proj", inner, 0..self.dt_rank)?,
            b: rows("x_proj", inner, self.dt_rank..self.dt_rank + n)?,
            c: rows("x_proj", inner, self.dt_rank + n..inner.0)?,
            norms: (norm("dt_layernorm", self.dt_rank)?, norm("b_layernorm", n)?, norm("c_layernorm", n)?),
            dt: b.linear_biased("dt_proj", c, self.dt_rank)?,
            scan: ScanSpec { rate: b.upload(&rate, &[n, c])?, skip: b.vector("D", c)? },
            out: b.linear("out_proj", width, c)?,
        }))
    }
}

/// A Mamba layer with its weights.
struct Mamba {
    x: Linear,
    z: Linear,
    conv: ConvSpec,
    low: Linear,
    b: Linear,
    c: Linear,
    /// On step, input and output.
    norms: (Option<Norm>, Option<Norm>, Option<Norm>),
    dt: Linear,
    scan: ScanSpec,
    out: Linear,
}

impl Mixer for Mamba {
    fn forward(&self, step: &Step<'_>, stream: Stream<'_>, states: &mut [&mut LayerState]) -> Result<Tensor> {
        let be = step.backend;
        let [x, z] = project(be, stream.input(), [&self.x, &self.z])?;
        let x = be.conv(&x, &mut step.segments(states, 0)?, &self.conv)?;
        let [low, b, c] = project(be, Input::Plain(&x), [&self.low, &self.b, &self.c])?;
        let normed = |x: Tensor, norm: &Option<Norm>| norm.as_ref().map_or(Ok(x.clone()), |n| be.norm(&x, n));
        let (b, c) = (normed(b, &self.norms.1)?, normed(c, &self.norms.2)?);
        let input = match &self.norms.0 {
            Some(norm) => Input::Normed(&low, norm),
            None => Input::Plain(&low),
        };
        let [dt] = project(be, input, [&self.dt])?;
        let input = ScanInput { x: &x, dt: &dt, b: &b, c: &c };
        let y = be.selective_scan(input, &mut step.segments(states, 1)?, &self.scan)?;
        stream.close(be, &self.out, Input::Glu(&z, &y, Act::Silu))
    }
}
