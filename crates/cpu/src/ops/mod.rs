//! The operations, one file each.

pub mod attend;
pub mod conv;
pub mod delta;
pub mod elementwise;
pub mod embed;
pub mod kv;
pub mod linear;
pub mod norm;
pub mod panel;
pub mod rope;
