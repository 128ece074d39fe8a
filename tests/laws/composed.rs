//! Composed models: random mixes of every registered mixer load, run and obey every law; the checkpoint says where a mixer's tensors
//! lie; what cannot be is refused by name.

use std::path::Path;

use reverie::{Loader, Registries};
use serde_json::{Map, Value, json};

use super::{Subject, every_law};
use crate::synthetic::{Shapes, shapes, write};

/// Numbers of every mixer at once: a new row that reads a field of its own adds it here.
const FIELDS: &[(&str, usize)] = &[
    ("hidden_size", 64),
    ("intermediate_size", 48),
    ("max_position_embeddings", 512),
    ("vocab_size", 272),
    // softmax attention
    ("head_dim", 16),
    ("num_attention_heads", 4),
    ("num_key_value_heads", 2),
    ("rope_theta", 10_000),
    ("sliding_window", 16),
    // sparse and latent attention
    ("block_counts", 2),
    ("block_size", 16),
    ("index_head_dim", 16),
    ("index_n_heads", 4),
    ("index_topk", 24),
    ("kv_lora_rank", 32),
    ("moba_chunk_size", 16),
    ("moba_topk", 3),
    ("q_lora_rank", 24),
    ("qk_nope_head_dim", 16),
    ("qk_rope_head_dim", 8),
    ("v_head_dim", 12),
    ("window_size", 16),
    // delta rules, flash-linear-attention, xLSTM
    ("linear_conv_kernel_dim", 4),
    ("linear_head_dim", 16),
    ("linear_key_head_dim", 16),
    ("linear_num_heads", 4),
    ("linear_num_key_heads", 2),
    ("linear_num_value_heads", 4),
    ("linear_value_head_dim", 16),
    ("num_heads", 4),
    ("num_slots", 8),
    // state-space models, convolutions
    ("conv_L_cache", 3),
    ("lru_width", 64),
    ("mamba_d_conv", 4),
    ("mamba_d_head", 16),
    ("mamba_d_state", 16),
    ("mamba_expand", 2),
    ("mamba_n_groups", 2),
    ("mamba_n_heads", 8),
    ("state_size", 16),
    ("time_step_rank", 4),
];

/// A composed model of these mixers.
fn config(mixers: &[&str]) -> Map<String, Value> {
    let mut config: Map<String, Value> = FIELDS.iter().map(|(f, n)| ((*f).to_owned(), json!(n))).collect();
    config.insert("model_type".into(), json!("composed"));
    config.insert("layer_types".into(), json!(mixers));
    config.insert("num_hidden_layers".into(), json!(mixers.len()));
    config.insert("rms_norm_eps".into(), json!(1e-6));
    config.insert("tie_word_embeddings".into(), json!(true));
    config
}

/// The tensors of a plan whose mixers lie in the layers themselves, moved into `folder` of each layer.
fn moved(bare: &Shapes, folder: impl Fn(usize) -> String, wrapper: &str) -> Shapes {
    let place = |name: &str| {
        let Some(rest) = name.strip_prefix("model.") else { return name.to_owned() };
        let Some((layer, leaf)) = rest.strip_prefix("layers.").and_then(|r| r.split_once('.')) else {
            return format!("{wrapper}{rest}");
        };
        let kept = ["mlp.", "input_layernorm.", "post_attention_layernorm.", "shared_transformer."]
            .iter()
            .any(|p| leaf.starts_with(p));
        let folder = folder(layer.parse().expect("a number"));
        if kept || folder.is_empty() {
            format!("{wrapper}layers.{layer}.{leaf}")
        } else {
            format!("{wrapper}layers.{layer}.{folder}.{leaf}")
        }
    };
    bare.iter().map(|(name, shape)| (place(name), shape.clone())).collect()
}

/// Mixers in an order of their own, again and again.
fn shuffled(rounds: usize) -> Vec<&'static str> {
    let mut names: Vec<&str> = Registries::builtin().mixers().iter().map(|m| m.name).collect();
    let (mut order, mut x) = (Vec::new(), 0x9E37_79B9_7F4A_7C15u64);
    for _ in 0..rounds {
        for i in (1..names.len()).rev() {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            names.swap(i, (x % (i as u64 + 1)) as usize);
        }
        order.extend(&names);
    }
    order
}

