//! A model on disk as one thing: a Hugging Face folder, a GGUF file, or a folder held in the program. It gathers config,
//! weights, tokenizer files and templates, and says by name what is missing. It refuses to know families and fields.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use reverie_tensor::quant::QuantEntry;

use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::gguf::{Gguf, GgufVocab, Metadata};
use crate::place::Place;
use crate::quantisation::Quantisation;
use crate::safetensors::SafeTensors;
use crate::weights::Weights;

/// An opened model.
#[derive(Debug)]
pub struct Checkpoint {
    /// What it was opened from.
    pub path: PathBuf,
    /// What describes it.
    pub origin: Origin,
    /// Its tensors; they stay open as long as somebody holds them.
    pub weights: Arc<Weights>,
}

/// What describes a model, by the kind of its files.
#[derive(Debug)]
pub enum Origin {
    /// A folder in the Hugging Face layout.
    Folder {
        /// Its files.
        place: Place,
        /// config.json.
        config: ModelConfig,
    },
    /// A GGUF file.
    Gguf {
        /// Its keys.
        metadata: Metadata,
    },
}

/// Chat templates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Templates {
    /// The one to use where nothing else is asked for.
    pub default: Option<String>,
    /// Others by name, such as `tool_use`.
    pub named: Vec<(String, String)>,
}

const CONFIG: &str = "config.json";

impl Checkpoint {
    /// Opens a folder or a .gguf file. `rows` are the weight formats to accept.
    pub fn open(path: &Path, rows: &[QuantEntry]) -> Result<Checkpoint> {
        if path.is_dir() {
            return Checkpoint::from_place(Place::Folder(path.to_owned()), rows);
        }
        if !path.exists() {
            return Err(Error::missing(path, "model", "a folder with config.json, or a .gguf file; check the path"));
        }
        if path.extension().is_some_and(|ending| ending == "safetensors") {
            let looked_for = "a folder with config.json; give the folder that holds this file";
            return Err(Error::missing(path, "model", looked_for));
        }
        let file = Gguf::open(path, rows)?;
        Ok(Checkpoint::from_gguf(path, file))
    }

    /// Opens a folder that is held in the program, under a name for messages.
    pub fn embedded(
        name: &'static str,
        files: &'static [(&'static str, &'static [u8])],
        rows: &[QuantEntry],
    ) -> Result<Checkpoint> {
        Checkpoint::from_place(Place::Embedded(name, files), rows)
    }

    fn from_place(place: Place, rows: &[QuantEntry]) -> Result<Checkpoint> {
        let path = place.path();
        let Some(text) = place.text(CONFIG)? else {
            return Err(Error::missing(&path, CONFIG, missing_config(&place)));
        };
        let config = ModelConfig::parse(&place.path_of(CONFIG), &text)?;
        let quantisation = Quantisation::read(&config)?;
        let tensors = SafeTensors::open(&place)?;
        let weights = Arc::new(Weights::from_safetensors(&path, tensors, quantisation, rows));
        Ok(Checkpoint { path, origin: Origin::Folder { place, config }, weights })
    }

    fn from_gguf(path: &Path, mut file: Gguf) -> Checkpoint {
        let metadata = std::mem::take(&mut file.metadata);
        let weights = Arc::new(Weights::from_gguf(path, file));
        Checkpoint { path: path.to_owned(), origin: Origin::Gguf { metadata }, weights }
    }

    /// The config, for a folder.
    pub fn config(&self) -> Option<&ModelConfig> {
        match &self.origin {
            Origin::Folder { config, .. } => Some(config),
            Origin::Gguf { .. } => None,
        }
    }

    /// The keys, for a GGUF file.
    pub fn metadata(&self) -> Option<&Metadata> {
        match &self.origin {
            Origin::Folder { .. } => None,
            Origin::Gguf { metadata } => Some(metadata),
        }
    }

    fn place(&self) -> Option<&Place> {
        match &self.origin {
            Origin::Folder { place, .. } => Some(place),
            Origin::Gguf { .. } => None,
        }
    }

    /// A small file beside the config; none if it is not there, or if the model is a GGUF file.
    pub fn text(&self, name: &str) -> Result<Option<String>> {
        self.place().map_or(Ok(None), |place| place.text(name))
    }

