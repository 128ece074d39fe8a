//! The one forward: embed, per layer {norm, part with its state, add}, head. It runs any plan over any backend, for a ragged
//! batch of sequences, and never asks for a family's name.

use std::sync::Arc;

use reverie_tensor::backend::Map;
use reverie_tensor::{Backend, Input, Norm, Tensor, Weight};

use crate::cache::CacheEntry;
use crate::clusters::Clusters;
use crate::draft::Gates;
use crate::error::{Error, Result};
use crate::ffn::moe::Shelf;
use crate::ffn::{ExpertBytes, Ffn};
use crate::linear::Linear;
use crate::mixer::{Carry, Mixer, Out, Rows, Step, Stream};
use crate::plan::Plan;
use crate::rewrite::Rewrite;
use crate::standing::Standing;
use crate::state::{LayerState, State, StateSpec};

/// A part with its weights.
pub(crate) enum BuiltPart {
    Mixer(Box<dyn Mixer>),
    Ffn(Box<dyn Ffn>),
    Rewrite(Box<dyn Rewrite>),
}

/// A block with its weights.
pub(crate) struct BuiltBlock {
    pub(crate) pre: Option<Norm>,
    pub(crate) part: BuiltPart,
    pub(crate) post: Option<Norm>,
    pub(crate) scale: f32,
}

/// What `assemble` hands over.
pub(crate) struct ModelParts {
    pub(crate) plan: Plan,
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) embed: Weight,
    pub(crate) before: Vec<BuiltBlock>,
    pub(crate) layers: Vec<Vec<BuiltBlock>>,
    pub(crate) after: Vec<BuiltBlock>,
    pub(crate) final_norm: Norm,
    pub(crate) head: Option<Linear>,
    pub(crate) clusters: Option<Clusters>,
    /// A drafter's way in and out.
    pub(crate) gates: Option<Gates>,
    pub(crate) shelf: Option<Arc<Shelf>>,
}

/// A model ready to run.
pub struct Model {
    pub(crate) parts: ModelParts,
    specs: Vec<StateSpec>,
    standing: Arc<Standing>,
    /// The state that each mixer is handed; none for a drafter, which is told at each step.
    owners: Vec<usize>,
}

/// Which logits of a sequence's new tokens are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// None: the tokens are only read.
    Nothing,
    /// Those after the last token.
    Last,
    /// Those after every token.
    All,
}

/// One sequence's share of a step.
pub struct Sequence<'a> {
    /// New tokens, at least one.
    pub tokens: &'a [u32],
    /// What the sequence has read before; advanced by the step.
    pub state: &'a mut State,
    /// Which logits to compute.
    pub want: Want,
}

impl Model {
    pub(crate) fn new(parts: ModelParts) -> Result<Model> {
        let specs = parts.plan.states();
        let owners = if parts.plan.draft.is_some() { Vec::new() } else { parts.plan.owners()? };
        Ok(Model { parts, standing: Arc::new(Standing::of(&specs)), specs, owners })
    }

    /// What it was assembled from.
    pub fn plan(&self) -> &Plan {
        &self.parts.plan
    }

