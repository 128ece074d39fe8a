//! The vocabulary that a GGUF file carries, as plain fields. It refuses to know how text is cut into tokens.

use super::{Metadata, Value};
use crate::error::{Error, Result};

/// `tokenizer.ggml.*`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GgufVocab {
    /// `tokenizer.ggml.model`: the kind of tokenizer.
    pub model: String,
    /// `tokenizer.ggml.pre`: how text is cut before merging.
    pub pre: Option<String>,
    /// `tokenizer.ggml.tokens`, by id.
    pub tokens: Vec<String>,
    /// `tokenizer.ggml.scores`, by id; empty if there are none.
    pub scores: Vec<f32>,
    /// `tokenizer.ggml.token_type`, by id: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte; empty if there
    /// are none.
    pub types: Vec<i32>,
    /// `tokenizer.ggml.merges`, best first.
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
    /// `tokenizer.ggml.add_space_prefix`.
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.ggml.remove_extra_whitespaces`.
    pub remove_extra_whitespaces: Option<bool>,
}

impl GgufVocab {
    /// Reads the fields; lists must agree in length and ids must lie within them.
    pub fn read(metadata: &Metadata) -> Result<GgufVocab> {
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        let tokens = metadata.optional_texts(&key("tokens"))?.ok_or_else(|| {
            let looked_for = "key tokenizer.ggml.tokens; use a GGUF file that was converted with its tokenizer";
            Error::missing(metadata.path(), "vocabulary", looked_for)
        })?;
        let by_id = |name: &str, length: usize| {
            if length != 0 && length != tokens.len() {
                let expected = format!("{}, one for each token", tokens.len());
                return Err(Error::format(metadata.path(), key(name), format!("{length} elements"), expected));
            }
            Ok(())
        };
        let scores = metadata.optional_f64s(&key("scores"))?.unwrap_or_default();
        let types = metadata.optional_i64s(&key("token_type"))?.unwrap_or_default();
        by_id("scores", scores.len())?;
        by_id("token_type", types.len())?;
        let id = |name: &str| -> Result<Option<u32>> {
            // Some converters write -1 or 2^32 - 1 for a token that the model does not have.
            let absent = matches!(metadata.get(&key(name)), Some(Value::Signed(-1) | Value::Unsigned(0xffff_ffff)));
            match metadata.optional_u64(&key(name)) {
                _ if absent => Ok(None),
                Ok(Some(id)) if id >= tokens.len() as u64 => {
                    Err(Error::format(metadata.path(), key(name), id, format!("a token id below {}", tokens.len())))
                }
                other => Ok(other?.map(|id| id as u32)),
            }
        };
        let text = |key: &str| Ok::<_, Error>(metadata.optional_text(key)?.map(str::to_owned));
        let flag = |name: &str| metadata.optional_bool(&key(name));
        let types = types.iter().map(|&t| i32::try_from(t)).collect::<Result<_, _>>();
        Ok(GgufVocab {
            model: metadata.text(&key("model"))?.to_owned(),
            pre: text(&key("pre"))?,
            tokens: tokens.to_vec(),
            scores: scores.into_iter().map(|s| s as f32).collect(),
            types: types
                .map_err(|_| Error::format(metadata.path(), key("token_type"), "a number beyond 32 bits", "1 to 6"))?,
            merges: metadata.optional_texts(&key("merges"))?.unwrap_or_default().to_vec(),
            bos: id("bos_token_id")?,
            eos: id("eos_token_id")?,
            unk: id("unknown_token_id")?,
            pad: id("padding_token_id")?,
            eot: id("eot_token_id")?,
            add_bos: flag("add_bos_token")?,
            add_eos: flag("add_eos_token")?,
            add_space_prefix: flag("add_space_prefix")?,
            remove_extra_whitespaces: flag("remove_extra_whitespaces")?,
        })
    }
}
