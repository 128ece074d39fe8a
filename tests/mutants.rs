//! Configs that nobody would write, and tensors for them: bytes become choices, choices change a config of the fixtures, and whatever the
//! plan then asks for is given, made up or refused. Shared with the fuzz target: it knows rooms, no facade and no test.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Map, Value, json};

use crate::rooms::cpu::{Cpu, CpuSpec};
use crate::rooms::files::{Error, ModelConfig, TensorStore, Weights};
use crate::rooms::model::arch::Source;
use crate::rooms::model::ffn::moe::Shelf;
use crate::rooms::model::{Model, Registries, Sequence, Want, assemble};
use crate::rooms::tensor::dry::Dry;
use crate::rooms::tensor::quant::{self, PlaneSpec};
use crate::rooms::tensor::{Backend, DType, Form, Numerics, WeightSource};

/// Values that are made up for one model, at most.
const MOST_VALUES: u64 = 1 << 22;

/// Bytes that one model may take.
const MEMORY: u64 = 64 << 20;

/// Bytes read as decisions; zero where they end.
pub struct Choices<'a>(pub &'a [u8]);

impl Choices<'_> {
    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        let wide = if n > 256 { 2 } else { 1 };
        let value = (0..wide).fold(0, |v, _| v << 8 | usize::from(self.byte()));
        value % n.max(1)
    }

    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    fn one<'v, T>(&mut self, of: &'v [T]) -> Option<&'v T> {
        let i = self.below(of.len());
        of.get(i)
    }
}

/// Paths to every value inside, outermost first.
fn paths(value: &Value, at: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
    let mut into = |key: String, inner: &Value| {
        at.push(key);
        found.push(at.clone());
        paths(inner, at, found);
        at.pop();
    };
    match value {
        Value::Object(map) => map.iter().for_each(|(key, inner)| into(key.clone(), inner)),
        Value::Array(list) => list.iter().enumerate().for_each(|(i, inner)| into(i.to_string(), inner)),
        _ => {}
    }
}

fn pointer(path: &[String]) -> String {
    path.iter().map(|key| format!("/{}", key.replace('~', "~0").replace('/', "~1"))).collect()
}

/// A value that a field might hold, by mistake or by malice.
fn odd(old: &Value, all: &[Value], choices: &mut Choices<'_>) -> Value {
    let near = |n: f64, choices: &mut Choices<'_>| match choices.below(6) {
        0 => json!((n as i64).wrapping_add(1)),
        1 => json!((n as i64).wrapping_sub(1)),
        2 => json!(n * 2.0),
        3 => json!((n * 2.0) as i64),
        4 => json!(n as i64 / 2),
        _ => json!(-n),
    };
    match (old, choices.below(4)) {
        (Value::Number(n), 0 | 1) => near(n.as_f64().unwrap_or(0.0), choices),
        (Value::Array(list), 0) => {
            let keep = choices.below(list.len() + 2);
            list.iter().cycle().take(if list.is_empty() { 0 } else { keep }).cloned().collect()
        }
        (Value::Bool(b), 0 | 1) => json!(!b),
        (_, 2) => {
            // What another family has somewhere.
            let Some(other) = choices.one(all) else { return Value::Null };
            let mut found = Vec::new();
            paths(other, &mut Vec::new(), &mut found);
            choices.one(&found).and_then(|p| other.pointer(&pointer(p))).cloned().unwrap_or_default()
        }
        _ => {
            let odd = [
                json!(0),
                json!(1),
                json!(2),
                json!(3),
                json!(5),
                json!(7),
                json!(16),
                json!(32),
                json!(33),
                json!(48),
                json!(64),
                json!(100),
                json!(1 << 16),
                json!(1 << 24),
                json!(i32::MAX),
                json!(1u64 << 32),
                json!(i64::MAX),
                json!(u64::MAX),
                json!(-1),
                json!(i64::MIN),
                json!(0.0),
                json!(0.5),
                json!(1e-300),
                json!(1e300),
                json!(-2.5),
                json!(""),
                json!("x"),
                json!("silu"),
                json!("full_attention"),
                json!("linear_attention"),
                json!(true),
                json!(false),
                Value::Null,
                json!([]),
                json!([0]),
                json!({}),
                json!([1, 2, 3]),
                json!({"rope_type": "yarn", "factor": 4.0}),
            ];
            choices.one(&odd).cloned().unwrap_or_default()
        }
    }
}

