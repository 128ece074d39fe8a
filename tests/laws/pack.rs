//! What `quantize` writes is what mlx_lm writes, byte for byte, and what it refuses it leaves untouched.

use std::ops::ControlFlow;
use std::path::Path;

use reverie::Loader;
use reverie::rooms::files::{Checkpoint, Rule};
use reverie::rooms::model::stacks;
use reverie::rooms::pack::{Override, Plan, QuantizeSpec, Result, quantize};
use reverie::rooms::tensor::quant::QUANTS;

use super::experts::{Stored, config, logits, tensors};
use crate::fixtures::root;

pub(super) fn open(folder: &Path) -> Checkpoint {
    Checkpoint::open(folder, QUANTS).expect("checkpoint")
}

/// As the command does it.
pub(super) fn quantised(source: &Checkpoint, target: &Path, spec: &QuantizeSpec) -> Result<Plan> {
    let plan = Loader::default().plan(source).expect("plan");
    let stacks = stacks(&plan, source.weights.as_ref()).expect("stacks");
    quantize(source, &stacks, target, spec, &mut |_| ControlFlow::Continue(()))
}

pub(super) fn by(bits: u8, group: usize, overrides: &[&str]) -> QuantizeSpec {
    let overrides = overrides.iter().map(|o| Override::parse(o, group).expect("override")).collect();
    QuantizeSpec { bits, group, overrides, shard_bytes: u64::MAX }
}

#[test]
fn quantising_gives_the_bytes_of_mlx_lm() {
    let (source, want) = (open(&root().join("qwen3_sharded")), open(&root().join("qwen3_mlx")));
    let rules = want.weights.quantisation();
    let general = rules.general().expect("general");
    let modules: Vec<&str> =
        source.weights.iter().filter(|v| v.shape.len() == 2).filter_map(|v| v.name.strip_suffix(".weight")).collect();
    let overrides = modules
        .iter()
        .filter_map(|module| {
            let choice = match rules.of(module) {
                _ if !want.weights.contains(&format!("{module}.scales")) => None,
                Rule::Own(own) => Some((own.bits, own.group)),
                _ => return None,
            };
            Some(Override { pattern: (*module).to_owned(), choice })
        })
        .collect();
    let spec = QuantizeSpec { bits: general.bits, group: general.group, overrides, shard_bytes: u64::MAX };
    let target = tempfile::tempdir().expect("tempdir");
    let plan = quantised(&source, target.path(), &spec).expect("quantize");
    assert!(plan.quantised > 10 && plan.kept > 0, "{plan:?}");
    let got = open(target.path());
    let names: Vec<&str> = want.weights.names().collect();
    assert_eq!(got.weights.names().collect::<Vec<_>>(), names);
    for name in names {
        let (g, w) = (got.weights.view(name).expect(name), want.weights.view(name).expect(name));
        assert_eq!((g.shape, g.storage.name()), (w.shape, w.storage.name()), "{name}");
        assert_eq!(g.bytes, w.bytes, "{name}");
    }
    let again = quantised(&source, target.path(), &spec).expect_err("not empty").to_string();
    assert!(again.contains("empty"), "{again}");
    let twice = quantised(&want, &target.path().join("x"), &spec).expect_err("twice").to_string();
    assert!(twice.contains("quantised folder"), "{twice}");
}

/// How a fixture keeps its experts: gate and up in one tensor, down; and which element of expert `e`, row `n` (of gate, or of up) and
/// column `k` the former's is, of `inner` rows and `width` columns.
struct Kept {
    fixture: &'static str,
    /// Below the layer.
    both: &'static str,
    down: &'static str,
    /// MLX's folder.
    mlx: &'static str,
    how: How,
}

enum How {
    /// `[E, 2·inner, D]`, gate before up.
    Rows,
    /// `[E, D, 2·inner]`, gate and up in turns.
    TurnedPairs,
    /// `[E, D, 2·inner]`, gate before up.
    TurnedRows,
}

const KEPT: &[Kept] = &[
    Kept {
        fixture: "gemma4_text_moe",
        both: "experts.gate_up_proj",
        down: "experts.down_proj",
        mlx: "experts.switch_glu",
        how: How::Rows,
    },
    Kept {
        fixture: "gpt_oss",
        both: "mlp.experts.gate_up_proj",
        down: "mlp.experts.down_proj",
        mlx: "mlp.experts",
        how: How::TurnedPairs,
    },
    Kept {
        fixture: "granitemoehybrid",
        both: "block_sparse_moe.input_linear.weight",
        down: "block_sparse_moe.output_linear.weight",
        mlx: "block_sparse_moe.switch_mlp",
        how: How::Rows,
    },
    Kept {
        fixture: "llama4_text",
        both: "feed_forward.experts.gate_up_proj",
        down: "feed_forward.experts.down_proj",
        mlx: "feed_forward.experts",
        how: How::TurnedRows,
    },
];

/// Values as F32.
fn stored(shape: Vec<usize>, values: Vec<f32>) -> Stored {
    ("F32".into(), shape, values.into_iter().flat_map(f32::to_le_bytes).collect())
}

