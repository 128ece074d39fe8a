//! What can go wrong on the ground floor. Every variant says what was found and what was expected.

/// Errors of tensors, formats and backends.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Two shapes that must fit do not.
    #[error("{op}: found {found}, expected {expected}")]
    Shape {
        /// The operation or field.
        op: &'static str,
        /// What arrived.
        found: String,
        /// What the operation takes.
        expected: String,
    },
    /// A byte length that contradicts a shape or a format.
    #[error("{what}: found {found} bytes, expected {expected} for {detail}")]
    Length {
        /// The thing measured.
        what: String,
        /// Bytes present.
        found: usize,
        /// Bytes the shape needs.
        expected: usize,
        /// The shape or format that sets the expectation.
        detail: String,
    },
    /// The byte budget would be exceeded.
    #[error(
        "out of the memory budget: {class} needs {needed} more bytes, {used} of {limit} are in use; \
         raise --memory, shorten the context or use fewer bits"
    )]
    Budget {
        /// What the memory was for.
        class: &'static str,
        /// Bytes asked for.
        needed: u64,
        /// Bytes in use.
        used: u64,
        /// The budget.
        limit: u64,
    },
    /// The allocator had no memory.
    #[error("the system refused {bytes} bytes for {class}; free memory or use a smaller model, context or bit width")]
    OutOfMemory {
        /// What the memory was for.
        class: &'static str,
        /// Bytes asked for.
        bytes: usize,
    },
    /// A value outside what an operation or a format takes.
    #[error("{what}: found {found}, expected {expected}")]
    Value {
        /// The field or argument.
        what: String,
        /// What was found.
        found: String,
        /// What would be right, and what to do.
        expected: String,
    },
    /// The backend cannot do this.
    #[error("backend '{backend}' cannot {what}")]
    Unsupported {
        /// Name of the backend.
        backend: &'static str,
        /// The thing asked for.
        what: String,
    },
}

/// Result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Shape error from anything printable.
    pub fn shape(op: &'static str, found: impl std::fmt::Debug, expected: impl std::fmt::Debug) -> Error {
        Error::Shape { op, found: format!("{found:?}"), expected: format!("{expected:?}") }
    }

    /// Value error from anything printable.
    pub fn value(what: impl Into<String>, found: impl std::fmt::Display, expected: impl Into<String>) -> Error {
        Error::Value { what: what.into(), found: found.to_string(), expected: expected.into() }
    }
}
