//! A JSON file of settings with getters that say which field, what was found and what was expected. It knows no field:
//! spellings and defaults are the callers' business. A null counts as absent.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, Result, excerpt};

/// An object of settings and the file that it came from.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    path: PathBuf,
    /// Where the object lies in the file: empty, or `text_config.`.
    prefix: String,
    fields: Map<String, Value>,
}

impl ModelConfig {
    /// Parses a file's text. Python writes NaN and Infinity into JSON; they are read as the strings of that name.
    pub fn parse(path: &Path, text: &str) -> Result<ModelConfig> {
        let parsed = serde_json::from_str(text).or_else(|e| match quote_non_finite(text) {
            Cow::Owned(quoted) => serde_json::from_str(&quoted),
            Cow::Borrowed(_) => Err(e),
        });
        match parsed {
            Ok(Value::Object(fields)) => Ok(ModelConfig { path: path.to_owned(), prefix: String::new(), fields }),
            Ok(other) => Err(Error::format(path, "file", kind(&other), "a JSON object")),
            Err(e) => Err(Error::format(path, "file", excerpt(&e.to_string()), "a JSON object")),
        }
    }

    /// A config that is already an object.
    pub fn new(path: &Path, fields: Map<String, Value>) -> ModelConfig {
        ModelConfig { path: path.to_owned(), prefix: String::new(), fields }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All fields.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.fields
    }

    /// The field's value; none if it is absent or null.
    pub fn get(&self, field: &str) -> Option<&Value> {
        self.fields.get(field).filter(|value| !value.is_null())
    }

    /// True if the field is there and not null.
    pub fn has(&self, field: &str) -> bool {
        self.get(field).is_some()
    }

    /// Of several spellings of one field, the one that is there; the first if none is.
    pub fn spelling<'n>(&self, names: &[&'n str]) -> &'n str {
        names.iter().find(|n| self.has(n)).or(names.first()).copied().unwrap_or_default()
    }

    /// An error about a field, for checks that the getters do not make.
    pub fn refuse(&self, field: &str, found: impl std::fmt::Display, expected: impl Into<String>) -> Error {
        Error::format(&self.path, format!("field {}{field}", self.prefix), found, expected)
    }

    fn wrong(&self, field: &str, value: &Value, expected: &str) -> Error {
        self.refuse(field, format!("{} {}", kind(value), excerpt(&value.to_string())), expected)
    }

    fn read<'a, T>(
        &'a self,
        field: &str,
        expected: &str,
        as_t: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        match self.get(field) {
            None => Ok(None),
            Some(value) => as_t(value).map(Some).ok_or_else(|| self.wrong(field, value, expected)),
        }
    }

    fn need<T>(&self, field: &str, expected: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| self.refuse(field, "nothing", expected))
    }

    /// A nested object, whose errors name it; none if it is absent.
    pub fn section(&self, field: &str) -> Result<Option<ModelConfig>> {
        let fields = self.read(field, "an object", |v| v.as_object().cloned())?;
        let prefix = format!("{}{field}.", self.prefix);
        Ok(fields.map(|fields| ModelConfig { path: self.path.clone(), prefix, fields }))
    }

    /// A count or size; none if it is absent.
    pub fn optional_usize(&self, field: &str) -> Result<Option<usize>> {
        self.read(field, COUNT, as_usize)
    }

    /// A count or size.
    pub fn usize(&self, field: &str) -> Result<usize> {
        self.need(field, COUNT, self.optional_usize(field)?)
    }

    /// A count or size, with a default.
    pub fn usize_or(&self, field: &str, default: usize) -> Result<usize> {
        Ok(self.optional_usize(field)?.unwrap_or(default))
    }

    /// A number; none if it is absent.
    pub fn optional_f64(&self, field: &str) -> Result<Option<f64>> {
        self.read(field, NUMBER, as_f64)
    }

    /// A number.
    pub fn f64(&self, field: &str) -> Result<f64> {
        self.need(field, NUMBER, self.optional_f64(field)?)
    }

    /// A number, with a default.
    pub fn f64_or(&self, field: &str, default: f64) -> Result<f64> {
        Ok(self.optional_f64(field)?.unwrap_or(default))
    }

    /// A bool; none if it is absent.
    pub fn optional_bool(&self, field: &str) -> Result<Option<bool>> {
        self.read(field, "true or false", Value::as_bool)
    }

    /// A bool, false if it is absent.
    pub fn flag(&self, field: &str) -> Result<bool> {
        Ok(self.optional_bool(field)?.unwrap_or(false))
    }

    /// A string; none if it is absent.
    pub fn optional_text(&self, field: &str) -> Result<Option<&str>> {
        self.read(field, "a string", Value::as_str)
    }

    /// A string.
    pub fn text(&self, field: &str) -> Result<&str> {
        self.need(field, "a string", self.optional_text(field)?)
    }

    /// A list of counts; none if it is absent.
    pub fn optional_usizes(&self, field: &str) -> Result<Option<Vec<usize>>> {
        self.read(field, "a list of non-negative integers", |v| v.as_array()?.iter().map(as_usize).collect())
    }

    /// A list of numbers; none if it is absent.
    pub fn optional_f64s(&self, field: &str) -> Result<Option<Vec<f64>>> {
        self.read(field, "a list of numbers", |v| v.as_array()?.iter().map(as_f64).collect())
    }

    /// A list of strings; none if it is absent.
    pub fn optional_texts(&self, field: &str) -> Result<Option<Vec<&str>>> {
        self.read(field, "a list of strings", |v| v.as_array()?.iter().map(Value::as_str).collect())
    }

    /// One id or a list of ids, as `eos_token_id` is written; empty if it is absent.
    pub fn ids(&self, field: &str) -> Result<Vec<u32>> {
        let id = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = self.read(field, "a token id or a list of token ids", |value| match value {
            Value::Array(list) => list.iter().map(id).collect(),
            one => id(one).map(|id| vec![id]),
        });
        Ok(ids?.unwrap_or_default())
    }
}

