//! The two newcomers of docs/ADDING.md, added through `Registries` from outside: both load, run and obey every law, and what is
//! wrong about them is refused by name.

mod family;
mod mixer;

use reverie::rooms::model::registry::Row;
use reverie::{Loader, Registries};
use serde_json::{Map, Value, json};

use crate::laws::{Subject, every_law};
use crate::synthetic::{shapes, write};

fn registries() -> Registries {
    let rows = Registries::builtin().with(Row::Mixer(&mixer::ENTRY)).expect("a new mixer");
    rows.with(Row::Arch(&family::ENTRY)).expect("a new family")
}

fn config(kind: &str) -> Map<String, Value> {
    let config = json!({
        "model_type": kind, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 272, "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "tie_word_embeddings": true, "echo_size": 24,
    });
    config.as_object().expect("object").clone()
}

#[test]
fn a_newcomers_family_loads_and_obeys_every_law() {
    let (folder, registries) = (tempfile::tempdir().expect("folder"), registries());
    let config = config("parrot");
    let tensors = shapes(&config, &registries).expect("shapes");
    assert!(tensors.contains_key("model.layers.0.echo.conv1d.weight"), "{tensors:?}");
    write(folder.path(), &config, &tensors);
    every_law(&Subject { path: folder.path().to_owned(), exact: false, registries });
    let refused = Loader::default().load(&folder.path().display().to_string()).map(drop).expect_err("not built in");
    assert!(refused.to_string().contains("parrot"), "{refused}");
}

#[test]
fn a_newcomers_mixer_can_be_composed_with_the_others() {
    let (folder, registries) = (tempfile::tempdir().expect("folder"), registries());
    let mut config = config("composed");
    config.insert("layer_types".into(), json!(["echo", "full_attention", "echo"]));
    let tensors = shapes(&config, &registries).expect("shapes");
    write(folder.path(), &config, &tensors);
    every_law(&Subject { path: folder.path().to_owned(), exact: false, registries });
}

#[test]
fn newcomers_do_not_replace_anyone_and_their_bad_fields_are_refused() {
    let again = registries().with(Row::Mixer(&mixer::ENTRY)).map(drop).expect_err("taken");
    assert!(again.to_string().contains("echo"), "{again}");
    let mut config = config("parrot");
    config.insert("echo_size".into(), json!(0));
    let refused = shapes(&config, &registries()).expect_err("no echo").to_string();
    assert!(refused.contains("echo_size"), "{refused}");
}
