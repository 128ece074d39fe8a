//! Bad fields are refused by their names, whatever the mixer.

use std::path::Path;

use reverie_files::ModelConfig;
use serde_json::{Value, json};

use super::MIXERS;

/// The refusal of a mixer's spec for layer 1 of this config; none if it is accepted.
fn refusal(mixer: &str, mut config: Value, changed: (&str, Value)) -> Option<String> {
    config[changed.0] = changed.1;
    let Value::Object(fields) = config else { panic!("an object") };
    let entry = MIXERS.iter().find(|m| m.name == mixer).expect("a row");
    (entry.spec)(&ModelConfig::new(Path::new("config.json"), fields), 1).err().map(|e| e.to_string())
}

#[test]
fn fields_that_cannot_be_are_refused_by_name() {
    let flash = json!({"hidden_size": 64, "num_heads": 4, "num_hidden_layers": 2});
    let delta = json!({
        "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
        "linear_conv_kernel_dim": 4
    });
    let lightning = json!({"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2});
    let cases = [
        ("gated_delta", &delta, ("linear_num_value_heads", json!(3))),
        ("gated_delta", &delta, ("linear_conv_kernel_dim", json!(0))),
        ("gated_delta", &delta, ("linear_key_head_dim", json!(1u64 << 40))),
        ("deltanet", &flash, ("qk_norm", json!("max"))),
        ("deltanet", &flash, ("qk_activation", json!("gelu"))),
        ("deltanet", &flash, ("num_heads", json!(5))),
        ("deltanet", &flash, ("conv_size", json!(0))),
        ("kda", &flash, ("lower_bound", json!(5.0))),
        ("kda", &flash, ("expand_v", json!(0.01))),
        ("kda", &flash, ("num_v_heads", json!(6))),
        ("gla", &flash, ("num_kv_heads", json!(3))),
        ("gla", &flash, ("expand_k", json!(-1.0))),
        ("gla", &flash, ("gate_logit_normalizer", json!(0.0))),
        ("gla", &flash, ("feature_map", json!("hedgehog"))),
        ("retnet", &flash, ("expand_v", json!("NaN"))),
        ("hgrn2", &flash, ("expand_ratio", json!(0))),
        ("gsa", &flash, ("num_slots", json!(5000))),
        ("gsa", &flash, ("expand_v", json!(2.0))),
        ("lightning", &lightning, ("hidden_act", json!("gelu"))),
        ("lightning", &lightning, ("num_attention_heads", json!(7))),
        ("rwkv4", &flash, ("attention_hidden_size", json!(0))),
        ("rwkv6", &flash, ("num_heads", json!(0))),
        ("rwkv7", &flash, ("head_dim", json!(24))),
        ("rwkv7", &flash, ("value_dim", json!([64]))),
        ("channel_mix", &flash, ("intermediate_size", json!(0))),
        ("mlstm", &flash, ("qk_dim_factor", json!(0.1))),
    ];
    for (mixer, config, (field, value)) in cases {
        let message = refusal(mixer, config.clone(), (field, value.clone()));
        let message = message.unwrap_or_else(|| panic!("{mixer} takes {field} = {value}"));
        assert!(message.contains(field), "{mixer}, {field} = {value}: {message}");
    }
}

#[test]
fn the_plain_configs_are_taken() {
    let flash = json!({"hidden_size": 64, "num_heads": 4, "intermediate_size": 96});
    for mixer in ["channel_mix", "deltanet", "gla", "gsa", "kda", "mlstm", "retnet", "rwkv4", "rwkv6", "rwkv7"] {
        assert_eq!(refusal(mixer, flash.clone(), ("unread", json!(1))), None, "{mixer}");
    }
    assert_eq!(refusal("hgrn2", flash.clone(), ("expand_ratio", json!(16))), None);
}
