//! Plan and weights become a model: every tensor is looked up, checked against the plan's shape, packed once. Knows no format
//! and no architecture.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use reverie_files::TensorStore;
use reverie_tensor::quant::{DenseMatrix, Plain, Rows, Turned};
use reverie_tensor::reference::Reference;
use reverie_tensor::{Backend, Class, DType, Holder, Norm, Numerics, Tensor, Weight, WeightSource};

use crate::clusters::Clusters;
use crate::draft::Gates;
use crate::error::{Error, Result};
use crate::ffn::moe::{Shelf, Stack};
use crate::forward::{BuiltBlock, BuiltPart, Model, ModelParts};
use crate::linear::{Linear, Lora};
use crate::plan::{Layer, NormSpec, NormWeight, Part, Plan};

/// Where a part asks for its tensors: names are relative to the part's scope.
pub struct Build<'a> {
    backend: &'a dyn Backend,
    weights: &'a dyn TensorStore,
    plan: &'a Plan,
    scope: String,
    /// Width of what the part reads, where it is not the stream alone.
    reading: Option<usize>,
    /// Adapters that its projections wear.
    worn: Vec<Adapter>,
    /// Projections that several layers share, by tensor and rows; none where a part's weights are its own.
    packed: &'a Shared,
    shares: bool,
    /// Where experts come and go, if they are not packed for good.
    shelf: Option<&'a Arc<Shelf>>,
    /// Multiplies the biases of its projections.
    bias_factor: f32,
}

/// Projections packed once for several layers.
type Shared = RefCell<BTreeMap<(String, Option<Vec<usize>>), Linear>>;

/// A low-rank adapter that a checkpoint keeps beside a projection.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// The projection.
    pub leaf: String,
    /// `[rank, K]`.
    pub down: String,
    /// `[N, rank]`.
    pub up: String,
    /// Its rank.
    pub rank: usize,
}

