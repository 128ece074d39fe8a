//! Where experts lie in a checkpoint changes nothing: a tensor each, stacked, gate and up in one, blocks of four-bit floats, codes with
//! scales beside them; nor does it matter whether they are packed at load or when a token wants them.

use std::collections::BTreeMap;
use std::path::Path;

use reverie::rooms::files::Checkpoint;
use reverie::rooms::model::{Sequence, Want};
use reverie::rooms::tensor::quant::QUANTS;
use reverie::{Loader, Registries, Residence};
use serde_json::{Value, json};

use super::pack::{by, open, quantised};
use crate::fixtures::{ids, load, root};
use crate::synthetic;

/// A tensor as a safetensors file has it: type, extents, bytes.
pub(super) type Stored = (String, Vec<usize>, Vec<u8>);
/// All of a checkpoint's, by name.
pub(super) type Tensors = BTreeMap<String, Stored>;

/// Those of a folder.
pub(super) fn tensors(folder: &Path) -> Tensors {
    let checkpoint = Checkpoint::open(folder, QUANTS).expect("open");
    let stored = checkpoint
        .weights
        .iter()
        .map(|v| (v.name.to_owned(), (v.storage.name().to_owned(), v.shape.to_vec(), v.bytes.to_vec())));
    stored.collect()
}

/// Writes the fixture's folder with these tensors and this config.
pub(super) fn write(folder: &Path, fixture: &Path, tensors: &Tensors, config: &Value) {
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(fixture.join(file), folder.join(file)).expect("copy");
    }
    std::fs::write(folder.join("config.json"), config.to_string()).expect("config");
    let (mut header, mut bytes) = (serde_json::Map::new(), Vec::new());
    for (name, (element, shape, data)) in tensors {
        let start = bytes.len();
        bytes.extend_from_slice(data);
        header.insert(name.clone(), json!({"dtype": element, "shape": shape, "data_offsets": [start, bytes.len()]}));
    }
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(bytes);
    std::fs::write(folder.join("model.safetensors"), file).expect("weights");
}

/// Logits of all tokens of the fixture's model with these tensors and this config.
pub(super) fn logits(fixture: &Path, tensors: &Tensors, config: &Value) -> Vec<f32> {
    let folder = tempfile::tempdir().expect("tempdir");
    write(folder.path(), fixture, tensors, config);
    let run = |experts| {
        let loader = Loader { exact: true, threads: Some(2), experts, ..Loader::default() };
        let loaded = load(&loader, folder.path());
        let (engine, model) = (loaded.engine(), loaded.engine().model());
        let mut state = model.new_state(engine.cache());
        let tokens = ids(40, model.plan().vocab, 3);
        let mut batch = [Sequence { tokens: &tokens, state: &mut state, want: Want::All }];
        let out = model.forward(&mut batch).expect("forward");
        model.backend().read(out[0].as_ref().expect("logits")).expect("read")
    };
    let found = run(Residence::Resident);
    assert_eq!(run(Residence::Lazy), found, "{}, packed on demand", fixture.display());
    found
}

/// A fixture's config.json.
pub(super) fn config(fixture: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(fixture.join("config.json")).expect("config.json")).expect("json")
}

