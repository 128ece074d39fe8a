//! What can go wrong while a token is being chosen: a parameter out of its range, a logit that is no number,
//! a mask that leaves nothing. It knows token ids only, never text.

/// An error of the sampling chain. Each names the field, what was found and what was expected.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SampleError {
    /// A parameter name that the table does not hold.
    #[error("unknown sampling parameter `{found}`; expected one of: {expected}")]
    UnknownParam {
        /// The name as given.
        found: String,
        /// All names of the table, separated by commas.
        expected: String,
    },
    /// A parameter whose value cannot be read or lies outside its range.
    #[error("sampling parameter `{name}`: found `{found}`, expected {expected}")]
    BadParam {
        /// Name of the parameter.
        name: &'static str,
        /// The value as given.
        found: String,
        /// What its row in the table allows.
        expected: String,
    },
    /// An order that names a step which no row of the registry has.
    #[error("unknown sampling step `{found}`; expected some of: {expected}")]
    UnknownStep {
        /// The name as given.
        found: String,
        /// All rows of the registry, separated by commas.
        expected: String,
    },
    /// An order that cannot run: a step twice, a step before its stage, an active step left out, two drawing steps.
    #[error("sampling order: step `{step}` {found}; expected {expected}")]
    BadOrder {
        /// The step at fault.
        step: String,
        /// What is wrong with its place.
        found: String,
        /// The rule that it breaks.
        expected: String,
    },
    /// The model handed over no logits.
    #[error("no logits to sample from: found a vocabulary of 0, expected one logit for each token id")]
    NoLogits,
    /// A logit that is NaN or +inf.
    #[error(
        "logit of token {id} is {value}; expected a finite number or -inf. The forward pass went wrong (damaged \
         weights, an overflow in f16) or an adjusting step did: sampling stops rather than guess"
    )]
    BadLogit {
        /// The lowest id with such a logit.
        id: u32,
        /// Its value.
        value: f32,
    },
    /// Every token is at -inf or masked.
    #[error(
        "no token may be chosen: all {n_vocab} are masked or at -inf; expected at least one. Loosen the mask or the \
         logit bias"
    )]
    NothingAllowed {
        /// Number of logits.
        n_vocab: usize,
    },
    /// A token id beyond the vocabulary.
    #[error("{field}: found token id {id}, expected an id below the vocabulary's size of {n_vocab}")]
    TokenOutOfRange {
        /// Where the id was given.
        field: &'static str,
        /// The id.
        id: u32,
        /// Number of logits.
        n_vocab: usize,
    },
    /// A stored sampler state that cannot be read or belongs to another chain.
    #[error(
        "sampler state, {field}: found {found}, expected {expected}. Start the sampler anew or restore what it wrote"
    )]
    BadState {
        /// The part of the state at fault.
        field: &'static str,
        /// What it holds.
        found: String,
        /// What it has to hold.
        expected: String,
    },
    /// A step of an embedder that gave up.
    #[error("sampling step `{step}`: {message}")]
    Step {
        /// Name of the step.
        step: &'static str,
        /// Its own words: found, expected, what to do.
        message: String,
    },
}
