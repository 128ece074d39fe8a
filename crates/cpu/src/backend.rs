//! `Backend` for the CPU: checks shapes, asks the pool, calls the kernels. One line per operation.

use std::fs::File;

use reverie_tensor::backend::Map;
use reverie_tensor::{
    Act, AttendSpec, Backend, Class, ConvSpec, DType, Error, Form, Formula, Group, Input, KvSegment, KvSpec, KvTarget,
    Memory, Norm, Numerics, Operand, Recurrence, RecurrenceSpec, Result, RgLruSpec, Rope, RouteSpec, Routes, ScanInput,
    ScanSpec, StateSegment, Tensor, Term, Weight, WeightSource,
};

use crate::isa::{Isa, ReadAhead};
use crate::ops;
use crate::pool::Pool;

/// How a CPU backend is set up.
#[derive(Clone, Copy, Debug)]
pub struct CpuSpec {
    /// Threads in all; none means the physical cores.
    pub threads: Option<usize>,
    /// How activations meet integer weights.
    pub numerics: Numerics,
    /// The instruction set; none means the best detected. A set that the processor lacks is refused.
    pub isa: Option<Isa>,
}

impl Default for CpuSpec {
    fn default() -> CpuSpec {
        CpuSpec { threads: None, numerics: Numerics::Int8, isa: None }
    }
}

/// The CPU as a backend.
pub struct Cpu {
    pub(crate) memory: Memory,
    pub(crate) pool: Pool,
    pub(crate) isa: Isa,
    pub(crate) numerics: Numerics,
    /// See `Isa::read_ahead`.
    pub(crate) read_ahead: Option<ReadAhead>,
}

impl Cpu {
    /// Starts the threads.
    pub fn new(spec: CpuSpec) -> Result<Cpu> {
        let isa = spec.isa.unwrap_or_else(Isa::detect);
        if !Isa::available().contains(&isa) {
            return Err(Error::value(
                "instruction set",
                isa.name(),
                "one that this processor has; `doctor` lists them",
            ));
        }
        let threads = spec.threads.unwrap_or_else(physical_cores);
        if threads == 0 || threads > 1024 {
            return Err(Error::value("threads", threads, "1 to 1024"));
        }
        Ok(Cpu {
            memory: Memory::host(),
            pool: Pool::new(threads),
            isa,
            numerics: spec.numerics,
            read_ahead: Isa::read_ahead(),
        })
    }

    /// Threads in all.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// An f32 result tensor; its content is unspecified.
    pub(crate) fn out(&self, shape: &[usize]) -> Result<Tensor> {
        Tensor::host(&self.memory, shape, DType::F32, Class::Scratch)
    }
}

/// Physical cores: hardware threads that share a core count once. Where the system does not say, all hardware threads.
pub fn physical_cores() -> usize {
    let logical = std::thread::available_parallelism().map_or(1, usize::from);
    let mut cores = std::collections::BTreeSet::new();
    for cpu in 0..logical {
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        match std::fs::read_to_string(path) {
            Ok(siblings) => cores.insert(siblings),
            Err(_) => return logical,
        };
    }
    cores.len().clamp(1, logical)
}

