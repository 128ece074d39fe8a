//! How a token's name in a vocabulary spells bytes: GPT-2's byte alphabet, or text with substitutions and byte tokens.
//! Read from the `decoder` of a tokenizer.json. It refuses to know how text becomes tokens.

use serde::Deserialize;

use super::pieces::Leading;
use crate::error::{Result, TextError};

/// The rule that turns a token's name into bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Spelling {
    steps: Vec<Step>,
    pub(crate) leading: Leading,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    ByteLevel,
    Replace { from: String, to: String },
    ByteFallback,
    Strip { content: char, start: usize, stop: usize },
    Prefix(&'static str),
}

impl Spelling {
    /// Names are written in GPT-2's byte alphabet.
    pub(crate) fn byte_level() -> Self {
        Self { steps: vec![Step::ByteLevel], leading: Leading::Keep }
    }

    /// Names are text with `▁` for a space and `<0xHH>` for a byte.
    pub(crate) fn sentencepiece(leading: Leading) -> Self {
        let space = Step::Replace { from: "\u{2581}".into(), to: " ".into() };
        Self { steps: vec![space, Step::ByteFallback], leading }
    }

    /// Reads the `decoder` member of a tokenizer.json; without one the tokens are words with a space between.
    pub(crate) fn from_json(json: Option<&str>) -> Result<Self> {
        let Some(json) = json else {
            return Ok(Self { steps: vec![Step::Prefix(" ")], leading: Leading::Spaces(1) });
        };
        let decoder: Decoder = serde_json::from_str(json).map_err(|e| refuse(format!("cannot be read: {e}")))?;
        let mut reader = Reader { steps: Vec::new(), leading: Leading::Keep, fused: false };
        reader.add(&decoder)?;
        Ok(Self { steps: reader.steps, leading: reader.leading })
    }

    /// The bytes that a token of this name stands for.
    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        let mut text = name.to_owned();
        for step in &self.steps {
            match step {
                Step::ByteLevel => {
                    // A name with a character outside the alphabet was added as plain text.
                    let spelt: Option<Vec<u8>> = text.chars().map(byte_of_char).collect();
                    return spelt.unwrap_or_else(|| text.into_bytes());
                }
                Step::ByteFallback => {
                    if let Some(byte) = byte_token(&text) {
                        return vec![byte];
                    }
                }
                Step::Replace { from, to } => text = text.replace(from.as_str(), to),
                Step::Strip { content, start, stop } => text = strip(&text, *content, *start, *stop),
                Step::Prefix(prefix) => text.insert_str(0, prefix),
            }
        }
        text.into_bytes()
    }
}

/// The byte that a byte token such as `<0x0A>` stands for.
pub(crate) fn byte_token(name: &str) -> Option<u8> {
    let digits = name.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() != 2 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}

/// Inverse of GPT-2's `bytes_to_unicode`: printable Latin-1 stands for itself, the other 68 bytes follow from U+0100 in order.
fn byte_of_char(c: char) -> Option<u8> {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    match u32::from(c) {
        code @ 0..=0xFF => u8::try_from(code).ok().filter(|b| printable(*b)),
        code @ 0x100..=0x143 => {
            let nth = (code - 0x100) as usize;
            (0..=u8::MAX).filter(|b| !printable(*b)).nth(nth)
        }
        _ => None,
    }
}

