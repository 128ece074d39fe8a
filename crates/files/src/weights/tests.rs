//! Matrices of both kinds of file against goldens and against each other; contradictions refused by name.

use std::collections::BTreeMap;

use reverie_tensor::quant::{PlaneRow, QUANTS};
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::checkpoint::Checkpoint;
use crate::config::ModelConfig;
use crate::gguf::write::Builder;
use crate::write::{SafeTensorsWriter, TensorSpec};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name)
}

fn golden() -> SafeTensors {
    SafeTensors::files(vec![FileBytes::map(&fixture("golden/affine.safetensors")).unwrap()]).unwrap()
}

fn values(matrix: &dyn WeightSource) -> Vec<f32> {
    let (n, k) = matrix.shape();
    let mut all = vec![0.0; n * k];
    all.chunks_exact_mut(k).enumerate().for_each(|(row, out)| matrix.row_f32(row, out));
    all
}

const BITS: [u8; 6] = [2, 3, 4, 5, 6, 8];
const GROUPS: [usize; 3] = [32, 64, 128];
const DTYPES: [(DType, &str); 3] = [(DType::F32, "f32"), (DType::F16, "f16"), (DType::BF16, "bf16")];

fn cases() -> impl Iterator<Item = (PlaneSpec, &'static str, String)> {
    BITS.into_iter().flat_map(|bits| {
        GROUPS.into_iter().flat_map(move |group| {
            DTYPES
                .into_iter()
                .map(move |(dtype, word)| (PlaneSpec { bits, group, dtype }, word, format!("b{bits}_g{group}_{word}")))
        })
    })
}

#[test]
fn affine_values_equal_mlx_bit_for_bit() {
    let weights = Weights::from_safetensors(Path::new("golden"), golden(), Quantisation::default(), QUANTS);
    for (spec, _, name) in cases() {
        // The shapes alone fix bits and group once K is known.
        let matrix = weights.matrix_shaped(&format!("{name}.weight"), (8, 256)).unwrap();
        let Form::Grouped(form) = matrix.form() else { panic!("{name} is dense") };
        assert_eq!((form.bits, form.block), (spec.bits, spec.group), "{name}");
        let want = weights.vector(&format!("{name}.dequantized_f32")).unwrap();
        let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert!(bits(&values(matrix.as_ref())) == bits(&want), "{name}");
    }
}

/// MLX's own type for these is bf16. It keeps the sign of a zero, which codes that are small integers have not.
#[test]
fn small_floats_equal_mlx_bit_for_bit() {
    let file = || SafeTensors::files(vec![FileBytes::map(&fixture("golden/mlx_floats.safetensors")).unwrap()]).unwrap();
    for (mode, bits, group) in [("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)] {
        let rules = quantisation(json!({"bits": bits, "group_size": group, "mode": mode}));
        let weights = Weights::from_safetensors(Path::new("golden"), file(), rules, QUANTS);
        let matrix = weights.matrix_shaped(&format!("{mode}.weight"), (8, 128)).unwrap();
        let (got, want) = (values(matrix.as_ref()), weights.vector(&format!("{mode}.values")).unwrap());
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            let same =
                got.to_bits() == want.to_bits() || (*got == 0.0 && *want == 0.0) || (got.is_nan() && want.is_nan());
            assert!(same, "{mode} {i}: {got:e} is not {want:e}");
        }
        assert!(!matrix.form().has_bias(), "{mode}");
        if let Form::Dense(dtype) = matrix.form() {
            let mut raw = vec![0; 128 * dtype.size()];
            matrix.row_dense(7, &mut raw);
            let row: Vec<f32> = (0..128).map(|i| dtype.read(&raw, i)).collect();
            assert!(row.iter().zip(&got[7 * 128..]).all(|(a, b)| a == b || a.is_nan() && b.is_nan()), "{mode}");
        }
        let wrong = quantisation(json!({"bits": bits, "group_size": 64, "mode": mode}));
        let weights = Weights::from_safetensors(Path::new("golden"), file(), wrong, QUANTS);
        refused(weights.matrix_shaped(&format!("{mode}.weight"), (8, 128)), &[mode, "groups of 64"]);
    }
}