/// `[E, a, b]` as `[E, b, a]`.
fn turned(values: &[f32], (e, a, b): (usize, usize, usize)) -> Vec<f32> {
    (0..e * a * b).map(|i| values[i / (a * b) * a * b + i % a * b + i / a % b]).collect()
}

/// The dense folder whose matrices are those that `got` stands for, in the layout of the source.
fn twin(kept: &Kept, source: &Checkpoint, got: &Checkpoint) -> super::experts::Tensors {
    let mut twin = tensors(&source.path);
    for name in twin.keys().cloned().collect::<Vec<_>>() {
        let read = |name: &str| got.weights.tensor_f32(name).expect(name);
        let layer = |leaf| name.strip_suffix(leaf).map(|layer| format!("{layer}{}", kept.mlx));
        let value = if let Some(mlx) = layer(kept.both) {
            let (shape, gate) = read(&format!("{mlx}.gate_proj.weight"));
            let (e, n, k) = (shape[0], shape[1], shape[2]);
            let up = read(&format!("{mlx}.up_proj.weight")).1;
            let joined: Vec<f32> = match kept.how {
                How::Rows | How::TurnedRows => {
                    gate.chunks(n * k).zip(up.chunks(n * k)).flat_map(|(g, u)| [g, u].concat()).collect()
                }
                How::TurnedPairs => gate.chunks(k).zip(up.chunks(k)).flat_map(|(g, u)| [g, u].concat()).collect(),
            };
            match kept.how {
                How::Rows => stored(vec![e, 2 * n, k], joined),
                _ => stored(vec![e, k, 2 * n], turned(&joined, (e, 2 * n, k))),
            }
        } else if let Some(mlx) = layer(kept.down) {
            let (shape, down) = read(&format!("{mlx}.down_proj.weight"));
            let (e, n, k) = (shape[0], shape[1], shape[2]);
            match kept.how {
                How::Rows => stored(shape, down),
                _ => stored(vec![e, k, n], turned(&down, (e, n, k))),
            }
        } else if got.weights.contains(&name) {
            let (shape, values) = read(&name);
            stored(shape, values)
        } else {
            // A bias of experts, which MLX calls otherwise: not quantised.
            assert!(name.ends_with("_proj_bias"), "{}: {name}", kept.fixture);
            continue;
        };
        assert_eq!(value.1, twin[&name].1, "{}: {name}", kept.fixture);
        twin.insert(name, value);
    }
    twin
}

#[test]
fn experts_in_one_tensor_are_quantised_as_the_matrices_that_they_are() {
    for kept in KEPT {
        let fixture = root().join(kept.fixture);
        let source = open(&fixture);
        for overrides in [&[][..], &["*.gate_proj=8", "*.down_proj=dense"]] {
            let target = tempfile::tempdir().expect("tempdir");
            let plan = quantised(&source, target.path(), &by(4, 32, overrides)).expect(kept.fixture);
            let got = open(target.path());
            let codes = |leaf: &str| {
                let names =
                    got.weights.names().filter(|n| n.contains(kept.mlx) && n.ends_with(&format!("{leaf}.scales")));
                names.count()
            };
            assert!(codes("gate_proj") > 0 && codes("gate_proj") == codes("up_proj"), "{}: {plan:?}", kept.fixture);
            // What has rows of 16 or 24 weights stays dense, and is named.
            let whole = got.weights.names().any(|n| n.contains(&format!("{}.down_proj.scales", kept.mlx)));
            let named = plan.left.iter().any(|left| left.name.contains(&format!("{}.down_proj.weight", kept.mlx)));
            assert!(whole != (named || !overrides.is_empty()), "{}: {:?}", kept.fixture, plan.left);
            let quantised = logits(&fixture, &tensors(target.path()), &config(target.path()));
            let dense = logits(&fixture, &twin(kept, &source, &got), &config(&fixture));
            let largest = dense.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            let apart = dense.iter().zip(&quantised).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(apart < 1e-5 * largest, "{}: {apart} of {largest}", kept.fixture);
        }
    }
}

#[test]
fn every_fixture_is_quantised_or_says_what_is_not() {
    let mut stacked = 0;
    for fixture in crate::fixtures::oracles() {
        let source = open(&fixture);
        if source.weights.quantisation().general().is_some() {
            continue;
        }
        let target = tempfile::tempdir().expect("tempdir");
        let plan = quantised(&source, target.path(), &by(4, 32, &[])).expect("quantise");
        let got = open(target.path());
        let parts = [".scales", ".biases", ".bias"];
        let matrices = got.weights.iter().filter(|v| v.shape.iter().filter(|extent| **extent > 1).count() > 1);
        for view in matrices.filter(|v| !parts.iter().any(|part| v.name.ends_with(part))) {
            let module = view.name.strip_suffix(".weight").unwrap_or(view.name);
            let packed = got.weights.contains(&format!("{module}.scales"));
            let named = plan.left.iter().any(|left| left.name == view.name);
            assert!(packed != named, "{}: {} {:?} is {}", fixture.display(), view.name, view.shape, packed);
            stacked += usize::from(packed && view.shape.len() == 3);
        }
        crate::fixtures::load(&Loader::default(), target.path());
    }
    assert!(stacked > 30, "only {stacked} stacked tensors");
}
