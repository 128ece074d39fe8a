//! Tensors as slices of host memory, with the refusal that names what is wrong with one that cannot be seen so.
//! Knows no operation.

use reverie_tensor::buffer::Plain;
use reverie_tensor::{DType, Error, Result, Tensor};

/// The elements of an f32 tensor.
pub(crate) fn f32s<'a>(op: &'static str, x: &'a Tensor) -> Result<&'a [f32]> {
    if x.dtype() != DType::F32 {
        return Err(Error::shape(op, x.dtype(), DType::F32));
    }
    x.host_slice().ok_or_else(|| elsewhere(op))
}

/// The elements of an f32 tensor of exactly `len` elements, such as a norm's weight.
pub(crate) fn f32s_of<'a>(op: &'static str, x: &'a Tensor, len: usize) -> Result<&'a [f32]> {
    if x.shape().elements() != len {
        return Err(Error::shape(op, x.shape(), [len]));
    }
    f32s(op, x)
}

/// The elements of an f32 tensor that no other handle shares, writable.
pub(crate) fn f32s_mut<'a>(op: &'static str, x: &'a mut Tensor) -> Result<&'a mut [f32]> {
    if x.dtype() != DType::F32 {
        return Err(Error::shape(op, x.dtype(), DType::F32));
    }
    writable(op, x)
}

/// The elements of a tensor that no other handle shares, writable.
pub(crate) fn writable<'a, T: Plain>(op: &'static str, x: &'a mut Tensor) -> Result<&'a mut [T]> {
    if !x.is_unique() {
        let what = format!("write to a tensor of {op} that other handles share; copy it first");
        return Err(Error::Unsupported { backend: "cpu", what });
    }
    x.host_slice_mut().ok_or_else(|| elsewhere(op))
}

/// The refusal of a tensor that is not in host memory.
pub(crate) fn elsewhere(op: &'static str) -> Error {
    Error::Unsupported { backend: "cpu", what: format!("reach a tensor of {op} that is not in host memory") }
}