/// A config of `all`, changed in a few places.
pub fn mutant(which: usize, all: &[Value], choices: &mut Choices<'_>) -> Value {
    let mut config = all.get(which % all.len().max(1)).cloned().unwrap_or_default();
    for _ in 0..=choices.below(4) {
        let mut found = Vec::new();
        paths(&config, &mut Vec::new(), &mut found);
        let Some(path) = choices.one(&found).cloned() else { break };
        let (last, above) = path.split_last().map(|(l, a)| (l.clone(), pointer(a))).unwrap_or_default();
        match choices.below(8) {
            0 => {
                if let Some(map) = config.pointer_mut(&above).and_then(Value::as_object_mut) {
                    map.remove(&last);
                }
            }
            1 => {
                // A field of another family, or another family altogether.
                let other = choices.one(all).and_then(Value::as_object).cloned().unwrap_or_default();
                let fields: Vec<&String> = other.keys().collect();
                let field = choices.one(&fields).map_or("model_type", |f| f.as_str()).to_owned();
                let field = if choices.below(3) == 0 { "model_type".to_owned() } else { field };
                if let (Some(map), Some(value)) = (config.as_object_mut(), other.get(&field)) {
                    map.insert(field, value.clone());
                }
            }
            _ => {
                if let Some(value) = config.pointer_mut(&pointer(&path)) {
                    *value = odd(&value.clone(), all, choices);
                }
            }
        }
    }
    config
}

/// Tensors of a fixture, and made-up ones where a changed config wants others.
struct Tensors {
    real: Option<Arc<Weights>>,
    form: Form,
    salt: u64,
    made: AtomicU64,
    /// Extents that tensors of any shape turned out to need.
    known: Mutex<std::collections::BTreeMap<String, Vec<usize>>>,
}

fn hash(name: &str, salt: u64) -> u64 {
    name.bytes().fold(salt ^ 0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

fn refuse(name: &str, found: &str) -> Error {
    ModelConfig::new(Path::new("mutant"), Map::new()).refuse(name, found, "a tensor")
}

impl Tensors {
    fn make(&self, name: &str, values: Option<u64>) -> Result<(), Error> {
        let before = values.map(|n| self.made.fetch_add(n.min(MOST_VALUES + 1), Ordering::Relaxed));
        match (before, values) {
            (Some(before), Some(n)) if before.saturating_add(n) <= MOST_VALUES => Ok(()),
            _ => Err(refuse(name, "more than the file holds")),
        }
    }
}

impl TensorStore for Tensors {
    fn contains(&self, name: &str) -> bool {
        match &self.real {
            // Now and then one is missing, or there for no reason.
            Some(real) => real.contains(name) != (self.salt != 0 && hash(name, self.salt).is_multiple_of(97)),
            None => hash(name, self.salt).is_multiple_of(2),
        }
    }
    fn names(&self) -> Vec<&str> {
        self.real.as_ref().map_or(Vec::new(), |real| real.names().collect())
    }
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let known = self.known.lock().ok()?.get(name).cloned();
        known.or_else(|| self.real.as_ref().and_then(|real| TensorStore::shape(real.as_ref(), name)))
    }
    fn matrix<'a>(&'a self, name: &str, (n, k): (usize, usize)) -> Result<Box<dyn WeightSource + 'a>, Error> {
        if let Some(found) = self.real.as_ref().and_then(|real| real.matrix_shaped(name, (n, k)).ok()) {
            return Ok(found);
        }
        self.make(name, (n as u64).checked_mul(k as u64))?;
        if n == 0 || k == 0 {
            return Err(refuse(name, "no value"));
        }
        let form = if k.is_multiple_of(256) || matches!(self.form, Form::Dense(_)) {
            self.form.clone()
        } else {
            Form::Dense(DType::F32)
        };
        Ok(Box::new(MadeUp { n, k, form, seed: hash(name, self.salt) }))
    }
    fn floats(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>), Error> {
        let shape = self.shape(name).ok_or_else(|| refuse(name, "nothing"))?;
        if let Some(found) = self.real.as_ref().and_then(|real| real.tensor_f32(name).ok()).filter(|(s, _)| *s == shape)
        {
            return Ok(found);
        }
        let n = shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d as u64));
        self.make(name, n)?;
        let made =
            MadeUp { n: 1, k: n.unwrap_or(0) as usize, form: Form::Dense(DType::F32), seed: hash(name, self.salt) };
        Ok((shape, (0..made.k).map(|i| made.value(i)).collect()))
    }
    fn vector(&self, name: &str, n: usize) -> Result<Vec<f32>, Error> {
        if let Some(found) = self.real.as_ref().and_then(|real| real.vector_shaped(name, n).ok()) {
            return Ok(found);
        }
        self.make(name, Some(n as u64))?;
        let made = MadeUp { n: 1, k: n, form: Form::Dense(DType::F32), seed: hash(name, self.salt) };
        Ok((0..n).map(|i| made.value(i)).collect())
    }
}

/// A matrix of small numbers.
struct MadeUp {
    n: usize,
    k: usize,
    form: Form,
    seed: u64,
}