#[test]
fn any_mix_loads_runs_and_obeys_every_law() {
    let registries = Registries::builtin();
    for (round, mixers) in shuffled(2).chunks(3).enumerate() {
        let config = config(mixers);
        let bare = shapes(&config, &registries).unwrap_or_else(|e| panic!("{mixers:?}: {e}"));
        let folders = ["self_attn", "mixer", "linear_attn", "attn"];
        let wrapper = ["model.", "language_model.model.", "model.language_model."][round % 3];
        let tensors = moved(&bare, |layer| folders[(layer + round) % folders.len()].to_owned(), wrapper);
        let folder = tempfile::tempdir().expect("folder");
        write(folder.path(), &config, &tensors);
        println!("{} {}", folder.path().display(), mixers.join(" "));
        every_law(&Subject { path: folder.path().to_owned(), exact: false, registries: registries.clone() });
    }
}

fn load(folder: &Path) -> Result<(), String> {
    Loader::default().load(&folder.display().to_string()).map(drop).map_err(|e| e.to_string())
}

fn outcome(config: &Map<String, Value>, tensors: &Shapes) -> Result<(), String> {
    let folder = tempfile::tempdir().expect("folder");
    write(folder.path(), config, tensors);
    load(folder.path())
}

fn refused(config: &Map<String, Value>, tensors: &Shapes, words: &[&str]) {
    let message = outcome(config, tensors).expect_err("refused");
    assert!(words.iter().all(|w| message.contains(w)), "{message}");
}

#[test]
fn where_a_mixer_lies_is_found_and_doubt_is_refused() {
    let registries = Registries::builtin();
    let config = config(&["full_attention", "short_conv"]);
    let bare = shapes(&config, &registries).expect("shapes");
    outcome(&config, &bare).expect("bare leaves");
    outcome(&config, &moved(&bare, |_| "anything".into(), "model.")).expect("a folder of any name");
    // Spelt otherwise, but the same words.
    let mut loud = config.clone();
    loud.insert("layer_types".into(), json!([" Full-Attention", "short.conv"]));
    outcome(&loud, &bare).expect("spellings");
    let mut two = moved(&bare, |_| "self_attn".into(), "model.");
    two.insert("model.layers.1.other.q_proj.weight".into(), vec![64, 64]);
    refused(&config, &two, &["layer 1", "other", "self_attn"]);
    let mut short = bare.clone();
    short.remove("model.layers.0.o_proj.weight");
    refused(&config, &short, &["model.layers.0.o_proj.weight"]);
}

#[test]
fn wrong_lists_are_refused_by_their_name() {
    let registries = Registries::builtin();
    let good = config(&["full_attention", "short_conv"]);
    let tensors = shapes(&good, &registries).expect("shapes");
    let with = |field: &str, value: Value| {
        let mut config = good.clone();
        config.insert(field.into(), value);
        config
    };
    refused(&with("layer_types", json!(["full_attention"])), &tensors, &["layer_types", "1 entries", "2"]);
    refused(&with("layer_types", json!(["full_attention", "telepathy"])), &tensors, &["telepathy", "short_conv"]);
    refused(&with("layer_types", Value::Null), &tensors, &["layer_types"]);
    refused(&with("ffn_types", json!(["swiglu", "sponge"])), &tensors, &["sponge", "geglu"]);
    refused(&with("num_attention_heads", json!(3)), &tensors, &["num_key_value_heads"]);
    outcome(&with("ffn_types", json!(["swiglu", "geglu"])), &tensors).expect("other feed-forwards");
    // Without a list, a model type that is a mixer's name stands for all layers.
    let mut uniform = config(&["short_conv", "short_conv"]);
    uniform.remove("layer_types");
    uniform.insert("model_type".into(), json!("short_conv"));
    let tensors = shapes(&uniform, &registries).expect("shapes");
    outcome(&uniform, &tensors).expect("uniform");
}
