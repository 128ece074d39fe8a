//! The one integration binary: laws over every fixture, the command line, the shape of the house.

mod bucket;
mod cli;
mod cli_files;
mod cli_memory;
mod cli_state;
mod fixtures;
mod laws;
mod mutants;
mod newcomers;
#[allow(dead_code)]
#[path = "../crates/files/tests/hub/stand_in.rs"]
mod stand_in;
mod synthetic;
mod tidy;
mod twins;

use reverie::rooms;
