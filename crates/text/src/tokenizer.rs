//! One tokenizer for every source: a Hugging Face tokenizer.json or the vocabulary of a GGUF file.
//! Text to ids, ids to text, ids to raw bytes. It refuses to know chats, streams and models.

mod hub_file;
mod pieces;
pub(crate) mod pipeline;
pub(crate) mod sentencepiece;
pub(crate) mod spelling;

use std::{fs, path::Path, sync::Arc};

use crate::detok::{Decoding, Position};
use crate::error::{Result, TextError};

pub(crate) use pieces::{Kind, Leading, MAX_ID, Pieces};

/// What the names of special tokens inside a text mean, and whether the text is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Specials {
    /// The name of a special token inside the text is text: for what a user typed or a document holds. Nothing is added.
    /// (Tokens that the vocabulary adds as ordinary text, such as `<think>` in some models, are still found.)
    Plain,
    /// Names of special tokens become their ids, nothing is added: for a rendered chat prompt, which writes its own
    /// beginning-of-sequence token.
    Parse,
    /// Names of special tokens become their ids, and the tokenizer adds whatever it adds to a whole text, usually a
    /// beginning-of-sequence token: for a raw prompt.
    ParseAndFrame,
}

/// Whether the names of special tokens appear in decoded text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecialText {
    /// Special tokens decode to nothing.
    Skip,
    /// Special tokens decode to their names.
    Show,
}

pub(crate) enum Encoder {
    Pipeline(Box<pipeline::Pipeline>),
    SentencePiece(Box<sentencepiece::SentencePiece>),
}

struct Parts {
    encoder: Encoder,
    pieces: Pieces,
}

/// A tokenizer; clones share one vocabulary.
#[derive(Clone)]
pub struct Tokenizer(Arc<Parts>);

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size()).finish_non_exhaustive()
    }
}

impl Tokenizer {
    pub(crate) fn from_parts(encoder: Encoder, pieces: Pieces) -> Self {
        Self(Arc::new(Parts { encoder, pieces }))
    }

    /// Reads the bytes of a tokenizer.json.
    pub fn from_json_bytes(json: &[u8]) -> Result<Self> {
        hub_file::read(json)
    }

    /// Reads a tokenizer.json.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let json = fs::read(path).map_err(|source| TextError::Read { path: path.to_owned(), source })?;
        Self::from_json_bytes(&json)
    }

    /// Token ids of `text`.
    pub fn encode(&self, text: &str, specials: Specials) -> Result<Vec<u32>> {
        match &self.0.encoder {
            Encoder::Pipeline(pipeline) => pipeline.encode(text, specials),
            Encoder::SentencePiece(model) => Ok(model.encode(text, specials)),
        }
    }

    /// Text of `ids`, taken as a whole sequence. Bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32], specials: SpecialText) -> Result<String> {
        let mut decoding = Decoding::new(self.0.pieces.leading, Position::Start);
        let mut bytes = Vec::new();
        for &id in ids {
            if specials == SpecialText::Skip && self.0.pieces.is_special(id) {
                continue;
            }
            bytes.extend_from_slice(decoding.trim(self.0.pieces.get(id)?).as_ref());
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The bytes that a token stands for inside a text; one token may be part of a character.
    pub fn token_bytes(&self, id: u32) -> Result<&[u8]> {
        self.0.pieces.get(id)
    }

    /// Id of the token of this name, as the vocabulary spells it.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        match &self.0.encoder {
            Encoder::Pipeline(pipeline) => pipeline.id_of(token),
            Encoder::SentencePiece(model) => model.id_of(token),
        }
    }

    /// One past the highest id.
    pub fn vocab_size(&self) -> usize {
        self.0.pieces.vocab_size()
    }

    /// Whether the token controls rather than says: beginning, end, turn marks.
    pub fn is_special(&self, id: u32) -> bool {
        self.0.pieces.is_special(id)
    }

    pub(crate) fn leading(&self) -> Leading {
        self.0.pieces.leading
    }
}

#[cfg(test)]
mod tests;
