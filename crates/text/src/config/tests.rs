//! Real shapes of the two files, and wrong types, which are refused by name.

use super::*;

#[test]
fn special_tokens_are_text_or_objects() {
    let json = br#"{"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": "</s>", "pad_token": null,
        "add_bos_token": true, "image_token": "<img>", "model_max_length": 1000000000000000019884624838656,
        "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": "{{ x }}"}"#;
    let config = TokenizerConfig::from_json_bytes(json).unwrap();
    assert_eq!(config.special.get("bos_token"), Some("<s>"));
    assert_eq!(config.special.get("eos_token"), Some("</s>"));
    assert_eq!(config.special.get("image_token"), Some("<img>"));
    assert_eq!(config.special.get("pad_token"), None);
    assert_eq!(config.add_bos_token, Some(true));
    assert_eq!(config.model_max_tokens, None);
    assert_eq!(config.templates, TemplateSources::single("{{ x }}"));
    let config = TokenizerConfig::from_json_bytes(br#"{"model_max_length": 4096}"#).unwrap();
    assert_eq!(config.model_max_tokens, Some(4096));
    assert_eq!(TokenizerConfig::from_json_bytes(br#"{"model_max_length": 1}"#).unwrap().model_max_tokens, Some(1));
    assert!(config.templates.is_empty());
}

#[test]
fn named_templates_are_chosen() {
    let json = br#"{"chat_template": [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}, {"name": "rag", "template": "r"}]}"#;
    let templates = TemplateSources::from_json_bytes(json).unwrap();
    assert_eq!(templates.select(None, Tools::None).unwrap(), "d");
    assert_eq!(templates.select(None, Tools::Some).unwrap(), "t");
    assert_eq!(templates.select(Some("rag"), Tools::Some).unwrap(), "r");
    let error = templates.select(Some("none"), Tools::None).unwrap_err().to_string();
    assert!(error.contains("\"none\"") && error.contains("default, tool_use, rag"), "{error}");
    assert_eq!(TemplateSources::single("only").select(None, Tools::Some).unwrap(), "only");
    assert!(TemplateSources::default().select(None, Tools::None).is_err());
}

#[test]
fn generation_config_is_read() {
    let json =
        br#"{"eos_token_id": [8185, 8183], "pad_token_id": 8183, "do_sample": true, "temperature": 0.6, "top_p": 0.95,
        "top_k": 20, "min_p": null, "repetition_penalty": 1.05, "transformers_version": "5.0", "max_new_tokens": 512}"#;
    let config = GenerationConfig::from_json_bytes(json).unwrap();
    let expected = GenerationConfig {
        eos_token_ids: vec![8185, 8183],
        pad_token_id: Some(8183),
        do_sample: Some(true),
        temperature: Some(0.6),
        top_p: Some(0.95),
        top_k: Some(20),
        repetition_penalty: Some(1.05),
        max_new_tokens: Some(512),
        ..GenerationConfig::default()
    };
    assert_eq!(config, expected);
    assert_eq!(GenerationConfig::from_json_bytes(br#"{"eos_token_id": 2}"#).unwrap().eos_token_ids, [2]);
    assert_eq!(GenerationConfig::from_json_bytes(br#"{"temperature": 0}"#).unwrap().temperature, Some(0.0));
    assert_eq!(GenerationConfig::from_json_bytes(b"{}").unwrap(), GenerationConfig::default());
}

#[test]
fn wrong_types_are_refused_by_name() {
    for (field, json) in [
        ("temperature", r#"{"temperature": "hot"}"#),
        ("temperature", r#"{"temperature": -1}"#),
        ("top_p", r#"{"top_p": 1.5}"#),
        ("top_k", r#"{"top_k": -3}"#),
        ("top_k", r#"{"top_k": 2.5}"#),
        ("eos_token_id", r#"{"eos_token_id": [1, "two"]}"#),
        ("eos_token_id", r#"{"eos_token_id": 99999999999}"#),
        ("repetition_penalty", r#"{"repetition_penalty": 0}"#),
        ("do_sample", r#"{"do_sample": 1}"#),
    ] {
        match GenerationConfig::from_json_bytes(json.as_bytes()) {
            Err(TextError::Field { field: named, .. }) => assert_eq!(named, field),
            other => panic!("{json}: {other:?}"),
        }
    }
    for (field, json) in [
        ("bos_token", r#"{"bos_token": 7}"#),
        ("chat_template", r#"{"chat_template": [{"name": "x"}]}"#),
        ("chat_template", r#"{"chat_template": 3}"#),
        ("model_max_length", r#"{"model_max_length": "long"}"#),
        ("model_max_length", r#"{"model_max_length": 0}"#),
        ("add_bos_token", r#"{"add_bos_token": "yes"}"#),
    ] {
        match TokenizerConfig::from_json_bytes(json.as_bytes()) {
            Err(TextError::Field { field: named, .. }) => assert_eq!(named, field),
            other => panic!("{json}: {other:?}"),
        }
    }
    for json in ["", "[]", "{", "null", "\u{feff}{}", &"[".repeat(100_000)] {
        assert!(
            matches!(GenerationConfig::from_json_bytes(json.as_bytes()), Err(TextError::Json { .. })),
            "{json:.20}"
        );
    }
}
