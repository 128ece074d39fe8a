//! How the experts of a layer lie in a checkpoint: a tensor each, one tensor for all, gate and up in one. Told by the names that
//! are there. Knows no routing and no format.

use reverie_tensor::quant::{Rows, Turned};
use reverie_tensor::{Weight, WeightSource};

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
}

/// Where one projection of every expert lies.
struct Place {
    at: At,
    /// Rows and columns of one expert's matrix.
    shape: (usize, usize),
}

enum At {
    /// A tensor an expert, with this name after the expert's number.
    Own { folder: &'static str, leaf: &'static str },
    /// One tensor for all.
    Stacked(Stacked),
}

/// One tensor for all experts, of which a projection is every `step`th row from `first` of each expert's.
struct Stacked {
    name: String,
    bias: String,
    /// Rows (columns, if turned) of an expert.
    all: usize,
    first: usize,
    step: usize,
    turned: bool,
}

/// Where the experts of a layer lie.
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
    /// Looks for the names.
    pub(super) fn find(b: &Build<'_>, spec: &Spec) -> Result<Stored> {
        let (width, inner) = (b.width(), spec.inner);
        let place = |at| Place { at, shape: (inner, width) };
        let stored = |gate: Option<At>, up, down| Stored {
            n_experts: spec.n_experts,
            gate: gate.map(place),
            up: place(up),
            down: Place { at: down, shape: (width, inner) },
        };
        let spellings = SPELLINGS.iter().filter(|s| s.gate.is_some() == (spec.shape == Shape::Gated));
        for (folder, spelling) in FOLDERS.iter().flat_map(|f| spellings.clone().map(move |s| (f, s))) {
            let Spelling { gate, up, down } = *spelling;
            if b.has(&format!("{folder}.0.{up}.weight")) {
                let own = |leaf| At::Own { folder, leaf };
                return Ok(stored(gate.map(own), own(up), own(down)));
            }
            if b.has(&format!("{folder}.{up}.weight")) {
                let one = |leaf: &str, all| {
                    let (name, bias) = (format!("{folder}.{leaf}.weight"), format!("{folder}.{leaf}.bias"));
                    At::Stacked(Stacked { name, bias, all, first: 0, step: 1, turned: false })
                };
                return Ok(stored(gate.map(|g| one(g, inner)), one(up, inner), one(down, width)));
            }
            let (both, down) = (format!("{folder}.gate_up_proj"), format!("{folder}.down_proj"));
            let lies = |ending: &str| gate.is_some() && b.has(&format!("{both}{ending}"));
            if let Some(suffix) = ["", ".weight"].into_iter().find(|s| lies(s)) {
                return Ok(fused(spec.fused, (&both, &down, suffix), (width, inner), stored));
            }
            if lies("_blocks") {
                return Ok(fused(Fused::Pairs, (&both, &down, ""), (width, inner), stored));
            }
        }
        if b.has("input_linear.weight") {
            return Ok(fused(Fused::Rows, ("input_linear", "output_linear", ".weight"), (width, inner), stored));
        }
        let expected = format!("'{}' or one tensor for all experts", b.name("experts.0.up_proj.weight"));
        Err(Error::config("experts", "none of their tensors", expected))
    }

    /// Packs all of them.
    pub(super) fn experts(&self, b: &Build<'_>) -> Result<Vec<Expert>> {
        let biases = |place: &Place| place.biases(b, self.n_experts);
        let gate_biases = self.gate.as_ref().map(biases).transpose()?.flatten();
        let (up_biases, down_biases) = (biases(&self.up)?, biases(&self.down)?);
        let pack = |place: &Place, e: usize, biases: &Option<Vec<f32>>| -> Result<Weight> {
            let n = place.shape.0;
            let bias = match (biases, &place.at) {
                (Some(all), _) => Some(all[e * n..(e + 1) * n].to_vec()),
                (None, At::Own { folder, leaf }) => {
                    let name = format!("{folder}.{e}.{leaf}.bias");
                    if b.has(&name) { Some(b.values(&name, n)?) } else { None }
                }
                (None, At::Stacked(_)) => None,
            };
            b.pack(place.source(b, e, self.n_experts)?.as_ref(), bias.as_deref())
        };
        (0..self.n_experts)
            .map(|e| {
                Ok(Expert {
                    gate: self.gate.as_ref().map(|gate| pack(gate, e, &gate_biases)).transpose()?,
                    up: pack(&self.up, e, &up_biases)?,
                    down: pack(&self.down, e, &down_biases)?,
                })
            })
            .collect()
    }
}

/// Gate and up in one tensor.
fn fused(
    how: Fused,
    (both, down, suffix): (&str, &str, &str),
    (width, inner): (usize, usize),
    stored: impl Fn(Option<At>, At, At) -> Stored,
) -> Stored {
    let turned = how == Fused::TurnedPairs;
    let at = |leaf: &str, all, first, step| {
        let (name, bias) = (format!("{leaf}{suffix}"), format!("{leaf}_bias"));
        At::Stacked(Stacked { name, bias, all, first, step, turned })
    };
    let (up, step) = if how == Fused::Rows { (inner, 1) } else { (1, 2) };
    stored(Some(at(both, 2 * inner, 0, step)), at(both, 2 * inner, up, step), at(down, width, 0, 1))
}

impl Place {
    /// The matrix of expert `e`.
    fn source<'a>(&self, b: &Build<'a>, e: usize, n_experts: usize) -> Result<Box<dyn WeightSource + 'a>> {
        let (n, k) = self.shape;
        let stacked = match &self.at {
            At::Own { folder, leaf } => return b.matrix(&format!("{folder}.{e}.{leaf}"), n, k),
            At::Stacked(stacked) => stacked,
        };
        let all = stacked.all;
        let too_many = || Error::config("experts", n_experts, "fewer, of this width");
        let rows = |per: usize| n_experts.checked_mul(per).ok_or_else(too_many);
        let (whole, first): (Box<dyn WeightSource + 'a>, usize) = if stacked.turned {
            let whole = b.stored(&stacked.name, rows(k)?, all)?;
            (Box::new(Turned::new(whole.as_ref(), e * k..(e + 1) * k)?), 0)
        } else {
            (b.stored(&stacked.name, rows(all)?, k)?, e * all)
        };
        let first = first + stacked.first;
        if stacked.step == 1 {
            return Ok(Box::new(Rows::range(whole, first..first + n)?));
        }
        Ok(Box::new(Rows::pick(whole, (0..n).map(|i| first + i * stacked.step).collect())?))
    }

    /// The biases of all experts `[E, N]`, where one tensor holds them.
    fn biases(&self, b: &Build<'_>, n_experts: usize) -> Result<Option<Vec<f32>>> {
        let At::Stacked(stacked) = &self.at else { return Ok(None) };
        if !b.has(&stacked.bias) {
            return Ok(None);
        }
        let all = b.values(&stacked.bias, n_experts.saturating_mul(stacked.all))?;
        let n = self.shape.0;
        let own = |of: &[f32]| of[stacked.first..].iter().step_by(stacked.step).take(n).copied().collect::<Vec<_>>();
        Ok(Some(all.chunks_exact(stacked.all).flat_map(own).collect()))
    }
}
