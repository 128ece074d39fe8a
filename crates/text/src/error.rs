//! Everything that can go wrong in the reading room, each with what was found, what was expected and what to do.
//! It refuses to know who shows the message.

use std::path::PathBuf;

/// Result of the reading room.
pub type Result<T, E = TextError> = std::result::Result<T, E>;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// A file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A part of tokenizer.json is missing, malformed or contradicts another part.
    #[error(
        "tokenizer.json: {part}: {reason}; check that the download is complete, or take the file from the original model"
    )]
    TokenizerFile {
        /// The part of the file, such as `model.merges`.
        part: &'static str,
        /// What was found and what was expected.
        reason: String,
    },
    /// The vocabulary in a GGUF file's metadata cannot be used.
    #[error("GGUF vocabulary: {field}: {reason}; convert the model again with a current converter")]
    Vocabulary {
        /// The metadata key.
        field: &'static str,
        /// What was found and what was expected.
        reason: String,
    },
    /// A name that no row of a table has.
    #[error("{field} is {found:?}, which is not known here; known: {known}")]
    UnknownName {
        /// The field that held the name.
        field: &'static str,
        /// The name.
        found: String,
        /// The names that would have done.
        known: String,
    },
    /// A token id outside the vocabulary.
    #[error("token id {id} is not in the vocabulary of {vocab_size} ids; the ids come from another tokenizer")]
    UnknownId {
        /// The id.
        id: u32,
        /// One past the highest id.
        vocab_size: usize,
    },
    /// The tokenizer could not encode a text.
    #[error("cannot encode the text: {reason}")]
    Encode {
        /// The tokenizer's reason.
        reason: String,
    },
    /// A stop string of length zero, which would stop before the first character.
    #[error("stop string number {index} is empty; remove it or give at least one character")]
    EmptyStop {
        /// Position in the list, from 0.
        index: usize,
    },
    /// The chat template is not a valid template.
    #[error("chat template, line {line}: {reason}")]
    TemplateSyntax {
        /// Line, from 1.
        line: usize,
        /// What was found there.
        reason: String,
    },
    /// The chat template refused the conversation by `raise_exception`.
    #[error("the chat template refuses this conversation: {message}")]
    TemplateRaised {
        /// The template's own words.
        message: String,
    },
    /// The chat template failed while it ran.
    #[error("chat template{}: {reason}", line.map(|l| format!(", line {l}")).unwrap_or_default())]
    TemplateRender {
        /// Line, from 1, when it is known.
        line: Option<usize>,
        /// What failed.
        reason: String,
    },
    /// The model has no template of the name that was asked for.
    #[error("the model has no chat template named {wanted:?}; it has: {available}")]
    TemplateMissing {
        /// The name asked for.
        wanted: String,
        /// The names there are.
        available: String,
    },
    /// A JSON file is not JSON.
    #[error("{file}: not valid JSON: {reason}")]
    Json {
        /// The file's name.
        file: &'static str,
        /// Parser's reason, with line and column.
        reason: String,
    },
    /// A field of a JSON file has the wrong type or an impossible value.
    #[error("{file}: field {field}: expected {expected}, found {found}")]
    Field {
        /// The file's name.
        file: &'static str,
        /// The field.
        field: String,
        /// What it should hold.
        expected: &'static str,
        /// What it holds.
        found: String,
    },
}

/// The first characters of `text`, for quoting foreign data in an error.
pub(crate) fn excerpt(text: &str) -> String {
    const LIMIT: usize = 80;
    match text.char_indices().nth(LIMIT) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}
