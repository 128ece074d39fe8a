//! How the experts of a layer lie in a checkpoint: a tensor each, one tensor for all, gate and up in one. Told by the names that
//! are there. Knows no routing and no format.

use reverie_files::TensorStore;
use reverie_tensor::quant::{Rows, Turned};
use reverie_tensor::{Backend, Class, Tensor, Weight, WeightSource, buffer};

use super::{Expert, Spec};
use crate::Build;
use crate::error::{Error, Result};
use crate::ffn::glu::Shape;

/// How gate and up lie in one tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fused {
    /// `[E, 2·inner, D]`: all rows of the gate, then all rows of up.
    Rows,
    /// `[E, 2·inner, D]`: gate and up row by row.
    Pairs,
    /// `[E, D, 2·inner]`, and down `[E, inner, D]`: turned, and gate and up column by column.
    TurnedPairs,
    /// `[E, D, 2·inner]`, and down `[E, inner, D]`: turned, all columns of the gate, then all of up.
    TurnedRows,
}

/// One projection of all experts of a mixture, where a checkpoint has one tensor for all: of each expert's rows every `step`th from
/// `first`.
#[derive(Clone, Debug)]
pub struct Stack {
    /// The tensor.
    pub tensor: String,
    /// `[E, rows of an expert]`; none where the checkpoint has none.
    pub bias: Option<String>,
    /// Where MLX keeps it, `[E, N, K]`: a name without `.weight`.
    pub module: String,
    /// E.
    pub n_experts: usize,
    /// N and K of one expert's matrix.
    pub shape: (usize, usize),
    part: Part,
}

/// Which rows of one tensor for all experts are a projection's.
#[derive(Clone, Copy, Debug)]
struct Part {
    /// Rows (columns, if turned) of an expert.
    all: usize,
    first: usize,
    step: usize,
    turned: bool,
}

impl Stack {
    /// The matrix of expert `e`.
    pub fn matrix<'a>(&self, store: &'a dyn TensorStore, e: usize) -> Result<Box<dyn WeightSource + 'a>> {
        let ((n, k), Part { all, first, step, turned }) = (self.shape, self.part);
        let rows =
            |per: usize| self.n_experts.checked_mul(per).filter(|_| e < self.n_experts).ok_or_else(|| too_many(e));
        let (whole, first): (Box<dyn WeightSource + 'a>, usize) = if turned {
            let whole = store.matrix(&self.tensor, (rows(k)?, all))?;
            (Box::new(Turned::new(whole, e * k..(e + 1) * k)?), first)
        } else {
            (store.matrix(&self.tensor, (rows(all)?, k))?, e * all + first)
        };
        if step == 1 {
            return Ok(Box::new(Rows::range(whole, first..first + n)?));
        }
        Ok(Box::new(Rows::pick(whole, (0..n).map(|i| first + i * step).collect())?))
    }

    /// Its elements in the biases, which are its rows in the tensor unless that is turned: expert by expert.
    pub fn rows(&self) -> impl Iterator<Item = usize> {
        let ((n, _), Part { all, first, step, .. }) = (self.shape, self.part);
        (0..self.n_experts).flat_map(move |e| (0..n).map(move |i| e * all + first + i * step))
    }
}

fn too_many(expert: usize) -> Error {
    Error::config("experts", expert, "fewer, of this width")
}

/// Where one projection of every expert lies.
enum At {
    /// A tensor an expert, and the biases where there are any.
    Own { names: Vec<String>, biases: Vec<String> },
    /// One tensor for all.
    Stacked(Stack),
}

/// Where the experts of a layer lie, by the checkpoint's own names.
pub(super) struct Layout {
    n_experts: usize,
    gate: Option<Lies>,
    up: Lies,
    down: Lies,
}

/// A projection and the extents of one expert's matrix.
struct Lies {
    at: At,
    shape: (usize, usize),
}

/// The same with the biases, which are small and always at hand.
struct Place {
    lies: Lies,
    /// By expert; none where the checkpoint has none.
    biases: Vec<Tensor>,
}

/// The experts of a layer, ready to be packed.
pub(super) struct Stored {
    n_experts: usize,
    gate: Option<Place>,
    up: Place,
    down: Place,
}

/// Folders of experts: transformers' and MLX's.
const FOLDERS: &[&str] = &["experts", "switch_mlp", "experts.switch_glu", "switch_glu"];

