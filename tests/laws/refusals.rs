//! Configs that cannot be: the model is refused when it is loaded, by the field's name.

use reverie::Loader;
use serde_json::{Value, json};

use crate::fixtures::root;

/// What loading `fixture` with these fields says.
fn refusal(fixture: &str, fields: &[(&str, Value)]) -> String {
    let copy = tempfile::tempdir().expect("tempdir");
    for file in std::fs::read_dir(root().join(fixture)).expect("folder").filter_map(|e| e.ok().map(|e| e.path())) {
        if file.extension().is_none_or(|e| e != "gguf") {
            std::fs::copy(&file, copy.path().join(file.file_name().expect("name"))).expect("copy");
        }
    }
    let path = copy.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).expect("config")).expect("json");
    fields.iter().for_each(|(field, value)| config[*field] = value.clone());
    std::fs::write(&path, config.to_string()).expect("config");
    let loader = Loader { threads: Some(1), ..Loader::default() };
    match loader.load(&copy.path().display().to_string()) {
        Ok(_) => panic!("{fixture} with {fields:?} loads"),
        Err(e) => e.to_string(),
    }
}

#[test]
fn state_space_and_hybrid_fields() {
    for (fixture, field, value) in [
        ("bamba", "mamba_n_heads", json!(0)),
        ("falcon_h1", "attention_in_multiplier", json!(0)),
        ("falcon_h1", "ssm_multipliers", json!([1.0])),
        ("granitemoehybrid", "layer_types", json!(["mamba", "sideways"])),
        ("granitemoehybrid", "shared_intermediate_size", json!(0)),
        ("jamba", "attn_layer_period", json!(0)),
        ("lfm2", "conv_L_cache", json!(0)),
        ("lfm2", "layer_types", json!(["conv", "conv", "conv", "sideways"])),
        ("mamba", "expand", json!(0)),
        ("mamba", "hidden_act", json!("gelu")),
        ("mamba", "state_size", json!(-1)),
        ("mamba", "time_step_rank", json!(0)),
        ("mamba2", "hidden_act", json!("gelu")),
        ("mamba2", "n_groups", json!(3)),
        ("mamba2", "num_heads", json!(1u64 << 40)),
        ("mamba2", "time_step_limit", json!([2.0, 1.0])),
        ("nemotron_h", "layers_block_type", json!(["mamba", "mlp", "attention", "attention", "mamba", "sideways"])),
        ("nemotron_h", "mlp_hidden_act", json!("silu")),
        ("nemotron_h_moe", "moe_latent_size", json!(0)),
        ("recurrent_gemma", "block_types", json!([])),
        ("recurrent_gemma", "hidden_activation", json!("relu")),
        ("recurrent_gemma", "lru_width", json!(63)),
        ("zamba2", "adapter_rank", json!(0)),
        ("zamba2", "layers_block_type", json!(["mamba"])),
        ("zamba2", "num_mem_blocks", json!(0)),
        ("zamba2", "use_long_context", json!(true)),
    ] {
        let said = refusal(fixture, &[(field, value.clone())]);
        assert!(said.contains(field), "{fixture} with {field} = {value}: {said}");
    }
    // Widths that the tensors do not have are refused by the tensor, whatever else agrees with them.
    let said = refusal("mamba2", &[("num_heads", json!(1024)), ("head_dim", json!(1024))]);
    assert!(said.contains("conv1d") && said.contains("192"), "{said}");
}

#[test]
fn layers_that_the_checkpoint_does_not_have_or_that_nobody_asks_for() {
    for (fixture, layers) in [("llama", 1), ("llama", 3), ("mamba", 1), ("rwkv7_own", 1), ("fla_gla", 3)] {
        let said = refusal(fixture, &[("num_hidden_layers", json!(layers))]);
        assert!(said.contains("num_hidden_layers") && said.contains("the 2 layers"), "{fixture}: {said}");
    }
    // Those that guess ahead are not run: one of the two counts as such, and what is missing is another field.
    let said = refusal(
        "llama",
        &[("num_hidden_layers", json!(1)), ("num_nextn_predict_layers", json!(1)), ("vocab_size", json!(5))],
    );
    assert!(said.contains("embed_tokens"), "{said}");
    let said = refusal("qwen3_next", &[("layer_types", json!(["full_attention"]))]);
    assert!(said.contains("layer_types") && said.contains("1 entries"), "{said}");
}

#[test]
fn more_positions_than_a_model_was_made_for() {
    let path = root().join("phi3_longrope_long").display().to_string();
    let with = |context| Loader { threads: Some(1), context, ..Loader::default() }.load(&path);
    let short = with(None).expect("loads");
    assert_eq!(short.engine().context(), 48);
    let said = short.engine().admit(60).expect_err("beyond the original context").to_string();
    assert!(said.contains("--context, at most 2048"), "{said}");
    assert_eq!(with(Some(48)).expect("loads").engine().context(), 48);
    assert_eq!(with(Some(49)).expect("loads").engine().context(), 2048);
    let said = with(Some(2049)).err().expect("refused").to_string();
    assert!(said.contains("max_position_embeddings") && said.contains("2049"), "{said}");
}
