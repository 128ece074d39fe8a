//! What a model's state depends on, by content: weights, tokenizer, template, adapter, layer plan, cache scheme, numerics. A state
//! that sleeps carries it and wakes only where all of it is the same.

use std::path::{Path, PathBuf};

use reverie_engine::Engine;
use reverie_engine::memory::{Hash, Identity, Store};
use reverie_files::Checkpoint;
use reverie_tensor::Numerics;
use reverie_tensor::backend::{ACT_BLOCK, PAGE_TOKENS, SPAN_PAGES};

use crate::error::{Error, Result};

/// Version of how numbers are computed: raised whenever a change of the code changes a bit of what a model computes.
const NUMERICS_VERSION: u32 = 2;

/// Where a checkpoint's content lies, until somebody wants its hash.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    weights: Vec<Content>,
    tokenizer: Content,
    template: Option<String>,
}

/// Bytes that can be hashed.
#[derive(Clone, Debug)]
enum Content {
    File(PathBuf),
    Hashed(Hash),
}

impl Content {
    fn hash(&self, store: &Store, hear: &mut dyn FnMut(&Path, u64, u64)) -> Result<Hash> {
        match self {
            Content::Hashed(hash) => Ok(*hash),
            Content::File(path) => Ok(store
                .file_hash(path, &mut |done, total| hear(path, done, total))
                .map_err(reverie_engine::Error::from)?),
        }
    }
}

impl Facts {
    /// Of an opened checkpoint; `template` is the one in use.
    pub(crate) fn of(checkpoint: &Checkpoint, template: Option<String>) -> Result<Facts> {
        let mut weights: Vec<Content> = Vec::new();
        for file in checkpoint.weights.files() {
            weights.push(match file.is_embedded() {
                true => Content::Hashed(Hash::of(file.bytes())),
                false => Content::File(file.path().to_owned()),
            });
        }
        let beside = checkpoint.path.join("tokenizer.json");
        let tokenizer = match (checkpoint.metadata(), weights.first()) {
            // A GGUF file holds its vocabulary.
            (Some(_), Some(file)) => file.clone(),
            _ if beside.is_file() => Content::File(beside),
            _ => Content::Hashed(Hash::of(&checkpoint.tokenizer_json()?)),
        };
        Ok(Facts { weights, tokenizer, template })
    }

    /// The identity of a state of `engine`. Files are hashed once and remembered by the store; `hear` follows a hash in progress
    /// (file, bytes done, bytes in all).
    pub(crate) fn identity(
        &self,
        engine: &Engine,
        store: &Store,
        hear: &mut dyn FnMut(&Path, u64, u64),
    ) -> Result<Identity> {
        let mut hashes = self.weights.iter().map(|c| c.hash(store, hear)).collect::<Result<Vec<_>>>()?;
        let weights = match (hashes.len(), hashes.pop()) {
            (1, Some(one)) => one,
            (_, last) => {
                // Shards, in the order of their names in the index.
                hashes.extend(last);
                let all: String = hashes.iter().map(Hash::to_string).collect();
                Hash::of(all.as_bytes())
            }
        };
        let model = engine.model();
        let numerics = match model.backend().numerics() {
            Numerics::Exact => "exact",
            Numerics::Int8 => "int8",
        };
        // The windowed layers' pages are objects of their own.
        let apart = if model.standing().windowed() { ", windows apart" } else { "" };
        let plan = format!("{:?}", model.plan());
        let fields = [
            ("adapter", "none".to_owned()),
            ("cache", format!("{} in pages of {PAGE_TOKENS}{apart}", engine.cache().name)),
            ("numerics", format!("{NUMERICS_VERSION} {numerics}, blocks of {ACT_BLOCK}, spans of {SPAN_PAGES}")),
            ("plan", Hash::of(plan.as_bytes()).to_string()),
            ("template", self.template.as_ref().map_or("none".into(), |t| Hash::of(t.as_bytes()).to_string())),
            ("tokenizer", self.tokenizer.hash(store, hear)?.to_string()),
            ("weights", weights.to_string()),
        ];
        Ok(fields.into_iter().map(|(field, value)| (field.to_owned(), value)).collect())
    }
}

/// Opens the store at `place`, or the user's own.
pub(crate) fn open_store(place: Option<&Path>) -> Result<Store> {
    let open = || match place {
        Some(place) => Store::open(place),
        None => Store::open(&Store::home()?),
    };
    open().map_err(|e| Error::Engine(e.into()))
}
