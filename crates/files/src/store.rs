//! What a model asks of its tensors, whatever they come from: files here, random numbers in a benchmark.

use reverie_tensor::WeightSource;

use crate::error::{Error, Result};
use crate::weights::Weights;

/// Named tensors.
pub trait TensorStore: Send + Sync {
    /// True if there is a tensor of this name.
    fn contains(&self, name: &str) -> bool;
    /// All names, in order; none from a store that makes up what it is asked for.
    fn names(&self) -> Vec<&str> {
        Vec::new()
    }
    /// Its extents, outermost first, if there is one.
    fn shape(&self, name: &str) -> Option<Vec<usize>>;
    /// A weight matrix of a known shape: anything else is refused.
    fn matrix<'a>(&'a self, name: &str, shape: (usize, usize)) -> Result<Box<dyn WeightSource + 'a>>;
    /// A tensor of any shape as f32: its extents and its values.
    fn floats(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)>;
    /// A small tensor of a known number of elements: anything else is refused.
    fn vector(&self, name: &str, n: usize) -> Result<Vec<f32>>;
}

/// A checkpoint that holds nothing: of its tensors only these names are known. For whoever plans and does not run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bare(pub &'static [&'static str]);

impl Bare {
    fn none<T>(name: &str) -> Result<T> {
        let (path, name) = (std::path::PathBuf::from("a bare checkpoint"), name.to_owned());
        Err(Error::NoTensor { path, name, hint: "; it has no tensors, only a config".into() })
    }
}

impl TensorStore for Bare {
    fn contains(&self, name: &str) -> bool {
        self.0.contains(&name)
    }
    fn shape(&self, _: &str) -> Option<Vec<usize>> {
        None
    }
    fn matrix<'a>(&'a self, name: &str, _: (usize, usize)) -> Result<Box<dyn WeightSource + 'a>> {
        Bare::none(name)
    }
    fn floats(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        Bare::none(name)
    }
    fn vector(&self, name: &str, _: usize) -> Result<Vec<f32>> {
        Bare::none(name)
    }
}

impl TensorStore for Weights {
    fn contains(&self, name: &str) -> bool {
        Weights::contains(self, name)
    }
    fn names(&self) -> Vec<&str> {
        Weights::names(self).collect()
    }
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.view(name).ok().map(|v| v.shape.to_vec())
    }
    fn matrix<'a>(&'a self, name: &str, shape: (usize, usize)) -> Result<Box<dyn WeightSource + 'a>> {
        self.matrix_shaped(name, shape)
    }
    fn floats(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        self.tensor_f32(name)
    }
    fn vector(&self, name: &str, n: usize) -> Result<Vec<f32>> {
        self.vector_shaped(name, n)
    }
}
