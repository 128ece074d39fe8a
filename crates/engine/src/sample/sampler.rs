//! The sampler of one session: parameters, the steps that they switch on, the generator, and what steps carry from
//! token to token. It keeps no history: callers hand over the whole token list, so a rewound session needs no repair.

use std::cell::OnceCell;

use super::candidates::{Candidate, Candidates, Peak, peak};
use super::{
    AdjustFn, Compute, Context, DrawFn, Mask, Rng, SampleError, SamplerParams, SamplerState, Samplers, ShapeFn,
    bad_order, fresh_seed,
};

/// A chosen token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampled {
    /// Its id.
    pub id: u32,
    /// Its probability in the distribution that it was drawn from, after all steps; 1 for a greedy choice. The model's
    /// own probability is what [`super::logprobs`] gives.
    pub p: f32,
    /// Number of candidates that it was drawn from.
    pub n_candidates: usize,
}

/// A step of the chain: what it runs, and the slot of its carried number.
type Link<F> = (&'static F, usize);

/// Chooses tokens. Same parameters, seed, logits and history: same tokens. A clone goes its own way from here on, as a
/// forked session's does.
#[derive(Clone)]
pub struct Sampler {
    params: SamplerParams,
    seed: u64,
    rng: Rng,
    names: Vec<&'static str>,
    adjusts: Vec<Link<AdjustFn>>,
    shapes: Vec<Link<ShapeFn>>,
    draw: Option<Link<DrawFn>>,
    learners: Vec<&'static str>,
    carried: Vec<f64>, // one for each learner, then one that the other steps share and never keep
    adjusted: Vec<f32>,
    buffer: Vec<Candidate>,
}

impl std::fmt::Debug for Sampler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sampler").field("params", &self.params).field("steps", &self.names).finish_non_exhaustive()
    }
}

impl Sampler {
    /// A sampler with the built-in steps in their usual order.
    pub fn new(params: SamplerParams) -> Result<Self, SampleError> {
        Self::with_steps(params, &Samplers::builtin())
    }

    /// A sampler with the steps and the order of `samplers`. Parameters out of range are refused, and so are ones that
    /// switch on a step which the order leaves out.
    pub fn with_steps(params: SamplerParams, samplers: &Samplers) -> Result<Self, SampleError> {
        params.validate()?;
        if let Some(row) = samplers.idle.iter().find(|row| (row.is_active)(&params)) {
            return Err(bad_order(row.name, "is switched on but left out", "every active step in the order"));
        }
        let seed = params.seed.unwrap_or_else(fresh_seed);
        let mut sampler = Self {
            seed,
            rng: Rng::from_seed(seed),
            names: Vec::new(),
            adjusts: Vec::new(),
            shapes: Vec::new(),
            draw: None,
            learners: Vec::new(),
            carried: Vec::new(),
            adjusted: Vec::new(),
            buffer: Vec::new(),
            params,
        };
        let params = &sampler.params;
        let active = samplers.rows.iter().filter(|row| (row.is_active)(params));
        let drawing = |row: &super::SamplerEntry| matches!(row.compute, Compute::Draw(_));
        let draws = active.clone().any(drawing);
        let runs: Vec<_> = active
            .filter(|row| match row.compute {
                Compute::Adjust(_) => true,
                Compute::Truncate(_) => !params.is_greedy() && !draws,
                Compute::Scale(_) | Compute::Draw(_) => !params.is_greedy(),
            })
            .collect();
        for row in &runs {
            if let Some(initial) = row.initial {
                sampler.learners.push(row.name);
                sampler.carried.push(initial(params));
            }
        }
        let shared = sampler.carried.len();
        sampler.carried.push(0.0);
        for row in runs {
            let slot = sampler.learners.iter().position(|name| *name == row.name).unwrap_or(shared);
            sampler.names.push(row.name);
            match row.compute {
                Compute::Adjust(run) => sampler.adjusts.push((run, slot)),
                Compute::Truncate(run) | Compute::Scale(run) => sampler.shapes.push((run, slot)),
                Compute::Draw(run) if sampler.draw.is_none() => sampler.draw = Some((run, slot)),
                Compute::Draw(_) => {
                    return Err(bad_order(row.name, "is a second active step that draws", "at most one drawing step"));
                }
            }
        }
        Ok(sampler)
    }

