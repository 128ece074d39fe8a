//! Which devices this build has, and the one place where a backend is plugged in.

use std::sync::Arc;

use reverie_cpu::{Cpu, CpuSpec};
use reverie_tensor::dry::Dry;
use reverie_tensor::{Backend, Numerics};

use crate::error::Result;

/// What a caller may ask of a backend.
#[derive(Clone, Copy, Debug, Default)]
pub struct BackendSpec {
    /// Threads in all; none means the physical cores.
    pub threads: Option<usize>,
    /// Activations stay f32 (`--exact`).
    pub numerics: Option<Numerics>,
    /// An instruction set to force; none means the best.
    pub isa: Option<reverie_cpu::Isa>,
}

/// The backend that models run on.
pub fn open(spec: BackendSpec) -> Result<Arc<dyn Backend>> {
    let numerics = spec.numerics.unwrap_or(Numerics::Int8);
    Ok(Arc::new(Cpu::new(CpuSpec { threads: spec.threads, numerics, isa: spec.isa })?))
}

/// The dry backend that stands for `of`.
pub fn shadow(of: &Arc<dyn Backend>) -> Arc<dyn Backend> {
    Arc::new(Dry::new(Arc::clone(of)))
}

/// What `doctor` says of the devices.
pub fn report() -> Vec<(String, String)> {
    let isas: Vec<&str> = reverie_cpu::Isa::available().iter().map(|i| i.name()).collect();
    vec![
        ("cpu instruction set".into(), reverie_cpu::Isa::detect().name().into()),
        ("instruction sets available".into(), isas.join(", ")),
        ("physical cores".into(), reverie_cpu::physical_cores().to_string()),
        ("devices".into(), "cpu".into()),
    ]
}
