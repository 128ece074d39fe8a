//! The dining table: an engine holds one model, sessions hold what was read, samplers choose. It knows token ids only: no text,
//! no JSON, no async.

pub mod budget;
pub mod engine;
pub mod error;
mod proof;
pub mod sample;
pub mod session;
pub mod sleep;
pub mod tree;

pub use budget::Forecast;
pub use engine::{Engine, EngineSpec, Kept};
pub use error::{Error, Result};
pub use reverie_memory as memory;
pub use session::{Progress, Session, Synced};
pub use sleep::{Asleep, Cellar, Note};
pub use tree::{Counters, Divergence};
