//! AltUp, alternating updates (arXiv 2301.13310): several residual streams of which each layer computes one; the others are predicted
//! before it and corrected after it. The computed stream is the model's, all of them wait in the step's carry. Reference:
//! transformers' modeling_gemma3n.py.

use reverie_tensor::backend::Map;
use reverie_tensor::formula::input;
use reverie_tensor::{Input, Norm, Operand, Tensor};

use super::{Rewrite, RewriteSpec};
use crate::Build;
use crate::error::{Error, Result};
use crate::ffn::{Ffn, per_layer};
use crate::linear::{Linear, project};
use crate::mixer::{Out, Step, Stream};
use crate::plan::{FfnSpec, NormSpec};

const CARRY: &str = "altup";

/// Mean squares below this count as this.
const LEAST: f32 = 1e-5;

/// Most streams that a config may ask for.
const MOST: usize = 64;

/// What all four steps know.
#[derive(Clone, Copy, Debug)]
pub struct Streams {
    /// How many.
    pub n: usize,
    /// Which one the layers compute.
    pub active: usize,
}

impl Streams {
    fn check(self) -> Result<Streams> {
        if self.n == 0 || self.n > MOST {
            return Err(Error::config("altup_num_inputs", self.n, format!("1 to {MOST}")));
        }
        if self.active >= self.n {
            return Err(Error::config("altup_active_idx", self.active, format!("below altup_num_inputs = {}", self.n)));
        }
        Ok(self)
    }

    /// All streams; none may be missing.
    fn take(self, step: &Step<'_>) -> Result<Vec<Tensor>> {
        match step.carry.take_all(CARRY) {
            all if all.len() == self.n => Ok(all),
            all => Err(Error::config("altup", format!("{} streams", all.len()), format!("{} opened before", self.n))),
        }
    }

    /// Leaves all streams for the next step and gives the active one.
    fn leave(self, step: &Step<'_>, all: Vec<Tensor>) -> Tensor {
        let active = all[self.active].clone();
        step.carry.put_all(CARRY, all);
        active
    }
}

/// Before the layers: projections of the embedding, each brought to its magnitude.
#[derive(Clone, Debug)]
pub struct Open(pub Streams);

/// After the layers: the mean of the first stream and of projections of the others, each brought to its magnitude.
#[derive(Clone, Debug)]
pub struct Close(pub Streams);

/// Before a layer: every stream becomes itself plus a mixture of all, by coefficients that the active one gives.
#[derive(Clone, Debug)]
pub struct Predict {
    /// The streams.
    pub streams: Streams,
    /// `router_norm`.
    pub norm: NormSpec,
}

/// After a layer: every stream takes its share of what the layer changed, and all but the first the token's own input to this layer.
#[derive(Clone, Debug)]
pub struct Correct {
    /// The streams.
    pub streams: Streams,
    /// `router_norm`.
    pub norm: NormSpec,
    /// The gate reads the active stream times `correct_output_scale`.
    pub scaled: bool,
    /// The use of the input.
    pub own: per_layer::Spec,
    /// After that.
    pub own_norm: NormSpec,
}

impl RewriteSpec for Open {
    fn kind(&self) -> &'static str {
        "altup_open"
    }

    fn build(&self, b: &mut Build<'_>) -> Result<Box<dyn Rewrite>> {
        Ok(Box::new(Opened { streams: self.0.check()?, projections: projections(b, "altup_projections", self.0.n)? }))
    }
}

impl RewriteSpec for Close {
    fn kind(&self) -> &'static str {
        "altup_close"
    }

    fn build(&self, b: &mut Build<'_>) -> Result<Box<dyn Rewrite>> {
        let streams = self.0.check()?;
        Ok(Box::new(Closed { streams, projections: projections(b, "altup_unembed_projections", self.0.n)? }))
    }
}

fn projections(b: &Build<'_>, leaf: &str, n: usize) -> Result<Vec<Linear>> {
    let width = b.width();
    // One tensor may hold them all.
    let joint = b.has(&format!("{leaf}.weight"));
    let one = |i: usize| match joint {
        true => b.linear_rows(leaf, (n - 1) * width, width, (i * width..(i + 1) * width).collect()),
        false => b.linear(&format!("{leaf}.{i}"), width, width),
    };
    (0..n - 1).map(one).collect()
}

impl RewriteSpec for Predict {
    fn kind(&self) -> &'static str {
        "altup_predict"
    }

    fn build(&self, b: &mut Build<'_>) -> Result<Box<dyn Rewrite>> {
        let n = self.streams.check()?.n;
        let router = Router::build(b, n, &self.norm)?;
        let mix = b.linear("altup.prediction_coefs", n * n, n)?;
        Ok(Box::new(Predicted { streams: self.streams, router, mix }))
    }
}

impl RewriteSpec for Correct {
    fn kind(&self) -> &'static str {
        "altup_correct"
    }

    fn build(&self, b: &mut Build<'_>) -> Result<Box<dyn Rewrite>> {
        let (n, width) = (self.streams.check()?.n, b.width());
        Ok(Box::new(Corrected {
            streams: self.streams,
            router: Router::build(b, n, &self.norm)?,
            shares: b.linear("altup.correction_coefs", n, n)?,
            scale: if self.scaled { Some(b.vector("altup.correct_output_scale", width)?) } else { None },
            own_norm: b.norm(&self.own_norm, width)?,
            own: self.own.build(b)?,
        }))
    }
}

