//! The registries as one value that is passed around: built-in rows, and those that an embedder adds. Nothing is global.

use crate::arch::{ARCHS, ArchEntry, composed};
use crate::cache::{CACHES, CacheEntry};
use crate::error::{Error, Result};
use crate::ffn::{FFNS, FfnEntry};
use crate::mixer::{MIXERS, MixerEntry};

/// All rows that a load may use.
#[derive(Clone)]
pub struct Registries {
    archs: Vec<&'static ArchEntry>,
    mixers: Vec<&'static MixerEntry>,
    ffns: Vec<&'static FfnEntry>,
    caches: Vec<&'static CacheEntry>,
}

/// A row of any registry.
#[derive(Clone, Copy)]
pub enum Row {
    /// An architecture.
    Arch(&'static ArchEntry),
    /// A mixer.
    Mixer(&'static MixerEntry),
    /// A feed-forward.
    Ffn(&'static FfnEntry),
    /// A cache scheme.
    Cache(&'static CacheEntry),
}

impl Registries {
    /// The rows of this crate.
    pub fn builtin() -> Registries {
        Registries {
            archs: ARCHS.iter().collect(),
            mixers: MIXERS.iter().collect(),
            ffns: FFNS.iter().collect(),
            caches: CACHES.iter().collect(),
        }
    }

    /// With one more row. A name that is already taken is refused: rows never replace each other.
    pub fn with(mut self, row: Row) -> Result<Registries> {
        let taken = match row {
            Row::Arch(r) => self.archs.iter().any(|x| x.name == r.name).then_some(r.name),
            Row::Mixer(r) => self.mixers.iter().any(|x| x.name == r.name).then_some(r.name),
            Row::Ffn(r) => self.ffns.iter().any(|x| x.name == r.name).then_some(r.name),
            Row::Cache(r) => self.caches.iter().any(|x| x.name == r.name).then_some(r.name),
        };
        if let Some(name) = taken {
            return Err(Error::config("registry row", name, "a name that no other row has"));
        }
        match row {
            Row::Arch(r) => self.archs.push(r),
            Row::Mixer(r) => self.mixers.push(r),
            Row::Ffn(r) => self.ffns.push(r),
            Row::Cache(r) => self.caches.push(r),
        }
        Ok(self)
    }

    /// The architectures.
    pub fn archs(&self) -> &[&'static ArchEntry] {
        &self.archs
    }

    /// The mixers.
    pub fn mixers(&self) -> &[&'static MixerEntry] {
        &self.mixers
    }

    /// The feed-forwards.
    pub fn ffns(&self) -> &[&'static FfnEntry] {
        &self.ffns
    }

    /// The cache schemes.
    pub fn caches(&self) -> &[&'static CacheEntry] {
        &self.caches
    }

    /// The architecture that a config's `model_type` names: a family's, or that of composed models where it is a mixer's name.
    pub fn arch(&self, model_type: &str) -> Result<&'static ArchEntry> {
        let of = |name: &str| self.archs.iter().copied().find(|a| a.name == name || a.aliases.contains(&name));
        let composed = || of(composed::ENTRY.name).filter(|_| self.mixer(&composed::word(model_type)).is_ok());
        let known = || unknown("model_type", model_type, self.archs.iter().map(|a| a.name));
        of(model_type).or_else(composed).ok_or_else(known)
    }

    /// The architecture that a GGUF file's `general.architecture` names.
    pub fn arch_of_gguf(&self, word: &str) -> Result<&'static ArchEntry> {
        let of = |a: &&'static ArchEntry| a.gguf.is_some_and(|g| g.arch == word);
        let known = self.archs.iter().filter_map(|a| a.gguf.map(|g| g.arch));
        self.archs.iter().copied().find(|a| of(a)).ok_or_else(|| unknown("GGUF architecture", word, known))
    }

    /// The mixer called `name`.
    pub fn mixer(&self, name: &str) -> Result<&'static MixerEntry> {
        let found = self.mixers.iter().find(|m| m.name == name || m.aliases.contains(&name));
        found.copied().ok_or_else(|| unknown("mixer", name, self.mixers.iter().map(|m| m.name)))
    }

    /// The feed-forward called `name`.
    pub fn ffn(&self, name: &str) -> Result<&'static FfnEntry> {
        let found = self.ffns.iter().find(|f| f.name == name);
        found.copied().ok_or_else(|| unknown("feed-forward", name, self.ffns.iter().map(|f| f.name)))
    }

    /// The cache scheme called `name`.
    pub fn cache(&self, name: &str) -> Result<&'static CacheEntry> {
        let found = self.caches.iter().find(|c| c.name == name);
        found.copied().ok_or_else(|| unknown("cache scheme", name, self.caches.iter().map(|c| c.name)))
    }
}

fn unknown<'a>(what: &'static str, name: &str, known: impl Iterator<Item = &'a str>) -> Error {
    Error::Unknown { what, name: name.to_owned(), known: known.collect::<Vec<_>>().join(", ") }
}
