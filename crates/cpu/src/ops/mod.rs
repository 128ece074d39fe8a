//! The operations, one file each.

pub mod attend;
pub mod conv;
pub mod elementwise;
pub mod embed;
pub mod exp_gates;
pub mod experts;
mod host;
pub mod kv;
pub mod linear;
pub mod norm;
pub mod panel;
pub mod pointwise;
pub mod recurrence;
pub mod rg_lru;
pub mod rope;
pub mod scan;
pub mod softmax;
mod split;
pub mod wkv;
