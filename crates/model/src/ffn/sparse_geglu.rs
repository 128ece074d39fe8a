//! GeGLU whose gates open only where they stand out of their row: those above the row's mean plus some of its standard deviations,
//! by what they are above it. Reference: transformers' modeling_gemma3n.py, `_gaussian_topk`.

use reverie_files::ModelConfig;
use reverie_tensor::formula::input;
use reverie_tensor::{Act, Formula, Input, Norm, NormKind, Operand, Tensor};

use super::{Ffn, FfnEntry, glu};
use crate::Build;
use crate::error::{Error, Result};
use crate::linear::{Linear, project};
use crate::mixer::{Step, Stream};
use crate::plan::FfnSpec;

/// The row.
pub const ENTRY: FfnEntry = FfnEntry {
    name: "sparse_geglu",
    about: "GeGLU of the gates that stand out of their row",
    spec: |config, _| Ok(Box::new(Spec::from_config(config, config.f64("activation_sparsity_pattern")?)?)),
};

/// One sparse feed-forward.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// Width inside.
    pub inner: usize,
    /// Standard deviations above the mean that a gate must reach.
    pub deviations: f32,
}

impl Spec {
    /// For gates that were normally distributed, `share` of them stays shut.
    pub fn from_config(config: &ModelConfig, share: f64) -> Result<Spec> {
        if !(share > 0.0 && share < 1.0) {
            return Err(Error::config("activation_sparsity_pattern", share, "above 0 and below 1"));
        }
        Spec::above(config, deviations(share))
    }

    /// For gates that stand so many standard deviations above the mean.
    pub fn above(config: &ModelConfig, deviations: f64) -> Result<Spec> {
        Ok(Spec { inner: glu::width(config, "intermediate_size")?, deviations: deviations as f32 })
    }
}

/// The z below which a share of all standard normal values lies (Acklam's approximation, relative error 1.2e-9).
fn deviations(share: f64) -> f64 {
    let tail = |q: f64| {
        let (c, d) = (
            [-7.784894002430293e-3, -0.3223964580411365, -2.400758277161838, -2.549732539343734, 4.374664141464968],
            [7.784695709041462e-3, 0.3224671290700398, 2.445134137142996, 3.754408661907416],
        );
        let top = c.iter().fold(0.0, |sum, c| sum * q + c) * q + 2.938163982698783;
        top / (d.iter().fold(0.0, |sum, d| sum * q + d) * q + 1.0)
    };
    if share < 0.02425 {
        return tail((-2.0 * share.ln()).sqrt());
    }
    if share > 1.0 - 0.02425 {
        return -tail((-2.0 * (1.0 - share).ln()).sqrt());
    }
    let (a, b) = (
        [-39.69683028665376, 220.9460984245205, -275.9285104469687, 138.357751867269, -30.66479806614716],
        [-54.47609879822406, 161.5858368580409, -155.6989798598866, 66.80131188771972, -13.28068155288572],
    );
    let q = share - 0.5;
    let r = q * q;
    let top = (a.iter().fold(0.0, |sum, a| sum * r + a) * r + 2.506628277459239) * q;
    top / (b.iter().fold(0.0, |sum, b| sum * r + b) * r + 1.0)
}

impl FfnSpec for Spec {
    fn kind(&self) -> &'static str {
        ENTRY.name
    }

    fn build(&self, b: &mut Build<'_>) -> Result<Box<dyn Ffn>> {
        let width = b.width();
        Ok(Box::new(Sparse {
            gate: b.linear("gate_proj", self.inner, width)?,
            up: b.linear("up_proj", self.inner, width)?,
            down: b.linear("down_proj", width, self.inner)?,
            open: (input(0) - self.deviations).max(0.0) * (input(1) * (1.0 / self.inner as f32)),
        }))
    }
}

struct Sparse {
    gate: Linear,
    up: Linear,
    down: Linear,
    /// Of a gate's z and its row's Σ gate · z.
    open: Formula,
}

impl Ffn for Sparse {
    fn forward(&self, step: &Step<'_>, stream: Stream<'_>) -> Result<Tensor> {
        let be = step.backend;
        let [gate, up] = project(be, stream.input(), [&self.gate, &self.up])?;
        let (t, n) = (gate.rows(), gate.width());
        // z is the row's layer norm; its standard deviation is mean(gate ⊙ z), so a gate above the bar is that times z - bar.
        let z = be.norm(&gate, &Norm { kind: NormKind::Layer, weight: None, bias: None, eps: 1e-12 })?;
        let sum = be.dot(&gate.reshape(&[t, 1, n])?, &z.clone().reshape(&[t, 1, n])?)?;
        let gate = be.pointwise(&[t, n], &[Operand::Each(&z), Operand::Stretch(&sum)], &self.open)?;
        stream.close(be, &self.down, Input::Glu(&gate, &up, Act::GeluTanh))
    }
}

#[cfg(test)]
mod tests {
    use super::deviations;

    #[test]
    fn normal_quantiles() {
        // From tables.
        for (share, z) in
            [(0.5, 0.0), (0.95, 1.6448536269514722), (0.05, -1.6448536269514722), (0.999, 3.090232306167813)]
        {
            assert!((deviations(share) - z).abs() < 1e-7, "{share}: {}", deviations(share));
        }
    }
}