/// Takes the experts out: by the prefix of their layer and the usual name of a projection, in order.
fn take(from: &mut Tensors) -> BTreeMap<(String, &'static str), Vec<Stored>> {
    let usual = |leaf: &str| match leaf {
        "gate_proj" | "w1" => Some("gate_proj"),
        "up_proj" | "w3" => Some("up_proj"),
        "down_proj" | "w2" => Some("down_proj"),
        _ => None,
    };
    let mut found: BTreeMap<(String, &'static str), BTreeMap<usize, Stored>> = BTreeMap::new();
    for name in from.keys().cloned().collect::<Vec<_>>() {
        let Some((prefix, rest)) = name.split_once(".experts.") else { continue };
        let mut parts = rest.split('.');
        let (number, leaf) = (parts.next().expect("number"), parts.next().expect("leaf"));
        let key = (prefix.to_owned(), usual(leaf).expect("a projection"));
        let stored = from.remove(&name).expect("there");
        found.entry(key).or_default().insert(number.parse().expect("number"), stored);
    }
    found.into_iter().map(|(key, each)| (key, each.into_values().collect())).collect()
}

/// `[E, N, K]` of matrices `[N, K]`.
fn stacked(each: &[Stored]) -> Stored {
    let shape = [&[each.len()], each[0].1.as_slice()].concat();
    (each[0].0.clone(), shape, each.iter().flat_map(|s| s.2.iter().copied()).collect())
}

#[test]
fn stacked_and_fused_experts_are_the_same_model() {
    for (name, folder) in [("qwen2_moe", "switch_mlp"), ("mixtral", "switch_mlp"), ("glm4_moe", "experts")] {
        let fixture = root().join(name);
        let (whole, config) = (tensors(&fixture), config(&fixture));
        let want = logits(&fixture, &whole, &config);
        let mut rest = whole.clone();
        let experts = take(&mut rest);
        assert!(experts.len() >= 6, "{name}: two layers of three projections");

        let mut stack = rest.clone();
        for ((prefix, leaf), each) in &experts {
            stack.insert(format!("{prefix}.{folder}.{leaf}.weight"), stacked(each));
        }
        assert_eq!(logits(&fixture, &stack, &config), want, "{name}, stacked");

        let mut fused = rest.clone();
        for ((prefix, leaf), each) in &experts {
            match *leaf {
                "gate_proj" => {
                    let ups = &experts[&(prefix.clone(), "up_proj")];
                    let both: Vec<Stored> = each
                        .iter()
                        .zip(ups)
                        .map(|(g, u)| (g.0.clone(), vec![2 * g.1[0], g.1[1]], [g.2.as_slice(), &u.2].concat()))
                        .collect();
                    fused.insert(format!("{prefix}.experts.gate_up_proj"), stacked(&both));
                }
                "down_proj" => drop(fused.insert(format!("{prefix}.experts.down_proj"), stacked(each))),
                _ => {}
            }
        }
        assert_eq!(logits(&fixture, &fused, &config), want, "{name}, gate and up in one");
    }
}

/// Values of e2m1, by code.
const FLOATS: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// Random blocks `[E, N, K / 32, 16]`, their scales, and the same values turned as bf16 `[E, K, N]`.
fn blocks(e: usize, n: usize, k: usize, seed: u64) -> [Stored; 3] {
    let random = |count: usize, seed: u64| -> Vec<u8> { ids(count, 256, seed).into_iter().map(|v| v as u8).collect() };
    let (codes, groups) = (random(e * n * k / 2, seed), k / 32);
    let scales: Vec<u8> = random(e * n * groups, seed + 1).into_iter().map(|b| 121 + b % 4).collect();
    let mut turned = vec![0u8; e * n * k * 2];
    for i in 0..e * n * k {
        let code = codes[i / 2] >> (4 * (i % 2)) & 15;
        let sign = if code > 7 { -1.0 } else { 1.0 };
        let scale = 2.0f32.powi(i32::from(scales[i / 32]) - 127);
        let value = sign * FLOATS[usize::from(code & 7)] * scale;
        let (expert, row, column) = (i / (n * k), i / k % n, i % k);
        let at = (expert * k + column) * n + row;
        turned[2 * at..2 * at + 2].copy_from_slice(&((value.to_bits() >> 16) as u16).to_le_bytes());
    }
    let own = |element: &str, shape: Vec<usize>, bytes| (element.to_owned(), shape, bytes);
    [
        own("U8", vec![e, n, groups, 16], codes),
        own("U8", vec![e, n, groups], scales),
        own("BF16", vec![e, k, n], turned),
    ]
}

#[test]
fn blocks_of_four_bit_floats_are_the_floats() {
    let fixture = root().join("gpt_oss");
    let (mut config, mut floats) = (config(&fixture), tensors(&fixture));
    config["intermediate_size"] = 32.into();
    let mut packed = floats.clone();
    let (e, width, inner) = (4, 32, 32);
    for layer in 0..4 {
        let seed = 10 * layer as u64;
        for (leaf, n, k, seed) in [("gate_up_proj", 2 * inner, width, seed), ("down_proj", width, inner, seed + 5)] {
            let name = format!("model.layers.{layer}.mlp.experts.{leaf}");
            let [codes, scales, turned] = blocks(e, n, k, seed + 1);
            packed.remove(&name).expect("there");
            packed.insert(format!("{name}_blocks"), codes);
            packed.insert(format!("{name}_scales"), scales);
            floats.insert(name.clone(), turned);
            let bias = ("F32".to_owned(), vec![e, n], vec![0; e * n * 4]);
            packed.insert(format!("{name}_bias"), bias.clone());
            floats.insert(format!("{name}_bias"), bias);
        }
    }
    let want = logits(&fixture, &floats, &config);
    config["quantization_config"] =
        json!({"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]});
    assert_eq!(logits(&fixture, &packed, &config), want);

    // `quantize` writes their codes and scales under MLX's names.
    let [source, target] = [(); 2].map(|()| tempfile::tempdir().expect("tempdir"));
    write(source.path(), &fixture, &packed, &config);
    let plan = quantised(&open(source.path()), target.path(), &by(4, 32, &["*=dense"])).expect("quantise");
    assert_eq!(plan.left.len(), 4 * 3, "{:?}", plan.left);
    let (written, config) = (tensors(target.path()), self::config(target.path()));
    assert_eq!(written["model.layers.3.mlp.experts.up_proj.weight"].1, [e, inner, width / 8]);
    assert_eq!(config["quantization"]["model.layers.0.mlp.experts.gate_proj"]["mode"], "mxfp4");
    assert_eq!(logits(&fixture, &written, &config), want);
}

/// A stacked tensor in codes of 8 bits, groups of 32 along a row, as MLX writes them: codes, scales, biases; and the values that they
/// stand for, as F32.
fn codes(stack: &Stored) -> [Stored; 4] {
    let values: Vec<f32> = stack.2.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four"))).collect();
    let (mut codes, mut scales, mut biases, mut back) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for group in values.chunks_exact(32) {
        let (least, most) = group.iter().fold((f32::MAX, f32::MIN), |(a, b), v| (a.min(*v), b.max(*v)));
        let scale = (most - least) / 255.0;
        scales.extend(scale.to_le_bytes());
        biases.extend(least.to_le_bytes());
        for value in group {
            let code = ((value - least) / scale).round();
            codes.push(code as u8);
            back.extend((code * scale + least).to_le_bytes());
        }
    }
    let with = |last: usize| [&stack.1[..2], &[last]].concat();
    let k = stack.1[2];
    let own = |element: &str, last, bytes| (element.to_owned(), with(last), bytes);
    [own("U32", k / 4, codes), own("F32", k / 32, scales), own("F32", k / 32, biases), own("F32", k, back)]
}

#[test]
fn stacked_codes_are_the_values_that_they_stand_for() {
    let folder = tempfile::tempdir().expect("tempdir");
    let mut config = json!({
        "model_type": "olmoe", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_experts": 6, "num_experts_per_tok": 2, "norm_topk_prob": true, "vocab_size": 272,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "tie_word_embeddings": true,
    });
    let fields = config.as_object().expect("an object");
    synthetic::write(folder.path(), fields, &synthetic::shapes(fields, &Registries::builtin()).expect("shapes"));
    let mut rest = tensors(folder.path());
    let mut floats = rest.clone();
    let experts = take(&mut rest);
    take(&mut floats);
    for ((prefix, leaf), each) in &experts {
        let [codes, scales, biases, back] = codes(&stacked(each));
        let name = format!("{prefix}.switch_mlp.{leaf}");
        rest.extend([
            (format!("{name}.weight"), codes),
            (format!("{name}.scales"), scales),
            (format!("{name}.biases"), biases),
        ]);
        floats.insert(format!("{name}.weight"), back);
    }
    let want = logits(folder.path(), &floats, &config);
    config["quantization"] = json!({"group_size": 32, "bits": 8});
    let got = logits(folder.path(), &rest, &config);
    let largest = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let apart = want.iter().zip(&got).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(apart < 1e-5 * largest, "{apart} of {largest}");
}
