//! Recurrent slots: fixed size, f32, copied when a fork or a checkpoint shares them.

use reverie_tensor::DType;

use super::CacheEntry;
use crate::state::StateKind;

/// The row.
pub const ENTRY: CacheEntry = CacheEntry {
    name: "slots",
    about: "recurrent slots in f32, for mixers whose state does not grow",
    holds: StateKind::Recurrent,
    dtype: DType::F32,
};
