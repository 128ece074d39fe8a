//! MODEL becomes something that talks: found or fetched, planned, assembled on a backend, given its voice.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use reverie_chat::{Conversation, GenerateSpec, Generation, Voice};
use reverie_engine::memory::Store;
use reverie_engine::session::Go;
use reverie_engine::{Cellar, Engine, EngineSpec, Progress, Session};
use reverie_files::Checkpoint;
use reverie_files::hub::{self, HubConfig, HubError};
use reverie_model::ffn::ExpertBytes;
use reverie_model::ffn::moe::{Residence, Shelf};
use reverie_model::{Plan, Registries, assemble};
use reverie_tensor::probe::{Note, Notes, Probe};
use reverie_tensor::{Backend, Class, Event, Numerics};

use crate::backends::{self, BackendSpec};
use crate::error::{Error, Result};
use crate::{EMBEDDED, embedded};

mod identity;
mod source;
mod voice;

use identity::Facts;

/// What is heard while a model loads.
#[derive(Clone, Copy, Debug)]
pub enum LoadEvent<'a> {
    /// Something a person should know.
    Notice(&'a str),
    /// Bytes of a download.
    Download {
        /// The file in flight.
        file: &'a str,
        /// Bytes of it that are here.
        done_bytes: u64,
        /// Its length.
        total_bytes: u64,
    },
    /// Layers packed.
    Layers {
        /// So far.
        done: usize,
        /// In all.
        total: usize,
    },
}

/// Whether a forecast is made before anything runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Check {
    /// Only where a budget is set.
    #[default]
    WithBudget,
    /// Always.
    Always,
}

/// How a model is loaded.
pub struct Loader {
    /// Threads; none means the physical cores.
    pub threads: Option<usize>,
    /// Activations stay f32.
    pub exact: bool,
    /// Keep what the model notes (`LoadedModel::recorded`).
    pub record: bool,
    /// An instruction set to force.
    pub isa: Option<reverie_cpu::Isa>,
    /// Cache scheme, chunk and budget.
    pub engine: EngineSpec,
    /// When to forecast.
    pub check: Check,
    /// Positions that are wanted: chooses between the ways of a model that runs short and long contexts differently; more than it was
    /// made for are refused.
    pub context: Option<usize>,
    /// Where the experts of mixtures are.
    pub experts: Residence,
    /// A chat template that takes the place of the checkpoint's.
    pub template: Option<String>,
    /// Known architectures, mixers, feed-forwards and caches.
    pub registries: Registries,
}

impl Default for Loader {
    fn default() -> Loader {
        Loader {
            threads: None,
            exact: false,
            record: false,
            isa: None,
            engine: EngineSpec::default(),
            check: Check::default(),
            context: None,
            experts: Residence::default(),
            template: None,
            registries: Registries::builtin(),
        }
    }
}

/// Where MODEL was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Located {
    /// In this binary.
    Embedded,
    /// A folder or a .gguf file.
    Path(PathBuf),
}

