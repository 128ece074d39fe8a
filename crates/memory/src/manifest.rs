//! The manifest: what a sleeping state consists of. Token ids, text, turn marks, and the names of its pages and snapshots; canonical
//! JSON, so that any language reads it. Says nothing of what a page holds.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::error::{Error, Result, excerpt};
use crate::hash::Hash;

/// Everything the bytes of a state depend on: field (weights, tokenizer, template, adapter, plan, cache, numerics …) to value, both
/// opaque here and compared as they are.
pub type Identity = BTreeMap<String, String>;

/// Version of the format that this code writes and reads.
pub const MANIFEST_VERSION: u32 = 2;
/// Most raw bytes of a manifest.
pub const MAX_MANIFEST_BYTES: u64 = 256 << 20;
/// Most tokens of a page.
pub const MAX_PAGE_TOKENS: usize = 1 << 20;

/// A state as it was at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// When it was written, milliseconds since 1970.
    pub created_ms: u64,
    /// Opaque JSON of whoever wrote it, such as chat settings; null if none.
    pub extra: Value,
    /// The commit that this one was split from, under another name.
    #[serde(deserialize_with = "present")]
    pub forked_from: Option<Hash>,
    /// What the bytes depend on.
    pub identity: Identity,
    /// What the head reads at the last token, as the engine that wrote it has it. None: the first token after waking needs a forward
    /// pass.
    #[serde(deserialize_with = "present")]
    pub last: Option<Hash>,
    /// Tokens of a page.
    pub page_tokens: usize,
    /// One object a page of `page_tokens` tokens; the last may be partial. Empty where no layer keeps all its pages.
    pub pages: Vec<Hash>,
    /// The commit before this one under the same name.
    #[serde(deserialize_with = "present")]
    pub parent: Option<Hash>,
    /// Opaque JSON: the sampler's state; null if none.
    pub sampler: Value,
    /// State that cannot be cut at a token, by ascending position. If there is any, the state stands only where one is.
    pub snapshots: Vec<Snapshot>,
    /// What the tokens say.
    pub text: String,
    /// All token ids from the first.
    pub tokens: Vec<u32>,
    /// Ends of turns, ascending.
    pub turns: Vec<Turn>,
    /// [`MANIFEST_VERSION`].
    pub version: u32,
    /// Pages of the layers that see a window only, by ascending page: those that the snapshots need. Absent where there are none.
    #[serde(default, deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub windows: Vec<Window>,
}

/// A field that may be null and not absent.
fn present<'de, D: Deserializer<'de>>(field: D) -> std::result::Result<Option<Hash>, D::Error> {
    Option::deserialize(field)
}

/// A field that may be absent and not empty.
fn some<'de, D: Deserializer<'de>>(field: D) -> std::result::Result<Vec<Window>, D::Error> {
    let windows = Vec::deserialize(field)?;
    match windows.is_empty() {
        true => Err(serde::de::Error::custom("`windows` without a window; the field is to be absent then")),
        false => Ok(windows),
    }
}

/// A page of the layers that see a window only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// Its bytes.
    pub object: Hash,
    /// Its number, from 0.
    pub page: usize,
    /// Its first tokens that are there.
    pub tokens: usize,
}

impl Window {
    /// What of it lies within the first `tokens` of a text in pages of `page_tokens`, if anything does.
    pub fn within(self, page_tokens: usize, tokens: usize) -> Option<Window> {
        let left = tokens.checked_sub(self.page.checked_mul(page_tokens)?).filter(|&n| n > 0)?;
        Some(Window { tokens: self.tokens.min(left), ..self })
    }
}

/// State of all layers that cannot be cut, after `position` tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    /// Its bytes.
    pub object: Hash,
    /// Tokens before it.
    pub position: usize,
}

/// A turn of a conversation, by where it ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Turn {
    /// Who spoke.
    pub role: String,
    /// Byte of `text` at which it ends.
    pub text_end: usize,
    /// Tokens up to its end.
    pub tokens: usize,
}

impl Default for Manifest {
    /// The empty state: no tokens, pages of 64.
    fn default() -> Manifest {
        Manifest {
            created_ms: 0,
            extra: Value::Null,
            forked_from: None,
            identity: Identity::new(),
            last: None,
            page_tokens: 64,
            pages: Vec::new(),
            parent: None,
            sampler: Value::Null,
            snapshots: Vec::new(),
            text: String::new(),
            tokens: Vec::new(),
            turns: Vec::new(),
            version: MANIFEST_VERSION,
            windows: Vec::new(),
        }
    }
}