impl<'a> Build<'a> {
    fn root(plan: &'a Plan, weights: &'a dyn TensorStore, backend: &'a dyn Backend, packed: &'a Shared) -> Build<'a> {
        Build {
            backend,
            weights,
            plan,
            scope: String::new(),
            reading: None,
            worn: Vec::new(),
            packed,
            shares: false,
            shelf: None,
            bias_factor: 1.0,
        }
    }

    /// Width of the residual stream.
    pub fn width(&self) -> usize {
        self.plan.width
    }

    /// Width of what the part's projections read.
    pub fn input(&self) -> usize {
        self.reading.unwrap_or(self.plan.width)
    }

    /// For a part that reads rows of another width than the stream's.
    #[must_use]
    pub fn reading(self, width: usize) -> Build<'a> {
        Build { reading: Some(width), ..self }
    }

    /// For a part whose projections wear these adapters.
    #[must_use]
    pub fn wearing(self, worn: Vec<Adapter>) -> Build<'a> {
        Build { worn, ..self }
    }

    /// The same place for projections whose biases count this many times: where what they give is multiplied in place of what they read,
    /// the bias, which the factor must not meet, is divided by it.
    #[must_use]
    pub fn biased(&self, factor: f32) -> Build<'a> {
        Build { worn: self.worn.clone(), reading: self.reading, bias_factor: factor, ..self.below("") }
    }

    /// The scope `prefix` of the plan, whose projections several parts share: packed when the first asks, without adapters.
    pub fn shared(&self, prefix: &str) -> Build<'a> {
        Build { shares: true, ..self.at(prefix.to_owned()) }
    }

    /// The checkpoint's spelling of `leaf` in this scope.
    pub fn name(&self, leaf: &str) -> String {
        let whole = if self.scope.is_empty() { leaf.to_owned() } else { format!("{}.{leaf}", self.scope) };
        self.plan.names.spell(&whole, self.weights)
    }

    /// True if the checkpoint has `leaf` in this scope.
    pub fn has(&self, leaf: &str) -> bool {
        self.weights.contains(&self.name(leaf))
    }

    /// The same checkpoint, one scope further down.
    pub fn below(&self, scope: &str) -> Build<'a> {
        let joined = [self.scope.as_str(), scope].iter().filter(|s| !s.is_empty()).copied().collect::<Vec<_>>();
        Build { shares: self.shares, ..self.at(joined.join(".")) }
    }

    /// The projection `leaf`, `[n, k]`, with its bias if the checkpoint has one.
    pub fn linear(&self, leaf: &str, n: usize, k: usize) -> Result<Linear> {
        self.dressed(leaf, (n, k), None)
    }

    /// The projection, or some of its rows, with the adapter that it wears.
    fn dressed(&self, leaf: &str, (n, k): (usize, usize), rows: Option<Vec<usize>>) -> Result<Linear> {
        let bare = |leaf: &str, k: usize| match &rows {
            None => self.whole(leaf, n, k),
            Some(rows) => self.picked(leaf, n, k, rows.clone()),
        };
        let key = (self.name(leaf), rows.clone());
        let known = self.packed.borrow().get(&key).filter(|_| self.shares).cloned();
        let mut linear = match known {
            Some(linear) => linear,
            None => bare(leaf, k)?,
        };
        if self.shares {
            self.packed.borrow_mut().insert(key, linear.clone());
        }
        if let Some(adapter) = self.worn.iter().find(|a| a.leaf == leaf) {
            let a = self.whole(&adapter.down, adapter.rank, k)?.weight;
            linear.lora = Some(Lora { a, b: bare(&adapter.up, adapter.rank)?.weight, scale: 1.0 });
        }
        Ok(linear)
    }

    fn whole(&self, leaf: &str, n: usize, k: usize) -> Result<Linear> {
        let source = self.matrix(leaf, n, k)?;
        let bias = self.bias(leaf, n)?;
        Ok(Linear::new(self.pack(source.as_ref(), bias.as_deref())?))
    }

    /// The same, with a bias that must be there.
    pub fn linear_biased(&self, leaf: &str, n: usize, k: usize) -> Result<Linear> {
        self.values(&format!("{leaf}.bias"), n)?;
        self.linear(leaf, n, k)
    }

    /// Some rows of the projection `leaf` `[n, k]`, in this order, as a projection of their own.
    pub fn linear_rows(&self, leaf: &str, n: usize, k: usize, rows: Vec<usize>) -> Result<Linear> {
        self.dressed(leaf, (n, k), Some(rows))
    }

    fn picked(&self, leaf: &str, n: usize, k: usize, rows: Vec<usize>) -> Result<Linear> {
        let source = self.matrix(leaf, n, k)?;
        let bias = self.bias(leaf, n)?.map(|b| rows.iter().map(|&r| b[r]).collect::<Vec<_>>());
        let picked = Rows::pick(source, rows)?;
        Ok(Linear::new(self.pack(&picked, bias.as_deref())?))
    }

    /// Some columns of the matrix `leaf` `[n, k]` as a projection of their own, in f32.
    pub fn linear_columns(&self, leaf: &str, (n, k): (usize, usize), columns: Range<usize>) -> Result<Linear> {
        let source = self.matrix(leaf, n, k)?;
        let (mut row, mut bytes) = (vec![0.0; k], Vec::with_capacity(n * columns.len() * 4));
        for r in 0..n {
            source.row_f32(r, &mut row);
            bytes.extend(row[columns.clone()].iter().flat_map(|v| v.to_le_bytes()));
        }
        source.done();
        let cut = DenseMatrix::new(DType::F32, &bytes, (n, columns.len()))?;
        Ok(Linear::new(self.pack(&cut, None)?))
    }

    /// The matrix `leaf`, stored `[rows, columns]`, turned: these of its columns as a projection of what these of its rows meet.
    pub fn linear_turned(
        &self,
        leaf: &str,
        (rows, columns): (usize, usize),
        (k, n): (Range<usize>, Range<usize>),
    ) -> Result<Linear> {
        let bias = self.bias(leaf, columns)?.map(|bias| bias[n.clone()].to_vec());
        let turned = Turned::new(self.matrix(leaf, rows, columns)?, k)?;
        let picked = Rows::range(Box::new(turned), n)?;
        Ok(Linear::new(self.pack(&picked, bias.as_deref())?))
    }

    /// The matrix `leaf` as the file has it.
    pub fn matrix(&self, leaf: &str, n: usize, k: usize) -> Result<Box<dyn WeightSource + 'a>> {
        self.stored(&format!("{leaf}.weight"), n, k)
    }

    /// The matrix of this whole name in this scope as the file has it; leading extents count as rows.
    pub fn stored(&self, name: &str, n: usize, k: usize) -> Result<Box<dyn WeightSource + 'a>> {
        Ok(self.weights.matrix(&self.name(name), (n, k))?)
    }

    /// Extents of the tensor of this whole name in this scope.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.weights.shape(&self.name(name))
    }

    /// The projection `leaf` `[n, k]` kept as f32, whatever its format.
    pub fn linear_f32(&self, leaf: &str, n: usize, k: usize) -> Result<Linear> {
        let source = Plain(self.matrix(leaf, n, k)?);
        let bias = self.bias(leaf, n)?;
        Ok(Linear::new(self.pack(&source, bias.as_deref())?))
    }

    /// A matrix on the backend.
    pub fn pack(&self, source: &dyn WeightSource, bias: Option<&[f32]>) -> Result<Weight> {
        Ok(self.backend.pack(source, bias, Class::Weights)?)
    }

    /// What packs.
    pub(crate) fn backend(&self) -> &'a dyn Backend {
        self.backend
    }

    /// What it packs from.
    pub(crate) fn store(&self) -> &'a dyn TensorStore {
        self.weights
    }

    /// Where experts come and go; none if they are packed for good.
    pub(crate) fn shelf(&self) -> Option<&'a Arc<Shelf>> {
        self.shelf
    }

    fn bias(&self, leaf: &str, n: usize) -> Result<Option<Vec<f32>>> {
        let leaf = format!("{leaf}.bias");
        if !self.has(&leaf) {
            return Ok(None);
        }
        Ok(Some(self.values(&leaf, n)?.into_iter().map(|b| b * self.bias_factor).collect()))
    }

    /// The values of the vector `leaf` (name with its suffix).
    pub fn values(&self, leaf: &str, n: usize) -> Result<Vec<f32>> {
        Ok(self.weights.vector(&self.name(leaf), n)?)
    }

    /// The values of a tensor that lies outside the layers, by the plan's whole name, and its extents.
    pub fn outside(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        Ok(self.weights.floats(&self.plan.names.spell(name, self.weights))?)
    }

    /// The vector `leaf` on the backend, f32.
    pub fn vector(&self, leaf: &str, n: usize) -> Result<Tensor> {
        let values = self.values(leaf, n)?;
        self.upload(&values, &[n])
    }

    /// The same, if the checkpoint has it.
    pub fn opt_vector(&self, leaf: &str, n: usize) -> Result<Option<Tensor>> {
        if self.has(leaf) { self.vector(leaf, n).map(Some) } else { Ok(None) }
    }

    /// Values on the backend, f32, counted as weights.
    pub fn upload(&self, values: &[f32], shape: &[usize]) -> Result<Tensor> {
        Ok(self.backend.upload(values, shape, DType::F32, Class::Weights)?)
    }

    /// Rows of the matrix `leaf` (name with its suffix), where no config says them.
    pub fn rows_of(&self, leaf: &str) -> Result<usize> {
        let name = self.name(leaf);
        match self.weights.shape(&name).as_deref() {
            Some([rows, _]) if *rows > 0 => Ok(*rows),
            found => Err(Error::TensorShape { name, found: format!("{found:?}"), expected: "a matrix".into() }),
        }
    }

    /// The taps of a depthwise convolution, channel by channel, stored `[C, 1, kernel]` (transformers), `[C, kernel, 1]` (MLX) or
    /// `[C, kernel]` (GGUF).
    pub fn conv_rows(&self, leaf: &str, kernel: usize) -> Result<Vec<f32>> {
        let name = self.name(leaf);
        let (shape, values) = self.weights.floats(&name)?;
        let channels = values.len() / kernel;
        let kept: Vec<usize> = shape.iter().copied().filter(|&d| d != 1).collect();
        let wanted: Vec<usize> = [channels, kernel].into_iter().filter(|&d| d != 1).collect();
        if kept != wanted || values.len() != channels * kernel {
            return Err(Error::TensorShape {
                name,
                found: format!("{shape:?}"),
                expected: format!("[channels, 1, {kernel}]"),
            });
        }
        Ok(values)
    }

    /// Such taps, of `channels` channels, as `[kernel, C]`.
    pub fn conv_taps_of(&self, rows: &[f32], channels: usize, kernel: usize) -> Result<Tensor> {
        let taps: Vec<f32> = (0..kernel * channels).map(|i| rows[i % channels * kernel + i / channels]).collect();
        self.upload(&taps, &[kernel, channels])
    }

    /// The taps of the depthwise convolution `leaf` as `[kernel, C]`.
    pub fn conv_taps(&self, leaf: &str, channels: usize, kernel: usize) -> Result<Tensor> {
        self.conv_taps_times(leaf, (channels, kernel), |_| 1.0)
    }

    /// The same, each channel's taps times a factor.
    pub fn conv_taps_times(
        &self,
        leaf: &str,
        (channels, kernel): (usize, usize),
        factor: impl Fn(usize) -> f32,
    ) -> Result<Tensor> {
        let name = self.name(leaf);
        let mut rows = match self.weights.shape(&name) {
            Some(_) => self.conv_rows(leaf, kernel)?,
            None => self.weights.vector(&name, channels * kernel)?,
        };
        if rows.len() != channels * kernel {
            return Err(Error::TensorShape {
                name: self.name(leaf),
                found: format!("{} channels", rows.len() / kernel),
                expected: format!("{channels} channels"),
            });
        }
        rows.iter_mut().enumerate().for_each(|(i, v)| *v *= factor(i / kernel));
        self.conv_taps_of(&rows, channels, kernel)
    }

    /// A norm over `dim`.
    pub fn norm(&self, spec: &NormSpec, dim: usize) -> Result<Norm> {
        self.norm_times(spec, dim, 1.0)
    }

    /// A norm over `dim` whose stored factors, in a tensor with or without `.weight`, are multiplied by `factor`.
    pub fn norm_times(&self, spec: &NormSpec, dim: usize, factor: f32) -> Result<Norm> {
        if spec.weight == NormWeight::Absent {
            return Ok(Norm { kind: spec.kind, weight: None, bias: None, eps: spec.eps });
        }
        let named = format!("{}.weight", spec.name);
        let bare = !self.has(&named) && self.has(&spec.name);
        let stored = if bare { &spec.name } else { &named };
        let mut values = self.values(stored, dim)?;
        if spec.weight == NormWeight::MinusOne {
            values.iter_mut().for_each(|v| *v += 1.0);
        }
        values.iter_mut().for_each(|v| *v *= factor);
        // A spelling without a suffix of its own answers to both.
        let shift = format!("{}.bias", spec.name);
        let bias = if self.name(&shift) == self.name(stored) { None } else { self.opt_vector(&shift, dim)? };
        Ok(Norm { kind: spec.kind, weight: Some(self.upload(&values, &[dim])?), bias, eps: spec.eps })
    }

    fn at(&self, scope: String) -> Build<'a> {
        let root = Build::root(self.plan, self.weights, self.backend, self.packed);
        Build { scope, shelf: self.shelf, ..root }
    }
}

