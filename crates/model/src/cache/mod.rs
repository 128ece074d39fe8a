//! The cache schemes: how a kind of state is held. A mixer names the kinds it needs, a scheme the kind it holds; a pair that does
//! not fit is refused when the model is put together.

mod bf16;
mod f16;
mod f32;
mod slots;

use reverie_tensor::{DType, KvSpec};

use crate::error::{Error, Result};
use crate::plan::MixerSpec;
use crate::registry::Registries;
use crate::state::{KvNeed, LayerState, Pages, StateKind, StateSpec};

/// A row of the registry.
pub struct CacheEntry {
    /// The word that `--kv` takes; also the file's name.
    pub name: &'static str,
    /// One line for people.
    pub about: &'static str,
    /// The kind it holds.
    pub holds: StateKind,
    /// Element type of what it holds.
    pub dtype: DType,
}

/// All cache schemes, by name.
pub static CACHES: &[CacheEntry] = &[bf16::ENTRY, f16::ENTRY, f32::ENTRY, slots::ENTRY];

/// The scheme for keys and values unless the caller chooses: what llama.cpp and MLX users know.
pub const DEFAULT_KV: &str = "f16";

impl CacheEntry {
    /// Where it keeps keys and values of this shape.
    pub fn kv(&self, need: KvNeed) -> KvSpec {
        KvSpec { n_heads: need.n_heads, k_dim: need.k_dim, v_dim: need.v_dim, dtype: self.dtype }
    }

    /// An empty state for a mixer that keeps this. Slots are made when the first token comes.
    pub fn layer_state(&self, spec: &StateSpec) -> LayerState {
        let kv = spec.kv.map(|need| Pages { spec: self.kv(need), reach: need.reach, pages: Vec::new() });
        LayerState { kv, slots: Vec::new() }
    }

    /// The scheme called `name`, if it can hold what the mixers need beside the recurrent slots.
    pub fn choose(registries: &Registries, name: &str, mixers: &[&dyn MixerSpec]) -> Result<&'static CacheEntry> {
        let entry = registries.cache(name)?;
        for mixer in mixers {
            for kind in mixer.state().kinds() {
                let served = kind == entry.holds
                    || registries.caches().iter().any(|c| c.holds == kind && kind == StateKind::Recurrent);
                if !served {
                    return Err(Error::Pairing {
                        cache: entry.name,
                        holds: entry.holds.name(),
                        mixer: mixer.kind().to_owned(),
                        needs: kind.name(),
                    });
                }
            }
        }
        Ok(entry)
    }
}
