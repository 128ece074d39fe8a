//! What a config leaves out: transformers writes the text model inside a wrapper as a difference from its class, and checkpoints were made
//! before some fields were. The classes' own values stand in `defaults.json`, which fixtures/scripts/config_defaults.py makes.

use reverie_files::ModelConfig;
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Model types, each with the values of its fields and, as `spellings`, pairs of names for one field.
const TABLE: &str = include_str!("defaults.json");

/// Sizes that a config states unless it is a wrapper's: without them it is refused, not guessed.
const SIZES: &[&str] = &["hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size"];

/// Fields of which one speaks for the others.
const SPELLINGS: &[&[&str]] = &[
    &["layer_norm_epsilon", "norm_eps", "rms_norm_eps"],
    &["n_routed_experts", "num_experts", "num_local_experts"],
    &["num_experts_per_tok", "num_experts_per_token"],
    &["partial_rotary_factor", "rotary_dim"],
    &["rope_parameters", "rope_scaling"],
];

/// Activations that go by several names.
const ACTIVATIONS: &[&[&str]] = &[&["silu", "swish"], &["gelu_fast", "gelu_new", "gelu_pytorch_tanh", "gelu_tanh"]];

/// A bare text model's config with what it leaves out.
pub(super) fn bare(config: &ModelConfig) -> Result<ModelConfig> {
    filled(config, [config.optional_text("model_type")?.unwrap_or_default().to_owned()], SIZES)
}

/// The same of the text model `config` inside `wrapper`.
pub(super) fn wrapped(wrapper: &ModelConfig, config: &ModelConfig) -> Result<ModelConfig> {
    let outer = wrapper.optional_text("model_type")?.unwrap_or_default();
    let own = config.optional_text("model_type")?.unwrap_or_default();
    filled(config, [own.to_owned(), format!("{outer}_text"), outer.to_owned()], &[])
}

/// A field that is there, even as null, keeps its value.
fn filled<const N: usize>(config: &ModelConfig, kinds: [String; N], stated: &[&str]) -> Result<ModelConfig> {
    let table: Map<String, Value> = serde_json::from_str(TABLE)
        .map_err(|e| Error::config("defaults.json", e, "an object of model types; make it anew"))?;
    let Some(Value::Object(class)) = kinds.iter().find_map(|kind| table.get(kind)) else { return Ok(config.clone()) };
    for field in ["hidden_act", "hidden_activation"] {
        let text = |fields: &Map<String, Value>| fields.get(field).and_then(Value::as_str).map(str::to_owned);
        if let (Some(found), Some(own)) = (text(config.fields()), text(class)) {
            // The families compute their class's own activation, and no other.
            let same = |group: &&[&str]| group.contains(&found.as_str()) && group.contains(&own.as_str());
            if found != own && !ACTIVATIONS.iter().any(same) {
                return Err(Error::config(
                    field,
                    found,
                    format!("{own}: the only one that is computed for this family"),
                ));
            }
        }
    }
    let own = class.get("spellings").and_then(Value::as_object);
    let said = |field: &str| config.fields().contains_key(field);
    let otherwise = |field: &str| {
        let pairs = own.into_iter().flatten().filter_map(|(a, b)| Some((a.as_str(), b.as_str()?)));
        let here = pairs.filter_map(|(a, b)| if a == field { Some(b) } else { (b == field).then_some(a) });
        let everywhere =
            SPELLINGS.iter().filter(|group| group.contains(&field)).flat_map(|group| group.iter().copied());
        here.chain(everywhere).any(said)
    };
    let missing = class.iter().filter(|(field, _)| *field != "spellings" && !stated.contains(&field.as_str()));
    let missing = missing.filter(|(field, _)| !said(field) && !otherwise(field));
    let mut all = config.fields().clone();
    all.extend(missing.map(|(field, value)| (field.clone(), value.clone())));
    Ok(ModelConfig::new(config.path(), all))
}
