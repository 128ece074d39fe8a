//! A head over clusters of tokens: a row ranks the clusters, and tokens outside the best of them share one logit below all others. Knows no
//! sampler. Reference: transformers' modeling_gemma4_assistant.py, `Gemma4AssistantMaskedEmbedder`.

use reverie_tensor::{Backend, Class, DType, Input, RouteSpec, Score, Tensor};

use crate::Build;
use crate::error::{Error, Result};
use crate::linear::{Linear, project};
use crate::plan::{ClusterSpec, Plan};

/// The clusters with their centroids.
pub(crate) struct Clusters {
    centroids: Linear,
    /// Tokens, cluster by cluster.
    members: Vec<usize>,
    /// Tokens of a cluster.
    size: usize,
    rank: RouteSpec,
}

impl Clusters {
    /// Takes the weights.
    pub(crate) fn build(root: &Build<'_>, spec: &ClusterSpec, plan: &Plan) -> Result<Clusters> {
        let (vocab, n) = (plan.vocab, spec.n);
        if n == 0 || !vocab.is_multiple_of(n) {
            return Err(Error::config("num_centroids", n, format!("a divisor of the vocabulary of {vocab}")));
        }
        if spec.n_kept == 0 || spec.n_kept > n {
            return Err(Error::config("centroid_intermediate_top_k", spec.n_kept, format!("1 to {n}")));
        }
        let members: Vec<usize> = root.values(&spec.ordering, vocab)?.into_iter().map(|id| id as usize).collect();
        if let Some(id) = members.iter().find(|&&id| id >= vocab) {
            let (name, found) = (spec.ordering.clone(), format!("token {id}"));
            return Err(Error::TensorShape { name, found, expected: format!("tokens below {vocab}") });
        }
        let rank = RouteSpec { n_experts: n, n_active: spec.n_kept, ..RouteSpec::alone(Score::Softmax) };
        let centroids = root.linear_f32(&spec.centroids, n, plan.width)?;
        Ok(Clusters { centroids, members, size: vocab / n, rank })
    }

    /// The logits of every row `[T, V]`, those outside its clusters one below the least of those inside.
    pub(crate) fn keep(&self, backend: &dyn Backend, stream: &Tensor, logits: &Tensor) -> Result<Tensor> {
        let [scores] = project(backend, Input::Plain(stream), [&self.centroids])?;
        let kept = backend.route(&scores, &self.rank)?.experts;
        let mut all = backend.read(logits)?;
        for (row, kept) in all.chunks_exact_mut(self.members.len()).zip(kept.chunks_exact(self.rank.n_active)) {
            let inside =
                |&cluster: &u32| self.members.chunks_exact(self.size).nth(cluster as usize).into_iter().flatten();
            let inside: Vec<(usize, f32)> = kept.iter().flat_map(inside).map(|&id| (id, row[id])).collect();
            row.fill(inside.iter().fold(f32::INFINITY, |least, (_, logit)| least.min(*logit)) - 1.0);
            inside.into_iter().for_each(|(id, logit)| row[id] = logit);
        }
        Ok(backend.upload(&all, logits.dims(), DType::F32, Class::Scratch)?)
    }
}
