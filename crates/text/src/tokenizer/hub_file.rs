//! Reads tokenizer.json, part by part, so that an error names its part; what could make a later stage stumble is refused here.
//! The format is that of Hugging Face `tokenizers`, version "1.0". It refuses to know how text is cut.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

use serde::de::{self, DeserializeOwned, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use tokenizers::models::bpe::{self, BPE};
use tokenizers::{AddedToken, Model, ModelWrapper};

use super::pipeline::{Frame, Pipeline, PipelineParts};
use super::spelling::Spelling;
use super::{Encoder, Kind, MAX_ID, Pieces, Tokenizer};
use crate::error::{Result, TextError, excerpt};

#[derive(Deserialize)]
struct File<'a> {
    version: Option<String>,
    #[serde(borrow)]
    added_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    normalizer: Option<&'a RawValue>,
    #[serde(borrow)]
    pre_tokenizer: Option<&'a RawValue>,
    #[serde(borrow)]
    post_processor: Option<&'a RawValue>,
    #[serde(borrow)]
    decoder: Option<&'a RawValue>,
    #[serde(borrow)]
    model: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct NumberedToken {
    id: u32,
    #[serde(flatten)]
    token: AddedToken,
}

#[derive(Deserialize)]
struct ModelHead {
    #[serde(rename = "type")]
    kind: Option<String>,
    merges: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct BpeFile<'a> {
    dropout: Option<f32>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    fuse_unk: bool,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    #[serde(borrow)]
    vocab: Vocab<'a>,
    merges: Vec<Merge>,
}

/// A JSON object of token → id, in the file's order.
struct Vocab<'a>(Vec<(Cow<'a, str>, u32)>);

/// Two token names, written `["a", "b"]` or `"a b"`.
struct Merge(String, String);

pub(super) fn read(json: &[u8]) -> Result<Tokenizer> {
    let text =
        std::str::from_utf8(json).map_err(|e| refuse("file", format!("not UTF-8 at byte {}", e.valid_up_to())))?;
    let file: File<'_> = serde_json::from_str(text).map_err(|e| refuse("file", format!("not a tokenizer: {e}")))?;
    if let Some(version) = file.version.as_deref().filter(|v| *v != "1.0") {
        return Err(refuse("version", format!("expected \"1.0\", found {:?}", excerpt(version))));
    }
    let added: Vec<NumberedToken> = part("added_tokens", file.added_tokens)?.unwrap_or_default();
    let model = file.model.ok_or_else(|| refuse("model", "missing; expected an object with a vocabulary".into()))?;
    let (model, vocab) = read_model(model, &added)?;

    let parts = PipelineParts {
        normalizer: part("normalizer", file.normalizer)?,
        pre_tokenizer: part("pre_tokenizer", file.pre_tokenizer)?,
        model,
        added: added.iter().map(|t| t.token.clone()).collect(),
        frame: part("post_processor", file.post_processor)?.map_or(Frame::None, |p| Frame::PostProcessor(Box::new(p))),
    };
    let pipeline = Pipeline::new(parts).map_err(|e| refuse("added_tokens", e.to_string()))?;
    for declared in added.iter().filter(|t| !t.token.content.is_empty()) {
        let given = pipeline.id_of(&declared.token.content);
        if given != Some(declared.id) {
            let (name, id) = (excerpt(&declared.token.content), declared.id);
            return Err(refuse("added_tokens", format!("token {name:?} claims id {id}, which another token holds")));
        }
    }

    let spelling = Spelling::from_json(file.decoder.map(RawValue::get))?;
    let mut pieces = Pieces::new(spelling.leading);
    let specials: HashMap<u32, Kind> =
        pipeline.added().map(|(id, _, token)| (id, if token.special { Kind::Special } else { Kind::Text })).collect();
    let added_names = pipeline.added().map(|(id, name, _)| (Cow::Owned(name), id));
    for (name, id) in vocab.into_iter().filter(|(_, id)| !specials.contains_key(id)).chain(added_names) {
        let kind = specials.get(&id).copied().unwrap_or(Kind::Text);
        if !pieces.set(id, &spelling.bytes(&name), kind) {
            return Err(absurd_id(&name, id));
        }
    }
    Ok(Tokenizer::from_parts(Encoder::Pipeline(Box::new(pipeline)), pieces))
}

