//! The cellar: states asleep. It works as git does: payloads are objects named by the hash of their content, a state is a small
//! manifest that lists them, a name is a ref to a manifest, history is the chain of parents. It knows bytes, token ids and text; what
//! a page holds, which model made it and how it is computed it refuses to know.
//!
//! ```
//! use reverie_memory::{Expect, Manifest, Store};
//! let folder = std::env::temp_dir().join(format!("reverie-doc-{}", std::process::id()));
//! let store = Store::open(&folder)?;
//! let writer = store.writer()?;
//! let page = writer.put(&[b"keys", b"values"])?;
//! let state = Manifest { tokens: vec![1, 2, 3], pages: vec![page.hash], ..Manifest::default() };
//! writer.commit("trip", Expect::Absent, &state)?;
//! assert_eq!(store.resolve("trip")?.manifest.tokens, [1, 2, 3]);
//! # drop(writer); std::fs::remove_dir_all(&folder).ok();
//! # Ok::<(), reverie_memory::Error>(())
//! ```

mod barrier;
mod bundle;
pub mod disk;
mod error;
mod find;
mod fsck;
mod gc;
mod graph;
mod hash;
mod history;
mod index;
mod landing;
mod manifest;
mod name;
pub mod object;
mod refs;
mod remote;
mod stats;
mod store;
pub mod threads;
mod transfer;
mod writer;

pub use bundle::{Depth, ExportEntry, ExportHeader, ExportReader};
pub use error::{Error, Result};
pub use find::Found;
pub use fsck::{Finding, FindingKind, FsckReport, FsckRun};
pub use gc::{GcReport, GcRun, GcSpec};
pub use hash::Hash;
pub use history::{Commit, History, RefInfo, TagInfo};
pub use index::panics_are_findings;
pub use landing::{Landing, Progress, Transfer};
pub use manifest::{Identity, MANIFEST_VERSION, MAX_MANIFEST_BYTES, Manifest, Snapshot, Turn, Window};
pub use name::{MAX_NAME, check_name};
pub use remote::{Remote, Send};
pub use serde_json::Value;
pub use stats::Stats;
pub use store::Store;
pub use writer::{Expect, Put, Writer};
