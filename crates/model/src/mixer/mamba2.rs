//! Mamba-2 (SSD, arXiv 2405.21060): a short causal convolution over values, keys and queries, a linear recurrence with one decay a
//! head, a gate and an RMS norm over groups on the way out. The step is held to its limits in prefill and decode alike.

use reverie_files::ModelConfig;
use reverie_tensor::formula::input;
use reverie_tensor::{
    Act, ConvSpec, Decay, Formula, HeadOrder, Heads, Input, Norm, Operand, Read, Recurrence, RecurrenceSpec, Rule,
    Tensor,
};
use serde_json::Value;

use super::mamba::{Rates, inner_width};
use super::{Mixer, MixerEntry, Step, Stream};
use crate::Build;
use crate::error::{Error, Result};
use crate::linear::{Linear, project};
use crate::plan::{MixerSpec, NormSpec, NormWeight};
use crate::state::{LayerState, SlotNeed, StateKind, StateSpec};

/// The row.
pub const ENTRY: MixerEntry = MixerEntry {
    name: "mamba2",
    aliases: &["ssd"],
    about: "Mamba-2: causal convolution and linear recurrence (SSD), gated norm over groups",
    state: &[StateKind::Recurrent],
    spec: |config, _| Ok(Box::new(Spec::from_config(config)?)),
};

/// How gate and norm stand on the way out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum OutNorm {
    /// y · silu(z).
    Absent,
    /// norm(y · silu(z)), with this epsilon.
    GateFirst(f32),
    /// norm(y) · silu(z), with this epsilon.
    NormFirst(f32),
}

/// Factors on what a layer computes with; all 1 nearly everywhere.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Factors {
    /// On the gate before its activation.
    pub z: f32,
    /// On the convolution's input: values, keys (B), queries (C).
    pub mixed: [f32; 3],
    /// On the step before its bias.
    pub dt: f32,
    /// On the first projection's bias, which the factors above meet too.
    pub bias: f32,
}

/// One Mamba-2 layer.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Heads of the recurrence.
    pub n_heads: usize,
    /// Values of a head.
    pub head_dim: usize,
    /// Groups of heads that share keys and queries, and of the norm; divides `n_heads`.
    pub n_groups: usize,
    /// Width of a key.
    pub states: usize,
    /// Taps of the convolution.
    pub kernel: usize,
    /// The convolution must have a bias.
    pub conv_bias: bool,
    /// The first projection, and the last, must have biases.
    pub proj_bias: [bool; 2],
    /// On the way out.
    pub norm: OutNorm,
    /// The step after its softplus is held between these.
    pub limits: (f32, f32),
    /// Factors.
    pub factors: Factors,
    /// How the file stores `A_log`.
    pub rates: Rates,
}

