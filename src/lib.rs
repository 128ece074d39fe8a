//! Reverie: a local engine for language models that keeps what it has read.
//!
//! ```no_run
//! # fn main() -> reverie::Result<()> {
//! let model = reverie::Loader::default().load(reverie::EMBEDDED)?;
//! let mut session = model.session();
//! for delta in model.generate(&mut session, "fn main() {", reverie::GenerateSpec::default())? {
//!     print!("{}", delta?.text);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! [`Loader`] turns a folder, a `.gguf` file, the embedded model's name or a hub id into a [`LoadedModel`]; a [`Session`] is
//! one timeline of tokens (sync, rewind, fork); [`LoadedModel::generate`] is an iterator of [`Delta`]s;
//! [`LoadedModel::conversation`] speaks through the model's chat template.

pub mod backends;
mod embedded;
mod error;
mod load;

pub use embedded::EMBEDDED;
pub use error::{Error, Result};
pub use load::{Check, LoadEvent, LoadedModel, Loader, Located, locate};
pub use reverie_chat::chosen::generator;
pub use reverie_chat::{Bed, Conversation, Delta, Finish, GenerateSpec, Generation, Reason, Usage, Voice, tokens_here};
pub use reverie_engine::sample::{PARAMS, SamplerParams};
pub use reverie_engine::session::Go;
pub use reverie_engine::{Asleep, Engine, Forecast, Progress, Session, Synced};
pub use reverie_model::Registries;
pub use reverie_model::ffn::moe::Residence;

/// The rooms, for callers who need more than the facade.
pub mod rooms {
    pub use reverie_chat as chat;
    pub use reverie_cpu as cpu;
    pub use reverie_engine as engine;
    pub use reverie_files as files;
    pub use reverie_memory as memory;
    pub use reverie_model as model;
    pub use reverie_pack as pack;
    pub use reverie_tensor as tensor;
    pub use reverie_text as text;
}
