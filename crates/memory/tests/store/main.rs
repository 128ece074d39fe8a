//! The store from outside, as the engine and the command line use it.

mod basics;
#[cfg(feature = "cloud")]
mod carry;
mod crash;
#[cfg(feature = "cloud")]
mod faults;
mod flips;
mod keeping;
mod kill;
mod reader;
mod stand;
