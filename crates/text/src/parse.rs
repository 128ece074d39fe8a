//! Dialects: how a model marks, inside its text, what is thought and what is said. One file a dialect.
//! Each takes text in pieces of any size and returns parts at once. It refuses to know tokens and protocols.

pub mod thinking;

pub use thinking::ThinkingParser;

/// A part of an answer, in the order in which the model wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Part {
    /// What the model says.
    Text(String),
    /// What the model thinks before it says something.
    Thinking(String),
}