impl Spec {
    /// From the field names of mamba2 and of the hybrids.
    pub fn from_config(config: &ModelConfig) -> Result<Spec> {
        let count = |names: &[&str], default: usize| {
            let field = config.spelling(names);
            match config.usize_or(field, default)? {
                n if n > 0 && n <= 1 << 16 => Ok(n),
                n => Err(Error::config(field, n, "1 to 65536")),
            }
        };
        let flag = |names: &[&str], default: bool| -> Result<bool> {
            Ok(config.optional_bool(config.spelling(names))?.unwrap_or(default))
        };
        let heads = config.spelling(&["mamba_n_heads", "n_mamba_heads", "mamba_num_heads", "num_heads"]);
        let n_heads = count(&[heads], 0)?;
        // Beside attention, `head_dim` is attention's.
        let dims: &[&str] =
            if heads == "num_heads" { &["head_dim"] } else { &["mamba_d_head", "mamba_headdim", "mamba_head_dim"] };
        let dim = config.spelling(dims);
        let auto = !config.has(dim) || config.get(dim).is_some_and(|v| v == "auto");
        let head_dim = if auto { inner_width(config)? / n_heads } else { count(&[dim], 0)? };
        let groups = config.spelling(&["mamba_n_groups", "mamba_ngroups", "n_groups"]);
        let n_groups = count(&[groups], 1)?;
        if head_dim == 0 || !n_heads.is_multiple_of(n_groups) {
            return Err(Error::config(groups, n_groups, format!("a divisor of {heads} = {n_heads}, heads of a width")));
        }
        let states = count(&["mamba_d_state", "ssm_state_size", "state_size"], 128)?;
        if n_heads * head_dim > 1 << 20 || n_groups * states > 1 << 20 {
            let found = format!("{n_heads} heads of {head_dim}, {n_groups} groups of {states}");
            return Err(Error::config(heads, found, "at most 1048576 channels, and as many key values"));
        }
        let eps = config
            .optional_f64(config.spelling(&["rms_norm_eps", "layer_norm_epsilon", "norm_eps"]))?
            .unwrap_or(1e-5) as f32;
        // Zamba2's `hidden_act` is its feed-forward's alone.
        let field = config.spelling(&["mamba_hidden_act", "hidden_act"]);
        let act = config.optional_text(field)?.unwrap_or("silu");
        if act != "silu" && act != "swish" && heads != "n_mamba_heads" {
            return Err(Error::config(field, act, "silu, the only one that this mixer computes"));
        }
        if flag(&["D_has_hdim"], false)? {
            return Err(Error::config("D_has_hdim", "true", "false: one skip a head, not one a channel"));
        }
        Ok(Spec {
            n_heads,
            head_dim,
            n_groups,
            states,
            kernel: count(&["mamba_d_conv", "conv_kernel"], 4)?,
            conv_bias: flag(&["mamba_conv_bias", "use_conv_bias"], true)?,
            proj_bias: [flag(&["use_bias", "mamba_proj_bias", "add_bias_linear"], false)?; 2],
            norm: match (flag(&["rmsnorm"], true)?, flag(&["norm_before_gate"], false)?) {
                (false, _) => OutNorm::Absent,
                (true, false) => OutNorm::GateFirst(eps),
                (true, true) => OutNorm::NormFirst(eps),
            },
            limits: limits(config)?,
            factors: Factors { z: 1.0, mixed: [1.0; 3], dt: 1.0, bias: 1.0 },
            rates: Rates::Log,
        })
    }

    /// Channels of the values, and of the gate.
    fn inner(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Width of all keys, and of all queries.
    fn keys(&self) -> usize {
        self.n_groups * self.states
    }

    /// Channels of the convolution: values, keys, queries.
    fn channels(&self) -> usize {
        self.inner() + 2 * self.keys()
    }
}

/// `time_step_limit`: two numbers, infinity in any of the spellings that transformers has written.
fn limits(config: &ModelConfig) -> Result<(f32, f32)> {
    let field = config.spelling(&["time_step_limit", "mamba_dt_limit", "dt_limit"]);
    let Some(value) = config.get(field) else { return Ok((0.0, f32::INFINITY)) };
    let number = |v: &Value| match v {
        Value::Number(n) => n.as_f64().map(|n| n as f32),
        Value::String(s) if s.trim_start_matches('+').eq_ignore_ascii_case("infinity") || s == "inf" => {
            Some(f32::INFINITY)
        }
        Value::Object(o) => (o.get("__float__")?.as_str()? == "Infinity").then_some(f32::INFINITY),
        _ => None,
    };
    match value.as_array().map(|a| a.iter().map(number).collect::<Vec<_>>()).as_deref() {
        Some([Some(low), Some(high)]) if *low >= 0.0 && low <= high => Ok((*low, *high)),
        _ => Err(Error::config(field, value, "two numbers, the lower first")),
    }
}

impl MixerSpec for Spec {
    fn kind(&self) -> &'static str {
        ENTRY.name
    }

    fn state(&self) -> StateSpec {
        StateSpec {
            kv: None,
            slots: vec![
                SlotNeed { name: "conv", shape: vec![self.kernel - 1, self.channels()] },
                SlotNeed { name: "ssd", shape: vec![self.n_heads, self.states, self.head_dim] },
            ],
        }
    }