const COUNT: &str = "a non-negative integer";
const NUMBER: &str = "a number";

/// Integers, and floats without a fraction (some converters write 4096.0).
fn as_usize(value: &Value) -> Option<usize> {
    const EXACT: f64 = (1u64 << 53) as f64;
    let whole = || value.as_f64().filter(|f| f.fract() == 0.0 && (0.0..EXACT).contains(f)).map(|f| f as u64);
    value.as_u64().or_else(whole).and_then(|n| usize::try_from(n).ok())
}

fn as_f64(value: &Value) -> Option<f64> {
    match value.as_str() {
        Some("Infinity") => Some(f64::INFINITY),
        Some("-Infinity") => Some(f64::NEG_INFINITY),
        Some("NaN") => Some(f64::NAN),
        _ => value.as_f64(),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "list",
        Value::Object(_) => "object",
    }
}

/// Puts bare `NaN`, `Infinity` and `-Infinity` between quotes; borrowed if there is none.
fn quote_non_finite(text: &str) -> Cow<'_, str> {
    const WORDS: [&str; 3] = ["NaN", "-Infinity", "Infinity"];
    let mut out = String::new();
    let (mut copied, mut at, mut quoted) = (0, 0, false);
    while let Some(byte) = text.as_bytes().get(at) {
        match byte {
            b'\\' if quoted => at += 1,
            b'"' => quoted = !quoted,
            b'N' | b'I' | b'-' if !quoted => {
                if let Some(word) = WORDS.iter().find(|word| text.as_bytes()[at..].starts_with(word.as_bytes())) {
                    out.push_str(&text[copied..at]);
                    out.extend(["\"", word, "\""]);
                    at += word.len();
                    copied = at;
                    continue;
                }
            }
            _ => {}
        }
        at += 1;
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    out.push_str(&text[copied..]);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> ModelConfig {
        ModelConfig::parse(Path::new("m/config.json"), text).unwrap()
    }

    #[test]
    fn getters_read_what_is_there() {
        let c = config(
            r#"{"n": 3, "whole": 4.0, "f": 1e-6, "none": null, "s": "x", "b": true, "l": [1, 2], "ids": 7,
                "text_config": {"n": 5}}"#,
        );
        assert_eq!(c.usize("n").unwrap(), 3);
        assert_eq!(c.usize("whole").unwrap(), 4);
        assert_eq!(c.f64("f").unwrap(), 1e-6);
        assert_eq!(c.f64("n").unwrap(), 3.0);
        assert_eq!(c.optional_usize("none").unwrap(), None);
        assert_eq!(c.usize_or("gone", 9).unwrap(), 9);
        assert_eq!(c.text("s").unwrap(), "x");
        assert!(c.flag("b").unwrap() && !c.flag("gone").unwrap());
        assert_eq!(c.optional_usizes("l").unwrap().unwrap(), [1, 2]);
        assert_eq!((c.ids("ids").unwrap(), c.ids("l").unwrap(), c.ids("gone").unwrap()), (vec![7], vec![1, 2], vec![]));
        assert_eq!(c.section("text_config").unwrap().unwrap().usize("n").unwrap(), 5);
    }

    #[test]
    fn errors_name_file_field_found_and_expected() {
        let c = config(r#"{"n": -3, "s": "x", "rope": {"factor": "big"}}"#);
        let error = c.usize("n").unwrap_err().to_string();
        assert!(error.contains("m/config.json") && error.contains("field n") && error.contains("-3"), "{error}");
        assert!(error.contains("non-negative integer"), "{error}");
        let error = c.usize("hidden_size").unwrap_err().to_string();
        assert!(error.contains("hidden_size") && error.contains("nothing"), "{error}");
        let error = c.section("rope").unwrap().unwrap().f64("factor").unwrap_err().to_string();
        assert!(error.contains("rope.factor") && error.contains("big"), "{error}");
        assert!(c.section("s").is_err() && c.ids("s").is_err());
        assert!(config(r#"{"n": 1e300}"#).usize("n").is_err());
        assert!(config(r#"{"n": 0.5}"#).usize("n").is_err());
    }

    #[test]
    fn python_infinities_are_numbers_and_strings_stay() {
        let c = config(r#"{"limit": [0.0, Infinity], "low": -Infinity, "s": "Infinity \" NaN", "n": -1}"#);
        assert_eq!(c.optional_f64s("limit").unwrap().unwrap(), [0.0, f64::INFINITY]);
        assert_eq!(c.f64("low").unwrap(), f64::NEG_INFINITY);
        assert_eq!(c.text("s").unwrap(), "Infinity \" NaN");
        assert_eq!(c.f64("n").unwrap(), -1.0);
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for text in ["", "[]", "3", "{", "{\"a\": }", "NaN", "\u{0}"] {
            assert!(ModelConfig::parse(Path::new("c"), text).is_err(), "{text:?}");
        }
    }
}