#[test]
fn affine_quantises_as_mlx_does() {
    let weights = Weights::from_safetensors(Path::new("golden"), golden(), Quantisation::default(), QUANTS);
    let planes = quant::find(QUANTS, "affine").and_then(|row| row.planes).unwrap();
    for (spec, word, name) in cases() {
        let source = weights.vector(&format!("source_{word}")).unwrap();
        let scale_bytes = 256 / spec.group * spec.dtype.size();
        let mut codes = vec![vec![0; 256 * usize::from(spec.bits) / 8]; 8];
        let (mut scales, mut biases) = (vec![vec![0; scale_bytes]; 8], vec![vec![0; scale_bytes]; 8]);
        for (i, row) in source.chunks(256).enumerate() {
            let out = PlaneRow { codes: &mut codes[i], scales: &mut scales[i], biases: &mut biases[i] };
            planes.quantise("affine", spec, row, out).unwrap();
        }
        for (part, ours) in [("weight", codes), ("scales", scales), ("biases", biases)] {
            let mlx = weights.view(&format!("{name}.{part}")).unwrap().bytes;
            assert!(ours.concat() == mlx, "{name}.{part}");
        }
    }
}

#[test]
fn both_kinds_of_file_show_the_same_model() {
    let hub = Checkpoint::open(&fixture("llama"), QUANTS).unwrap().weights;
    let gguf = Checkpoint::open(&fixture("llama/model.gguf"), QUANTS).unwrap().weights;
    for (ours, theirs) in [
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.layers.0.mlp.down_proj.weight", "blk.0.ffn_down.weight"),
        ("model.norm.weight", "output_norm.weight"),
    ] {
        assert_eq!(hub.tensor_f32(ours).unwrap(), gguf.tensor_f32(theirs).unwrap(), "{ours}");
    }
    assert!(hub.unused().count() > 0 && !hub.unused().any(|name| name == "model.norm.weight"));
    assert!(hub.contains("model.norm.weight") && !hub.contains("x"));
    assert_eq!(hub.names().count(), hub.iter().count());
}

#[test]
fn every_quantised_fixture_opens_and_shows_rows() {
    let mut seen = std::collections::BTreeSet::new();
    for entry in std::fs::read_dir(fixture("gguf_quants")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "gguf") {
            continue;
        }
        let weights = Checkpoint::open(&path, QUANTS).unwrap().weights;
        for view in weights.iter().filter(|view| view.shape.len() == 2) {
            seen.insert(view.storage.name());
            let matrix = weights.matrix_shaped(view.name, (view.shape[0], view.shape[1])).unwrap();
            let all = values(matrix.as_ref());
            assert!(all.iter().all(|v| v.is_finite()) && all.iter().any(|v| *v != 0.0), "{}", view.name);
            // Pages that were given back come again with the same bytes.
            matrix.done();
            assert_eq!(values(matrix.as_ref()), all);
        }
    }
    assert!(seen.len() >= 7, "{seen:?}");
}

fn quantisation(text: serde_json::Value) -> Quantisation {
    let config = json!({"quantization": text}).to_string();
    Quantisation::read(&ModelConfig::parse(Path::new("config.json"), &config).unwrap()).unwrap()
}

/// One module `m` of packed codes with shapes as given, written and opened.
fn packed(element: Element, words: &[usize], groups: &[usize], rules: Quantisation) -> (TempDir, Weights) {
    let folder = TempDir::new().unwrap();
    let spec = |name: &str, element, shape: &[usize]| TensorSpec { name: name.into(), element, shape: shape.to_vec() };
    let tensors = [
        spec("m.weight", Element::U32, words),
        spec("m.scales", element, groups),
        spec("m.biases", element, groups),
        spec("d.weight", Element::F16, &[2, 3]),
        spec("i.weight", Element::I64, &[2, 3]),
        spec("v", Element::F32, &[3]),
        spec("hole.weight", Element::F32, &[4, 0]),
    ];
    let mut writer = SafeTensorsWriter::create(folder.path(), &tensors, u64::MAX, &[]).unwrap();
    tensors.iter().for_each(|t| writer.append(&t.name, &vec![0; t.bytes().unwrap() as usize]).unwrap());
    writer.finish().unwrap();
    let place = crate::place::Place::Folder(folder.path().to_owned());
    let weights = Weights::from_safetensors(folder.path(), SafeTensors::open(&place).unwrap(), rules, QUANTS);
    (folder, weights)
}

#[track_caller]
fn refused<T>(result: Result<T>, parts: &[&str]) {
    let error = result.err().expect("refused").to_string();
    for part in parts {
        assert!(error.contains(part), "no '{part}' in: {error}");
    }
}

