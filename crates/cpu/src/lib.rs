//! The CPU workshop: panels of sixteen rows, kernels per instruction set, one thread pool. It refuses to know models.
//! Every result is the same bits for every instruction set, thread count and batch.

#![allow(unsafe_code)]

mod backend;
pub mod isa;
pub mod ops;
pub mod pool;
pub mod probe;
pub mod simd;

pub use backend::{Cpu, CpuSpec, physical_cores};
pub use isa::Isa;
pub(crate) use isa::dispatch;
