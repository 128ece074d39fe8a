//! The scalar truth: every operation of `Backend`, written plainly over host values, and a backend made of nothing else.
//! It is never optimised; fast paths are held against it.

pub mod attend;
pub mod backend;
pub mod choose;
pub mod conv;
pub mod elementwise;
pub mod embed;
pub mod exp_gates;
pub mod experts;
pub mod linear;
pub mod norm;
pub mod pointwise;
pub mod recurrence;
pub mod rg_lru;
pub mod rope;
pub mod scan;
pub mod wkv;

pub use backend::Reference;
pub use elementwise::{sigmoid, softplus};

use crate::backend::Backend;
use crate::buffer::Class;
use crate::dtype::DType;
use crate::error::Result;
use crate::tensor::Tensor;

/// A scratch f32 tensor with these values.
fn scratch<B: Backend + ?Sized>(b: &B, values: &[f32], shape: &[usize]) -> Result<Tensor> {
    b.upload(values, shape, DType::F32, Class::Scratch)
}
