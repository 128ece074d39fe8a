//! Against `tokenizers` in Python (tests/golden/hub.json) and the tokenizers beside the fixtures, and with broken files.

use std::path::PathBuf;

use serde_json::{Value as Json, json};

use super::*;

fn golden() -> Json {
    serde_json::from_str(include_str!("../../tests/golden/hub.json")).unwrap()
}

fn from_json(json: &Json) -> Result<Tokenizer> {
    Tokenizer::from_json_bytes(&serde_json::to_vec(json).unwrap())
}

fn ids(json: &Json) -> Vec<u32> {
    json.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[test]
fn encodes_and_decodes_as_the_reference() {
    for model in golden()["models"].as_array().unwrap() {
        let tokenizer = from_json(&model["tokenizer"]).unwrap();
        for case in model["cases"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let (expected, framed) = (ids(&case["ids"]), ids(&case["framed"]));
            assert_eq!(tokenizer.encode(text, Specials::Parse).unwrap(), expected, "{text:?}");
            assert_eq!(tokenizer.encode(text, Specials::ParseAndFrame).unwrap(), framed, "{text:?}");
            assert_eq!(tokenizer.decode(&expected, SpecialText::Show).unwrap(), case["shown"].as_str().unwrap());
            assert_eq!(tokenizer.decode(&framed, SpecialText::Skip).unwrap(), case["skipped"].as_str().unwrap());
        }
    }
}

#[test]
fn plain_text_cannot_make_a_special_token() {
    for model in golden()["models"].as_array().unwrap() {
        let tokenizer = from_json(&model["tokenizer"]).unwrap();
        let bos = tokenizer.id_of("<s>").unwrap();
        assert!(tokenizer.is_special(bos) && !tokenizer.is_special(tokenizer.id_of("[TOOL]").unwrap()));
        assert!(tokenizer.encode("a<s>b", Specials::Parse).unwrap().contains(&bos));
        let plain = tokenizer.encode("a<s>b", Specials::Plain).unwrap();
        assert!(!plain.contains(&bos));
        assert_eq!(tokenizer.decode(&plain, SpecialText::Skip).unwrap(), "a<s>b");
    }
}

#[test]
fn token_bytes_joined_are_the_text() {
    for model in golden()["models"].as_array().unwrap() {
        let tokenizer = from_json(&model["tokenizer"]).unwrap();
        for case in model["cases"].as_array().unwrap() {
            let bytes: Vec<u8> =
                ids(&case["ids"]).iter().flat_map(|id| tokenizer.token_bytes(*id).unwrap().to_vec()).collect();
            let text = String::from_utf8(bytes).unwrap();
            assert_eq!(text.trim_start_matches(' '), case["shown"].as_str().unwrap().trim_start_matches(' '));
        }
        let beyond = tokenizer.vocab_size() as u32;
        assert!(matches!(tokenizer.token_bytes(beyond), Err(TextError::UnknownId { .. })));
        assert!(matches!(tokenizer.decode(&[u32::MAX], SpecialText::Show), Err(TextError::UnknownId { .. })));
    }
}

#[test]
fn tokenizers_beside_the_fixtures_load_and_round_trip() {
    let fixtures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
    let mut n_loaded = 0;
    for family in ["gemma3_text", "llama", "mistral", "qwen2", "qwen3", "qwen3_5_text", "smollm3"] {
        let tokenizer = Tokenizer::from_file(fixtures.join(family).join("tokenizer.json")).unwrap();
        for text in ["Hello, world", "né 漢 🦀\n\n  x", ""] {
            let ids = tokenizer.encode(text, Specials::Parse).unwrap();
            assert_eq!(tokenizer.decode(&ids, SpecialText::Show).unwrap(), text);
        }
        n_loaded += 1;
    }
    assert_eq!(n_loaded, 7);
    assert!(matches!(Tokenizer::from_file(fixtures.join("no such file")), Err(TextError::Read { .. })));
}

fn small() -> Json {
    json!({
        "version": "1.0",
        "added_tokens": [{"id": 3, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}
    })
}

#[test]
fn declared_ids_are_kept() {
    let mut file = small();
    assert_eq!(from_json(&file).unwrap().id_of("<s>"), Some(3));
    file["added_tokens"][0]["id"] = json!(7);
    let tokenizer = from_json(&file).unwrap();
    assert_eq!((tokenizer.id_of("<s>"), tokenizer.vocab_size()), (Some(7), 8));
    assert_eq!(tokenizer.encode("<s>ab", Specials::Parse).unwrap(), [7, 2]);
    assert!(tokenizer.is_special(7));
    assert!(matches!(tokenizer.token_bytes(5), Err(TextError::UnknownId { .. })));
}

#[test]
fn parts_of_words_may_be_marked_at_their_beginning_or_end() {
    for (mark, name, tail) in [("continuing_subword_prefix", "##", "##b"), ("end_of_word_suffix", "</w>", "b</w>")] {
        let mut file = small();
        let whole = if mark == "end_of_word_suffix" { "ab</w>" } else { "ab" };
        file["model"] =
            json!({"type": "BPE", "vocab": {"a": 0, tail: 1, whole: 2}, "merges": [["a", tail]], mark: name});
        assert_eq!(from_json(&file).unwrap().encode("ab", Specials::Plain).unwrap(), [2], "{mark}");
    }
}

#[test]
fn contradictions_are_refused_with_their_part() {
    let change = |path: &str, value: Json| {
        let mut file = small();
        *file.pointer_mut(path).unwrap() = value;
        file
    };
    let cases = [
        ("version", change("/version", json!("9.0"))),
        ("added_tokens", change("/added_tokens/0/id", json!(1))),
        ("added_tokens", change("/added_tokens", json!([{"id": 3}]))),
        ("added_tokens", change("/added_tokens", json!("none"))),
        ("model.vocab", change("/model/vocab", json!({"a": 0, "b": 0, "ab": 2}))),
        ("model.vocab", change("/model/vocab/a", json!(4_294_967_295_u32))),
        ("added_tokens", change("/added_tokens/0/id", json!(4_000_000_000_u32))),
        ("model:", change("/model/vocab/a", json!(-1))),
        ("model:", change("/model/vocab", json!([]))),
        ("model.merges", change("/model/merges", json!(["a zzzzzzzzzzzzzzzzzzzzzzzzzzzzz"]))),
        ("model.merges", change("/model/merges", json!(["ab ab"]))),
        ("model:", change("/model/merges", json!(["a b c"]))),
        ("model:", change("/model/merges", json!([["a"]]))),
        ("model.type", change("/model/type", json!("WordPiece"))),
        ("model", change("/model", json!(null))),
        (
            "model.unk_token",
            change("/model", json!({"type": "BPE", "vocab": {"a": 0}, "merges": [], "unk_token": "<unk>"})),
        ),
        ("model.dropout", change("/model", json!({"type": "BPE", "vocab": {"a": 0}, "merges": [], "dropout": 0.5}))),
        (
            "prefix",
            change(
                "/model",
                json!({"type": "BPE", "vocab": {"a": 0}, "merges": ["a a"], "continuing_subword_prefix": "##"}),
            ),
        ),
        (
            "decoder",
            change("/decoder", json!({"type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": true})),
        ),
        (
            "decoder",
            change("/decoder", json!({"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "ByteFallback"}]})),
        ),
        (
            "pre_tokenizer",
            change(
                "/pre_tokenizer",
                json!({"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": false}),
            ),
        ),
        ("normalizer", change("/normalizer", json!({"type": "Nonsense"}))),
        ("post_processor", change("/post_processor", json!({"type": "TemplateProcessing", "single": "x"}))),
    ];
    for (part, file) in cases {
        let error = from_json(&file).unwrap_err().to_string();
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn truncated_and_altered_files_never_panic() {
    let texts = ["a b  ab\n<s> é", "\u{0}\u{ffff}", ""];
    let attempt = |bytes: &[u8]| {
        if let Ok(tokenizer) = Tokenizer::from_json_bytes(bytes) {
            for text in texts {
                for specials in [Specials::Plain, Specials::Parse, Specials::ParseAndFrame] {
                    if let Ok(ids) = tokenizer.encode(text, specials) {
                        let _ = tokenizer.decode(&ids, SpecialText::Show);
                    }
                }
            }
        }
    };
    for bad in ["", "null", "[]", "{}", "\"", "\u{feff}{}", "{\"model\":{}}", "{\"model\":{\"type\":\"BPE\"}}"] {
        assert!(Tokenizer::from_json_bytes(bad.as_bytes()).is_err(), "{bad}");
    }
    assert!(Tokenizer::from_json_bytes(&[0xff, 0xfe, 0]).is_err());
    assert!(Tokenizer::from_json_bytes("[".repeat(1_000_000).as_bytes()).is_err());
    let nested = format!(r#"{{"decoder":{}"#, r#"{"type":"Sequence","decoders":["#.repeat(50_000));
    assert!(Tokenizer::from_json_bytes(nested.as_bytes()).is_err());

    for model in golden()["models"].as_array().unwrap() {
        // Without the long lists there is more structure than vocabulary, which is where mistakes would hide.
        let mut file = model["tokenizer"].clone();
        let vocab = file["model"]["vocab"].as_object_mut().unwrap();
        let keep: Vec<(String, Json)> = vocab
            .iter()
            .filter(|(name, _)| name.chars().count() <= 1 || name.starts_with('<'))
            .map(|(n, i)| (n.clone(), i.clone()))
            .collect();
        *vocab = keep.into_iter().collect();
        file["model"]["merges"] = json!([]);
        let bytes = serde_json::to_vec(&file).unwrap();
        attempt(&bytes);
        for cut in (0..bytes.len()).step_by(37) {
            attempt(&bytes[..cut]);
        }
        let mut state = 12345_u32;
        for _ in 0..400 {
            let mut altered = bytes.clone();
            for _ in 0..3 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let at = (state >> 8) as usize % altered.len();
                altered[at] = [b'0', b'9', b'"', b'{', b'}', b',', b'a', 0xff, b'-', b'['][(state >> 4) as usize % 10];
            }
            attempt(&altered);
        }
    }
}
