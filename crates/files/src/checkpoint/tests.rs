//! Fixtures of every kind open; what is missing is named.

use std::fs;

use reverie_tensor::quant::QUANTS;
use tempfile::TempDir;

use super::*;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name)
}

#[test]
fn a_folder_shows_its_files() {
    let model = Checkpoint::open(&fixture("qwen3_sharded"), QUANTS).unwrap();
    let config = model.config().unwrap();
    assert_eq!(config.text("model_type").unwrap(), "qwen3");
    assert!(config.usize("hidden_size").unwrap() > 0);
    assert!(model.weights.contains("model.embed_tokens.weight"));
    assert!(!model.tokenizer_json().unwrap().is_empty());
    assert!(model.generation_config().unwrap().is_some());
    assert!(model.metadata().is_none() && model.gguf_vocab().unwrap().is_none());
    assert_eq!(model.text("no such file").unwrap(), None);
}

/// Every model among the fixtures, whoever wrote it: each tensor is read in full, packed ones as the config says.
#[test]
fn every_fixture_reads_in_full() {
    let mut folders = vec![fixture("")];
    let (mut models, mut packed) = (0, 0);
    while let Some(folder) = folders.pop() {
        folders.extend(fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()));
        if !folder.join("config.json").is_file() || !Place::Folder(folder.clone()).has("tokenizer.json") {
            continue;
        }
        let model = Checkpoint::open(&folder, QUANTS).unwrap();
        models += 1;
        for name in model.weights.names().filter(|n| !n.ends_with(".scales") && !n.ends_with(".biases")) {
            let (shape, values) = model.weights.tensor_f32(name).unwrap();
            assert_eq!(shape.iter().product::<usize>(), values.len(), "{name}");
            assert!(values.iter().all(|v| v.is_finite()), "{name}");
            packed += usize::from(model.weights.contains(&name.replace(".weight", ".scales")));
        }
    }
    assert!(models >= 16 && packed > 0, "{models} models, {packed} packed tensors");
}

#[test]
fn a_gguf_file_shows_its_keys() {
    let model = Checkpoint::open(&fixture("qwen3/model.gguf"), QUANTS).unwrap();
    assert_eq!(model.metadata().unwrap().text("general.architecture").unwrap(), "qwen3");
    assert!(!model.gguf_vocab().unwrap().unwrap().tokens.is_empty());
    assert!(model.config().is_none() && model.tokenizer_config().unwrap().is_none());
}

#[test]
fn a_model_in_the_program_reads_as_the_folder_does() {
    let file = |name: &'static str| -> (&'static str, &'static [u8]) {
        (name, fs::read(fixture("llama").join(name)).unwrap().leak())
    };
    let files = vec![file("config.json"), file("model.safetensors"), file("tokenizer.json")].leak();
    let held = Checkpoint::embedded("pocket", files, QUANTS).unwrap();
    let disk = Checkpoint::open(&fixture("llama"), QUANTS).unwrap();
    assert_eq!(held.weights.vector("model.norm.weight").unwrap(), disk.weights.vector("model.norm.weight").unwrap());
    assert_eq!(held.tokenizer_json().unwrap(), disk.tokenizer_json().unwrap());
    assert_eq!(held.templates().unwrap(), Templates::default());
    held.weights.matrix("lm_head.weight").unwrap().done();
    let error = Checkpoint::embedded("pocket", &files[..1], QUANTS).unwrap_err().to_string();
    assert!(error.contains("pocket") && error.contains("model.safetensors"), "{error}");
}

fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = TempDir::new().unwrap();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    fs::copy(fixture("llama/model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    folder
}

#[test]
fn what_is_missing_is_named() {
    let refusal = |path: &Path| Checkpoint::open(path, QUANTS).unwrap_err().to_string();
    assert!(refusal(Path::new("no/such/model")).contains("no/such/model"));
    let empty = TempDir::new().unwrap();
    assert!(refusal(empty.path()).contains("config.json"));
    fs::write(empty.path().join("big.gguf"), "x").unwrap();
    assert!(refusal(empty.path()).contains("big.gguf"));
    assert!(refusal(&empty.path().join("big.gguf")).contains("magic"));
    assert!(refusal(&fixture("llama/model.safetensors")).contains("give the folder"));
    let bad = folder(&[("config.json", "{\"a\": ")]);
    assert!(refusal(bad.path()).contains("config.json"));
    let foreign = folder(&[("config.json", r#"{"quantization_config": {"quant_method": "awq"}}"#)]);
    assert!(refusal(foreign.path()).contains("awq"));
    let bare = folder(&[("config.json", "{}")]);
    let error = Checkpoint::open(bare.path(), QUANTS).unwrap().tokenizer_json().unwrap_err().to_string();
    assert!(error.contains("tokenizer.json"), "{error}");
}

#[test]
fn templates_come_from_the_file_first() {
    let templates = |files: &[(&str, &str)]| {
        let mut all = vec![("config.json", "{}")];
        all.extend(files);
        Checkpoint::open(folder(&all).path(), QUANTS).unwrap().templates()
    };
    let own = ("tokenizer_config.json", r#"{"chat_template": "A"}"#);
    let list = r#"{"chat_template": [{"name": "default", "template": "A"}, {"name": "rag", "template": "B"}]}"#;
    assert_eq!(templates(&[own]).unwrap().default.as_deref(), Some("A"));
    assert_eq!(templates(&[own, ("chat_template.jinja", "J")]).unwrap().default.as_deref(), Some("J"));
    assert_eq!(
        templates(&[("chat_template.json", r#"{"chat_template": "C"}"#)]).unwrap().default.as_deref(),
        Some("C")
    );
    let both = templates(&[("tokenizer_config.json", list)]).unwrap();
    assert_eq!((both.default.as_deref(), both.named), (Some("A"), vec![("rag".to_owned(), "B".to_owned())]));
    for bad in [r#"{"chat_template": 3}"#, r#"{"chat_template": [{"name": "x"}]}"#, r#"{"chat_template": [7]}"#] {
        let error = templates(&[("tokenizer_config.json", bad)]).unwrap_err().to_string();
        assert!(error.contains("chat_template") && error.contains("tokenizer_config.json"), "{error}");
    }
    let keys = crate::gguf::write::Builder::new()
        .text("tokenizer.chat_template", "D")
        .text("tokenizer.chat_template.rag", "R");
    let gguf = TempDir::new().unwrap();
    let file = gguf.path().join("m.gguf");
    fs::write(&file, keys.build()).unwrap();
    let all = Checkpoint::open(&file, QUANTS).unwrap().templates().unwrap();
    assert_eq!((all.default.as_deref(), all.named), (Some("D"), vec![("rag".to_owned(), "R".to_owned())]));
    let latin = TempDir::new().unwrap();
    fs::write(latin.path().join("config.json"), [b'{', 0xe9, b'}']).unwrap();
    assert!(Checkpoint::open(latin.path(), QUANTS).unwrap_err().to_string().contains("UTF-8"));
}
