//! The laws, each over every fixture there is.

mod budget;
mod oracle;
mod pack;
mod pocket;
mod prefix;
mod same_bits;
mod sleep;
