//! Reading room of Reverie: text becomes token ids and token ids become text again; conversations become prompts.
//! Tokenizers, streaming detokeniser, chat templates, stop strings, thinking marks, and the JSON files that describe them.
//! It refuses to know tensors, models, HTTP and the layout of any weight file: callers hand it strings and plain structs.

pub mod config;
pub mod detok;
mod error;
pub mod gguf_vocab;
pub mod parse;
pub mod stop;
pub mod template;
pub mod tokenizer;

pub use config::{GenerationConfig, SpecialTokens, TemplateSources, TokenizerConfig};
pub use detok::{Detokenizer, DetokenizerSpec, Position};
pub use error::{Result, TextError};
pub use gguf_vocab::VocabSpec;
pub use stop::{Released, StopBuffer};
pub use template::{ChatTemplate, GenerationPrompt, RenderRequest};
pub use tokenizer::{SpecialText, Specials, Tokenizer};
