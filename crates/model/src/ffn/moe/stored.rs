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

/// Where one projection of every expert lies, and the biases, which are small and always at hand.
struct Place {
    at: At,
    /// Rows and columns of one expert's matrix.
    shape: (usize, usize),
    /// By expert; none where the checkpoint has none.
    biases: Vec<Tensor>,
}

enum At {
    /// A tensor an expert.
    Own(Vec<String>),
    /// One tensor for all.
    Stacked(Stacked),
}

/// One tensor for all experts, of which a projection is every `step`th row from `first` of each expert's.
struct Stacked {
    name: String,
    n_experts: usize,
    /// Rows (columns, if turned) of an expert.
    all: usize,
    first: usize,
    step: usize,
    turned: bool,
}

/// Where the experts of a layer lie, by the checkpoint's own names.
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

impl Stored {
    /// Looks for the names; takes the biases.
    pub(super) fn find(b: &Build<'_>, spec: &Spec) -> Result<Stored> {
        let (width, inner) = (spec.latent.map_or(b.width(), |latent| latent.width), spec.inner);
        let spellings = SPELLINGS.iter().filter(|s| s.gate.is_some() == (spec.shape == Shape::Gated));
        let find = Find { b, n_experts: spec.n_experts, width, inner };
        for (folder, spelling) in FOLDERS.iter().flat_map(|f| spellings.clone().map(move |s| (f, s))) {
            let Spelling { gate, up, down } = *spelling;
            if b.has(&format!("{folder}.0.{up}.weight")) {
                let own = |leaf, shape| find.own(folder, leaf, shape);
                let gate = gate.map(|gate| own(gate, (inner, width))).transpose()?;
                return find.stored(gate, own(up, (inner, width))?, own(down, (width, inner))?);
            }
            if b.has(&format!("{folder}.{up}.weight")) {
                let one = |leaf: &str, shape: (usize, usize)| {
                    let (name, bias) = (format!("{folder}.{leaf}.weight"), format!("{folder}.{leaf}.bias"));
                    find.stacked((&name, &bias), shape, Part { all: shape.0, first: 0, step: 1, turned: false })
                };
                let gate = gate.map(|gate| one(gate, (inner, width))).transpose()?;
                return find.stored(gate, one(up, (inner, width))?, one(down, (width, inner))?);
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

/// What places are made from.
struct Find<'b, 'a> {
    b: &'b Build<'a>,
    n_experts: usize,
    width: usize,
    inner: usize,
}

/// Which rows of one tensor for all experts are a projection's.
#[derive(Clone, Copy)]
struct Part {
    all: usize,
    first: usize,
    step: usize,
    turned: bool,
}

impl Find<'_, '_> {
    fn stored(&self, gate: Option<Place>, up: Place, down: Place) -> Result<Stored> {
        Ok(Stored { n_experts: self.n_experts, gate, up, down })
    }

    /// A tensor an expert.
    fn own(&self, folder: &str, leaf: &str, shape: (usize, usize)) -> Result<Place> {
        let names = (0..self.n_experts).map(|e| self.b.name(&format!("{folder}.{e}.{leaf}.weight"))).collect();
        let bias = |e: usize| self.b.vector(&format!("{folder}.{e}.{leaf}.bias"), shape.0);
        let biased = self.b.has(&format!("{folder}.0.{leaf}.bias"));
        let biases = if biased { (0..self.n_experts).map(bias).collect::<Result<_>>()? } else { Vec::new() };
        Ok(Place { at: At::Own(names), shape, biases })
    }

    /// One tensor for all.
    fn stacked(&self, (name, bias): (&str, &str), shape: (usize, usize), part: Part) -> Result<Place> {
        let Part { all, first, step, turned } = part;
        let mut biases = Vec::new();
        if self.b.has(bias) {
            let values = self.b.values(bias, self.n_experts.saturating_mul(all))?;
            for own in values.chunks_exact(all) {
                let own: Vec<f32> = own[first..].iter().step_by(step).take(shape.0).copied().collect();
                biases.push(self.b.upload(&own, &[shape.0])?);
            }
        }
        let stacked = Stacked { name: self.b.name(name), n_experts: self.n_experts, all, first, step, turned };
        Ok(Place { at: At::Stacked(stacked), shape, biases })
    }

    /// Gate and up in one tensor.
    fn fused(&self, how: Fused, (both, down, suffix): (&str, &str, &str)) -> Result<Stored> {
        let (width, inner) = (self.width, self.inner);
        let turned = matches!(how, Fused::TurnedPairs | Fused::TurnedRows);
        let at = |leaf: &str, shape, all, (first, step)| {
            let names = (format!("{leaf}{suffix}"), format!("{leaf}_bias"));
            self.stacked((&names.0, &names.1), shape, Part { all, first, step, turned })
        };
        let (up, step) = match how {
            Fused::Rows | Fused::TurnedRows => (inner, 1),
            Fused::Pairs | Fused::TurnedPairs => (1, 2),
        };
        let half = |first| at(both, (inner, width), 2 * inner, (first, step));
        self.stored(Some(half(0)?), half(up)?, at(down, (width, inner), width, (0, 1))?)
    }
}

impl Place {
    /// The matrix of expert `e`.
    fn source<'a>(&self, store: &'a dyn TensorStore, e: usize) -> Result<Box<dyn WeightSource + 'a>> {
        let (n, k) = self.shape;
        let too_many = || Error::config("experts", e, "fewer, of this width");
        let stacked = match &self.at {
            At::Own(names) => return Ok(store.matrix(names.get(e).ok_or_else(too_many)?, (n, k))?),
            At::Stacked(stacked) => stacked,
        };
        let all = stacked.all;
        let rows = |per: usize| stacked.n_experts.checked_mul(per).ok_or_else(too_many);
        let (whole, first): (Box<dyn WeightSource + 'a>, usize) = if stacked.turned {
            let whole = store.matrix(&stacked.name, (rows(k)?, all))?;
            (Box::new(Turned::new(whole, e * k..(e + 1) * k)?), 0)
        } else {
            (store.matrix(&stacked.name, (rows(all)?, k))?, e * all)
        };
        let first = first + stacked.first;
        if stacked.step == 1 {
            return Ok(Box::new(Rows::range(whole, first..first + n)?));
        }
        Ok(Box::new(Rows::pick(whole, (0..n).map(|i| first + i * stacked.step).collect())?))
    }
}