impl MadeUp {
    fn bits(&self, i: usize) -> u64 {
        let mut x = self.seed ^ (i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        x ^= x >> 29;
        x.wrapping_mul(0xBF58_476D_1CE4_E5B9)
    }
    fn value(&self, i: usize) -> f32 {
        (self.bits(i) >> 40) as f32 / 8_388_608.0 - 1.0
    }
}

impl WeightSource for MadeUp {
    fn shape(&self) -> (usize, usize) {
        (self.n, self.k)
    }
    fn form(&self) -> Form {
        self.form.clone()
    }
    fn row_codes(&self, row: usize, out: &mut [u8]) {
        let Form::Grouped(g) = &self.form else { return };
        out.iter_mut().enumerate().for_each(|(i, c)| *c = (self.bits(row * self.k + i) >> 32) as u8 >> (8 - g.bits));
    }
    fn row_scales(&self, row: usize, out: &mut [u8]) {
        // Any bytes: scales that are no numbers are a file's right.
        out.iter_mut().enumerate().for_each(|(i, c)| *c = (self.bits(row * self.k + i) >> 16) as u8);
    }
    fn row_dense(&self, row: usize, out: &mut [u8]) {
        let Form::Dense(d) = self.form else { return };
        (0..self.k).for_each(|i| d.write(out, i, self.value(row * self.k + i)));
    }
}

/// How far a config came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reached {
    /// No plan.
    Refused,
    /// A plan whose weights or first tokens were refused.
    Planned,
    /// Tokens were computed.
    Ran,
}

/// Plans, assembles and runs a few tokens; `real` are the tensors of the fixture that the config was made from.
pub fn run(config: &Value, real: Option<Arc<Weights>>, choices: &mut Choices<'_>) -> Reached {
    let registries = Registries::builtin();
    let Some(fields) = config.as_object() else { return Reached::Refused };
    let config = ModelConfig::new(Path::new("config.json"), fields.clone());
    let Some(arch) = config.text("model_type").ok().and_then(|t| registries.arch(t).ok()) else {
        return Reached::Refused;
    };
    let salt = choices.below(256) as u64;
    let affine = || {
        let spec = PlaneSpec { bits: 4, group: 64, dtype: DType::BF16 };
        quant::affine::ENTRY.planes?.check("mutant", spec).ok()
    };
    let blocks = |name| Some(Form::Grouped(quant::find(quant::QUANTS, name)?.blocks?.form.clone()));
    let form = match choices.below(6) {
        0 => affine(),
        1 => blocks("q4_k"),
        2 => blocks("q6_k"),
        3 => Some(Form::Dense(DType::BF16)),
        _ => None,
    };
    let form = form.unwrap_or(Form::Dense(DType::F32));
    let tensors = Arc::new(Tensors { real, form, salt, made: AtomicU64::new(0), known: Mutex::default() });
    let numerics = if choices.below(2) == 0 { Numerics::Int8 } else { Numerics::Exact };
    let Ok(cpu) = Cpu::new(CpuSpec { threads: Some(1), numerics, isa: None }) else { return Reached::Refused };
    let cpu: Arc<dyn Backend> = Arc::new(cpu);
    cpu.memory().set_limit(Some(MEMORY));
    let dry: Arc<dyn Backend> = Arc::new(Dry::new(Arc::clone(&cpu)));
    dry.memory().set_limit(Some(MEMORY));
    let lazy = choices.below(4) == 0;
    let mut reached = Reached::Refused;
    // What a forecast runs, then what a user runs.
    for backend in [dry, cpu] {
        tensors.made.store(0, Ordering::Relaxed);
        let Ok(source) = Source::hugging_face(&config, tensors.as_ref(), &registries) else { return reached };
        let Ok(plan) = (arch.plan)(&source) else { return reached };
        reached = Reached::Planned;
        let shelf = lazy.then(|| Arc::new(Shelf::new(Arc::clone(&tensors) as _, 1 << 12)));
        match assemble(plan, tensors.as_ref(), &backend, shelf.as_ref(), &mut |_, _| {}) {
            Ok(model) if tokens(&model).is_some() => reached = Reached::Ran,
            _ => return reached,
        }
    }
    reached
}

/// Five tokens, then one; none where they are refused.
fn tokens(model: &Model) -> Option<()> {
    let cache = crate::rooms::model::CACHES.iter().find(|c| c.name == "f16")?;
    let mut state = model.new_state(cache);
    let vocab = model.plan().vocab.max(1) as u32;
    for tokens in [&[1 % vocab, 7 % vocab, 0, 2 % vocab, vocab - 1][..], &[3 % vocab]] {
        model.forward(&mut [Sequence { tokens, state: &mut state, want: Want::All }]).ok()?;
    }
    Some(())
}