    /// A sampler that goes on where `state` ended: it draws what that one would have drawn. Parameters that name another seed begin
    /// anew; a step that learned nothing yet starts as usual.
    pub fn following(params: SamplerParams, state: &SamplerState) -> Result<Self, SampleError> {
        let mut sampler = Self::new(params)?;
        if sampler.params.seed.is_some_and(|seed| seed != state.seed()) {
            return Ok(sampler);
        }
        (sampler.seed, sampler.rng) = (state.seed(), state.rng());
        for (name, slot) in sampler.learners.iter().zip(&mut sampler.carried) {
            if let Some((_, value)) = state.carried().iter().find(|(learned, _)| learned == name) {
                *slot = *value;
            }
        }
        Ok(sampler)
    }

    /// The parameters.
    pub fn params(&self) -> &SamplerParams {
        &self.params
    }

    /// The seed in use, also where the parameters left it open: with it, a run can be repeated.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The steps that run, in order. At temperature 0 these are adjusting ones only; truncating ones are absent while
    /// a drawing step is active.
    pub fn steps(&self) -> &[&'static str] {
        &self.names
    }

    /// Chooses the token after `history` (all tokens so far, prompt included) from `logits` \[V\], which stay as they
    /// are. An error leaves the sampler as it was.
    pub fn sample(&mut self, logits: &[f32], history: &[u32]) -> Result<Sampled, SampleError> {
        self.choose(logits, history, None)
    }

    /// As [`Sampler::sample`], among the tokens that `mask` allows.
    pub fn sample_masked(&mut self, logits: &[f32], history: &[u32], mask: &dyn Mask) -> Result<Sampled, SampleError> {
        self.choose(logits, history, Some(mask))
    }

    /// What a sleeping session stores to draw on identically.
    pub fn state(&self) -> SamplerState {
        let carried = self.learners.iter().map(|name| (*name).to_owned()).zip(self.carried.iter().copied());
        SamplerState::new(self.seed, &self.rng, carried.collect())
    }

    fn choose(&mut self, logits: &[f32], history: &[u32], mask: Option<&dyn Mask>) -> Result<Sampled, SampleError> {
        let before = (self.rng.clone(), self.carried.clone());
        let mut adjusted = std::mem::take(&mut self.adjusted);
        let chosen = self.adjust_and_draw(logits, history, mask, &mut adjusted);
        self.adjusted = adjusted;
        if chosen.is_err() {
            (self.rng, self.carried) = before;
        }
        chosen
    }

    fn adjust_and_draw(
        &mut self,
        logits: &[f32],
        history: &[u32],
        mask: Option<&dyn Mask>,
        adjusted: &mut Vec<f32>,
    ) -> Result<Sampled, SampleError> {
        let top = peak(logits)?;
        let recent = OnceCell::new();
        if self.adjusts.is_empty() && mask.is_none() {
            return self.shape_and_draw(logits, top, history, &recent);
        }
        adjusted.clear();
        adjusted.extend_from_slice(logits);
        for &(run, slot) in &self.adjusts {
            let carried = &mut self.carried[slot];
            let mut context = Context { params: &self.params, history, rng: &mut self.rng, carried, recent: &recent };
            run(adjusted, &mut context)?;
        }
        if let Some(mask) = mask {
            mask.apply(adjusted);
        }
        let top = peak(adjusted)?;
        self.shape_and_draw(adjusted, top, history, &recent)
    }

    fn shape_and_draw(
        &mut self,
        logits: &[f32],
        top: Peak,
        history: &[u32],
        recent: &OnceCell<Vec<(u32, u32)>>,
    ) -> Result<Sampled, SampleError> {
        if self.params.is_greedy() {
            return Ok(Sampled { id: top.id, p: 1.0, n_candidates: 1 });
        }
        let nothing = || SampleError::NothingAllowed { n_vocab: logits.len() };
        let mut candidates = Candidates::with_peak(logits, top, std::mem::take(&mut self.buffer));
        for &(run, slot) in &self.shapes {
            let carried = &mut self.carried[slot];
            let mut context = Context { params: &self.params, history, rng: &mut self.rng, carried, recent };
            run(&mut candidates, &mut context)?;
        }
        let index = match self.draw {
            Some((run, slot)) => {
                let carried = &mut self.carried[slot];
                let mut context = Context { params: &self.params, history, rng: &mut self.rng, carried, recent };
                run(&mut candidates, &mut context)?
            }
            None => candidates.draw(self.rng.unit()).ok_or_else(nothing)?,
        };
        let n_candidates = candidates.items().len();
        let drawn = *candidates.probabilities().get(index).ok_or_else(nothing)?;
        self.buffer = candidates.into_buffer();
        Ok(Sampled { id: drawn.id, p: drawn.p, n_candidates })
    }
}
