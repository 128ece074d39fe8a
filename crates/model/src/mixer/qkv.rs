//! What linear mixers make of a token before their recurrence: queries, keys and values, each through a short causal convolution or
//! none, and projections through a narrow middle. Knows no rule of a recurrence.

use reverie_tensor::formula::input;
use reverie_tensor::{Act, ConvSpec, Formula, Heads, Input, Operand, Tensor};

use super::{Step, Stream};
use crate::Build;
use crate::error::{Error, Result};
use crate::linear::{Linear, project_all};
use crate::state::{LayerState, SlotNeed};

/// Queries, keys and values as stored.
#[derive(Clone, Debug)]
pub struct QkvSpec {
    /// Widths of q, k and v over all heads.
    pub widths: [usize; 3],
    /// Taps of the convolution over time; none where there is none.
    pub kernel: Option<usize>,
    /// Applied to q, k and v, after the convolution if there is one.
    pub acts: [Option<Act>; 3],
    /// On q, k and v after that, where they are stored apart.
    pub features: [Option<Formula>; 3],
    /// Their tensors.
    pub leaves: Leaves,
}

/// No feature maps.
pub const PLAIN: [Option<Formula>; 3] = [None, None, None];

/// The feature maps of flash-linear-attention by their words, of those that `allowed` lists.
pub fn feature(field: &'static str, word: &str, allowed: &[&str]) -> Result<Formula> {
    let x = || input(0);
    match word {
        _ if !allowed.contains(&word) => {}
        "elu" => return Ok(x().max(0.0) + x().min(0.0).exp()),
        "gelu" => return Ok(x().act(Act::GeluTanh)),
        "logsigmoid" => return Ok(x().log_sigmoid()),
        "relu" => return Ok(x().act(Act::Relu)),
        "sigmoid" => return Ok(x().sigmoid()),
        "silu" | "swish" => return Ok(x().act(Act::Silu)),
        "sqrelu" => return Ok(x().act(Act::Relu2)),
        _ => {}
    }
    Err(Error::config(field, word, format!("one of {}", allowed.join(", "))))
}

