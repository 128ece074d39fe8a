//! A tokenizer from the vocabulary that a GGUF file carries in its metadata: byte-level BPE (`gpt2`) and SentencePiece (`llama`,
//! and `gemma4` whose merges are listed).
//! It is handed plain lists and refuses to know how a GGUF file is laid out.

mod pre;

use tokenizers::models::bpe::{self, BPE};
use tokenizers::{AddedToken, ModelWrapper};

use crate::error::{Result, TextError, excerpt};
use crate::tokenizer::pipeline::{Ends, Frame, Pipeline, PipelineParts};
use crate::tokenizer::sentencepiece::{Piece, PieceKind, SentencePiece, WordStart};
use crate::tokenizer::spelling::{Spelling, byte_token};
use crate::tokenizer::{Encoder, Kind, Leading, MAX_ID, Pieces, Tokenizer};

/// The `tokenizer.ggml.*` metadata of a GGUF file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct VocabSpec {
    /// `tokenizer.ggml.model`: `gpt2`, `gemma4` or `llama`.
    pub model: String,
    /// `tokenizer.ggml.pre`: how text is cut before merging (`gpt2` only).
    pub pre: Option<String>,
    /// `tokenizer.ggml.tokens`, by id.
    pub tokens: Vec<String>,
    /// `tokenizer.ggml.scores`, by id (`llama` only).
    pub scores: Vec<f32>,
    /// `tokenizer.ggml.token_type`, by id: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte.
    pub types: Vec<i32>,
    /// `tokenizer.ggml.merges`, best first (`gpt2` only).
    pub merges: Vec<String>,
    /// `tokenizer.ggml.bos_token_id`.
    pub bos: Option<u32>,
    /// `tokenizer.ggml.eos_token_id`.
    pub eos: Option<u32>,
    /// `tokenizer.ggml.unknown_token_id`.
    pub unk: Option<u32>,
    /// `tokenizer.ggml.padding_token_id`.
    pub pad: Option<u32>,
    /// `tokenizer.ggml.eot_token_id`.
    pub eot: Option<u32>,
    /// `tokenizer.ggml.add_bos_token`.
    pub add_bos: Option<bool>,
    /// `tokenizer.ggml.add_eos_token`.
    pub add_eos: Option<bool>,
    /// `tokenizer.ggml.add_space_prefix` (`llama` only).
    pub add_space_prefix: Option<bool>,
}

const MODELS: &str = "gemma4, gpt2, llama";

impl VocabSpec {
    /// Builds the tokenizer that this vocabulary describes.
    pub fn build(&self) -> Result<Tokenizer> {
        self.check()?;
        match self.model.as_str() {
            "gpt2" => self.merged(self.pre.as_deref()),
            // This model's name says how it is cut, too.
            "gemma4" => self.merged(Some("gemma4")),
            "llama" => self.sentencepiece(),
            other => Err(TextError::UnknownName {
                field: "tokenizer.ggml.model",
                found: excerpt(other),
                known: MODELS.into(),
            }),
        }
    }

    fn check(&self) -> Result<()> {
        let n_tokens = self.tokens.len();
        if n_tokens == 0 || n_tokens > MAX_ID as usize {
            return refuse("tokenizer.ggml.tokens", format!("{n_tokens} tokens; expected 1 to {MAX_ID}"));
        }
        if !self.types.is_empty() && self.types.len() != n_tokens {
            return refuse("tokenizer.ggml.token_type", format!("{} types for {n_tokens} tokens", self.types.len()));
        }
        let named = [
            ("tokenizer.ggml.bos_token_id", self.bos),
            ("tokenizer.ggml.eos_token_id", self.eos),
            ("tokenizer.ggml.unknown_token_id", self.unk),
            ("tokenizer.ggml.padding_token_id", self.pad),
            ("tokenizer.ggml.eot_token_id", self.eot),
        ];
        for (field, id) in named {
            if let Some(id) = id.filter(|id| *id as usize >= n_tokens) {
                return refuse(field, format!("id {id} of {n_tokens} tokens"));
            }
        }
        Ok(())
    }

