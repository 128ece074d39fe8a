//! The dry decorator: every operation allocates what the real one would and computes nothing, so a plan's peak is
//! known to the byte before it runs. It asks the backend that it stands for about sizes only.

use std::sync::Arc;

use crate::backend::{
    Act, AttendSpec, Backend, Choice, ChooseSpec, ConvSpec, Input, Keep, KvSegment, KvSpec, KvTarget, Map, Norm,
    Numerics, Operand, RgLruSpec, Rope, ScanInput, ScanSpec, StateSegment, Weight,
};
use crate::buffer::{Class, Memory};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::experts::{Group, RouteSpec, Routes, Term};
use crate::form::{Form, WeightSource};
use crate::formula::Formula;
use crate::recurrence::{Recurrence, RecurrenceSpec};
use crate::tensor::Tensor;

/// Shapes only, over a phantom memory.
pub struct Dry {
    memory: Memory,
    of: Arc<dyn Backend>,
}

impl Dry {
    /// Stands for `of`, whose packed sizes and workspaces it reports.
    pub fn new(of: Arc<dyn Backend>) -> Dry {
        Dry { memory: Memory::phantom(), of }
    }

    fn scratch(&self, shape: &[usize]) -> Result<Tensor> {
        Tensor::host(&self.memory, shape, DType::F32, Class::Scratch)
    }

    fn like(&self, x: &Tensor) -> Result<Tensor> {
        self.scratch(x.dims())
    }

    fn reuse(&self, mut x: Tensor) -> Result<Tensor> {
        if x.is_unique() { Ok(x) } else { self.like(&x) }
    }

    fn nothing(&self, what: &str) -> Error {
        Error::Unsupported { backend: "dry", what: what.to_owned() }
    }
}