/// The tensors of queries, keys and values.
#[derive(Clone, Debug)]
pub enum Leaves {
    /// One projection of q, k and v, in this order; one convolution, `conv1d`.
    Joint(&'static str),
    /// One projection whose rows lie head by head; no other rows are q's, k's or v's. One convolution, `conv1d`.
    ByHead(&'static str, ByHead),
    /// Three projections ("q_proj"), three convolutions ("q_conv1d") or one over all channels ("conv1d").
    Apart([&'static str; 3]),
}

/// Rows that lie head by head.
#[derive(Clone, Copy, Debug)]
pub struct ByHead {
    /// Heads.
    pub heads: usize,
    /// Rows of a head.
    pub stretch: usize,
    /// First row and number of rows of a head's q, k and v.
    pub parts: [(usize, usize); 3],
}

impl ByHead {
    /// `n` rows of every head, from its row `at` on, as a projection. The tensor's shape is known to be right before any list of rows
    /// is made.
    pub fn pick(&self, b: &Build<'_>, leaf: &str, parts: &[(usize, usize)]) -> Result<Linear> {
        let (stored, name) = (self.heads * self.stretch, format!("{leaf}.weight"));
        let found = b.rows_of(&name)?;
        if found != stored {
            let found = format!("{found} rows");
            return Err(Error::TensorShape { name: b.name(&name), found, expected: format!("{stored} rows") });
        }
        let rows = |&(at, n): &(usize, usize)| {
            (0..self.heads).flat_map(move |h| (0..n).map(move |i| h * self.stretch + at + i))
        };
        b.linear_rows(leaf, stored, b.width(), parts.iter().flat_map(rows).collect())
    }
}

impl QkvSpec {
    /// Channels in all.
    fn channels(&self) -> usize {
        self.widths.iter().sum()
    }

    /// Widths of what goes through one convolution each.
    fn lines(&self) -> Vec<usize> {
        match self.leaves {
            Leaves::Joint(_) | Leaves::ByHead(..) => vec![self.channels()],
            Leaves::Apart(_) => self.widths.to_vec(),
        }
    }

    /// The slots of the convolutions: a mixer's first.
    pub fn slots(&self) -> Vec<SlotNeed> {
        let slot = |kernel: usize, c: usize| SlotNeed { name: "conv", shape: vec![kernel - 1, c] };
        self.kernel.map_or(Vec::new(), |kernel| self.lines().into_iter().map(|c| slot(kernel, c)).collect())
    }

    /// Takes the weights.
    pub fn build(&self, b: &Build<'_>) -> Result<Qkv> {
        let width = b.width();
        let linears = match &self.leaves {
            Leaves::Joint(leaf) => vec![b.linear(leaf, self.channels(), width)?],
            Leaves::ByHead(leaf, heads) => vec![heads.pick(b, leaf, &heads.parts)?],
            Leaves::Apart(leaves) => {
                leaves.iter().zip(self.widths).map(|(leaf, n)| b.linear(leaf, n, width)).collect::<Result<_>>()?
            }
        };
        let convs = self.kernel.map_or(Ok(Vec::new()), |kernel| self.convolutions(b, kernel))?;
        Ok(Qkv { linears, convs, acts: self.acts, features: self.features.clone(), widths: self.widths })
    }

    fn convolutions(&self, b: &Build<'_>, kernel: usize) -> Result<Vec<ConvSpec>> {
        let names: Vec<String> = match &self.leaves {
            Leaves::Apart(leaves) if !b.has("conv1d.weight") => {
                leaves.iter().map(|l| l.replace("_proj", "_conv1d")).collect()
            }
            _ => vec!["conv1d".into()],
        };
        // The pieces count only together: transformers saves Olmo Hybrid's cut at other channels than q, k and v.
        let (mut taps, mut bias) = (Vec::new(), Vec::new());
        for name in &names {
            taps.extend(b.conv_rows(&format!("{name}.weight"), kernel)?);
            let leaf = format!("{name}.bias");
            if b.has(&leaf) {
                bias.extend(b.values(&leaf, taps.len() / kernel - bias.len())?);
            }
        }
        let channels = self.channels();
        let fits = |n: usize, per: usize| n == channels * per;
        if !fits(taps.len(), kernel) || !(bias.is_empty() || fits(bias.len(), 1)) {
            return Err(Error::TensorShape {
                name: b.name(&format!("{}.weight", names[0])),
                found: format!("{} channels in all", taps.len() / kernel),
                expected: format!("{channels} channels of q, k and v together, with biases for all or none"),
            });
        }
        let mut first = 0;
        let act = |i: usize| self.acts[i.min(2)];
        let piece = |(i, c): (usize, usize)| {
            let part = first..first + c;
            first += c;
            Ok(ConvSpec {
                taps: b.conv_taps_of(&taps[part.start * kernel..part.end * kernel], c, kernel)?,
                bias: if bias.is_empty() { None } else { Some(b.upload(&bias[part], &[c])?) },
                act: act(i),
            })
        };
        self.lines().into_iter().enumerate().map(piece).collect()
    }
}

/// The projections and convolutions with their weights.
pub struct Qkv {
    linears: Vec<Linear>,
    convs: Vec<ConvSpec>,
    acts: [Option<Act>; 3],
    features: [Option<Formula>; 3],
    widths: [usize; 3],
}

/// Queries, keys and values of a step.
pub struct Mixed {
    parts: Vec<Tensor>,
    widths: [usize; 3],
}

impl Mixed {
    /// Part `i` (q, k, v) as `n` heads.
    pub fn heads(&self, i: usize, n: usize) -> Heads<'_> {
        match self.parts.get(i) {
            Some(x) if self.parts.len() > 1 => Heads::whole(x, n),
            _ => Heads { x: &self.parts[0], at: self.widths[..i].iter().sum(), n },
        }
    }

    /// Replaces part `i`, which must be a tensor of its own.
    pub fn change(&mut self, i: usize, with: impl FnOnce(Tensor) -> Result<Tensor>) -> Result<()> {
        if self.parts.len() != 3 {
            return Err(reverie_tensor::Error::shape("qkv", self.parts.len(), "q, k and v apart").into());
        }
        let changed = with(self.parts[i].clone())?;
        self.parts[i] = changed;
        Ok(())
    }
}

impl Qkv {
    /// Projects the stream, also by `others`, whose results come second; convolves over the mixer's first slots.
    pub fn forward(
        &self,
        step: &Step<'_>,
        stream: &Stream<'_>,
        others: &[&Linear],
        states: &mut [&mut LayerState],
    ) -> Result<(Mixed, Vec<Tensor>)> {
        let be = step.backend;
        let all: Vec<&Linear> = self.linears.iter().chain(others.iter().copied()).collect();
        let mut projected = project_all(be, stream.input(), &all)?;
        let others = projected.split_off(self.linears.len());
        let mut parts = Vec::with_capacity(projected.len());
        for (i, x) in projected.into_iter().enumerate() {
            let x = match (self.convs.get(i), self.acts[i]) {
                (Some(conv), _) => be.conv(&x, &mut step.segments(states, i)?, conv)?,
                (None, Some(act)) => be.pointwise(x.dims(), &[Operand::Each(&x)], &input(0).act(act))?,
                (None, None) => x,
            };
            let x = match &self.features[i] {
                Some(feature) => be.pointwise(x.dims(), &[Operand::Each(&x)], feature)?,
                None => x,
            };
            parts.push(x);
        }
        Ok((Mixed { parts, widths: self.widths }, others))
    }
}

/// A projection, or two with a narrow middle.
pub struct Narrow {
    /// From the stream.
    pub first: Linear,
    /// On the middle; none for nothing.
    between: Option<Formula>,
    second: Option<Linear>,
}

impl Narrow {
    /// `whole` `[n, width]` if the checkpoint has it, else the first pair of leaves that it has; the middle is as wide as stored, and
    /// both matrices may lie turned, `[width, middle]` and `[middle, n]`.
    pub fn build(b: &Build<'_>, whole: &str, pairs: &[(&str, &str)], n: usize) -> Result<Narrow> {
        let pair = pairs.iter().find(|(first, _)| b.has(&format!("{first}.weight")));
        let Some((first, second)) = pair.filter(|_| !b.has(&format!("{whole}.weight"))) else {
            return Ok(Narrow { first: b.linear(whole, n, b.width())?, between: None, second: None });
        };
        let width = b.width();
        if let Some(&[rows, middle]) = b.shape(&format!("{first}.weight")).as_deref()
            && rows == width
            && middle != width
        {
            let second = b.linear_turned(second, (middle, n), (0..middle, 0..n))?;
            let first = b.linear_turned(first, (width, middle), (0..width, 0..middle))?;
            return Ok(Narrow { first, between: None, second: Some(second) });
        }
        let middle = b.rows_of(&format!("{first}.weight"))?;
        let first = b.linear(first, middle, b.width())?;
        Ok(Narrow { first, between: None, second: Some(b.linear(second, n, middle)?) })
    }

    /// With a function on the middle.
    #[must_use]
    pub fn with(mut self, between: Formula) -> Narrow {
        self.between = Some(between);
        self
    }

    /// From what `first` gave to what comes out.
    pub fn finish(&self, step: &Step<'_>, x: Tensor) -> Result<Tensor> {
        let be = step.backend;
        let x = match &self.between {
            Some(formula) => be.pointwise(x.dims(), &[Operand::Each(&x)], formula)?,
            None => x,
        };
        match &self.second {
            Some(second) => Ok(project_all(be, Input::Plain(&x), &[second])?.remove(0)),
            None => Ok(x),
        }
    }
}

impl From<Linear> for Narrow {
    fn from(first: Linear) -> Narrow {
        Narrow { first, between: None, second: None }
    }
}
