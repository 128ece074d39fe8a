//! The packing room: checkpoints in, checkpoints out, no running model. It refuses to know engines and text.

pub mod error;
pub mod quantize;

pub use error::{Error, Result};
pub use quantize::{Hear, Left, Override, Plan, QuantizeSpec, Step, quantize};
