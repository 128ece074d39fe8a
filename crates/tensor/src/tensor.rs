//! Light tensor handles: a shape, a dtype and shared storage. A clone shares bytes; writing needs the only handle.
//! Knows nothing of operations.

use std::any::Any;
use std::fs::File;
use std::sync::Arc;

use crate::buffer::{Buffer, Class, Memory, Plain};
use crate::dtype::DType;
use crate::error::{Error, Result};

/// Extents, slowest first; at most four.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    dims: [usize; 4],
    rank: u8,
}

impl Shape {
    /// From a slice of one to four extents.
    ///
    /// # Panics
    /// If there are more than four: a bug in the caller, never data.
    pub fn new(dims: &[usize]) -> Shape {
        assert!(dims.len() <= 4, "a tensor has at most four extents");
        let mut d = [1; 4];
        d[..dims.len()].copy_from_slice(dims);
        Shape { dims: d, rank: dims.len() as u8 }
    }

    /// The extents.
    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.rank as usize]
    }

    /// Product of the extents.
    pub fn elements(&self) -> usize {
        self.dims().iter().product()
    }

    /// The last extent.
    pub fn last(&self) -> usize {
        self.dims().last().copied().unwrap_or(1)
    }
}

impl std::fmt::Debug for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}

/// Where a tensor's bytes live.
pub trait Storage: Any + Send + Sync {
    /// Length in bytes.
    fn len_bytes(&self) -> usize;
    /// The host buffer, if it is one.
    fn host(&self) -> Option<&Buffer>;
    /// The host buffer, writable, if it is one.
    fn host_mut(&mut self) -> Option<&mut Buffer>;
    /// For a backend to find its own kind again.
    fn as_any(&self) -> &dyn Any;
    /// For a backend to find its own kind again.
    fn as_any_mut(&mut self) -> &mut dyn Any;
}

impl Storage for Buffer {
    fn len_bytes(&self) -> usize {
        self.len()
    }
    fn host(&self) -> Option<&Buffer> {
        Some(self)
    }
    fn host_mut(&mut self) -> Option<&mut Buffer> {
        Some(self)
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

/// No memory at all.
struct Nothing;

impl Storage for Nothing {
    fn len_bytes(&self) -> usize {
        0
    }
    fn host(&self) -> Option<&Buffer> {
        None
    }
    fn host_mut(&mut self) -> Option<&mut Buffer> {
        None
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

/// A handle to a shaped piece of memory.
#[derive(Clone)]
pub struct Tensor {
    shape: Shape,
    dtype: DType,
    storage: Arc<dyn Storage>,
}

impl Tensor {
    /// A host tensor from `memory`; its content is unspecified.
    pub fn host(memory: &Memory, shape: &[usize], dtype: DType, class: Class) -> Result<Tensor> {
        let shape = Shape::new(shape);
        let bytes =
            shape.elements().checked_mul(dtype.size()).ok_or_else(|| Error::shape("alloc", shape, "fewer bytes"))?;
        Ok(Tensor { shape, dtype, storage: Arc::new(memory.take(bytes, class)?) })
    }

    /// Flat tensors of state over the bytes of `file` from `from` on, one behind another, as [`Memory::over_file`] has it.
    pub fn over_file(memory: &Memory, file: &File, from: u64, parts: &[(usize, DType)]) -> Result<Option<Vec<Tensor>>> {
        let lens: Option<Vec<usize>> = parts.iter().map(|(n, dtype)| n.checked_mul(dtype.size())).collect();
        let lens = lens.ok_or_else(|| Error::shape("over_file", parts.len(), "fewer bytes"))?;
        let tensor = |(buffer, &(n, dtype)): (Buffer, &(usize, DType))| Tensor {
            shape: Shape::new(&[n]),
            dtype,
            storage: Arc::new(buffer),
        };
        Ok(memory.over_file(file, from, &lens)?.map(|buffers| buffers.into_iter().zip(parts).map(tensor).collect()))
    }

    /// What stands where a tensor was given back: no elements, no bytes.
    pub fn hole(dtype: DType) -> Tensor {
        Tensor { shape: Shape::new(&[0]), dtype, storage: Arc::new(Nothing) }
    }

    /// True if it has no elements.
    pub fn is_hole(&self) -> bool {
        self.shape.elements() == 0
    }

    /// A tensor over storage that a backend made.
    pub fn from_storage(shape: &[usize], dtype: DType, storage: Arc<dyn Storage>) -> Tensor {
        Tensor { shape: Shape::new(shape), dtype, storage }
    }

    /// Its shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Its extents.
    pub fn dims(&self) -> &[usize] {
        self.shape.dims()
    }

    /// Its element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Length in bytes.
    pub fn len_bytes(&self) -> usize {
        self.shape.elements() * self.dtype.size()
    }

    /// Product of all extents but the last.
    pub fn rows(&self) -> usize {
        let d = self.dims();
        d[..d.len().saturating_sub(1)].iter().product()
    }

    /// The last extent.
    pub fn width(&self) -> usize {
        self.shape.last()
    }

    /// The same bytes under another shape with as many elements.
    pub fn reshape(mut self, dims: &[usize]) -> Result<Tensor> {
        let shape = Shape::new(dims);
        if shape.elements() != self.shape.elements() {
            return Err(Error::shape("reshape", self.shape, shape));
        }
        self.shape = shape;
        Ok(self)
    }

    /// True if every byte is known to be zero, since nobody wrote it yet; a host's tensors only.
    pub fn is_zero(&self) -> bool {
        self.storage.host().is_some_and(Buffer::is_zero)
    }

    /// The storage, for the backend that made it.
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// True if no other handle shares the bytes.
    pub fn is_unique(&mut self) -> bool {
        Arc::get_mut(&mut self.storage).is_some()
    }

    /// Handles that share the bytes.
    pub fn shared_by(&self) -> usize {
        Arc::strong_count(&self.storage)
    }

    /// True if both handles share their bytes.
    pub fn same_storage(&self, other: &Tensor) -> bool {
        Arc::ptr_eq(&self.storage, &other.storage)
    }

    /// The elements as `T`, if the tensor is on the host and of that width.
    pub fn host_slice<T: Plain>(&self) -> Option<&[T]> {
        if size_of::<T>() != self.dtype.size() {
            return None;
        }
        self.storage.host()?.cast::<T>().map(|s| &s[..self.shape.elements()])
    }

    /// The raw bytes, if the tensor is on the host.
    pub fn host_bytes(&self) -> Option<&[u8]> {
        let n = self.len_bytes();
        self.storage.host()?.bytes().map(|b| &b[..n])
    }

    /// The elements, writable: only on the host and only for the sole handle.
    pub fn host_slice_mut<T: Plain>(&mut self) -> Option<&mut [T]> {
        if size_of::<T>() != self.dtype.size() {
            return None;
        }
        let n = self.shape.elements();
        Arc::get_mut(&mut self.storage)?.host_mut()?.cast_mut::<T>().map(|s| &mut s[..n])
    }

    /// The raw bytes, writable: only on the host and only for the sole handle.
    pub fn host_bytes_mut(&mut self) -> Option<&mut [u8]> {
        let n = self.len_bytes();
        Arc::get_mut(&mut self.storage)?.host_mut()?.bytes_mut().map(|b| &mut b[..n])
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor({} {:?})", self.dtype, self.shape)
    }
}
