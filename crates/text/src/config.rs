//! The JSON files beside a model that concern text: tokenizer_config.json (special tokens, chat templates) and
//! generation_config.json (how its makers sample). A field of the wrong type is refused by name. It refuses to know config.json.

use serde_json::{Map, Value};

use crate::error::{Result, TextError, excerpt};

const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
const CHAT_TEMPLATE: &str = "chat_template.json";

/// Names of special tokens and the text that each stands for, as a chat template sees them: `bos_token`, `eos_token` …
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens(Vec<(String, String)>);

impl SpecialTokens {
    /// No special tokens.
    pub fn none() -> Self {
        Self::default()
    }

    /// Sets a token, such as `bos_token` to `<s>`; an earlier one of that name is replaced.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, token: impl Into<String>) -> Self {
        let (name, token) = (name.into(), token.into());
        self.0.retain(|(other, _)| *other != name);
        self.0.push((name, token));
        self
    }

    /// The text of a token.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(other, _)| other == name).map(|(_, token)| token.as_str())
    }

    /// Every name and text.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, token)| (name.as_str(), token.as_str()))
    }
}

/// The chat templates that a model comes with: one, or several by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TemplateSources(Vec<(String, String)>);

/// Name of a model's template when it has only one.
const DEFAULT: &str = "default";
/// Name of the template for conversations with tools.
const TOOL_USE: &str = "tool_use";

impl TemplateSources {
    /// One template, as in a chat_template.jinja.
    pub fn single(source: impl Into<String>) -> Self {
        Self(vec![(DEFAULT.into(), source.into())])
    }

    /// Reads a chat_template.json: an object whose `chat_template` is a template or a list of named ones.
    pub fn from_json_bytes(json: &[u8]) -> Result<Self> {
        let file = Fields::parse(CHAT_TEMPLATE, json)?;
        Ok(file.templates()?.unwrap_or_default())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Names, in the file's order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    /// The template of that name; without a name, `tool_use` when there are tools and such a template, else `default`.
    pub fn select(&self, name: Option<&str>, tools: Tools) -> Result<&str> {
        let find = |wanted: &str| self.0.iter().find(|(name, _)| name == wanted).map(|(_, source)| source.as_str());
        let (wanted, found) = match (name, tools) {
            (Some(name), _) => (name, find(name)),
            (None, Tools::Some) => (DEFAULT, find(TOOL_USE).or_else(|| find(DEFAULT))),
            (None, Tools::None) => (DEFAULT, find(DEFAULT)),
        };
        found.ok_or_else(|| {
            let names: Vec<&str> = self.names().collect();
            let available = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            TextError::TemplateMissing { wanted: wanted.to_owned(), available }
        })
    }
}

/// Whether a conversation offers tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tools {
    /// It does.
    Some,
    /// It does not.
    None,
}

/// What tokenizer_config.json says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TokenizerConfig {
    /// `bos_token`, `eos_token`, `unk_token`, `pad_token` and the other named tokens.
    pub special: SpecialTokens,
    /// `chat_template`.
    pub templates: TemplateSources,
    /// `tokenizer_class`.
    pub tokenizer_class: Option<String>,
    /// `model_max_length` in tokens; absent when the file holds the huge number that stands for "unknown".
    pub model_max_tokens: Option<u64>,
    /// `add_bos_token`.
    pub add_bos_token: Option<bool>,
    /// `add_eos_token`.
    pub add_eos_token: Option<bool>,
}

impl TokenizerConfig {
    /// Reads a tokenizer_config.json.
    pub fn from_json_bytes(json: &[u8]) -> Result<Self> {
        let file = Fields::parse(TOKENIZER_CONFIG, json)?;
        let mut special = SpecialTokens::none();
        for name in file.object.keys().filter(|name| name.ends_with("_token") && !name.starts_with("add_")) {
            if let Some(token) = file.token(name)? {
                special = special.with(name.as_str(), token);
            }
        }
        Ok(Self {
            special,
            templates: file.templates()?.unwrap_or_default(),
            tokenizer_class: file.get("tokenizer_class", "a string", |v| v.as_str().map(str::to_owned))?,
            // Above 2^53 it is Python's int(1e30), the mark of "no limit known".
            model_max_tokens: file
                .get("model_max_length", "a positive number", |v| v.as_f64().filter(|n| *n >= 1.0))?
                .filter(|n| *n < 9_007_199_254_740_992.0)
                .map(|n| n as u64),
            add_bos_token: file.get("add_bos_token", "true or false", Value::as_bool)?,
            add_eos_token: file.get("add_eos_token", "true or false", Value::as_bool)?,
        })
    }
}

