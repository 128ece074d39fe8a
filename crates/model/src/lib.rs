//! The kitchen: a config becomes a plan, a plan and weights become a model, and one forward runs any of them over any
//! backend. It refuses to know devices, text and sessions.

pub mod arch;
pub mod assemble;
pub mod cache;
mod clusters;
pub mod draft;
pub mod error;
pub mod ffn;
pub mod forward;
pub mod linear;
pub mod mixer;
pub mod names;
pub mod plan;
pub mod registry;
pub mod rewrite;
pub mod rope;
pub mod standing;
pub mod state;

pub use assemble::{Build, assemble, stacks};
pub use cache::{CACHES, CacheEntry};
pub use draft::{Drafter, Guess};
pub use error::{Error, Result};
pub use forward::{Model, Sequence, Want};
pub use linear::Linear;
pub use plan::Plan;
pub use registry::Registries;
pub use standing::Standing;
pub use state::{Checkpoint, Page, PageSpecs, State, StateKind, StateSpec};
