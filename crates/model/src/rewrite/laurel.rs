//! LAuReL, the learned augmented residual (arXiv 2411.07501): beside an attention layer its input takes a low-rank way around it, and
//! both are joined with equal weight. Reference: transformers' modeling_gemma3n.py.

use reverie_tensor::formula::input;
use reverie_tensor::{Formula, Input, Norm, Operand, Tensor};

use super::{Rewrite, RewriteSpec};
use crate::Build;
use crate::error::{Error, Result};
use crate::linear::{Linear, project};
use crate::mixer::Step;
use crate::plan::NormSpec;

const CARRY: &str = "laurel";

/// Before the attention: n + norm(right(left n)), n the normed stream, waits in the carry.
#[derive(Clone, Debug)]
pub struct Open {
    /// Width of the low-rank way.
    pub rank: usize,
    /// `post_laurel_norm`.
    pub norm: NormSpec,
}

/// After it: (x + what waits) / √2.
#[derive(Clone, Copy, Debug)]
pub struct Close;

impl RewriteSpec for Open {
    fn kind(&self) -> &'static str {
        "laurel"
    }

    fn build(&self, b: &mut Build<'_>) -> Result<Box<dyn Rewrite>> {
        let width = b.width();
        Ok(Box::new(Low {
            left: b.linear("linear_left", self.rank, width)?,
            right: b.linear("linear_right", width, self.rank)?,
            norm: b.norm(&self.norm, width)?,
        }))
    }
}

impl RewriteSpec for Close {
    fn kind(&self) -> &'static str {
        "laurel_sum"
    }

    fn build(&self, _: &mut Build<'_>) -> Result<Box<dyn Rewrite>> {
        Ok(Box::new(Sum((input(0) + input(1)) * std::f32::consts::FRAC_1_SQRT_2)))
    }
}

struct Low {
    left: Linear,
    right: Linear,
    norm: Norm,
}

impl Rewrite for Low {
    fn forward(&self, step: &Step<'_>, x: Tensor, pre: Option<&Norm>) -> Result<Tensor> {
        let be = step.backend;
        let normed = match pre {
            Some(norm) => be.norm(&x, norm)?,
            None => x.clone(),
        };
        let [low] = project(be, Input::Plain(&normed), [&self.left])?;
        let [back] = project(be, Input::Plain(&low), [&self.right])?;
        step.carry.put(CARRY, be.add(normed, &be.norm(&back, &self.norm)?)?);
        Ok(x)
    }
}

struct Sum(Formula);

impl Rewrite for Sum {
    fn forward(&self, step: &Step<'_>, x: Tensor, _: Option<&Norm>) -> Result<Tensor> {
        let way = step.carry.take_all(CARRY).pop();
        let way = way.ok_or_else(|| Error::config("laurel", "nothing in the carry", "a plan that opens it before"))?;
        Ok(step.backend.pointwise(x.dims(), &[Operand::Each(&x), Operand::Each(&way)], &self.0)?)
    }
}