fn part<T: DeserializeOwned>(name: &'static str, json: Option<&RawValue>) -> Result<Option<T>> {
    match json.map(RawValue::get) {
        None | Some("null") => Ok(None),
        Some(json) => serde_json::from_str(json).map(Some).map_err(|e| refuse(name, e.to_string())),
    }
}

type Names<'a> = Vec<(Cow<'a, str>, u32)>;

fn read_model<'a>(json: &'a RawValue, added: &[NumberedToken]) -> Result<(ModelWrapper, Names<'a>)> {
    let head: ModelHead = serde_json::from_str(json.get()).map_err(|e| refuse("model", e.to_string()))?;
    match head.kind.as_deref() {
        Some("BPE") => read_bpe(json, added),
        None if head.merges.is_some() => read_bpe(json, added),
        Some("Unigram" | "WordLevel") => {
            let model: ModelWrapper = serde_json::from_str(json.get()).map_err(|e| refuse("model", e.to_string()))?;
            let vocab: Names<'static> =
                model.get_vocab().into_iter().map(|(name, id)| (Cow::Owned(name), id)).collect();
            check_ids(&vocab, added)?;
            Ok((model, vocab))
        }
        found => {
            let found = found.map_or_else(|| "nothing".to_owned(), excerpt);
            Err(TextError::UnknownName {
                field: "tokenizer.json: model.type",
                found,
                known: "BPE, Unigram, WordLevel".into(),
            })
        }
    }
}

fn read_bpe<'a>(json: &'a RawValue, added: &[NumberedToken]) -> Result<(ModelWrapper, Names<'a>)> {
    let file: BpeFile<'a> = serde_json::from_str(json.get()).map_err(|e| refuse("model", e.to_string()))?;
    if file.dropout.is_some_and(|p| p != 0.0) {
        return Err(refuse("model.dropout", "merge dropout makes encoding random; set it to null".into()));
    }
    let mut vocab = file.vocab.0;
    let mut names = check_ids(&vocab, added)?;
    if let Some(unk) = file.unk_token.as_deref().filter(|unk| !names.contains_key(*unk)) {
        return Err(refuse("model.unk_token", format!("{:?} is not in the vocabulary", excerpt(unk))));
    }
    let merges: Vec<(String, String)> = file.merges.into_iter().map(|merge| (merge.0, merge.1)).collect();
    let longest = vocab.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    check_merges(&merges, file.continuing_subword_prefix.as_deref().unwrap_or(""), longest)?;
    let strays = strays(added, &names);
    names.extend(strays.iter().map(|(name, id)| (name.to_string(), *id)));
    vocab.extend(strays);

    let mut builder = BPE::builder()
        .vocab_and_merges(names, merges)
        .fuse_unk(file.fuse_unk)
        .byte_fallback(file.byte_fallback)
        .ignore_merges(file.ignore_merges);
    if let Some(unk) = file.unk_token {
        builder = builder.unk_token(unk);
    }
    if let Some(prefix) = file.continuing_subword_prefix {
        builder = builder.continuing_subword_prefix(prefix);
    }
    if let Some(suffix) = file.end_of_word_suffix {
        builder = builder.end_of_word_suffix(suffix);
    }
    let model = builder.build().map_err(|e| refuse("model.merges", e.to_string()))?;
    Ok((ModelWrapper::BPE(model), vocab))
}