/// Finds MODEL: the embedded model's name, a path, or a hub id, which is fetched.
pub fn locate(model: &str, hear: &mut dyn FnMut(LoadEvent<'_>)) -> Result<Located> {
    if model == EMBEDDED {
        return Ok(Located::Embedded);
    }
    let path = Path::new(model);
    if path.exists() {
        return Ok(Located::Path(path.to_owned()));
    }
    let looks_local = model.starts_with(['.', '/', '~']) || model.ends_with(".gguf") && !model.contains(':');
    match hub::parse_model_id(model) {
        Some(id) if !looks_local => {
            let config = HubConfig::from_env()?;
            let found = hub::fetch(&id, &config, &mut |p| {
                if let Some(notice) = &p.notice {
                    hear(LoadEvent::Notice(&notice.to_string()));
                }
                hear(LoadEvent::Download { file: p.file, done_bytes: p.done_bytes, total_bytes: p.total_bytes });
            });
            // A mistyped path looks like a hub id.
            let found = found.map_err(|source| match source {
                HubError::NotFound { .. } | HubError::NotCached { .. } | HubError::Unreachable { .. } => {
                    Error::Nowhere { model: model.to_owned(), source }
                }
                source => source.into(),
            })?;
            Ok(Located::Path(found))
        }
        _ => Err(Error::NotFound(model.to_owned())),
    }
}

impl Loader {
    /// Loads in silence.
    pub fn load(&self, model: &str) -> Result<LoadedModel> {
        self.load_with(model, &mut |_| {})
    }

    /// Loads and says how far it is.
    pub fn load_with(&self, model: &str, hear: &mut dyn FnMut(LoadEvent<'_>)) -> Result<LoadedModel> {
        let checkpoint = locate(model, hear)?.open()?;
        self.load_checkpoint(&checkpoint, hear)
    }

    /// Loads from an opened checkpoint.
    pub fn load_checkpoint(&self, checkpoint: &Checkpoint, hear: &mut dyn FnMut(LoadEvent<'_>)) -> Result<LoadedModel> {
        // The vocabulary is read while the weights are packed: for a small model it is the longer of the two.
        std::thread::scope(|scope| {
            let voice = scope.spawn(|| voice::of(checkpoint, self.template.as_deref()));
            let (engine, notes) = self.engine(checkpoint, hear)?;
            let voice = voice.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            let facts = Facts::of(checkpoint, voice.template.as_ref().map(|t| t.source().to_owned()))?;
            Ok(LoadedModel { engine, voice: Arc::new(voice), notes, facts })
        })
    }

    fn engine(&self, checkpoint: &Checkpoint, hear: &mut dyn FnMut(LoadEvent<'_>)) -> Result<(Arc<Engine>, Notes)> {
        let plan = || self.plan(checkpoint);
        let numerics = if self.exact { Numerics::Exact } else { Numerics::Int8 };
        let mut backend =
            backends::open(BackendSpec { threads: self.threads, numerics: Some(numerics), isa: self.isa })?;
        let notes = Notes::default();
        if self.record {
            backend = Arc::new(Probe::new(backend, notes.clone()));
        }
        backend.memory().set_limit(self.engine.memory);
        let shadow = match (self.check, self.engine.memory) {
            (Check::WithBudget, None) => None,
            _ => {
                let (dry, shelf) = (backends::shadow(&backend), self.shelf(checkpoint, 0));
                Some(Arc::new(assemble(plan()?, checkpoint.weights.as_ref(), &dry, shelf.as_ref(), &mut |_, _| {})?))
            }
        };
        if let (Some(limit), Some(shadow)) = (self.engine.memory, &shadow) {
            let weights = shadow.backend().memory().usage().of(Class::Weights);
            self.admit_experts(shadow.expert_bytes(), weights, limit)?;
        }
        let shelf = self.shelf(checkpoint, u64::MAX);
        let model = assemble(plan()?, checkpoint.weights.as_ref(), &backend, shelf.as_ref(), &mut |done, total| {
            hear(LoadEvent::Layers { done, total });
        })?;
        if self.experts == Residence::Lazy && model.expert_bytes() == ExpertBytes::default() {
            hear(LoadEvent::Notice("--experts lazy: this model has no experts, all of its weights are packed"));
        }
        let engine = Engine::new(Arc::new(model), shadow, &self.registries, &self.engine)?;
        Ok((Arc::new(engine), notes))
    }

    fn shelf(&self, checkpoint: &Checkpoint, most_bytes: u64) -> Option<Arc<Shelf>> {
        let lazy = self.experts == Residence::Lazy;
        lazy.then(|| Arc::new(Shelf::new(Arc::clone(&checkpoint.weights) as _, most_bytes)))
    }

    /// Refuses a mixture that the budget cannot hold, before anything is packed; `weights` are the bytes packed at load.
    fn admit_experts(&self, experts: ExpertBytes, weights: u64, limit: u64) -> Result<()> {
        let ExpertBytes { all, at_once, .. } = experts;
        match self.experts {
            Residence::Resident if all > 0 && weights > limit => {
                let rest = weights - all;
                Err(Error::Experts {
                    weights: rest,
                    all,
                    at_once,
                    limit,
                    advice: "--experts lazy leaves them in the file",
                })
            }
            Residence::Lazy if all > 0 && weights + at_once > limit => {
                Err(Error::Experts { weights, all, at_once, limit, advice: "raise --memory" })
            }
            _ => Ok(()),
        }
    }

    /// The plan of an opened checkpoint.
    pub fn plan(&self, checkpoint: &Checkpoint) -> Result<Plan> {
        source::plan(checkpoint, &self.registries, self.context)
    }

    /// The plan on a dry backend alone: nothing is packed, nothing can run, everything can be forecast.
    pub fn shadow(&self, checkpoint: &Checkpoint) -> Result<Engine> {
        let of: Arc<dyn Backend> = backends::open(BackendSpec { threads: Some(1), numerics: None, isa: self.isa })?;
        let plan = self.plan(checkpoint)?;
        let shelf = self.shelf(checkpoint, 0);
        let dry = backends::shadow(&of);
        let dry = Arc::new(assemble(plan, checkpoint.weights.as_ref(), &dry, shelf.as_ref(), &mut |_, _| {})?);
        let spec = EngineSpec { memory: None, ..self.engine.clone() };
        Ok(Engine::new(Arc::clone(&dry), Some(dry), &self.registries, &spec)?)
    }
}

impl Located {
    /// Opens it: headers are read and checked, nothing is packed.
    pub fn open(&self) -> Result<Checkpoint> {
        match self {
            Located::Embedded => embedded::checkpoint(),
            Located::Path(path) => Ok(Checkpoint::open(path, reverie_tensor::quant::QUANTS)?),
        }
    }
}

/// A model that can be talked to.
pub struct LoadedModel {
    engine: Arc<Engine>,
    voice: Arc<Voice>,
    notes: Notes,
    facts: Facts,
}

impl LoadedModel {
    /// The engine.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// How it is spoken to.
    pub fn voice(&self) -> &Voice {
        &self.voice
    }

    /// An empty timeline.
    pub fn session(&self) -> Session {
        self.engine.session()
    }

    /// An empty conversation through the chat template.
    pub fn conversation(&self) -> Conversation {
        Conversation::new(self.session())
    }

    /// Opens the store at `place` (the user's own without one) and lets this model's sessions sleep and wake there. `hear` follows
    /// the hashing of weights that the store has not seen (file, bytes done, bytes in all).
    pub fn open_store(&self, place: Option<&Path>, hear: &mut dyn FnMut(&Path, u64, u64)) -> Result<Store> {
        let store = identity::open_store(place)?;
        let identity = self.facts.identity(&self.engine, &store, hear)?;
        self.engine.attach(Cellar { store: store.clone(), identity });
        Ok(store)
    }

    /// Continues a plain text.
    pub fn generate<'a>(
        &'a self,
        session: &'a mut Session,
        prompt: &str,
        spec: GenerateSpec,
    ) -> Result<Generation<'a>> {
        let ids = self.voice.encode_text(prompt)?;
        self.generate_ids(session, (&ids, ""), spec, &mut |_| Go::On)
    }

    /// Continues token ids; `text` is what the prompt said, for the thinking parser.
    pub fn generate_ids<'a>(
        &'a self,
        session: &'a mut Session,
        (ids, text): (&[u32], &str),
        spec: GenerateSpec,
        watch: &mut dyn FnMut(Progress) -> Go,
    ) -> Result<Generation<'a>> {
        Ok(Generation::new(session, &self.voice, (ids, text), spec, watch)?)
    }

    /// What the model noted since the last call; empty unless `Loader::record` is set.
    pub fn recorded(&self) -> Vec<Note> {
        self.notes.take()
    }

    /// What happened since the last call; empty unless `Loader::record` is set.
    pub fn events(&self) -> Vec<Event> {
        self.notes.take_events()
    }

    /// One line for people: architecture, parameters, layers.
    pub fn summary(&self) -> String {
        let plan = self.engine.model().plan();
        format!("{} · {} layers · width {} · context {}", plan.arch, plan.layers.len(), plan.width, plan.context)
    }
}
