//! The store from outside, as the engine and the command line use it.

mod basics;
mod keeping;
mod stand;