impl Backend for Dry {
    fn name(&self) -> &'static str {
        "dry"
    }
    fn numerics(&self) -> Numerics {
        self.of.numerics()
    }
    fn memory(&self) -> &Memory {
        &self.memory
    }
    fn alloc(&self, shape: &[usize], dtype: DType, class: Class) -> Result<Tensor> {
        Tensor::host(&self.memory, shape, dtype, class)
    }
    fn upload(&self, _values: &[f32], shape: &[usize], dtype: DType, class: Class) -> Result<Tensor> {
        Tensor::host(&self.memory, shape, dtype, class)
    }
    fn read(&self, _x: &Tensor) -> Result<Vec<f32>> {
        Err(self.nothing("read values: it has none"))
    }
    fn read_bytes(&self, _x: &Tensor) -> Result<Vec<u8>> {
        Err(self.nothing("read bytes: it has none"))
    }
    fn write_bytes(&self, _x: &mut Tensor, _bytes: &[u8]) -> Result<()> {
        Ok(())
    }
    fn copy(&self, x: &Tensor, class: Class) -> Result<Tensor> {
        Tensor::host(&self.memory, x.dims(), x.dtype(), class)
    }
    fn pack(&self, source: &dyn WeightSource, bias: Option<&[f32]>, class: Class) -> Result<Weight> {
        let ((n, k), form) = (source.shape(), source.form());
        let bytes = self.of.packed_bytes(n, k, &form);
        let packed = Tensor::host(&self.memory, &[bytes], DType::U8, class)?;
        let bias = bias.map(|b| self.upload(b, &[b.len()], DType::F32, class)).transpose()?;
        Ok(Weight { n, k, form, bias, packed: Arc::new(packed) })
    }
    fn unpack<'a>(&'a self, _weight: &'a Weight) -> Result<Box<dyn WeightSource + 'a>> {
        Err(self.nothing("unpack weights: it has none"))
    }
    fn packed_bytes(&self, n: usize, k: usize, form: &Form) -> usize {
        self.of.packed_bytes(n, k, form)
    }
    fn linear_workspace(&self, rows: usize, weights: &[&Weight]) -> usize {
        self.of.linear_workspace(rows, weights)
    }
    fn linear_groups_workspace(&self, rows: (usize, usize), weights: &[&Weight]) -> usize {
        self.of.linear_groups_workspace(rows, weights)
    }
    fn attend_workspace(&self, rows: usize, keys: usize, spec: &AttendSpec) -> usize {
        self.of.attend_workspace(rows, keys, spec)
    }

    fn embed(&self, table: &Weight, ids: &[u32], _scale: f32) -> Result<Tensor> {
        self.scratch(&[ids.len(), table.k])
    }
    fn linear(&self, input: Input<'_>, weights: &[&Weight]) -> Result<Vec<Tensor>> {
        let Some(first) = weights.first() else { return Ok(Vec::new()) };
        let t = input.lead().shape().elements() / first.k;
        let out = weights.iter().map(|w| self.scratch(&[t, w.n])).collect::<Result<Vec<_>>>()?;
        drop(self.memory.take(self.of.linear_workspace(t, weights), Class::Scratch)?);
        Ok(out)
    }
    fn linear_add(&self, input: Input<'_>, weight: &Weight, residual: Tensor) -> Result<Tensor> {
        let t = input.lead().shape().elements() / weight.k;
        let out = self.reuse(residual)?;
        drop(self.memory.take(self.of.linear_workspace(t, &[weight]), Class::Scratch)?);
        Ok(out)
    }
    /// The first experts for every row: what a product of groups takes does not depend on the choice.
    fn route(&self, logits: &Tensor, spec: &RouteSpec) -> Result<Routes> {
        let (t, k) = (logits.shape().elements() / spec.n_experts.max(1), spec.n_active);
        Ok(Routes { n_active: k, experts: (0..t * k).map(|i| (i % k) as u32).collect(), weights: vec![0.0; t * k] })
    }
    fn linear_groups(&self, input: Input<'_>, groups: &[Group<'_>]) -> Result<Vec<Tensor>> {
        let Some(first) = groups.first() else { return Ok(Vec::new()) };
        let rows = input.lead().shape().elements() / first.weights.first().map_or(1, |w| w.k);
        let picked = groups.iter().map(|g| g.rows.len()).sum();
        let out = first.weights.iter().map(|w| self.scratch(&[picked, w.n])).collect::<Result<Vec<_>>>()?;
        drop(self.memory.take(self.of.linear_groups_workspace((rows, picked), &first.weights), Class::Scratch)?);
        Ok(out)
    }
    fn add_weighted(&self, base: Tensor, _x: &Tensor, _terms: &[Term]) -> Result<Tensor> {
        self.reuse(base)
    }
    fn norm(&self, x: &Tensor, _norm: &Norm) -> Result<Tensor> {
        self.like(x)
    }
    fn gated_norm(&self, x: &Tensor, _z: &Tensor, _norm: &Norm) -> Result<Tensor> {
        self.like(x)
    }
    fn rope(&self, x: Tensor, _positions: &[u32], _rope: &Rope) -> Result<Tensor> {
        self.reuse(x)
    }
    fn kv_write(&self, _k: &Tensor, _v: &Tensor, _targets: &mut [KvTarget<'_>], _spec: &KvSpec) -> Result<()> {
        Ok(())
    }
    fn attend(&self, q: &Tensor, segments: &[KvSegment<'_>], spec: &AttendSpec) -> Result<Tensor> {
        let t = q.shape().elements() / (spec.n_heads * spec.q_dim());
        let keys = segments.iter().map(|s| s.start + s.rows.len()).max().unwrap_or(0);
        let out = self.scratch(&[t, spec.n_heads * spec.v_dim()])?;
        drop(self.memory.take(self.of.attend_workspace(t, keys, spec), Class::Scratch)?);
        Ok(out)
    }
    fn choose(&self, q: &Tensor, _segments: &[KvSegment<'_>], spec: &ChooseSpec) -> Result<(Keep, Option<Tensor>)> {
        let t = q.dims().first().copied().unwrap_or(0);
        let pooled = match spec.choice {
            Choice::Share => Some(self.scratch(&[t, spec.n_heads * spec.kv.v_dim])?),
            _ => None,
        };
        Ok((Keep { n_groups: 1, n_pages: 0, bits: Arc::from(Vec::new()) }, pooled))
    }
    fn conv(&self, x: &Tensor, _segments: &mut [StateSegment<'_>], _spec: &ConvSpec) -> Result<Tensor> {
        self.like(x)
    }
    fn recurrence(
        &self,
        x: &Recurrence<'_>,
        _segments: &mut [StateSegment<'_>],
        spec: &RecurrenceSpec,
    ) -> Result<Tensor> {
        let t = crate::reference::recurrence::check(x, spec)?;
        self.scratch(&[t, spec.n_heads, spec.v_dim])
    }
    fn pointwise(&self, shape: &[usize], inputs: &[Operand<'_>], formula: &Formula) -> Result<Tensor> {
        crate::reference::pointwise::check(shape, inputs, formula)?;
        self.scratch(shape)
    }
    fn wkv(
        &self,
        (k, _v): (&Tensor, &Tensor),
        _rates: (&Tensor, &Tensor),
        _segments: &mut [StateSegment<'_>],
    ) -> Result<Tensor> {
        self.like(k)
    }
    fn exp_gates(&self, input: &Tensor, _forget: &Tensor, _segments: &mut [StateSegment<'_>]) -> Result<[Tensor; 3]> {
        Ok([self.like(input)?, self.like(input)?, self.like(input)?])
    }
    fn softmax(&self, x: Tensor) -> Result<Tensor> {
        self.reuse(x)
    }
    fn dot(&self, a: &Tensor, _b: &Tensor) -> Result<Tensor> {
        self.scratch(&a.dims()[..a.dims().len().saturating_sub(1)])
    }
    fn selective_scan(
        &self,
        input: ScanInput<'_>,
        _segments: &mut [StateSegment<'_>],
        _spec: &ScanSpec,
    ) -> Result<Tensor> {
        self.like(input.x)
    }
    fn rg_lru(
        &self,
        x: &Tensor,
        _positions: &[u32],
        _segments: &mut [StateSegment<'_>],
        _spec: &RgLruSpec,
    ) -> Result<Tensor> {
        self.like(x)
    }
    fn glu(&self, gate: &Tensor, _up: &Tensor, _act: Act) -> Result<Tensor> {
        self.like(gate)
    }
    fn add(&self, a: Tensor, _b: &Tensor) -> Result<Tensor> {
        self.reuse(a)
    }
    fn map(&self, x: Tensor, _map: Map) -> Result<Tensor> {
        self.reuse(x)
    }
    fn combine(&self, xs: &[&Tensor], coefficients: &Tensor) -> Result<Vec<Tensor>> {
        let Some(first) = xs.first() else { return Ok(Vec::new()) };
        (0..coefficients.width() / xs.len()).map(|_| self.like(first)).collect()
    }
    fn concat(&self, parts: &[&Tensor]) -> Result<Tensor> {
        self.scratch(&[parts.first().map_or(0, |x| x.rows()), parts.iter().map(|x| x.width()).sum()])
    }
    fn rows(&self, x: &Tensor, rows: &[usize]) -> Result<Tensor> {
        self.scratch(&[rows.len(), x.width()])
    }
}
