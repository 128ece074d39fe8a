//! What can go wrong between a message and an answer.

/// Errors of the waiter.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The checkpoint has no chat template.
    #[error(
        "this checkpoint has no chat template (looked in tokenizer_config.json, chat_template.jinja, chat_template.json and GGUF's \
         tokenizer.chat_template); use `generate` for plain text, or give one with --template FILE"
    )]
    NoTemplate,
    /// The prompt leaves no room for an answer.
    #[error(
        "the prompt has {prompt} tokens, the context holds {context}; shorten the prompt or /reset the conversation"
    )]
    NoRoom {
        /// Tokens of the prompt.
        prompt: usize,
        /// Positions of the model.
        context: usize,
    },
    /// A fold that came to no summary.
    #[error("no summary: {why}; the conversation is as it was")]
    NoSummary {
        /// What became of it.
        why: &'static str,
    },
    /// A conversation without a name cannot sleep.
    #[error("this conversation has no name to sleep under; give it one first")]
    NoName,
    /// A sleeping state that is no conversation.
    #[error("this state holds {found}, expected a conversation; continue it with `generate`")]
    NoConversation {
        /// What it says it is.
        found: String,
    },
    /// The generator of a sleeping state is none.
    #[error(
        "the generator of this state: found {found}, expected the digits that a sampler wrote; choose a seed of your own"
    )]
    Generator {
        /// What stands there.
        found: String,
    },
    /// The reading room refused.
    #[error(transparent)]
    Text(#[from] reverie_text::TextError),
    /// The dining table refused.
    #[error(transparent)]
    Engine(#[from] reverie_engine::Error),
}

impl From<reverie_engine::sample::SampleError> for Error {
    fn from(e: reverie_engine::sample::SampleError) -> Error {
        Error::Engine(e.into())
    }
}

/// Result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;