/// Names → ids, after checking that every id has one name and is plausible.
fn check_ids(vocab: &Names<'_>, added: &[NumberedToken]) -> Result<bpe::Vocab> {
    let mut names = bpe::Vocab::with_capacity(vocab.len());
    let mut holders: Vec<Option<&str>> = Vec::with_capacity(vocab.len());
    let claims = vocab.iter().map(|(name, id)| ("model.vocab", name.as_ref(), *id));
    for (part, name, id) in claims.chain(added.iter().map(|t| ("added_tokens", t.token.content.as_str(), t.id))) {
        if id > MAX_ID {
            return Err(refuse(part, format!("token {:?} has id {id}; expected at most {MAX_ID}", excerpt(name))));
        }
        let index = id as usize;
        if index >= holders.len() {
            holders.resize(index + 1, None);
        }
        match holders.get_mut(index) {
            Some(Some(holder)) if *holder != name => {
                let (a, b) = (excerpt(holder), excerpt(name));
                return Err(refuse(part, format!("id {id} belongs to two tokens, {a:?} and {b:?}")));
            }
            Some(holder) => *holder = Some(name),
            None => {}
        }
        if part == "model.vocab" && names.insert(name.to_owned(), id).is_some() {
            return Err(refuse(part, format!("token {:?} appears twice", excerpt(name))));
        }
    }
    Ok(names)
}

/// `tokenizers` numbers added tokens by counting up from the size of the vocabulary. Where that would miss a declared id,
/// the tokens outside the vocabulary join it, each under its own id.
fn strays<'a>(added: &[NumberedToken], names: &bpe::Vocab) -> Names<'a> {
    let outside = || added.iter().filter(|t| !names.contains_key(&t.token.content));
    let in_order = outside().zip(names.len()..).all(|(token, next)| token.id as usize == next);
    if in_order {
        return Vec::new();
    }
    outside().map(|t| (Cow::Owned(t.token.content.clone()), t.id)).collect()
}

/// What the model's builder takes for granted: that what a merge makes is no longer than the longest token, and that the
/// second part has the prefix. That the parts and the result are tokens it checks itself.
fn check_merges(merges: &[(String, String)], prefix: &str, longest: usize) -> Result<()> {
    for (index, (left, right)) in merges.iter().enumerate() {
        let merge = || format!("merge {index} of {:?} and {:?}", excerpt(left), excerpt(right));
        match right.strip_prefix(prefix) {
            None => return Err(refuse("model.merges", format!("{}: the second lacks the prefix {prefix:?}", merge()))),
            Some(tail) if left.len() + tail.len() > longest => {
                return Err(refuse("model.merges", format!("{}: the result is longer than any token", merge())));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

fn absurd_id(name: &str, id: u32) -> TextError {
    refuse("model.vocab", format!("token {:?} has id {id}; expected at most {MAX_ID}", excerpt(name)))
}

fn refuse(part: &'static str, reason: String) -> TextError {
    TextError::TokenizerFile { part, reason }
}

impl<'de: 'a, 'a> Deserialize<'de> for Vocab<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Vocab<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of token to id")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocab<'de>, A::Error> {
                let mut entries = Vec::new();
                while let Some((Name(name), id)) = map.next_entry::<Name<'de>, u32>()? {
                    entries.push((name, id));
                }
                Ok(Vocab(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// A string that is borrowed from the file unless it holds escapes.
struct Name<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Name<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Borrowed(text)))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pair;
        impl<'de> Visitor<'de> for Pair {
            type Value = Merge;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a merge, [\"a\", \"b\"] or \"a b\"")
            }

            fn visit_str<E: de::Error>(self, line: &str) -> Result<Merge, E> {
                match line.split_once(' ') {
                    Some((left, right)) if !right.contains(' ') => Ok(Merge(left.to_owned(), right.to_owned())),
                    _ => Err(E::invalid_value(de::Unexpected::Str(line), &self)),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Merge, A::Error> {
                match (seq.next_element()?, seq.next_element()?, seq.next_element::<IgnoredAny>()?) {
                    (Some(left), Some(right), None) => Ok(Merge(left, right)),
                    _ => Err(de::Error::invalid_length(0, &self)),
                }
            }
        }
        deserializer.deserialize_any(Pair)
    }
}
