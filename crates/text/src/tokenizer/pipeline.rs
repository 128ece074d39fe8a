//! The stages of the `tokenizers` crate in a row: added tokens, normaliser, pre-tokeniser, model, frame.
//! Built from a tokenizer.json or from a GGUF vocabulary. It refuses to know either file, and how ids become text.

use tokenizers::processors::PostProcessorWrapper;
use tokenizers::{
    AddedToken, AddedVocabulary, Encoding, Model, ModelWrapper, NormalizerWrapper, OffsetType, PostProcessor,
    PreTokenizer, PreTokenizerWrapper,
};

use super::Specials;
use crate::error::{Result, TextError};

/// What is put around a whole text.
pub(crate) enum Frame {
    /// Nothing.
    None,
    /// The post-processor of a tokenizer.json.
    PostProcessor(Box<PostProcessorWrapper>),
    /// Fixed ids before and after.
    Ends(Ends),
}

/// Ids that open and close a whole text.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Ends {
    pub(crate) open: Option<u32>,
    pub(crate) close: Option<u32>,
}

/// Everything a [`Pipeline`] is made of.
pub(crate) struct PipelineParts {
    pub(crate) normalizer: Option<NormalizerWrapper>,
    pub(crate) pre_tokenizer: Option<PreTokenizerWrapper>,
    pub(crate) model: ModelWrapper,
    pub(crate) added: Vec<AddedToken>,
    pub(crate) frame: Frame,
}

pub(crate) struct Pipeline {
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: Option<PreTokenizerWrapper>,
    model: ModelWrapper,
    frame: Frame,
    parsing: AddedVocabulary,
    plain: AddedVocabulary,
}

impl Pipeline {
    pub(crate) fn new(parts: PipelineParts) -> tokenizers::Result<Self> {
        let PipelineParts { normalizer, pre_tokenizer, model, added, frame } = parts;
        let mut parsing = AddedVocabulary::new();
        parsing.add_tokens(added, &model, normalizer.as_ref())?;
        let mut plain = parsing.clone();
        plain.set_encode_special_tokens(true);
        Ok(Self { normalizer, pre_tokenizer, model, frame, parsing, plain })
    }

    pub(crate) fn encode(&self, text: &str, specials: Specials) -> Result<Vec<u32>> {
        self.try_encode(text, specials).map_err(|e| TextError::Encode { reason: e.to_string() })
    }

    fn try_encode(&self, text: &str, specials: Specials) -> tokenizers::Result<Vec<u32>> {
        let added = match specials {
            Specials::Plain => &self.plain,
            Specials::Parse | Specials::ParseAndFrame => &self.parsing,
        };
        let mut cut = added.extract_and_normalize(self.normalizer.as_ref(), text);
        if let Some(pre_tokenizer) = &self.pre_tokenizer {
            pre_tokenizer.pre_tokenize(&mut cut)?;
        }
        cut.tokenize(|part| self.model.tokenize(part.get()))?;
        let encoding = cut.into_encoding(None, 0, OffsetType::None)?;
        match (&self.frame, specials) {
            (Frame::PostProcessor(processor), Specials::ParseAndFrame) => {
                Ok(ids(&processor.process(encoding, None, true)?))
            }
            (Frame::Ends(ends), Specials::ParseAndFrame) => {
                Ok(ends.open.into_iter().chain(ids(&encoding)).chain(ends.close).collect())
            }
            _ => Ok(ids(&encoding)),
        }
    }

    pub(crate) fn id_of(&self, token: &str) -> Option<u32> {
        self.parsing.token_to_id(token, &self.model)
    }

    /// The added tokens as `(id, name for the decoder, token)`.
    pub(crate) fn added(&self) -> impl Iterator<Item = (u32, String, &AddedToken)> {
        self.parsing.get_added_tokens_decoder().iter().map(|(id, token)| {
            let name = self.parsing.simple_id_to_token(*id).unwrap_or_else(|| token.content.clone());
            (*id, name, token)
        })
    }
}

fn ids(encoding: &Encoding) -> Vec<u32> {
    encoding.get_ids().to_vec()
}