/// What tells the coefficients of a token: tanh(route(norm x) / D).
struct Router {
    norm: Norm,
    route: Linear,
    scale: f32,
}

impl Router {
    fn build(b: &Build<'_>, n: usize, norm: &NormSpec) -> Result<Router> {
        let width = b.width();
        let route = b.linear("altup.modality_router", n, width)?;
        Ok(Router { norm: b.norm(norm, width)?, route, scale: 1.0 / width as f32 })
    }

    /// `[T, n]`.
    fn of(&self, step: &Step<'_>, x: &Tensor) -> Result<Tensor> {
        let [routed] = project(step.backend, Input::Normed(x, &self.norm), [&self.route])?;
        let formula = (input(0) * self.scale).tanh();
        Ok(step.backend.pointwise(routed.dims(), &[Operand::Each(&routed)], &formula)?)
    }
}

/// Rows of x with the root mean square of the same rows of `like`.
fn match_magnitude(step: &Step<'_>, x: &Tensor, like: &Tensor) -> Result<Tensor> {
    let be = step.backend;
    let squares = |x: &Tensor| -> Result<Tensor> {
        let x = x.clone().reshape(&[x.rows(), 1, x.width()])?;
        Ok(be.dot(&x, &x)?)
    };
    let share = 1.0 / x.width() as f32;
    let (own, wanted) = (squares(x)?, squares(like)?);
    let formula = input(0) * (input(2) * share).sqrt() / (input(1) * share).max(LEAST).sqrt();
    Ok(be.pointwise(x.dims(), &[Operand::Each(x), Operand::Stretch(&own), Operand::Stretch(&wanted)], &formula)?)
}

struct Opened {
    streams: Streams,
    projections: Vec<Linear>,
}

impl Rewrite for Opened {
    fn forward(&self, step: &Step<'_>, x: Tensor, _: Option<&Norm>) -> Result<Tensor> {
        let mut all = vec![x.clone()];
        for linear in &self.projections {
            let [y] = project(step.backend, Input::Plain(&x), [linear])?;
            all.push(match_magnitude(step, &y, &x)?);
        }
        Ok(self.streams.leave(step, all))
    }
}

struct Closed {
    streams: Streams,
    projections: Vec<Linear>,
}

impl Rewrite for Closed {
    fn forward(&self, step: &Step<'_>, x: Tensor, _: Option<&Norm>) -> Result<Tensor> {
        let all = self.streams.take(step)?;
        drop(x);
        let mut sum = all[0].clone();
        for (stream, linear) in all[1..].iter().zip(&self.projections) {
            let [y] = project(step.backend, Input::Plain(stream), [linear])?;
            sum = step.backend.add(sum, &match_magnitude(step, &y, &all[0])?)?;
        }
        Ok(step.backend.map(sum, Map::Scale(1.0 / self.streams.n as f32))?)
    }
}

struct Predicted {
    streams: Streams,
    router: Router,
    mix: Linear,
}

impl Rewrite for Predicted {
    fn forward(&self, step: &Step<'_>, x: Tensor, _: Option<&Norm>) -> Result<Tensor> {
        let all = self.streams.take(step)?;
        let [mix] = project(step.backend, Input::Plain(&self.router.of(step, &x)?), [&self.mix])?;
        drop(x);
        let mixed = step.backend.combine(&all.iter().collect::<Vec<_>>(), &mix)?;
        let predicted = mixed.into_iter().zip(&all).map(|(y, x)| Ok(step.backend.add(y, x)?));
        let predicted = predicted.collect::<Result<Vec<_>>>()?;
        Ok(self.streams.leave(step, predicted))
    }
}

struct Corrected {
    streams: Streams,
    router: Router,
    shares: Linear,
    scale: Option<Tensor>,
    own: Box<dyn Ffn>,
    own_norm: Norm,
}

impl Rewrite for Corrected {
    fn forward(&self, step: &Step<'_>, x: Tensor, _: Option<&Norm>) -> Result<Tensor> {
        let (be, active) = (step.backend, self.streams.active);
        let predicted = self.streams.take(step)?;
        let [shares] = project(be, Input::Plain(&self.router.of(step, &x)?), [&self.shares])?;
        let change = [Operand::Each(&x), Operand::Each(&predicted[active])];
        let change = be.pointwise(x.dims(), &change, &(input(0) - input(1)))?;
        let mut all = Vec::with_capacity(predicted.len());
        for (moved, before) in be.combine(&[&change], &shares)?.into_iter().zip(&predicted) {
            all.push(be.add(be.add(moved, &change)?, before)?);
        }
        let seen = match &self.scale {
            Some(scale) => {
                let inputs = [Operand::Each(&all[active]), Operand::Row(scale)];
                be.pointwise(x.dims(), &inputs, &(input(0) * input(1)))?
            }
            None => all[active].clone(),
        };
        let own = self.own.forward(step, Stream { x: seen, pre: None, out: Out::Plain })?;
        let own = be.norm(&own, &self.own_norm)?;
        let add = |(i, stream): (usize, Tensor)| if i == 0 { Ok(stream) } else { Ok(be.add(stream, &own)?) };
        let all = all.into_iter().enumerate().map(add).collect::<Result<Vec<_>>>()?;
        Ok(self.streams.leave(step, all))
    }
}
