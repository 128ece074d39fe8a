//! The operations, one file each.

pub mod attend;
pub mod conv;
pub mod elementwise;
pub mod embed;
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
mod split;
#[cfg(test)]
mod trial;
