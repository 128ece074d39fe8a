//! The one integration binary: laws over every fixture, the command line, the shape of the house.

mod cli;
mod fixtures;
mod laws;
mod tidy;
