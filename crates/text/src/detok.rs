//! Streaming detokeniser: token ids go in one by one, whole characters come out, and the pieces joined are the text of the
//! whole sequence. It refuses to know stop strings, dialects and who reads the text.

use std::borrow::Cow;

use crate::error::Result;
use crate::tokenizer::{Leading, SpecialText, Tokenizer};

/// Where in a text the first pushed token stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// At the beginning: a space that the encoder put before the first word vanishes.
    Start,
    /// After other tokens, as an answer stands after its prompt: every space counts.
    Continuation,
}

/// How a [`Detokenizer`] treats its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DetokenizerSpec {
    /// Where the stream begins.
    pub position: Position,
    /// Whether special tokens leave their names in the text.
    pub specials: SpecialText,
}

impl DetokenizerSpec {
    /// An answer after its prompt, special tokens left out.
    pub fn answer() -> Self {
        Self { position: Position::Continuation, specials: SpecialText::Skip }
    }
}

/// Turns a stream of ids into a stream of text that never splits a character.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    specials: SpecialText,
    decoding: Decoding,
    /// Bytes that begin a character and do not end it: at most three.
    pending: Vec<u8>,
    text: String,
}

impl Detokenizer {
    /// A detokeniser at the beginning of its stream.
    pub fn new(tokenizer: &Tokenizer, spec: DetokenizerSpec) -> Self {
        Self {
            tokenizer: tokenizer.clone(),
            specials: spec.specials,
            decoding: Decoding::new(tokenizer.leading(), spec.position),
            pending: Vec::new(),
            text: String::new(),
        }
    }

    /// Takes the next id and returns the characters that it completes, often none. Bytes that can no longer become a
    /// character are U+FFFD. An unknown id is an error and leaves the stream as it was.
    pub fn push(&mut self, id: u32) -> Result<&str> {
        self.text.clear();
        let bytes = self.tokenizer.token_bytes(id)?;
        if self.specials == SpecialText::Show || !self.tokenizer.is_special(id) {
            self.pending.extend_from_slice(self.decoding.trim(bytes).as_ref());
            release(&mut self.pending, &mut self.text);
        }
        Ok(&self.text)
    }

    /// Ends the stream: what still waits for the rest of its character becomes U+FFFD.
    pub fn finish(&mut self) -> &str {
        self.text.clear();
        if !self.pending.is_empty() {
            self.text.push(char::REPLACEMENT_CHARACTER);
            self.pending.clear();
        }
        &self.text
    }
}

/// Moves every whole character to `text`; an unfinished one stays. The result over a whole stream is that of
/// [`String::from_utf8_lossy`].
fn release(pending: &mut Vec<u8>, text: &mut String) {
    let mut rest = pending.as_slice();
    loop {
        match std::str::from_utf8(rest) {
            Ok(valid) => {
                text.push_str(valid);
                rest = &[];
                break;
            }
            Err(error) => {
                let (valid, after) = rest.split_at(error.valid_up_to());
                text.push_str(&String::from_utf8_lossy(valid));
                rest = after;
                match error.error_len() {
                    Some(bad) => {
                        text.push(char::REPLACEMENT_CHARACTER);
                        rest = rest.get(bad..).unwrap_or_default();
                    }
                    None => break,
                }
            }
        }
    }
    let done = pending.len() - rest.len();
    pending.drain(..done);
}

/// What has become of the white space at the beginning of a text.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Decoding {
    leading: Leading,
}

impl Decoding {
    pub(crate) fn new(leading: Leading, position: Position) -> Self {
        match position {
            Position::Start => Self { leading },
            Position::Continuation => Self { leading: Leading::Keep },
        }
    }

    /// The bytes of the next token, without the spaces that the encoder invented.
    pub(crate) fn trim<'b>(&mut self, bytes: &'b [u8]) -> Cow<'b, [u8]> {
        match self.leading {
            Leading::Keep => Cow::Borrowed(bytes),
            Leading::FirstPiece => {
                self.leading = Leading::Keep;
                Cow::Owned(bytes.iter().copied().filter(|b| *b != b' ').collect())
            }
            Leading::Spaces(n) => {
                let spaces = bytes.iter().take(n).take_while(|b| **b == b' ').count();
                self.leading = match n - spaces {
                    left @ 1.. if spaces == bytes.len() => Leading::Spaces(left),
                    _ => Leading::Keep,
                };
                Cow::Borrowed(bytes.get(spaces..).unwrap_or_default())
            }
        }
    }
}

#[cfg(test)]
mod tests;