impl Backend for Cpu {
    fn name(&self) -> &'static str {
        "cpu"
    }
    fn numerics(&self) -> Numerics {
        self.numerics
    }
    fn memory(&self) -> &Memory {
        &self.memory
    }

    fn alloc(&self, shape: &[usize], dtype: DType, class: Class) -> Result<Tensor> {
        let mut t = Tensor::host(&self.memory, shape, dtype, class)?;
        if !t.is_zero()
            && let Some(bytes) = t.host_bytes_mut()
        {
            bytes.fill(0);
        }
        Ok(t)
    }
    fn blank(&self, shape: &[usize], dtype: DType, class: Class) -> Result<Tensor> {
        Tensor::host(&self.memory, shape, dtype, class)
    }
    fn over_file(&self, file: &File, from: u64, parts: &[(usize, DType)]) -> Result<Option<Vec<Tensor>>> {
        Tensor::over_file(&self.memory, file, from, parts)
    }
    fn upload(&self, values: &[f32], shape: &[usize], dtype: DType, class: Class) -> Result<Tensor> {
        let mut t = Tensor::host(&self.memory, shape, dtype, class)?;
        if t.shape().elements() != values.len() {
            return Err(Error::shape("upload", values.len(), t.shape()));
        }
        if let Some(bytes) = t.host_bytes_mut() {
            values.iter().enumerate().for_each(|(i, &v)| dtype.write(bytes, i, v));
        }
        Ok(t)
    }
    fn read(&self, x: &Tensor) -> Result<Vec<f32>> {
        if let Some(values) = x.host_slice::<f32>().filter(|_| x.dtype() == DType::F32) {
            return Ok(values.to_vec());
        }
        let bytes = host_bytes(x)?;
        Ok((0..x.shape().elements()).map(|i| x.dtype().read(bytes, i)).collect())
    }
    fn read_bytes(&self, x: &Tensor) -> Result<Vec<u8>> {
        host_bytes(x).map(<[u8]>::to_vec)
    }
    fn write_bytes(&self, x: &mut Tensor, bytes: &[u8]) -> Result<()> {
        let len = x.len_bytes();
        let target = x.host_bytes_mut().ok_or_else(shared)?;
        if bytes.len() != len {
            return Err(Error::shape("write_bytes", bytes.len(), len));
        }
        target.copy_from_slice(bytes);
        Ok(())
    }
    fn copy(&self, x: &Tensor, class: Class) -> Result<Tensor> {
        let mut t = Tensor::host(&self.memory, x.dims(), x.dtype(), class)?;
        t.host_bytes_mut().ok_or_else(shared)?.copy_from_slice(host_bytes(x)?);
        Ok(t)
    }

    fn pack(&self, source: &dyn WeightSource, bias: Option<&[f32]>, class: Class) -> Result<Weight> {
        ops::panel::pack(self, source, bias, class)
    }
    fn unpack<'a>(&'a self, weight: &'a Weight) -> Result<Box<dyn WeightSource + 'a>> {
        ops::panel::unpack(weight)
    }
    fn packed_bytes(&self, n: usize, k: usize, form: &Form) -> usize {
        ops::panel::packed_bytes(n, k, form)
    }
    fn linear_workspace(&self, rows: usize, weights: &[&Weight]) -> usize {
        ops::linear::workspace(self, rows, weights)
    }
    fn linear_groups_workspace(&self, rows: (usize, usize), weights: &[&Weight]) -> usize {
        ops::linear::groups_workspace(self, rows, weights)
    }
    fn attend_workspace(&self, rows: usize, keys: usize, spec: &AttendSpec) -> usize {
        ops::attend::workspace(self, rows, keys, spec)
    }

    fn embed(&self, table: &Weight, ids: &[u32], scale: f32) -> Result<Tensor> {
        ops::embed::run(self, table, ids, scale)
    }
    fn linear(&self, input: Input<'_>, weights: &[&Weight]) -> Result<Vec<Tensor>> {
        ops::linear::run(self, input, weights)
    }
    fn linear_add(&self, input: Input<'_>, weight: &Weight, residual: Tensor) -> Result<Tensor> {
        ops::linear::run_add(self, input, weight, residual)
    }
    fn route(&self, logits: &Tensor, spec: &RouteSpec) -> Result<Routes> {
        ops::experts::route(self, logits, spec)
    }
    fn linear_groups(&self, input: Input<'_>, groups: &[Group<'_>]) -> Result<Vec<Tensor>> {
        ops::linear::run_groups(self, input, groups)
    }
    fn add_weighted(&self, base: Tensor, x: &Tensor, terms: &[Term]) -> Result<Tensor> {
        ops::experts::add_weighted(self, base, x, terms)
    }
    fn norm(&self, x: &Tensor, norm: &Norm) -> Result<Tensor> {
        ops::norm::run(self, x, norm)
    }
    fn gated_norm(&self, x: &Tensor, z: &Tensor, norm: &Norm) -> Result<Tensor> {
        ops::norm::run_gated(self, x, z, norm)
    }
    fn rope(&self, x: Tensor, positions: &[u32], rope: &Rope) -> Result<Tensor> {
        ops::rope::run(self, x, positions, rope)
    }
    fn kv_write(&self, k: &Tensor, v: &Tensor, targets: &mut [KvTarget<'_>], spec: &KvSpec) -> Result<()> {
        ops::kv::write(self, k, v, targets, spec)
    }
    fn attend(&self, q: &Tensor, segments: &[KvSegment<'_>], spec: &AttendSpec) -> Result<Tensor> {
        ops::attend::run(self, q, segments, spec)
    }
    fn conv(&self, x: &Tensor, segments: &mut [StateSegment<'_>], spec: &ConvSpec) -> Result<Tensor> {
        ops::conv::run(self, x, segments, spec)
    }
    fn recurrence(
        &self,
        x: &Recurrence<'_>,
        segments: &mut [StateSegment<'_>],
        spec: &RecurrenceSpec,
    ) -> Result<Tensor> {
        ops::recurrence::run(self, x, segments, spec)
    }
    fn pointwise(&self, shape: &[usize], inputs: &[Operand<'_>], formula: &Formula) -> Result<Tensor> {
        ops::pointwise::run(self, shape, inputs, formula)
    }
    fn wkv(
        &self,
        kv: (&Tensor, &Tensor),
        rates: (&Tensor, &Tensor),
        segments: &mut [StateSegment<'_>],
    ) -> Result<Tensor> {
        ops::wkv::run(self, kv, rates, segments)
    }
    fn exp_gates(&self, input: &Tensor, forget: &Tensor, segments: &mut [StateSegment<'_>]) -> Result<[Tensor; 3]> {
        ops::exp_gates::run(self, input, forget, segments)
    }
    fn softmax(&self, x: Tensor) -> Result<Tensor> {
        ops::softmax::run(self, x)
    }
    fn dot(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        ops::elementwise::dot(self, a, b)
    }
    fn selective_scan(
        &self,
        input: ScanInput<'_>,
        segments: &mut [StateSegment<'_>],
        spec: &ScanSpec,
    ) -> Result<Tensor> {
        ops::scan::run(self, input, segments, spec)
    }
    fn rg_lru(
        &self,
        x: &Tensor,
        positions: &[u32],
        segments: &mut [StateSegment<'_>],
        spec: &RgLruSpec,
    ) -> Result<Tensor> {
        ops::rg_lru::run(self, x, positions, segments, spec)
    }
    fn glu(&self, gate: &Tensor, up: &Tensor, act: Act) -> Result<Tensor> {
        ops::elementwise::glu(self, gate, up, act)
    }
    fn add(&self, a: Tensor, b: &Tensor) -> Result<Tensor> {
        ops::elementwise::add(self, a, b)
    }
    fn map(&self, x: Tensor, map: Map) -> Result<Tensor> {
        ops::elementwise::map(self, x, map)
    }
    fn combine(&self, xs: &[&Tensor], coefficients: &Tensor) -> Result<Vec<Tensor>> {
        ops::elementwise::combine(self, xs, coefficients)
    }
    fn concat(&self, parts: &[&Tensor]) -> Result<Tensor> {
        ops::elementwise::concat(self, parts)
    }
    fn rows(&self, x: &Tensor, rows: &[usize]) -> Result<Tensor> {
        ops::elementwise::rows(self, x, rows)
    }
}

fn host_bytes(x: &Tensor) -> Result<&[u8]> {
    x.host_bytes()
        .ok_or_else(|| Error::Unsupported { backend: "cpu", what: "read a tensor that is not on the host".into() })
}

fn shared() -> Error {
    Error::Unsupported { backend: "cpu", what: "write a tensor that other handles share".into() }
}
