//! The laws, each over every fixture there is.

mod budget;
mod oracle;
mod pocket;
mod same_bits;