/// The experts of `plan`, as far as `weights` has one tensor for all of a mixture's.
pub fn stacks(plan: &Plan, weights: &dyn TensorStore) -> Result<Vec<Stack>> {
    let (backend, packed) = (Reference::new(Numerics::Exact), Shared::default());
    let root = Build::root(plan, weights, &backend, &packed);
    let blocks = plan.layers.iter().flat_map(|layer| layer.blocks.iter().map(move |block| (layer, block)));
    let stacks = blocks.filter_map(|(layer, block)| match &block.part {
        Part::Ffn(spec) => Some(spec.stacks(&root.at(layer.prefix.clone()).below(&block.scope))),
        _ => None,
    });
    Ok(stacks.collect::<Result<Vec<_>>>()?.concat())
}

/// Packs the weights of `plan` onto `backend`; experts stay in the store of `shelf` if there is one, which is then that of `weights`.
/// `progress` hears (layers done, layers in all).
pub fn assemble(
    plan: Plan,
    weights: &dyn TensorStore,
    backend: &Arc<dyn Backend>,
    shelf: Option<&Arc<Shelf>>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Model> {
    let packed = Shared::default();
    if let Some(shelf) = shelf {
        let holder: Arc<dyn Holder> = Arc::clone(shelf) as _;
        backend.memory().ask_when_short(&holder);
    }
    let root = Build { shelf, ..Build::root(&plan, weights, backend.as_ref(), &packed) };
    let embed = root.linear(&plan.embed, plan.vocab, plan.width)?.weight;
    let before = plan.before.as_ref().map_or(Ok(Vec::new()), |l| blocks(&root, l))?;
    let mut layers = Vec::with_capacity(plan.layers.len());
    for (i, layer) in plan.layers.iter().enumerate() {
        progress(i, plan.layers.len());
        layers.push(blocks(&root, layer)?);
    }
    let after = plan.after.as_ref().map_or(Ok(Vec::new()), |l| blocks(&root, l))?;
    progress(plan.layers.len(), plan.layers.len());
    let head = match &plan.head.name {
        Some(name) => Some(root.linear(name, plan.vocab, plan.width)?),
        None => None,
    };
    let final_norm = root.norm(&plan.final_norm, plan.width)?;
    let gates = match &plan.draft {
        Some(draft) => Some(Gates {
            enter: root.linear(&draft.enter, plan.width, 2 * draft.target_width)?,
            leave: root.linear(&draft.leave, draft.target_width, plan.width)?,
        }),
        None => None,
    };
    let (backend, shelf) = (Arc::clone(backend), shelf.cloned());
    let clusters = plan.head.clusters.as_ref().map(|c| Clusters::build(&root, c, &plan)).transpose()?;
    Model::new(ModelParts { clusters, plan, backend, embed, before, layers, after, final_norm, head, gates, shelf })
}

/// The blocks of one layer with their weights.
fn blocks(root: &Build<'_>, layer: &Layer) -> Result<Vec<BuiltBlock>> {
    let at_layer = root.at(layer.prefix.clone());
    let norm = |spec: &Option<NormSpec>| spec.as_ref().map(|s| at_layer.norm(s, root.plan.width)).transpose();
    let mut blocks = Vec::with_capacity(layer.blocks.len());
    for block in &layer.blocks {
        let mut build = at_layer.below(&block.scope);
        blocks.push(BuiltBlock {
            pre: norm(&block.pre)?,
            part: match &block.part {
                Part::Mixer(spec) => BuiltPart::Mixer(spec.build(&mut build)?),
                Part::Ffn(spec) => BuiltPart::Ffn(spec.build(&mut build)?),
                Part::Rewrite(spec) => BuiltPart::Rewrite(spec.build(&mut build)?),
            },
            post: norm(&block.post)?,
            scale: block.scale,
        });
    }
    Ok(blocks)
}
