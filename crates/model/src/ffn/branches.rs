//! Several feed-forwards of one stream side by side, each with norms of its own before and after; what they give is added in order.
//! A way to put rows together, no row itself.

use reverie_tensor::{Backend, Norm, Tensor};

use super::moe::Stack;
use super::{ExpertBytes, Ffn};
use crate::Build;
use crate::error::Result;
use crate::mixer::{Out, Step, Stream};
use crate::plan::{FfnSpec, NormSpec};

/// One of them.
#[derive(Debug)]
pub struct Branch {
    /// Sub-prefix of its tensors; its norms lie above that.
    pub scope: &'static str,
    /// Before it.
    pub pre: Option<NormSpec>,
    /// Itself.
    pub ffn: Box<dyn FfnSpec>,
    /// After it, before the sum.
    pub post: Option<NormSpec>,
}

/// All of them.
#[derive(Debug)]
pub struct Spec {
    /// What people read.
    pub kind: &'static str,
    /// In the order of the sum.
    pub branches: Vec<Branch>,
}

impl FfnSpec for Spec {
    fn kind(&self) -> &'static str {
        self.kind
    }

    fn stacks(&self, b: &Build<'_>) -> Result<Vec<Stack>> {
        let each = self.branches.iter().map(|branch| branch.ffn.stacks(&b.below(branch.scope)));
        Ok(each.collect::<Result<Vec<_>>>()?.concat())
    }

    fn build(&self, b: &mut Build<'_>) -> Result<Box<dyn Ffn>> {
        let norm = |spec: &Option<NormSpec>| spec.as_ref().map(|spec| b.norm(spec, b.width())).transpose();
        let branch = |branch: &Branch| -> Result<Built> {
            Ok(Built {
                pre: norm(&branch.pre)?,
                ffn: branch.ffn.build(&mut b.below(branch.scope))?,
                post: norm(&branch.post)?,
            })
        };
        Ok(Box::new(Branches(self.branches.iter().map(branch).collect::<Result<_>>()?)))
    }
}

struct Built {
    pre: Option<Norm>,
    ffn: Box<dyn Ffn>,
    post: Option<Norm>,
}

struct Branches(Vec<Built>);

impl Ffn for Branches {
    fn experts(&self, backend: &dyn Backend) -> ExpertBytes {
        self.0.iter().map(|b| b.ffn.experts(backend)).fold(ExpertBytes::default(), |a, b| a + b)
    }

    fn forward(&self, step: &Step<'_>, stream: Stream<'_>) -> Result<Tensor> {
        let be = step.backend;
        let mut sum = (stream.out == Out::Add).then(|| stream.x.clone());
        let x = match stream.pre {
            Some(norm) => be.norm(&stream.x, norm)?,
            None => stream.x,
        };
        for branch in &self.0 {
            let stream = Stream { x: x.clone(), pre: branch.pre.as_ref(), out: Out::Plain };
            let mut y = branch.ffn.forward(step, stream)?;
            if let Some(post) = &branch.post {
                y = be.norm(&y, post)?;
            }
            sum = Some(match sum {
                Some(sum) => be.add(sum, &y)?,
                None => y,
            });
        }
        Ok(sum.unwrap_or(x))
    }
}