    /// What it runs on.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.parts.backend
    }

    /// The embedding, as packed.
    pub fn embedding(&self) -> &Weight {
        &self.parts.embed
    }

    /// What its experts take when they are packed; nothing where it has none.
    pub fn expert_bytes(&self) -> ExpertBytes {
        let ffns = self.parts.layers.iter().flatten().filter_map(|b| match &b.part {
            BuiltPart::Ffn(ffn) => Some(ffn),
            _ => None,
        });
        let each = ffns.map(|ffn| ffn.experts(self.parts.backend.as_ref()));
        each.fold(ExpertBytes::default(), |a, b| a + b)
    }

    /// Where its experts come and go; none if they are packed for good.
    pub fn shelf(&self) -> Option<&Arc<Shelf>> {
        self.parts.shelf.as_ref()
    }

    /// What each mixer keeps.
    pub fn state_specs(&self) -> &[StateSpec] {
        &self.specs
    }

    /// Where its states can stand.
    pub fn standing(&self) -> &Standing {
        &self.standing
    }

    /// An empty state whose keys and values `cache` holds.
    pub fn new_state(&self, cache: &CacheEntry) -> State {
        let layers = self.specs.iter().map(|spec| cache.layer_state(spec)).collect();
        State::new(Arc::clone(&self.standing), layers)
    }

    /// Reads the new tokens of every sequence. Gives, for each, the wanted logits `[T, V]`, or none where nothing was wanted.
    ///
    /// Observers hear "hidden.0" after the embedding, "hidden.i" after layer i; the last is heard after the final norm, as
    /// transformers reports it, and only where logits of all tokens are wanted.
    pub fn forward(&self, sequences: &mut [Sequence<'_>]) -> Result<Vec<Option<Tensor>>> {
        let out = self.forward_with_stream(sequences)?;
        Ok(out.into_iter().map(|wanted| wanted.map(|(logits, _)| logits)).collect())
    }

    /// The same with the stream of the wanted tokens after the final norm `[T, D]`: what [`logits`](Model::logits) are made of, and what
    /// a drafter begins with.
    pub fn forward_with_stream(&self, sequences: &mut [Sequence<'_>]) -> Result<Vec<Option<(Tensor, Tensor)>>> {
        let (wanted, counts) = self.read(sequences)?;
        let out = match wanted {
            Some(x) => {
                let logits = self.apart(self.logits(&x)?, &counts)?;
                logits.into_iter().zip(self.apart(x, &counts)?).map(|(l, x)| l.zip(x)).collect()
            }
            None => counts.iter().map(|_| None).collect(),
        };
        sequences.iter_mut().for_each(|s| s.state.advance(s.tokens.len()));
        Ok(out)
    }

    /// The stream alone: for logits of many tokens, which [`logits`](Model::logits) gives a few rows at a time.
    pub fn streams(&self, sequences: &mut [Sequence<'_>]) -> Result<Vec<Option<Tensor>>> {
        let (wanted, counts) = self.read(sequences)?;
        let out = match wanted {
            Some(x) => self.apart(x, &counts)?,
            None => counts.iter().map(|_| None).collect(),
        };
        sequences.iter_mut().for_each(|s| s.state.advance(s.tokens.len()));
        Ok(out)
    }

    /// All layers over the new tokens: the stream of the wanted ones after the final norm, and how many each sequence wants. States are advanced by the
    /// caller, when nothing can fail any more.
    fn read(&self, sequences: &mut [Sequence<'_>]) -> Result<(Option<Tensor>, Vec<usize>)> {
        let ModelParts { plan, backend, embed, .. } = &self.parts;
        let backend = backend.as_ref();
        if plan.draft.is_some() {
            return Err(Error::Drafter { arch: plan.arch });
        }
        let (mut ids, mut positions, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        for s in sequences.iter() {
            let start = s.state.len();
            if start + s.tokens.len() > plan.context {
                return Err(plan.beyond(start + s.tokens.len()));
            }
            if let Some(&id) = s.tokens.iter().find(|&&id| id as usize >= plan.vocab) {
                return Err(Error::TokenId { id, vocab: plan.vocab });
            }
            rows.push(Rows { range: ids.len()..ids.len() + s.tokens.len(), start });
            positions.extend((start..start + s.tokens.len()).map(|p| p as u32));
            ids.extend_from_slice(s.tokens);
        }
        if rows.iter().any(|r| r.range.is_empty()) {
            return Err(reverie_tensor::Error::value("tokens of a sequence", 0, "at least one").into());
        }
        for s in sequences.iter_mut() {
            s.state.begin(backend, &self.specs, s.tokens.len())?;
        }
        let step = Step { backend, ids: &ids, positions: &positions, rows: &rows, carry: Carry::default() };
        let x = backend.embed(embed, &ids, plan.embed_scale)?;
        let wants: Vec<Want> = sequences.iter().map(|s| s.want).collect();
        let mut states: Vec<&mut State> = sequences.iter_mut().map(|s| &mut *s.state).collect();
        let x = self.stream(&step, x, &self.owners, &mut states)?;
        self.pick(x, &rows, &wants)
    }

    /// The residual stream `x` after the last layer. Each mixer is handed the layers of `states` that `owners` names.
    pub(crate) fn stream(
        &self,
        step: &Step<'_>,
        mut x: Tensor,
        owners: &[usize],
        states: &mut [&mut State],
    ) -> Result<Tensor> {
        let ModelParts { before, layers, after, .. } = &self.parts;
        step.backend.note("hidden.0", &x)?;
        let mut owners = owners.iter().copied();
        for block in before {
            x = self.block(step, block, x, (&mut owners, &mut *states))?;
        }
        for (i, blocks) in layers.iter().enumerate() {
            for block in blocks {
                x = self.block(step, block, x, (&mut owners, &mut *states))?;
            }
            if i + 1 < layers.len() {
                step.backend.note(&format!("hidden.{}", i + 1), &x)?;
            }
        }
        for block in after {
            x = self.block(step, block, x, (&mut owners, &mut *states))?;
        }
        Ok(x)
    }

    /// One block; `owners` are those of the mixers to come.
    fn block(
        &self,
        step: &Step<'_>,
        block: &BuiltBlock,
        x: Tensor,
        (owners, states): (&mut dyn Iterator<Item = usize>, &mut [&mut State]),
    ) -> Result<Tensor> {
        // With nothing between the part and the sum, its closing product adds to the stream at once.
        let rewrites = matches!(block.part, BuiltPart::Rewrite(_));
        let direct = rewrites || block.post.is_none() && block.scale == 1.0;
        let kept = (!direct).then(|| x.clone());
        let out = if kept.is_some() { Out::Plain } else { Out::Add };
        let stream = Stream { x, pre: block.pre.as_ref(), out };
        let mut y = match &block.part {
            BuiltPart::Ffn(ffn) => ffn.forward(step, stream)?,
            BuiltPart::Rewrite(rewrite) => rewrite.forward(step, stream.x, stream.pre)?,
            BuiltPart::Mixer(mixer) => {
                let owner = owners.next().unwrap_or(usize::MAX);
                let mut states: Vec<&mut LayerState> =
                    states.iter_mut().filter_map(|s| s.layers_mut().get_mut(owner)).collect();
                mixer.forward(step, stream, &mut states)?
            }
        };
        let Some(kept) = kept else { return Ok(y) };
        if let Some(post) = &block.post {
            y = step.backend.norm(&y, post)?;
        }
        if block.scale != 1.0 {
            y = step.backend.map(y, Map::Scale(block.scale))?;
        }
        Ok(step.backend.add(kept, &y)?)
    }

    /// The rows that are wanted, after the final norm, and how many of each sequence.
    fn pick(&self, x: Tensor, rows: &[Rows], wants: &[Want]) -> Result<(Option<Tensor>, Vec<usize>)> {
        let ModelParts { backend, final_norm, layers, .. } = &self.parts;
        let picked = rows.iter().zip(wants).map(|(r, want)| match want {
            Want::Nothing => r.range.end..r.range.end,
            Want::Last => r.range.end - 1..r.range.end,
            Want::All => r.range.clone(),
        });
        let counts: Vec<usize> = picked.clone().map(|p| p.len()).collect();
        let all: Vec<usize> = picked.flatten().collect();
        if all.is_empty() {
            return Ok((None, counts));
        }
        let x = if all.len() == x.rows() { x } else { backend.rows(&x, &all)? };
        let x = backend.norm(&x, final_norm)?;
        if wants.iter().all(|w| *w == Want::All) {
            backend.note(&format!("hidden.{}", layers.len()), &x)?;
        }
        Ok((Some(x), counts))
    }

    /// The head: logits `[T, V]` of a stream after the final norm `[T, D]`, the same bits as those that came with it.
    pub fn logits(&self, stream: &Tensor) -> Result<Tensor> {
        let ModelParts { plan, backend, embed, head, clusters, .. } = &self.parts;
        let weight = head.as_ref().map_or(embed, |h| &h.weight);
        let mut logits = backend.linear(Input::Plain(stream), &[weight])?.remove(0);
        if plan.head.scale != 1.0 {
            logits = backend.map(logits, Map::Scale(plan.head.scale))?;
        }
        if let Some(cap) = plan.head.softcap {
            logits = backend.map(logits, Map::Softcap(cap))?;
        }
        match clusters {
            Some(clusters) => clusters.keep(backend.as_ref(), stream, &logits),
            None => Ok(logits),
        }
    }

    /// The rows of each sequence; none where it has none.
    fn apart(&self, x: Tensor, counts: &[usize]) -> Result<Vec<Option<Tensor>>> {
        if let [_] = counts {
            return Ok(vec![Some(x)]);
        }
        let mut from = 0;
        let own = |&n: &usize| {
            let own: Vec<usize> = (from..from + n).collect();
            from += n;
            if own.is_empty() { Ok(None) } else { Ok(Some(self.parts.backend.rows(&x, &own)?)) }
        };
        counts.iter().map(own).collect()
    }
}
