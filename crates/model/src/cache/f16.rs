//! Half-float pages of keys and values.

use reverie_tensor::DType;

use super::CacheEntry;
use crate::state::StateKind;

/// The row.
pub const ENTRY: CacheEntry =
    CacheEntry { name: "f16", about: "half-float pages: the usual choice", holds: StateKind::Kv, dtype: DType::F16 };