/// What generation_config.json says; what it does not say is `None`, never a guess.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationConfig {
    /// `bos_token_id`.
    pub bos_token_id: Option<u32>,
    /// `eos_token_id`, one or several.
    pub eos_token_ids: Vec<u32>,
    /// `pad_token_id`.
    pub pad_token_id: Option<u32>,
    /// `do_sample`: `Some(false)` asks for greedy decoding.
    pub do_sample: Option<bool>,
    /// `temperature`, 0 or more.
    pub temperature: Option<f32>,
    /// `top_k`, 0 is off.
    pub top_k: Option<u32>,
    /// `top_p`, 0 to 1.
    pub top_p: Option<f32>,
    /// `min_p`, 0 to 1.
    pub min_p: Option<f32>,
    /// `typical_p`, 0 to 1.
    pub typical_p: Option<f32>,
    /// `repetition_penalty`, above 0; 1 is off.
    pub repetition_penalty: Option<f32>,
    /// `no_repeat_ngram_size`, 0 is off.
    pub no_repeat_ngram_size: Option<u32>,
    /// `max_new_tokens`.
    pub max_new_tokens: Option<u32>,
    /// `max_length`, prompt included.
    pub max_length: Option<u32>,
}

impl GenerationConfig {
    /// Reads a generation_config.json.
    pub fn from_json_bytes(json: &[u8]) -> Result<Self> {
        let file = Fields::parse(GENERATION_CONFIG, json)?;
        let share = |field| file.get(field, "a number from 0 to 1", |v| float(v).filter(|p| (0.0..=1.0).contains(p)));
        Ok(Self {
            bos_token_id: file.integer("bos_token_id")?,
            eos_token_ids: file
                .get("eos_token_id", "a token id or a list of token ids", |v| match v {
                    Value::Array(ids) => ids.iter().map(integer).collect(),
                    id => integer(id).map(|id| vec![id]),
                })?
                .unwrap_or_default(),
            pad_token_id: file.integer("pad_token_id")?,
            do_sample: file.get("do_sample", "true or false", Value::as_bool)?,
            temperature: file.get("temperature", "a number of 0 or more", |v| float(v).filter(|t| *t >= 0.0))?,
            top_k: file.integer("top_k")?,
            top_p: share("top_p")?,
            min_p: share("min_p")?,
            typical_p: share("typical_p")?,
            repetition_penalty: file
                .get("repetition_penalty", "a number above 0", |v| float(v).filter(|p| *p > 0.0))?,
            no_repeat_ngram_size: file.integer("no_repeat_ngram_size")?,
            max_new_tokens: file.integer("max_new_tokens")?,
            max_length: file.integer("max_length")?,
        })
    }
}

fn integer(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|n| u32::try_from(n).ok())
}

fn float(value: &Value) -> Option<f32> {
    value.as_f64().map(|n| n as f32).filter(|n| n.is_finite())
}

struct Fields {
    file: &'static str,
    object: Map<String, Value>,
}

impl Fields {
    fn parse(file: &'static str, json: &[u8]) -> Result<Self> {
        let object = serde_json::from_slice(json).map_err(|e| TextError::Json { file, reason: e.to_string() })?;
        Ok(Self { file, object })
    }

    fn wrong(&self, field: impl Into<String>, expected: &'static str, found: &Value) -> TextError {
        TextError::Field { file: self.file, field: field.into(), expected, found: excerpt(&found.to_string()) }
    }

    /// Absent and null are `None`; what `read` cannot take is an error that names the field.
    fn get<T>(&self, field: &str, expected: &'static str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<T>> {
        match self.object.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => read(value).map(Some).ok_or_else(|| self.wrong(field, expected, value)),
        }
    }

    fn integer(&self, field: &str) -> Result<Option<u32>> {
        self.get(field, "a whole number from 0 to 4294967295", integer)
    }

    /// A token is its text, or an object with its text as `content`.
    fn token(&self, field: &str) -> Result<Option<String>> {
        self.get(field, "a string or an object with the string `content`", |value| match value {
            Value::Object(token) => token.get("content").and_then(Value::as_str).map(str::to_owned),
            text => text.as_str().map(str::to_owned),
        })
    }

    fn templates(&self) -> Result<Option<TemplateSources>> {
        const EXPECTED: &str = "a template or a list of objects with `name` and `template`";
        self.get("chat_template", EXPECTED, |value| match value {
            Value::String(source) => Some(TemplateSources::single(source)),
            Value::Array(list) => {
                let named = list.iter().map(|entry| {
                    let name = entry.get("name")?.as_str()?;
                    Some((name.to_owned(), entry.get("template")?.as_str()?.to_owned()))
                });
                named.collect::<Option<Vec<_>>>().map(TemplateSources)
            }
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests;
