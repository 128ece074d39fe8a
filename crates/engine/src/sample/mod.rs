//! From logits to a token: a chain of steps, each one file and one row of [`SAMPLERS`], in the order of [`ORDER`]; what
//! the stages of the chain are, [`Compute`] says. The parameters and their defaults stand in [`PARAMS`]. It knows token
//! ids and numbers, never text or tensors.

mod candidates;
mod dry;
mod error;
mod frequency_penalty;
mod logit_bias;
mod logprobs;
mod mask;
mod min_p;
mod mirostat;
mod params;
mod presence_penalty;
mod repetition_penalty;
mod rng;
mod sampler;
mod state;
mod temperature;
mod top_k;
mod top_n_sigma;
mod top_p;
mod typical_p;
mod xtc;

use std::cell::OnceCell;
use std::fmt;

pub use candidates::{Candidate, Candidates, Peak, peak};
pub use error::SampleError;
pub use logprobs::{Logprobs, TokenLogprob, logprobs};
pub use mask::{BitMask, Mask};
pub use params::{Kind, PARAMS, Param, SamplerParams};
pub use rng::{Rng, fresh_seed};
pub use sampler::{Sampled, Sampler};
pub use state::SamplerState;

/// The order of application: the one in common use since llama.cpp (`common/sampling.cpp`).
pub const ORDER: &[&str] = &[
    "logit_bias",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "dry",
    "top_n_sigma",
    "top_k",
    "typical_p",
    "top_p",
    "min_p",
    "xtc",
    "temperature",
    "mirostat",
];

/// The steps, alphabetical.
pub static SAMPLERS: &[SamplerEntry] = &[
    dry::ENTRY,
    frequency_penalty::ENTRY,
    logit_bias::ENTRY,
    min_p::ENTRY,
    mirostat::ENTRY,
    presence_penalty::ENTRY,
    repetition_penalty::ENTRY,
    temperature::ENTRY,
    top_k::ENTRY,
    top_n_sigma::ENTRY,
    top_p::ENTRY,
    typical_p::ENTRY,
    xtc::ENTRY,
];

/// Whether the parameters switch a step on.
pub type ActiveFn = dyn Fn(&SamplerParams) -> bool + Sync;
/// What a step that learns from token to token starts from.
pub type InitialFn = dyn Fn(&SamplerParams) -> f64 + Sync;
/// Edits logits \[V\] by token id; -inf forbids a token.
pub type AdjustFn = dyn Fn(&mut [f32], &mut Context<'_>) -> Result<(), SampleError> + Sync;
/// Drops or reshapes candidates, of which it leaves at least one.
pub type ShapeFn = dyn Fn(&mut Candidates<'_>, &mut Context<'_>) -> Result<(), SampleError> + Sync;
/// Draws a token: returns its index in [`Candidates::items`].
pub type DrawFn = dyn Fn(&mut Candidates<'_>, &mut Context<'_>) -> Result<usize, SampleError> + Sync;

/// What a step computes, by stage.
///
/// Adjusting steps edit logits by token id, then the [`Mask`] is applied. At temperature 0 the highest logit is taken,
/// and no later step runs. Otherwise truncating steps drop candidates, scaling steps reshape what is left, and one
/// token is drawn: by the drawing step if one is active, else in proportion to the probabilities. Equal logits rank by lower
/// id throughout.
#[derive(Clone, Copy)]
pub enum Compute {
    /// First stage; the only one that also runs at temperature 0.
    Adjust(&'static AdjustFn),
    /// Middle stage; stands aside while a drawing step is active.
    Truncate(&'static ShapeFn),
    /// Middle stage.
    Scale(&'static ShapeFn),
    /// Last stage, at most one active.
    Draw(&'static DrawFn),
}

impl Compute {
    fn stage(&self) -> usize {
        match self {
            Self::Adjust(_) => 0,
            Self::Truncate(_) | Self::Scale(_) => 1,
            Self::Draw(_) => 2,
        }
    }

    /// The stage in a word: `adjust`, `truncate`, `scale` or `draw`.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Adjust(_) => "adjust",
            Self::Truncate(_) => "truncate",
            Self::Scale(_) => "scale",
            Self::Draw(_) => "draw",
        }
    }
}

/// A row of the registry: a name and what it runs. The functions may be plain ones or, for an embedder whose step has
/// settings of its own, closures in a `static` or behind `Box::leak`.
#[derive(Clone, Copy)]
pub struct SamplerEntry {
    /// The step's name, and its file's.
    pub name: &'static str,
    /// One line for listings.
    pub about: &'static str,
    /// Whether the parameters switch it on; a step that is off costs nothing.
    pub is_active: &'static ActiveFn,
    /// For a step that carries a number from token to token ([`Context::carried`]): where that number starts.
    pub initial: Option<&'static InitialFn>,
    /// What it does.
    pub compute: Compute,
}

impl fmt::Debug for SamplerEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.compute.word())
    }
}