#[test]
fn bits_are_detected_and_held_against_the_config() {
    let general = |bits: u8, group: usize| quantisation(json!({"bits": bits, "group_size": group}));
    // 128 weights a row at 4 bits: 16 words; groups of 64: 2 scales.
    let (_folder, weights) = packed(Element::F16, &[2, 16], &[2, 2], general(4, 64));
    assert_eq!(weights.matrix("m.weight").unwrap().shape(), (2, 128));
    assert_eq!(weights.matrix_shaped("m.weight", (2, 128)).unwrap().shape(), (2, 128));
    refused(weights.matrix_shaped("m.weight", (3, 128)), &["'m.weight'", "[2, 128]", "[3, 128]"]);
    // The same shapes read as 8 bits in groups of 32 give K = 64: the config says otherwise.
    refused(
        weights.matrix_shaped("m.weight", (2, 64)),
        &["'m.weight'", "8 bits in groups of 32", "4 bits in groups of 64"],
    );
    refused(weights.matrix_shaped("m.weight", (2, 100)), &["'m.weight'", "100"]);
    assert_eq!(weights.matrix_shaped("d.weight", (2, 3)).unwrap().form(), Form::Dense(DType::F16));

    for (rules, found) in [(general(8, 64), "256 bits a group"), (general(4, 32), "256 bits a group")] {
        let (_folder, weights) = packed(Element::F16, &[2, 16], &[2, 2], rules);
        refused(weights.matrix("m.weight"), &["'m.weight'", found, "as the config has it"]);
    }
    let own = quantisation(json!({"bits": 4, "group_size": 64, "m": {"bits": 8, "group_size": 32}}));
    let (_folder, weights) = packed(Element::F16, &[2, 16], &[2, 2], own);
    assert_eq!(weights.matrix("m.weight").unwrap().shape(), (2, 64));
    refused(weights.matrix_shaped("m.weight", (2, 128)), &["4 bits in groups of 64", "8 bits in groups of 32"]);

    let dense = quantisation(json!({"bits": 4, "group_size": 64, "m": false, "d": {"bits": 4, "group_size": 64}}));
    let (_folder, weights) = packed(Element::F16, &[2, 16], &[2, 2], dense);
    refused(weights.matrix("m.weight"), &["'m.weight'", "false"]);
    refused(weights.matrix("d.weight"), &["'d.weight'", "F16", "4 bits"]);

    let (_folder, weights) = packed(Element::F16, &[2, 16], &[2, 2], Quantisation::default());
    assert_eq!(weights.matrix_shaped("m.weight", (2, 128)).unwrap().shape(), (2, 128));
    refused(weights.matrix("m.weight"), &["'m.weight'", "config.json"]);
}

#[test]
fn contradictory_shapes_and_types_are_refused() {
    let rules = || quantisation(json!({"bits": 4, "group_size": 64}));
    for (element, words, groups, part) in [
        (Element::F16, &[2, 16][..], &[3, 2][..], "m.scales"),
        (Element::F16, &[2, 16], &[2, 0], "m.scales"),
        (Element::F16, &[2, 16], &[4], "m.scales"),
        (Element::F16, &[1, 2, 16], &[2, 2], "m.scales"),
        (Element::F16, &[2, 16], &[2, 5], "whole groups"),
        (Element::I32, &[2, 16], &[2, 2], "scale type"),
        (Element::U8, &[2, 16], &[2, 2], "scale type"),
    ] {
        let (_folder, weights) = packed(element, words, groups, rules());
        refused(weights.matrix("m.weight"), &[part]);
    }
    let (folder, weights) = packed(Element::F16, &[2, 16], &[2, 2], rules());
    refused(weights.matrix("i.weight"), &["'i.weight'", "I64", folder.path().to_str().unwrap()]);
    // Whole numbers are values where no matrix is wanted.
    assert!(weights.vector("i.weight").unwrap().iter().all(|v| v.fract() == 0.0));
    refused(weights.matrix("v"), &["'v'", "two extents"]);
    refused(weights.matrix("hole.weight"), &["'hole.weight'"]);
    refused(weights.matrix("other.d.weight"), &["'other.d.weight'", "it holds 7 tensors", "'d.weight'"]);
    refused(weights.vector_shaped("v", 4), &["'v'", "[3]", "4 elements"]);
    assert_eq!(weights.vector_shaped("v", 3).unwrap(), [0.0; 3]);
    refused(
        Ok(weights.matrix("m.scales").unwrap()).and(weights.vector_shaped("m.weight", 1)),
        &["'m.weight'", "[2, 128]"],
    );

    let mode = quantisation(json!({"bits": 4, "group_size": 16, "mode": "nvfp5"}));
    let (_folder, weights) = packed(Element::F16, &[2, 16], &[2, 8], mode);
    refused(weights.matrix("m.weight"), &["'nvfp5'", "affine, mxfp4, mxfp8, nvfp4"]);
    let mode = quantisation(json!({"bits": 4, "group_size": 16, "mode": "nvfp4"}));
    let (_folder, weights) = packed(Element::F16, &[2, 16], &[2, 8], mode);
    refused(weights.matrix("m.weight"), &["scale type", "u8"]);
}

