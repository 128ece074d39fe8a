//! bfloat16 pages of keys and values.

use reverie_tensor::DType;

use super::CacheEntry;
use crate::state::StateKind;

/// The row.
pub const ENTRY: CacheEntry = CacheEntry {
    name: "bf16",
    about: "bfloat16 pages: f32's range, eight bits of precision",
    holds: StateKind::Kv,
    dtype: DType::BF16,
};