/// What an expert's projections are called.
struct Spelling {
    gate: Option<&'static str>,
    up: &'static str,
    down: &'static str,
}

/// Gated ones of transformers and of Mistral's first mixture, plain ones of transformers and of MLX.
const SPELLINGS: &[Spelling] = &[
    Spelling { gate: Some("gate_proj"), up: "up_proj", down: "down_proj" },
    Spelling { gate: Some("w1"), up: "w3", down: "w2" },
    Spelling { gate: None, up: "up_proj", down: "down_proj" },
    Spelling { gate: None, up: "fc1", down: "fc2" },
];

impl Layout {
    /// Looks for the names.
    pub(super) fn find(b: &Build<'_>, spec: &Spec) -> Result<Layout> {
        let (width, inner) = (spec.latent.map_or(b.width(), |latent| latent.width), spec.inner);
        let spellings = SPELLINGS.iter().filter(|s| s.gate.is_some() == (spec.shape == Shape::Gated));
        let find = Find { b, n_experts: spec.n_experts, width, inner, folder: spec.mlx_folder };
        for (folder, spelling) in FOLDERS.iter().flat_map(|f| spellings.clone().map(move |s| (f, s))) {
            let Spelling { gate, up, down } = *spelling;
            if b.has(&format!("{folder}.0.{up}.weight")) {
                let own = |leaf, shape| find.own(folder, leaf, shape);
                let gate = gate.map(|gate| own(gate, (inner, width)));
                return find.layout(gate, own(up, (inner, width)), own(down, (width, inner)));
            }
            if b.has(&format!("{folder}.{up}.weight")) {
                let one = |leaf: &str, shape: (usize, usize)| {
                    let module = format!("{folder}.{leaf}");
                    let names = (format!("{module}.weight"), format!("{module}.bias"));
                    find.stacked(names, &module, shape, Part { all: shape.0, first: 0, step: 1, turned: false })
                };
                let gate = gate.map(|gate| one(gate, (inner, width)));
                return find.layout(gate, one(up, (inner, width)), one(down, (width, inner)));
            }
            let (both, down) = (format!("{folder}.gate_up_proj"), format!("{folder}.down_proj"));
            let lies = |ending: &str| gate.is_some() && b.has(&format!("{both}{ending}"));
            if let Some(suffix) = ["", ".weight"].into_iter().find(|s| lies(s)) {
                return find.fused(spec.fused, (&both, &down, suffix));
            }
            if lies("_blocks") {
                return find.fused(Fused::Pairs, (&both, &down, ""));
            }
        }
        if b.has("input_linear.weight") {
            return find.fused(Fused::Rows, ("input_linear", "output_linear", ".weight"));
        }
        let expected = format!("'{}' or one tensor for all experts", b.name("experts.0.up_proj.weight"));
        Err(Error::config("experts", "none of their tensors", expected))
    }

    /// Those of its projections that lie in one tensor for all.
    pub(super) fn stacks(self) -> Vec<Stack> {
        let stack = |lies: Lies| match lies.at {
            At::Own { .. } => None,
            At::Stacked(stack) => Some(stack),
        };
        self.gate.into_iter().chain([self.up, self.down]).filter_map(stack).collect()
    }
}

impl Stored {
    /// With the biases taken.
    pub(super) fn new(b: &Build<'_>, layout: Layout) -> Result<Stored> {
        let Layout { n_experts, gate, up, down } = layout;
        let place = |lies: Lies| -> Result<Place> { Ok(Place { biases: lies.biases(b)?, lies }) };
        Ok(Stored { n_experts, gate: gate.map(place).transpose()?, up: place(up)?, down: place(down)? })
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.n_experts
    }

    fn places(&self) -> impl Iterator<Item = &Place> {
        self.gate.iter().chain([&self.up, &self.down])
    }

    /// Packs expert `e`, counted as `class`.
    pub(super) fn pack(
        &self,
        backend: &dyn Backend,
        store: &dyn TensorStore,
        e: usize,
        class: Class,
    ) -> Result<Expert> {
        let pack = |place: &Place| -> Result<Weight> {
            let weight = backend.pack(place.source(store, e)?.as_ref(), None, class)?;
            Ok(Weight { bias: place.biases.get(e).cloned(), ..weight })
        };
        let gate = self.gate.as_ref().map(pack).transpose()?;
        Ok(Expert { gate, up: pack(&self.up)?, down: pack(&self.down)? })
    }