impl Manifest {
    /// The canonical bytes, whose hash is the manifest's name: JSON without white space, keys of every object in ascending order.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let broken = |e: serde_json::Error| Error::refused("a manifest", e, "what JSON can say");
        let (extra, sampler) = (ascending(self.extra.clone()), ascending(self.sampler.clone()));
        serde_json::to_vec(&Manifest { extra, sampler, ..self.clone() }).map_err(broken)
    }

    /// Parses and checks.
    pub fn parse(bytes: &[u8]) -> Result<Manifest> {
        let broken = |e: serde_json::Error| Error::refused("a manifest", e, "the JSON of docs/STATE-FORMAT.md");
        if bytes.len() as u64 > MAX_MANIFEST_BYTES {
            let expected = format!("at most {MAX_MANIFEST_BYTES} bytes");
            return Err(Error::refused("a manifest", format!("{} bytes", bytes.len()), expected));
        }
        /// The version alone, so that a later format is refused as such and not by its first new field.
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let Version { version } = serde_json::from_slice(bytes).map_err(broken)?;
        check_version(version)?;
        let manifest: Manifest = serde_json::from_slice(bytes).map_err(broken)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Verifies every bound inside: pages match tokens, turns and snapshots ascend and lie within, sizes are sane.
    pub fn check(&self) -> Result<()> {
        let refuse = |what: String, found: String, expected: String| {
            Err(Error::refused(format!("a manifest: {what}"), found, expected))
        };
        let n = self.tokens.len();
        check_version(self.version)?;
        if self.page_tokens == 0 || self.page_tokens > MAX_PAGE_TOKENS {
            return refuse("page_tokens".into(), self.page_tokens.to_string(), format!("1 to {MAX_PAGE_TOKENS}"));
        }
        let pages = n.div_ceil(self.page_tokens);
        let ends = self.snapshots.last().is_some_and(|s| s.position == n);
        let pageless = self.pages.is_empty() && (ends || self.windows.len() == pages);
        if self.pages.len() != pages && !pageless {
            let expected = format!("{pages}, as {n} tokens in pages of {} need", self.page_tokens);
            return refuse("pages".into(), self.pages.len().to_string(), expected);
        }
        let (mut tokens, mut text) = (0, 0);
        for (i, turn) in self.turns.iter().enumerate() {
            if turn.tokens <= tokens || turn.tokens > n {
                let expected = format!("more than {tokens} and at most {n}");
                return refuse(format!("turns[{i}].tokens"), turn.tokens.to_string(), expected);
            }
            if turn.text_end < text || !self.text.is_char_boundary(turn.text_end) {
                let expected = format!("{text} to {}, at the start of a character", self.text.len());
                return refuse(format!("turns[{i}].text_end"), turn.text_end.to_string(), expected);
            }
            if turn.role.len() > 64 {
                return refuse(format!("turns[{i}].role"), excerpt(&turn.role), "at most 64 bytes".into());
            }
            (tokens, text) = (turn.tokens, turn.text_end);
        }
        let mut least = 1;
        for (i, snapshot) in self.snapshots.iter().enumerate() {
            if snapshot.position < least || snapshot.position > n {
                let expected = format!("{least} to {n}");
                return refuse(format!("snapshots[{i}].position"), snapshot.position.to_string(), expected);
            }
            least = snapshot.position + 1;
        }
        let mut least = 0;
        for (i, window) in self.windows.iter().enumerate() {
            if window.page < least || window.page >= pages {
                let expected = format!("{least} or more, below {pages}");
                return refuse(format!("windows[{i}].page"), window.page.to_string(), expected);
            }
            let most = (n - window.page * self.page_tokens).min(self.page_tokens);
            if window.tokens == 0 || window.tokens > most {
                return refuse(format!("windows[{i}].tokens"), window.tokens.to_string(), format!("1 to {most}"));
            }
            least = window.page + 1;
        }
        if self.last.is_some() && n == 0 {
            return refuse("last".into(), "an object".into(), "null, as there is no token".into());
        }
        if let Some((field, value)) = self.identity.iter().find(|(f, v)| f.len() > 256 || v.len() > 65_536) {
            let expected = "fields of at most 256 bytes, values of at most 65536";
            return refuse(format!("identity '{}'", excerpt(field)), excerpt(value), expected.into());
        }
        Ok(())
    }

    /// All objects it names, each once a mention: pages, snapshots, windows, the last row.
    pub fn objects(&self) -> impl Iterator<Item = &Hash> {
        let snapshots = self.snapshots.iter().map(|s| &s.object);
        self.pages.iter().chain(snapshots).chain(self.windows.iter().map(|w| &w.object)).chain(&self.last)
    }

    /// The deepest position at or before `tokens` at which the state can stand: any, or that of a snapshot where there are some.
    pub fn stands(&self, tokens: usize) -> usize {
        let tokens = tokens.min(self.tokens.len());
        if self.snapshots.is_empty() {
            return tokens;
        }
        self.snapshots.iter().rev().map(|s| s.position).find(|&p| p <= tokens).unwrap_or(0)
    }

    /// The state at an earlier position, or None if it cannot stand there. The last page may then hold more rows than are meant; text
    /// ends with the last whole turn; last row and sampler belong to the end and are dropped, unless `tokens` is the end.
    pub fn cut(&self, tokens: usize) -> Option<Manifest> {
        if tokens > self.tokens.len() || self.stands(tokens) != tokens {
            return None;
        }
        let mut cut = self.clone();
        if tokens == self.tokens.len() {
            return Some(cut);
        }
        cut.tokens.truncate(tokens);
        cut.pages.truncate(tokens.div_ceil(self.page_tokens));
        cut.snapshots.retain(|s| s.position <= tokens);
        cut.windows = self.windows.iter().filter_map(|w| w.within(self.page_tokens, tokens)).collect();
        cut.turns.retain(|t| t.tokens <= tokens);
        cut.text.truncate(cut.turns.last().map_or(0, |t| t.text_end));
        (cut.last, cut.sampler) = (None, Value::Null);
        Some(cut)
    }
}

fn check_version(version: u32) -> Result<()> {
    if version == MANIFEST_VERSION {
        return Ok(());
    }
    let expected = format!("version {MANIFEST_VERSION}: take the release of reverie that wrote it");
    Err(Error::refused("a manifest", format!("version {version}"), expected))
}

/// The same value with the keys of every object in ascending order, whatever the map keeps.
fn ascending(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let sorted: BTreeMap<String, Value> = map.into_iter().map(|(k, v)| (k, ascending(v))).collect();
            Value::Object(sorted.into_iter().collect())
        }
        Value::Array(list) => Value::Array(list.into_iter().map(ascending).collect()),
        other => other,
    }
}

#[cfg(test)]
mod tests;