    fn kind(&self, index: usize) -> Result<PieceKind> {
        let name = self.tokens.get(index).map_or("", String::as_str);
        let known = [(self.bos, PieceKind::Control), (self.eos, PieceKind::Control), (self.eot, PieceKind::Control)];
        let by_role = known.iter().find(|(id, _)| id.is_some_and(|id| id as usize == index)).map(|(_, kind)| *kind);
        match (self.types.get(index), by_role) {
            (Some(3), _) | (None, Some(_)) => Ok(PieceKind::Control),
            (Some(1) | None, None) => Ok(PieceKind::Normal),
            (Some(1), Some(kind)) => Ok(kind),
            (Some(2), _) => Ok(PieceKind::Unknown),
            (Some(4), _) => Ok(PieceKind::UserDefined),
            (Some(5), _) => Ok(PieceKind::Unused),
            (Some(6), _) => match byte_token(name) {
                Some(byte) => Ok(PieceKind::Byte(byte)),
                None => {
                    let reason =
                        format!("token {index} is a byte but is called {:?}; expected <0x00> to <0xFF>", excerpt(name));
                    refuse("tokenizer.ggml.tokens", reason)
                }
            },
            (Some(other), _) => {
                refuse("tokenizer.ggml.token_type", format!("token {index} has type {other}; expected 1 to 6"))
            }
        }
    }

    /// Empty names cannot be looked up; converters write them for holes in the id space.
    fn name(&self, index: usize) -> String {
        match self.tokens.get(index).map(String::as_str) {
            None | Some("") => format!("[EMPTY_{index}]"),
            Some(name) => name.to_owned(),
        }
    }

    fn ends(&self, add_bos: AddBos) -> Result<Ends> {
        let open = self.add_bos.unwrap_or(add_bos == AddBos::Yes);
        let close = self.add_eos.unwrap_or(false);
        if self.add_bos == Some(true) && self.bos.is_none() {
            return refuse("tokenizer.ggml.add_bos_token", "true, but there is no bos_token_id".into());
        }
        if close && self.eos.is_none() {
            return refuse("tokenizer.ggml.add_eos_token", "true, but there is no eos_token_id".into());
        }
        Ok(Ends { open: self.bos.filter(|_| open), close: self.eos.filter(|_| close) })
    }

    fn sentencepiece(&self) -> Result<Tokenizer> {
        if self.scores.len() != self.tokens.len() {
            let (scores, tokens) = (self.scores.len(), self.tokens.len());
            return refuse("tokenizer.ggml.scores", format!("{scores} scores for {tokens} tokens"));
        }
        let word_start = match self.add_space_prefix {
            Some(false) => WordStart::AsWritten,
            Some(true) | None => WordStart::AddSpace,
        };
        let leading = match word_start {
            WordStart::AddSpace => Leading::Spaces(1),
            WordStart::AsWritten => Leading::Keep,
        };
        let spelling = Spelling::sentencepiece(leading);
        let mut table = Pieces::new(leading);
        let mut pieces = Vec::with_capacity(self.tokens.len());
        for (index, score) in self.scores.iter().enumerate() {
            let mut kind = self.kind(index)?;
            if self.unk.is_some_and(|unk| unk as usize == index) {
                kind = PieceKind::Unknown;
            }
            let text = self.name(index);
            let bytes = match kind {
                PieceKind::Normal | PieceKind::Unused => spelling.bytes(&text),
                PieceKind::Byte(byte) => vec![byte],
                PieceKind::Unknown | PieceKind::Control | PieceKind::UserDefined => text.clone().into_bytes(),
            };
            set(&mut table, index, &bytes, kind)?;
            pieces.push(Piece { text, score: *score, kind });
        }
        let ends = self.ends(AddBos::Yes)?;
        let model = SentencePiece::new(&pieces, word_start, ends)
            .map_err(|reason| TextError::Vocabulary { field: "tokenizer.ggml.tokens", reason })?;
        Ok(Tokenizer::from_parts(Encoder::SentencePiece(Box::new(model)), table))
    }