fn strip(text: &str, content: char, start: usize, stop: usize) -> String {
    let head = text.chars().take(start).take_while(|c| *c == content).count();
    let rest: Vec<char> = text.chars().skip(head).collect();
    let tail = rest.iter().rev().take(stop).take_while(|c| **c == content).count();
    rest[..rest.len() - tail].iter().collect()
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum Decoder {
    ByteLevel {},
    ByteFallback {},
    Fuse {},
    Replace {
        pattern: Pattern,
        content: String,
    },
    Strip {
        content: char,
        start: usize,
        stop: usize,
    },
    Metaspace {
        replacement: char,
        prepend_scheme: Option<String>,
        add_prefix_space: Option<bool>,
    },
    Sequence {
        decoders: Vec<Decoder>,
    },
    #[serde(rename = "BPEDecoder")]
    Bpe {},
    WordPiece {},
    #[serde(rename = "CTC")]
    Ctc {},
}

#[derive(Deserialize)]
enum Pattern {
    String(String),
    Regex(String),
}

struct Reader {
    steps: Vec<Step>,
    leading: Leading,
    /// After `Fuse` a rule sees the whole text instead of one token.
    fused: bool,
}

impl Reader {
    fn add(&mut self, decoder: &Decoder) -> Result<()> {
        match decoder {
            Decoder::Sequence { decoders } => return decoders.iter().try_for_each(|d| self.add(d)),
            Decoder::Fuse {} => self.fused = true,
            Decoder::Strip { content: ' ', start, stop: 0 } if self.fused && self.leading == Leading::Keep => {
                self.leading = Leading::Spaces(*start);
            }
            _ if self.fused => {
                return Err(refuse("a rule after Fuse other than Strip of leading spaces cannot be streamed".into()));
            }
            Decoder::ByteLevel {} => self.steps.push(Step::ByteLevel),
            Decoder::ByteFallback {} => self.steps.push(Step::ByteFallback),
            Decoder::Replace { pattern: Pattern::String(from), content } => {
                self.steps.push(Step::Replace { from: from.clone(), to: content.clone() });
            }
            Decoder::Replace { pattern: Pattern::Regex(regex), .. } => {
                return Err(refuse(format!(
                    "Replace by the regular expression {regex:?}; only a plain string is read"
                )));
            }
            Decoder::Strip { content, start, stop } => {
                self.steps.push(Step::Strip { content: *content, start: *start, stop: *stop });
            }
            Decoder::Metaspace { replacement, prepend_scheme, add_prefix_space } => {
                self.steps.push(Step::Replace { from: replacement.to_string(), to: " ".into() });
                let never = prepend_scheme.as_deref() == Some("never") || *add_prefix_space == Some(false);
                if !never {
                    self.leading = Leading::FirstPiece;
                }
            }
            Decoder::Bpe {} => return Err(unsupported("BPEDecoder")),
            Decoder::WordPiece {} => return Err(unsupported("WordPiece")),
            Decoder::Ctc {} => return Err(unsupported("CTC")),
        }
        Ok(())
    }
}

fn unsupported(name: &str) -> TextError {
    refuse(format!(
        "{name} is not a decoder of generative models; ByteLevel, Metaspace, ByteFallback, Replace, Strip and Fuse are read"
    ))
}

fn refuse(reason: String) -> TextError {
    TextError::TokenizerFile { part: "decoder", reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_alphabet_has_all_256_bytes() {
        let mut seen: Vec<u8> = (0..0x180).filter_map(char::from_u32).filter_map(byte_of_char).collect();
        assert_eq!(seen.len(), 256);
        seen.sort_unstable();
        assert!(seen.iter().enumerate().all(|(i, b)| i == usize::from(*b)));
        assert_eq!(byte_of_char('Ġ'), Some(b' '));
        assert_eq!(byte_of_char('Ċ'), Some(b'\n'));
        assert_eq!(byte_of_char(' '), None);
    }

    #[test]
    fn llama_style_decoder_is_understood() {
        let json = r#"{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},"content":" "},
            {"type":"ByteFallback"},{"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]}"#;
        let spelling = Spelling::from_json(Some(json)).unwrap();
        assert_eq!(spelling, Spelling::sentencepiece(Leading::Spaces(1)));
        assert_eq!(spelling.bytes("▁été"), " été".as_bytes());
        assert_eq!(spelling.bytes("<0xE2>"), [0xE2]);
        assert_eq!(spelling.bytes("<0xé>"), "<0xé>".as_bytes());
        assert_eq!(spelling.bytes("<0x+1>"), b"<0x+1>");
    }

    #[test]
    fn strip_takes_no_more_than_there_is() {
        assert_eq!(strip("  a ", ' ', 1, 9), " a");
        assert_eq!(strip("  ", ' ', 9, 9), "");
        assert_eq!(strip("", ' ', 1, 1), "");
    }

    #[test]
    fn other_decoders_are_refused_by_name() {
        for name in ["WordPiece", "BPEDecoder", "CTC"] {
            let error = Spelling::from_json(Some(&format!(r#"{{"type":"{name}"}}"#))).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
        assert!(Spelling::from_json(Some(r#"{"type":"Magic"}"#)).unwrap_err().to_string().contains("Magic"));
    }
}
