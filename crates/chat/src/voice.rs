//! How a model is spoken to: its tokenizer, its template, the tokens that end an answer, and what its makers recommend.

use reverie_engine::sample::SamplerParams;
use reverie_text::{ChatTemplate, GenerationConfig, GenerationPrompt, RenderRequest, SpecialText, Specials, Tokenizer};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// A model's way of speaking.
#[derive(Debug)]
pub struct Voice {
    /// Text to ids and back.
    pub tokenizer: Tokenizer,
    /// Messages to text; none if the checkpoint has no template.
    pub template: Option<ChatTemplate>,
    /// Tokens that end an answer.
    pub ends: Vec<u32>,
    /// generation_config.json.
    pub generation: GenerationConfig,
}

impl Voice {
    /// The prompt that opens the assistant's turn after `messages`.
    pub fn render(&self, messages: &[Value], tools: &[Value], arguments: &Map<String, Value>) -> Result<String> {
        let template = self.template.as_ref().ok_or(Error::NoTemplate)?;
        let request = RenderRequest {
            messages,
            tools,
            documents: &[],
            generation_prompt: GenerationPrompt::Add,
            arguments: Some(arguments),
        };
        Ok(template.render(&request)?)
    }

    /// The text of `messages` that nobody answers yet: what many conversations may begin with.
    pub fn render_opening(&self, messages: &[Value], arguments: &Map<String, Value>) -> Result<String> {
        let template = self.template.as_ref().ok_or(Error::NoTemplate)?;
        let request = RenderRequest {
            messages,
            tools: &[],
            documents: &[],
            generation_prompt: GenerationPrompt::Omit,
            arguments: Some(arguments),
        };
        Ok(template.render(&request)?)
    }

    /// What ids say, special tokens included.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        Ok(self.tokenizer.decode(ids, SpecialText::Show)?)
    }

    /// Ids of a rendered prompt, which writes its own special tokens.
    pub fn encode_rendered(&self, prompt: &str) -> Result<Vec<u32>> {
        Ok(self.tokenizer.encode(prompt, Specials::Parse)?)
    }

    /// Ids of a plain text, framed as the tokenizer frames a whole text.
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.tokenizer.encode(text, Specials::ParseAndFrame)?)
    }

    /// The table's defaults, overlaid with what the checkpoint's makers recommend.
    pub fn sampler_defaults(&self) -> SamplerParams {
        let mut params = SamplerParams::default();
        let g = &self.generation;
        if let Some(t) = g.temperature {
            params.temperature = t;
        }
        if let Some(k) = g.top_k {
            params.top_k = i32::try_from(k).unwrap_or(i32::MAX);
        }
        if let Some(p) = g.top_p {
            params.top_p = p;
        }
        if let Some(p) = g.min_p {
            params.min_p = p;
        }
        if let Some(p) = g.typical_p {
            params.typical_p = p;
        }
        if let Some(p) = g.repetition_penalty {
            params.repetition_penalty = p;
        }
        if g.do_sample == Some(false) {
            params.temperature = 0.0;
        }
        params
    }
}
