//! Configs that leave fields out: the plan is the one of the config that transformers makes of them.

use std::path::Path;

use reverie::Registries;
use reverie::rooms::files::{Bare, ModelConfig};
use reverie::rooms::model::arch::Source;
use serde_json::{Map, Value, json};

use crate::fixtures::root;

/// The plan of a config, as text.
fn plan(config: &Value, store: &Bare) -> String {
    let registries = Registries::builtin();
    let config = ModelConfig::new(Path::new("config.json"), config.as_object().expect("object").clone());
    let arch = registries.arch(config.text("model_type").expect("model_type")).expect("family");
    let source = Source::hugging_face(&config, store, &registries).expect("config");
    match (arch.plan)(&source) {
        Ok(plan) => format!("{plan:#?}"),
        Err(e) => format!("{e}"),
    }
}

/// The first line in which two texts differ.
fn apart<'a>(a: &'a str, b: &'a str) -> Option<(&'a str, &'a str)> {
    a.lines().zip(b.lines()).find(|(a, b)| a != b)
}

#[test]
fn a_config_of_sizes_alone_gives_the_plan_of_the_whole_one() {
    let cases = std::fs::read(root().join("config_defaults.json")).expect("config_defaults.json");
    let cases: Map<String, Value> = serde_json::from_slice(&cases).expect("json");
    assert!(cases.len() >= 40, "{} families", cases.len());
    let mut wrong = Vec::new();
    for (family, case) in &cases {
        // Of a checkpoint only this is known: whether it has a head.
        let untied = case["full"]["tie_word_embeddings"] == json!(false);
        let store = Bare(if untied { &["lm_head.weight", "head.weight"] } else { &[] });
        let want = plan(&case["full"], &store);
        if !want.starts_with("Plan {") {
            wrong.push(format!("{family}: {want}"));
            continue;
        }
        let mut bare = case["sizes"].clone();
        bare["model_type"] = family.as_str().into();
        let mut text = case["stated"].clone();
        text["model_type"] = family.as_str().into();
        let wrapped = json!({"model_type": family, "text_config": text});
        for (how, config) in [("bare", bare), ("wrapped", wrapped)] {
            if let Some(lines) = apart(&plan(&config, &store), &want) {
                wrong.push(format!("{family}, {how}: {lines:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {} families:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

#[test]
fn exceptions_of_layers_stand_alone() {
    // Full layers whose heads are as wide as the others': the newest spelling then has nothing to say of their width.
    let bytes = std::fs::read(root().join("gemma4_text/config.v4.json")).expect("config");
    let mut older: Value = serde_json::from_slice(&bytes).expect("json");
    older["global_head_dim"] = older["head_dim"].clone();
    let mut newer = older.clone();
    let fields = newer.as_object_mut().expect("object");
    let heads = fields.remove("num_global_key_value_heads").expect("heads of full layers");
    fields.remove("global_head_dim");
    fields.insert(
        "per_layer_config".into(),
        json!({"2": {"num_key_value_heads": heads}, "5": {"num_key_value_heads": heads}}),
    );
    let store = Bare(&[]);
    let want = plan(&older, &store);
    assert!(want.starts_with("Plan {"), "{want}");
    assert_eq!(apart(&plan(&newer, &store), &want), None);
    // Nor does the older spelling's word count beside it.
    newer["global_head_dim"] = json!(4 * 16);
    assert_eq!(apart(&plan(&newer, &store), &want), None);
}

#[test]
fn residual_factors_in_their_makers_words() {
    let bytes = std::fs::read(root().join("minimax/config.v4.json")).expect("config");
    let plain: Value = serde_json::from_slice(&bytes).expect("json");
    let mut own = plain.clone();
    let fields = own.as_object_mut().expect("object");
    fields.insert("model_type".into(), json!("minimax_text_01"));
    fields.insert("rotary_dim".into(), json!(4));
    for field in ["layer_types", "partial_rotary_factor"] {
        fields.remove(field).expect(field);
    }
    for part in ["full_attn", "linear_attn", "mlp"] {
        for letter in ["alpha", "beta"] {
            let factor = fields.remove(&format!("{part}_{letter}_factor")).expect("factor");
            fields.insert(format!("layernorm_{}_{letter}", part.replace("attn", "attention")), factor);
        }
    }
    let kinds = plain["layer_types"].as_array().expect("kinds").iter().enumerate();
    let held: Vec<String> = kinds
        .map(|(i, kind)| {
            let leaf = if kind == "linear_attention" { "qkv_proj" } else { "q_proj" };
            format!("model.layers.{i}.self_attn.{leaf}.weight")
        })
        .collect();
    let names: Vec<&'static str> = held.into_iter().map(|name| &*name.leak()).collect();
    let store = Bare(names.leak());
    let want = plan(&plain, &store);
    assert!(want.starts_with("Plan {"), "{want}");
    assert_eq!(apart(&plan(&own, &store), &want), None);
}
