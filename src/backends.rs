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

/// The devices of this machine, as this build sees them.
#[derive(Clone, Debug)]
pub struct Report {
    /// The instruction set that is used unless another is asked for.
    pub isa: &'static str,
    /// All that this processor has.
    pub isas: Vec<&'static str>,
    /// Cores, and so threads unless another number is asked for.
    pub physical_cores: usize,
    /// Backends of this build.
    pub devices: Vec<&'static str>,
}

/// What `doctor` says of the devices.
pub fn report() -> Report {
    Report {
        isa: reverie_cpu::Isa::detect().name(),
        isas: reverie_cpu::Isa::available().iter().map(|i| i.name()).collect(),
        physical_cores: reverie_cpu::physical_cores(),
        devices: vec!["cpu"],
    }
}
