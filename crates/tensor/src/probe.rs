//! The probe decorator: passes every operation on and keeps what the model notes and tells on the way. Knows no name.

use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::backend::{
    Act, AttendSpec, Backend, ChooseSpec, ConvSpec, Input, Keep, KvSegment, KvSpec, KvTarget, Map, Norm, Numerics,
    Operand, RgLruSpec, Rope, ScanInput, ScanSpec, StateSegment, Weight,
};
use crate::buffer::{Class, Memory};
use crate::dtype::DType;
use crate::error::Result;
use crate::experts::{Event, Group, RouteSpec, Routes, Term};
use crate::form::{Form, WeightSource};
use crate::formula::Formula;
use crate::recurrence::{Recurrence, RecurrenceSpec};
use crate::tensor::Tensor;

/// A noted tensor: name, width, values.
pub type Note = (String, usize, Vec<f32>);

/// Notes and events on their way out of a `Probe`.
#[derive(Clone, Default)]
pub struct Notes(Arc<Mutex<(Vec<Note>, Vec<Event>)>>);

impl Notes {
    /// What was noted since the last call, in order.
    pub fn take(&self) -> Vec<Note> {
        std::mem::take(&mut self.lock().0)
    }

    /// What happened since the last call, in order.
    pub fn take_events(&self) -> Vec<Event> {
        std::mem::take(&mut self.lock().1)
    }

    fn lock(&self) -> MutexGuard<'_, (Vec<Note>, Vec<Event>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Another backend, watched.
pub struct Probe {
    of: Arc<dyn Backend>,
    notes: Notes,
}

impl Probe {
    /// Watches `of`; what is noted can be read from `notes`.
    pub fn new(of: Arc<dyn Backend>, notes: Notes) -> Probe {
        Probe { of, notes }
    }
}

/// Passes methods of `Backend` on to `self.of`.
macro_rules! pass {
    ($(fn $name:ident(&self $(, $arg:ident: $ty:ty)*) -> $ret:ty;)*) => {
        $(fn $name(&self $(, $arg: $ty)*) -> $ret { self.of.$name($($arg),*) })*
    };
}

impl Backend for Probe {
    fn note(&self, name: &str, x: &Tensor) -> Result<()> {
        let values = self.of.read(x)?;
        self.notes.lock().0.push((name.to_owned(), x.width(), values));
        Ok(())
    }
    fn event(&self, event: &Event) {
        self.notes.lock().1.push(*event);
        self.of.event(event);
    }
    fn unpack<'a>(&'a self, weight: &'a Weight) -> Result<Box<dyn WeightSource + 'a>> {
        self.of.unpack(weight)
    }
    pass! {
        fn name(&self) -> &'static str;
        fn numerics(&self) -> Numerics;
        fn memory(&self) -> &Memory;
        fn alloc(&self, shape: &[usize], dtype: DType, class: Class) -> Result<Tensor>;
        fn over_file(&self, file: &File, from: u64, parts: &[(usize, DType)]) -> Result<Option<Vec<Tensor>>>;
        fn upload(&self, values: &[f32], shape: &[usize], dtype: DType, class: Class) -> Result<Tensor>;
        fn read(&self, x: &Tensor) -> Result<Vec<f32>>;
        fn read_bytes(&self, x: &Tensor) -> Result<Vec<u8>>;
        fn write_bytes(&self, x: &mut Tensor, bytes: &[u8]) -> Result<()>;
        fn copy(&self, x: &Tensor, class: Class) -> Result<Tensor>;
        fn pack(&self, source: &dyn WeightSource, bias: Option<&[f32]>, class: Class) -> Result<Weight>;
        fn packed_bytes(&self, n: usize, k: usize, form: &Form) -> usize;
        fn linear_workspace(&self, rows: usize, weights: &[&Weight]) -> usize;
        fn linear_groups_workspace(&self, rows: (usize, usize), weights: &[&Weight]) -> usize;
        fn attend_workspace(&self, rows: usize, keys: usize, spec: &AttendSpec) -> usize;
        fn embed(&self, table: &Weight, ids: &[u32], scale: f32) -> Result<Tensor>;
        fn linear(&self, input: Input<'_>, weights: &[&Weight]) -> Result<Vec<Tensor>>;
        fn linear_add(&self, input: Input<'_>, weight: &Weight, residual: Tensor) -> Result<Tensor>;
        fn route(&self, logits: &Tensor, spec: &RouteSpec) -> Result<Routes>;
        fn linear_groups(&self, input: Input<'_>, groups: &[Group<'_>]) -> Result<Vec<Tensor>>;
        fn add_weighted(&self, base: Tensor, x: &Tensor, terms: &[Term]) -> Result<Tensor>;
        fn norm(&self, x: &Tensor, norm: &Norm) -> Result<Tensor>;
        fn gated_norm(&self, x: &Tensor, z: &Tensor, norm: &Norm) -> Result<Tensor>;
        fn rope(&self, x: Tensor, positions: &[u32], rope: &Rope) -> Result<Tensor>;
        fn kv_write(&self, k: &Tensor, v: &Tensor, targets: &mut [KvTarget<'_>], spec: &KvSpec) -> Result<()>;
        fn attend(&self, q: &Tensor, segments: &[KvSegment<'_>], spec: &AttendSpec) -> Result<Tensor>;
        fn choose(&self, q: &Tensor, segments: &[KvSegment<'_>], spec: &ChooseSpec) -> Result<(Keep, Option<Tensor>)>;
        fn conv(&self, x: &Tensor, segments: &mut [StateSegment<'_>], spec: &ConvSpec) -> Result<Tensor>;
        fn selective_scan(&self, input: ScanInput<'_>, segments: &mut [StateSegment<'_>], spec: &ScanSpec) -> Result<Tensor>;
        fn rg_lru(&self, x: &Tensor, positions: &[u32], segments: &mut [StateSegment<'_>], spec: &RgLruSpec) -> Result<Tensor>;
        fn recurrence(&self, x: &Recurrence<'_>, segments: &mut [StateSegment<'_>], spec: &RecurrenceSpec) -> Result<Tensor>;
        fn pointwise(&self, shape: &[usize], inputs: &[Operand<'_>], formula: &Formula) -> Result<Tensor>;
        fn wkv(&self, kv: (&Tensor, &Tensor), rates: (&Tensor, &Tensor), segments: &mut [StateSegment<'_>]) -> Result<Tensor>;
        fn exp_gates(&self, input: &Tensor, forget: &Tensor, segments: &mut [StateSegment<'_>]) -> Result<[Tensor; 3]>;
        fn softmax(&self, x: Tensor) -> Result<Tensor>;
        fn dot(&self, a: &Tensor, b: &Tensor) -> Result<Tensor>;
        fn glu(&self, gate: &Tensor, up: &Tensor, act: Act) -> Result<Tensor>;
        fn add(&self, a: Tensor, b: &Tensor) -> Result<Tensor>;
        fn map(&self, x: Tensor, map: Map) -> Result<Tensor>;
        fn combine(&self, xs: &[&Tensor], coefficients: &Tensor) -> Result<Vec<Tensor>>;
        fn concat(&self, parts: &[&Tensor]) -> Result<Tensor>;
        fn rows(&self, x: &Tensor, rows: &[usize]) -> Result<Tensor>;
    }
}