    /// Bytes that packing expert `e` takes; refused where its tensors are not what the config says.
    pub(super) fn packed_bytes(&self, backend: &dyn Backend, store: &dyn TensorStore, e: usize) -> Result<u64> {
        let bytes = |place: &Place| -> Result<u64> {
            let source = place.source(store, e)?;
            let (n, k) = source.shape();
            Ok(buffer::capacity(backend.packed_bytes(n, k, &source.form()), Class::Experts) as u64)
        };
        self.places().map(bytes).sum()
    }
}

/// What layouts are made from.
struct Find<'b, 'a> {
    b: &'b Build<'a>,
    n_experts: usize,
    width: usize,
    inner: usize,
    /// Where MLX stacks them.
    folder: &'static str,
}

impl Find<'_, '_> {
    fn layout(&self, gate: Option<Lies>, up: Lies, down: Lies) -> Result<Layout> {
        Ok(Layout { n_experts: self.n_experts, gate, up, down })
    }

    /// A tensor an expert.
    fn own(&self, folder: &str, leaf: &str, shape: (usize, usize)) -> Lies {
        let name = |e: usize, ending: &str| self.b.name(&format!("{folder}.{e}.{leaf}.{ending}"));
        let all = |ending: &str| (0..self.n_experts).map(|e| name(e, ending)).collect();
        let biased = self.b.has(&format!("{folder}.0.{leaf}.bias"));
        Lies { at: At::Own { names: all("weight"), biases: if biased { all("bias") } else { Vec::new() } }, shape }
    }

    /// One tensor for all.
    fn stacked(&self, (tensor, bias): (String, String), module: &str, shape: (usize, usize), part: Part) -> Lies {
        let bias = self.b.has(&bias).then(|| self.b.name(&bias));
        let module = self.b.name(&format!("{module}.weight"));
        let module = module.strip_suffix(".weight").unwrap_or(&module).to_owned();
        let tensor = self.b.name(&tensor);
        Lies { at: At::Stacked(Stack { tensor, bias, module, n_experts: self.n_experts, shape, part }), shape }
    }

    /// Gate and up in one tensor.
    fn fused(&self, how: Fused, (both, down, suffix): (&str, &str, &str)) -> Result<Layout> {
        let (width, inner) = (self.width, self.inner);
        let turned = matches!(how, Fused::TurnedPairs | Fused::TurnedRows);
        let at = |leaf: &str, usual: &str, shape, (all, first, step)| {
            let (names, module) =
                ((format!("{leaf}{suffix}"), format!("{leaf}_bias")), format!("{}.{usual}", self.folder));
            self.stacked(names, &module, shape, Part { all, first, step, turned })
        };
        let (up, step) = match how {
            Fused::Rows | Fused::TurnedRows => (inner, 1),
            Fused::Pairs | Fused::TurnedPairs => (1, 2),
        };
        let half = |usual, first| at(both, usual, (inner, width), (2 * inner, first, step));
        let down = at(down, "down_proj", (width, inner), (width, 0, 1));
        self.layout(Some(half("gate_proj", 0)), half("up_proj", up), down)
    }
}

impl Lies {
    fn biases(&self, b: &Build<'_>) -> Result<Vec<Tensor>> {
        let n = self.shape.0;
        let stack = match &self.at {
            At::Own { biases, .. } => {
                let take = |name: &String| b.upload(&b.store().vector(name, n)?, &[n]);
                return biases.iter().map(take).collect();
            }
            At::Stacked(stack) => stack,
        };
        let Some(bias) = &stack.bias else { return Ok(Vec::new()) };
        let values = b.store().vector(bias, stack.n_experts.saturating_mul(stack.part.all))?;
        let own: Vec<f32> = stack.rows().map(|row| values[row]).collect();
        own.chunks_exact(n).map(|own| b.upload(own, &[n])).collect()
    }
}

impl Place {
    /// The matrix of expert `e`.
    fn source<'a>(&self, store: &'a dyn TensorStore, e: usize) -> Result<Box<dyn WeightSource + 'a>> {
        match &self.lies.at {
            At::Own { names, .. } => Ok(store.matrix(names.get(e).ok_or_else(|| too_many(e))?, self.lies.shape)?),
            At::Stacked(stack) => stack.matrix(store, e),
        }
    }
}