    /// A JSON file beside the config; none if it is not there, or if the model is a GGUF file.
    pub fn json(&self, name: &str) -> Result<Option<ModelConfig>> {
        let Some(place) = self.place() else { return Ok(None) };
        place.text(name)?.map(|text| ModelConfig::parse(&place.path_of(name), &text)).transpose()
    }

    /// The bytes of tokenizer.json. A folder without it is refused, with what to do.
    pub fn tokenizer_json(&self) -> Result<Vec<u8>> {
        let found = self.place().map_or(Ok(None), |place| place.read("tokenizer.json"))?;
        found.map(std::borrow::Cow::into_owned).ok_or_else(|| {
            let looked_for = "tokenizer.json; download it from the model's page, or save it with transformers (tokenizer.model alone is not read)";
            Error::missing(&self.path, "tokenizer", looked_for)
        })
    }

    /// The vocabulary, for a GGUF file.
    pub fn gguf_vocab(&self) -> Result<Option<GgufVocab>> {
        self.metadata().map(GgufVocab::read).transpose()
    }

    /// tokenizer_config.json.
    pub fn tokenizer_config(&self) -> Result<Option<ModelConfig>> {
        self.json("tokenizer_config.json")
    }

    /// generation_config.json.
    pub fn generation_config(&self) -> Result<Option<ModelConfig>> {
        self.json("generation_config.json")
    }

    /// The chat templates: chat_template.jinja first, then `chat_template` of tokenizer_config.json and of
    /// chat_template.json; for a GGUF file its keys.
    pub fn templates(&self) -> Result<Templates> {
        if let Some(metadata) = self.metadata() {
            return templates_among(metadata);
        }
        let mut all = match self.tokenizer_config()? {
            Some(config) => templates_in(&config)?,
            None => Templates::default(),
        };
        if all.default.is_none()
            && let Some(config) = self.json("chat_template.json")?
        {
            all = templates_in(&config)?;
        }
        if let Some(text) = self.text("chat_template.jinja")? {
            all.default = Some(text);
        }
        Ok(all)
    }
}

/// `chat_template` as one string, or as a list of `{name, template}`.
fn templates_in(config: &ModelConfig) -> Result<Templates> {
    const FIELD: &str = "chat_template";
    let mut all = Templates::default();
    match config.get(FIELD) {
        None => {}
        Some(serde_json::Value::String(text)) => all.default = Some(text.clone()),
        Some(serde_json::Value::Array(list)) => {
            for item in list {
                let (name, template) = (item["name"].as_str(), item["template"].as_str());
                let (Some(name), Some(template)) = (name, template) else {
                    return Err(config.refuse(FIELD, "an item without them", "name and template in every item"));
                };
                match name {
                    "default" => all.default = Some(template.to_owned()),
                    _ => all.named.push((name.to_owned(), template.to_owned())),
                }
            }
        }
        Some(_) => return Err(config.refuse(FIELD, "another type", "a string or a list of name and template")),
    }
    Ok(all)
}

/// `tokenizer.chat_template`, and others as `tokenizer.chat_template.<name>`.
fn templates_among(metadata: &Metadata) -> Result<Templates> {
    const KEY: &str = "tokenizer.chat_template";
    let mut all = Templates { default: metadata.optional_text(KEY)?.map(str::to_owned), named: Vec::new() };
    for (key, _) in metadata.iter() {
        if let Some(name) = key.strip_prefix(KEY).and_then(|rest| rest.strip_prefix('.')) {
            all.named.push((name.to_owned(), metadata.text(key)?.to_owned()));
        }
    }
    Ok(all)
}

/// What to do about a folder without config.json.
fn missing_config(place: &Place) -> String {
    let names = place.names().unwrap_or_default();
    let gguf: Vec<_> = names.iter().filter(|n| n.ends_with(".gguf")).take(3).map(String::as_str).collect();
    if gguf.is_empty() {
        return format!("{CONFIG}; give a folder in the Hugging Face layout, or a .gguf file");
    }
    format!("{CONFIG}; for a GGUF model give the file itself: {}", gguf.join(", "))
}

#[cfg(test)]
mod tests;
