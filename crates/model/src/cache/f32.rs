//! Full-precision pages of keys and values.

use reverie_tensor::DType;

use super::CacheEntry;
use crate::state::StateKind;

/// The row.
pub const ENTRY: CacheEntry =
    CacheEntry { name: "f32", about: "full-precision pages, for comparisons", holds: StateKind::Kv, dtype: DType::F32 };