#[test]
fn stacked_tensors_count_their_leading_extents_as_rows() {
    let (_folder, weights) =
        packed(Element::BF16, &[3, 2, 16], &[3, 2, 2], quantisation(json!({"bits": 4, "group_size": 64})));
    assert_eq!(weights.matrix("m.weight").unwrap().shape(), (6, 128));
    assert_eq!(weights.tensor_f32("m.weight").unwrap().0, [3, 2, 128]);
    let file = Builder::new().tensor("e", &[2, 3, 32], 8, &[1; 6 * 34]).build();
    let file = FileBytes::embedded(Path::new("m.gguf"), file.leak());
    let weights = Weights::from_gguf(Path::new("m.gguf"), Gguf::from_bytes(file, QUANTS).unwrap());
    assert_eq!(weights.matrix("e").unwrap().shape(), (6, 32));
}

/// Larger than what is given back together, so that pages go while rows are pulled: up, down and again.
#[test]
fn rows_that_were_given_back_are_read_again() {
    let folder = TempDir::new().unwrap();
    let (n, k) = (3 * RELEASE_BYTES / 1024 / 4, 1024);
    let tensors = [TensorSpec { name: "m".into(), element: Element::F32, shape: vec![n, k] }];
    let bytes: Vec<u8> = (0..n * k).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let mut writer = SafeTensorsWriter::create(folder.path(), &tensors, u64::MAX, &[]).unwrap();
    writer.append("m", &bytes).unwrap();
    writer.finish().unwrap();
    let place = crate::place::Place::Folder(folder.path().to_owned());
    let all = SafeTensors::open(&place).unwrap();
    let weights = Weights::from_safetensors(folder.path(), all, Quantisation::default(), QUANTS);
    let matrix = weights.matrix("m").unwrap();
    let mut row = vec![0; 4 * k];
    for r in (0..n).chain((0..n).rev()).chain(0..n) {
        matrix.row_dense(r, &mut row);
        assert!(row == bytes[r * 4 * k..][..4 * k], "row {r}");
    }
    matrix.done();
    assert_eq!(weights.vector("m").unwrap()[n * k - 1], (n * k - 1) as f32);
}

/// mxfp4 in planes: MLX packs the nibbles in order and has no biases.
#[test]
fn mxfp4_planes_have_values_of_two_to_the_exponent() {
    let folder = TempDir::new().unwrap();
    let spec = |name: &str, element, shape: &[usize]| TensorSpec { name: name.into(), element, shape: shape.to_vec() };
    let tensors = [spec("m.weight", Element::U32, &[1, 4]), spec("m.scales", Element::U8, &[1, 1])];
    let mut writer = SafeTensorsWriter::create(folder.path(), &tensors, u64::MAX, &[]).unwrap();
    writer
        .append("m.weight", &(0..16).map(|i| ((2 * i) % 16) | (((2 * i + 1) % 16) << 4)).collect::<Vec<u8>>())
        .unwrap();
    writer.append("m.scales", &[128]).unwrap();
    writer.finish().unwrap();
    let place = crate::place::Place::Folder(folder.path().to_owned());
    let rules = quantisation(json!({"bits": 4, "group_size": 32, "mode": "mxfp4"}));
    let weights = Weights::from_safetensors(folder.path(), SafeTensors::open(&place).unwrap(), rules, QUANTS);
    let want =
        [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0].map(|v: f32| 2.0 * v);
    assert_eq!(weights.vector("m.weight").unwrap(), want.repeat(2));
}

#[test]
fn rules_made_by_hand_say_what_they_write() {
    let choice = Choice { mode: "affine".into(), bits: 4, group: 64 };
    let rules = Quantisation::new(choice.clone(), BTreeMap::from([("lm_head".to_owned(), None)]));
    assert_eq!((rules.of("lm_head"), rules.of("x")), (Rule::Dense, Rule::General(&choice)));
    assert_eq!(quantisation(rules.to_json()), rules);
}