    fn build(&self, b: &mut Build<'_>) -> Result<Box<dyn Mixer>> {
        let (width, heads, inner, channels, f) = (b.width(), self.n_heads, self.inner(), self.channels(), self.factors);
        let rows = inner + channels + heads;
        for (wanted, leaf, n) in
            [(self.proj_bias[0], "in_proj.bias", rows), (self.proj_bias[1], "out_proj.bias", width)]
        {
            if wanted {
                b.values(leaf, n)?;
            }
        }
        let first = b.biased(f.bias);
        let part = |rows_of: std::ops::Range<usize>| first.linear_rows("in_proj", rows, width, rows_of.collect());
        // A factor on the convolution's input is one on its taps.
        let factor = |c: usize| f.mixed[if c < inner { 0 } else { 1 + (c - inner) / self.keys() }];
        let taps = b.conv_taps_times("conv1d.weight", (channels, self.kernel), factor)?;
        let norm = match self.norm {
            OutNorm::Absent => None,
            OutNorm::GateFirst(eps) | OutNorm::NormFirst(eps) => {
                Some(b.norm(&NormSpec::rms("norm", eps, NormWeight::Plain), inner)?)
            }
        };
        let step = (input(0) + input(1)).softplus();
        let step = if self.limits.0 > 0.0 { step.max(self.limits.0) } else { step };
        Ok(Box::new(Mamba2 {
            z: part(0..inner)?.times(f.z),
            mixed: part(inner..inner + channels)?,
            dt: part(inner + channels..rows)?.times(f.dt),
            conv: ConvSpec {
                taps,
                bias: if self.conv_bias { Some(b.vector("conv1d.bias", channels)?) } else { None },
                act: Some(Act::Silu),
            },
            dt_bias: b.vector("dt_bias", heads)?,
            rate: b.upload(&self.rates.read(b.values("A_log", heads)?), &[heads])?,
            written: if self.limits.1.is_finite() { step.min(self.limits.1) } else { step },
            kept: (input(0) * input(1)).exp(),
            ssd: RecurrenceSpec {
                n_heads: heads,
                k_dim: self.states,
                v_dim: self.head_dim,
                order: HeadOrder::Grouped,
                unit_eps: None,
                q_scale: 1.0,
                read: Read::After,
                skip: Some(b.vector("D", heads)?),
            },
            n_groups: self.n_groups,
            gate_first: matches!(self.norm, OutNorm::GateFirst(_)),
            norm,
            out: b.linear("out_proj", width, inner)?,
        }))
    }
}

/// A Mamba-2 layer with its weights.
struct Mamba2 {
    z: Linear,
    /// Values, keys, queries.
    mixed: Linear,
    dt: Linear,
    conv: ConvSpec,
    /// f32 `[H]`.
    dt_bias: Tensor,
    /// f32 `[H]`, negative.
    rate: Tensor,
    /// The step, from its projection and bias: how strongly a token writes.
    written: Formula,
    /// exp(step · rate): what a token leaves of the state.
    kept: Formula,
    ssd: RecurrenceSpec,
    n_groups: usize,
    gate_first: bool,
    norm: Option<Norm>,
    out: Linear,
}

impl Mixer for Mamba2 {
    fn forward(&self, step: &Step<'_>, stream: Stream<'_>, states: &mut [&mut LayerState]) -> Result<Tensor> {
        let be = step.backend;
        let [z, mixed, dt] = project(be, stream.input(), [&self.z, &self.mixed, &self.dt])?;
        let mixed = be.conv(&mixed, &mut step.segments(states, 0)?, &self.conv)?;
        let dt = be.pointwise(dt.dims(), &[Operand::Each(&dt), Operand::Row(&self.dt_bias)], &self.written)?;
        let kept = be.pointwise(dt.dims(), &[Operand::Each(&dt), Operand::Row(&self.rate)], &self.kept)?;
        let (inner, keys) = (self.ssd.n_heads * self.ssd.v_dim, self.n_groups * self.ssd.k_dim);
        let operands = Recurrence {
            q: Heads { x: &mixed, at: inner + keys, n: self.n_groups },
            k: Heads { x: &mixed, at: inner, n: self.n_groups },
            v: Heads::whole(&mixed, self.ssd.n_heads),
            decay: Decay::Head(&kept),
            rule: Rule::Add(Some(&dt)),
        };
        let y = be.recurrence(&operands, &mut step.segments(states, 1)?, &self.ssd)?;
        let t = dt.rows();
        let y = y.reshape(&[t, inner])?;
        let Some(norm) = &self.norm else { return stream.close(be, &self.out, Input::Glu(&z, &y, Act::Silu)) };
        let y = if self.gate_first { be.glu(&z, &y, Act::Silu)? } else { y };
        if self.gate_first && self.n_groups == 1 {
            return stream.close(be, &self.out, Input::Normed(&y, norm));
        }
        let y = be.norm(&y.reshape(&[t, self.n_groups, inner / self.n_groups])?, norm)?.reshape(&[t, inner])?;
        let closing = if self.gate_first { Input::Plain(&y) } else { Input::Glu(&z, &y, Act::Silu) };
        stream.close(be, &self.out, closing)
    }
}
