//! A projection: a packed weight and the slot where an adapter sits. The only place that knows low-rank adapters.

use reverie_tensor::backend::Map;
use reverie_tensor::{Backend, Input, Tensor, Weight};

use crate::error::Result;

/// A low-rank adapter (arXiv 2106.09685): y += scale · B(A x).
#[derive(Clone, Debug)]
pub struct Lora {
    /// `[rank, K]`.
    pub a: Weight,
    /// `[N, rank]`.
    pub b: Weight,
    /// alpha / rank.
    pub scale: f32,
}

/// A projection `[N, K]`.
#[derive(Clone, Debug)]
pub struct Linear {
    /// The base weight.
    pub weight: Weight,
    /// The adapter, if one is worn.
    pub lora: Option<Lora>,
    /// Multiplies what it gives; 1 nearly everywhere.
    pub factor: f32,
}

impl Linear {
    /// A projection without an adapter.
    pub fn new(weight: Weight) -> Linear {
        Linear { weight, lora: None, factor: 1.0 }
    }

    /// The same, what it gives multiplied by `factor`.
    #[must_use]
    pub fn times(self, factor: f32) -> Linear {
        Linear { factor: self.factor * factor, ..self }
    }

    /// Output width.
    pub fn n(&self) -> usize {
        self.weight.n
    }

    /// `residual + self(input)`.
    pub fn add_to(&self, backend: &dyn Backend, input: Input<'_>, residual: Tensor) -> Result<Tensor> {
        if self.factor != 1.0 {
            let [y] = project(backend, input, [self])?;
            return Ok(backend.add(residual, &y)?);
        }
        let y = backend.linear_add(input, &self.weight, residual)?;
        self.adapt(backend, input, y)
    }

    fn adapt(&self, backend: &dyn Backend, input: Input<'_>, mut y: Tensor) -> Result<Tensor> {
        if let Some(lora) = &self.lora {
            let low = backend.linear(input, &[&lora.a])?.remove(0);
            let low = backend.map(low, Map::Scale(lora.scale))?;
            y = backend.linear_add(Input::Plain(&low), &lora.b, y)?;
        }
        if self.factor == 1.0 { Ok(y) } else { Ok(backend.map(y, Map::Scale(self.factor))?) }
    }
}

/// The same where some projections may be missing.
pub fn project_some<const N: usize>(
    backend: &dyn Backend,
    input: Input<'_>,
    linears: [Option<&Linear>; N],
) -> Result<[Option<Tensor>; N]> {
    let present: Vec<&Linear> = linears.iter().flatten().copied().collect();
    let weights: Vec<&Weight> = present.iter().map(|l| &l.weight).collect();
    let mut results = backend.linear(input, &weights)?.into_iter();
    let mut out = [const { None }; N];
    for (linear, y) in linears.iter().zip(&mut out) {
        if let Some(linear) = linear {
            let computed = results.next().ok_or_else(|| reverie_tensor::Error::shape("project", "fewer results", N))?;
            *y = Some(linear.adapt(backend, input, computed)?);
        }
    }
    Ok(out)
}

/// Several projections of one input; the backend prepares the input once.
pub fn project<const N: usize>(backend: &dyn Backend, input: Input<'_>, linears: [&Linear; N]) -> Result<[Tensor; N]> {
    let out = project_all(backend, input, &linears)?;
    out.try_into().map_err(|_| reverie_tensor::Error::shape("project", "fewer results", N).into())
}

/// The same for a number that only the model knows.
pub fn project_all(backend: &dyn Backend, input: Input<'_>, linears: &[&Linear]) -> Result<Vec<Tensor>> {
    let weights: Vec<&Weight> = linears.iter().map(|l| &l.weight).collect();
    linears.iter().zip(backend.linear(input, &weights)?).map(|(l, y)| l.adapt(backend, input, y)).collect()
}