/// What a step sees besides the logits.
pub struct Context<'a> {
    /// The parameters, validated.
    pub params: &'a SamplerParams,
    /// All tokens so far, prompt included, oldest first.
    pub history: &'a [u32],
    /// The sampler's generator.
    pub rng: &'a mut Rng,
    /// The step's own number from token to token. Rows without an `initial` share a slot that no state keeps.
    pub carried: &'a mut f64,
    recent: &'a OnceCell<Vec<(u32, u32)>>,
}

impl Context<'_> {
    /// Distinct tokens among the last `repeat_last_n` of the history, by id, each with its count.
    pub fn recent(&self) -> &[(u32, u32)] {
        self.recent.get_or_init(|| {
            let mut ids = last_n(self.history, self.params.repeat_last_n).to_vec();
            ids.sort_unstable();
            ids.chunk_by(|a, b| a == b).map(|run| (run[0], run.len() as u32)).collect()
        })
    }
}

/// The last `n` tokens; all of them for -1.
fn last_n(history: &[u32], n: i32) -> &[u32] {
    let n = usize::try_from(n).unwrap_or(usize::MAX);
    &history[history.len().saturating_sub(n)..]
}

/// The steps and their order as a value that an embedder may extend before making samplers from it.
#[derive(Debug, Clone)]
pub struct Samplers {
    rows: Vec<SamplerEntry>, // in order of application
    idle: Vec<SamplerEntry>, // known, but left out by `with_order`
}

impl Samplers {
    /// [`SAMPLERS`] in [`ORDER`].
    pub fn builtin() -> Self {
        let place = |row: &SamplerEntry| ORDER.iter().position(|name| *name == row.name);
        let mut rows = SAMPLERS.to_vec();
        rows.sort_by_key(place);
        Self { rows, idle: Vec::new() }
    }

    /// Adds a row behind the last one of its own kind (of its stage, where there is none); a row of the same name and
    /// stage is replaced where it stands.
    #[must_use]
    pub fn with(mut self, row: SamplerEntry) -> Self {
        let same = |r: &SamplerEntry| r.name == row.name;
        if let Some(old) = self.rows.iter_mut().find(|r| same(r) && r.compute.stage() == row.compute.stage()) {
            *old = row;
            return self;
        }
        self.rows.retain(|r| !same(r));
        self.idle.retain(|r| !same(r));
        let of_kind = self.rows.iter().rposition(|r| r.compute.word() == row.compute.word());
        let of_stage = || self.rows.iter().rposition(|r| r.compute.stage() <= row.compute.stage());
        let at = of_kind.or_else(of_stage).map_or(0, |i| i + 1);
        self.rows.insert(at, row);
        self
    }

    /// Another order. Adjusting steps come first and drawing ones last; steps that are not named do not run, and
    /// parameters that would switch them on are refused.
    pub fn with_order(self, names: &[&str]) -> Result<Self, SampleError> {
        let mut idle: Vec<SamplerEntry> = self.rows.into_iter().chain(self.idle).collect();
        let mut rows: Vec<SamplerEntry> = Vec::with_capacity(names.len());
        for &name in names {
            if rows.iter().any(|row| row.name == name) {
                return Err(bad_order(name, "stands twice", "each step at most once"));
            }
            let Some(at) = idle.iter().position(|row| row.name == name) else {
                let mut known: Vec<&str> = rows.iter().chain(&idle).map(|row| row.name).collect();
                known.sort_unstable();
                return Err(SampleError::UnknownStep { found: name.to_owned(), expected: known.join(", ") });
            };
            let row = idle.swap_remove(at);
            if let Some(last) = rows.last()
                && last.compute.stage() > row.compute.stage()
            {
                let found = format!("({}) comes after `{}` ({})", row.compute.word(), last.name, last.compute.word());
                return Err(bad_order(name, &found, "adjust, then truncate and scale in any order, then draw"));
            }
            rows.push(row);
        }
        idle.sort_by_key(|row| row.name);
        Ok(Self { rows, idle })
    }

    /// The rows in order of application.
    pub fn rows(&self) -> &[SamplerEntry] {
        &self.rows
    }
}

fn bad_order(step: &str, found: &str, expected: &str) -> SampleError {
    SampleError::BadOrder { step: step.to_owned(), found: found.to_owned(), expected: expected.to_owned() }
}

#[cfg(test)]
mod tests;
