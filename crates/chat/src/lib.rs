//! The waiter: messages become text, text becomes tokens, a session reads them, pieces come back as deltas. One loop, for the
//! command line and the server alike. It refuses to know HTTP, terminals and tensors.

pub mod chosen;
pub mod conversation;
pub mod error;
pub mod generate;
pub mod voice;

pub use conversation::{Bed, Conversation, FOLD_PROMPT, tokens_here};
pub use error::{Error, Result};
pub use generate::{Delta, Finish, GenerateSpec, Generation, Reason, Usage};
pub use voice::Voice;