    fn merged(&self, pre: Option<&str>) -> Result<Tokenizer> {
        let row = pre::find(pre)?;
        let spelling = match row.letters {
            pre::Letters::Bytes => Spelling::byte_level(),
            pre::Letters::Text => Spelling::sentencepiece(Leading::Keep),
        };
        let mut vocab = bpe::Vocab::with_capacity(self.tokens.len());
        let mut table = Pieces::new(spelling.leading);
        let mut added = Vec::new();
        for (index, id) in (0..self.tokens.len()).zip(0_u32..) {
            let (kind, name) = (self.kind(index)?, self.name(index));
            let special = matches!(kind, PieceKind::Control | PieceKind::Unknown);
            let whole = special || kind == PieceKind::UserDefined;
            let bytes = if whole { name.clone().into_bytes() } else { spelling.bytes(&name) };
            set(&mut table, index, &bytes, kind)?;
            if whole {
                added.push(AddedToken::from(name.clone(), special).normalized(false));
            }
            if let Some(other) = vocab.insert(name, id) {
                let reason = format!("tokens {other} and {id} are both {:?}", excerpt(&self.name(index)));
                return refuse("tokenizer.ggml.tokens", reason);
            }
        }
        let merges = self.merges()?;
        let model = BPE::builder()
            .vocab_and_merges(vocab, merges)
            .ignore_merges(row.merging == pre::Merging::WholeWordsFirst)
            .byte_fallback(row.letters == pre::Letters::Text)
            .fuse_unk(true)
            .build()
            .map_err(|e| TextError::Vocabulary { field: "tokenizer.ggml.merges", reason: e.to_string() })?;
        let parts = PipelineParts {
            normalizer: row.normalizer().map_err(|e| broken_row(&e))?,
            pre_tokenizer: row.pre_tokenizer().map_err(|e| broken_row(&e))?,
            model: ModelWrapper::BPE(model),
            added,
            frame: Frame::Ends(self.ends(row.add_bos)?),
        };
        let pipeline = Pipeline::new(parts)
            .map_err(|e| TextError::Vocabulary { field: "tokenizer.ggml.tokens", reason: e.to_string() })?;
        Ok(Tokenizer::from_parts(Encoder::Pipeline(Box::new(pipeline)), table))
    }

    fn merges(&self) -> Result<Vec<(String, String)>> {
        if self.merges.is_empty() {
            return refuse("tokenizer.ggml.merges", "missing; a gpt2 vocabulary needs its merges".into());
        }
        let longest = self.tokens.iter().map(String::len).max().unwrap_or(0);
        let mut merges = Vec::with_capacity(self.merges.len());
        for (index, line) in self.merges.iter().enumerate() {
            // The left part may itself be a space, never empty: the separator is sought after the first character.
            let first = line.chars().next().map_or(0, char::len_utf8);
            let split = line.get(first..).and_then(|rest| rest.find(' ')).map(|at| at + first);
            let Some((left, right)) = split.and_then(|at| Some((line.get(..at)?, line.get(at + 1..)?))) else {
                return refuse(
                    "tokenizer.ggml.merges",
                    format!("merge {index} is {:?}; expected two parts", excerpt(line)),
                );
            };
            // The model's builder checks that the parts and the result are tokens, but not that there is room for the result.
            if left.len() + right.len() > longest {
                let reason = format!("merge {index}, {:?}: the result is longer than any token", excerpt(line));
                return refuse("tokenizer.ggml.merges", reason);
            }
            merges.push((left.to_owned(), right.to_owned()));
        }
        Ok(merges)
    }
}

/// Whether a vocabulary opens a text with its beginning-of-sequence token when the file does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AddBos {
    Yes,
    No,
}

fn set(table: &mut Pieces, index: usize, bytes: &[u8], kind: PieceKind) -> Result<()> {
    let special = if matches!(kind, PieceKind::Control | PieceKind::Unknown) { Kind::Special } else { Kind::Text };
    match u32::try_from(index) {
        Ok(id) if table.set(id, bytes, special) => Ok(()),
        _ => refuse("tokenizer.ggml.tokens", format!("token {index} is beyond the highest id, {MAX_ID}")),
    }
}

fn broken_row(reason: &tokenizers::Error) -> TextError {
    TextError::Vocabulary { field: "tokenizer.ggml.pre", reason: reason.to_string() }
}

fn refuse<T>(field: &'static str, reason: String) -> Result<T> {
    Err(TextError::Vocabulary { field, reason })
}

#[cfg(test)]
mod tests;
