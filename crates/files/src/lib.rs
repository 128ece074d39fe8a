//! Loading dock of Reverie: safetensors, GGUF, Hugging Face folders and hub, weight views by name.
//! Files come in verified and mapped; files go out whole or not at all. It refuses to know families and backends.

pub mod checkpoint;
pub mod config;
pub mod element;
pub mod error;
pub mod gguf;
pub mod hub;
pub mod mmap;
pub mod place;
pub mod quantisation;
pub mod safetensors;
pub mod store;
pub mod weights;
pub mod write;

pub use checkpoint::{Checkpoint, Origin, Templates};
pub use config::ModelConfig;
pub use element::{Element, Storage};
pub use error::{Error, Result};
pub use gguf::{Gguf, GgufVocab, Metadata};
pub use mmap::FileBytes;
pub use place::Place;
pub use quantisation::{Choice, Quantisation, Rule};
pub use store::{Bare, TensorStore};
pub use weights::{Matrix, View, Weights};
pub use write::{PendingFile, PendingFolder, SafeTensorsWriter, TensorSpec, write_file, write_json};
