//! A GGUF vocabulary against the tokenizer.json it was converted from, cuts against Python's `regex`, and broken metadata.

use serde_json::Value as Json;
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

use super::*;
use crate::{SpecialText, Specials};

fn golden_hub() -> Json {
    let golden: Json = serde_json::from_str(include_str!("../../tests/golden/hub.json")).unwrap();
    golden["models"][0].clone()
}

/// What a converter writes for the byte-level tokenizer of the golden file.
fn converted() -> VocabSpec {
    let file = &golden_hub()["tokenizer"];
    let mut named: Vec<(u64, String, i32)> = file["model"]["vocab"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, id)| (id.as_u64().unwrap(), name.clone(), 1))
        .collect();
    for token in file["added_tokens"].as_array().unwrap() {
        let kind = if token["special"] == true { 3 } else { 4 };
        named.push((token["id"].as_u64().unwrap(), token["content"].as_str().unwrap().to_owned(), kind));
    }
    named.sort();
    assert!(named.iter().enumerate().all(|(index, (id, ..))| index as u64 == *id));
    let id_of = |name: &str| named.iter().find(|(_, other, _)| other == name).map(|(id, ..)| *id as u32);
    let merges = file["model"]["merges"].as_array().unwrap().iter();
    VocabSpec {
        model: "gpt2".into(),
        pre: Some("stablelm2".into()),
        bos: id_of("<s>"),
        eos: id_of("</s>"),
        add_bos: Some(true),
        merges: merges.map(|m| format!("{} {}", m[0].as_str().unwrap(), m[1].as_str().unwrap())).collect(),
        tokens: named.iter().map(|(_, name, _)| name.clone()).collect(),
        types: named.iter().map(|(_, _, kind)| *kind).collect(),
        ..VocabSpec::default()
    }
}

#[test]
fn a_converted_vocabulary_is_the_same_tokenizer() {
    let tokenizer = converted().build().unwrap();
    for case in golden_hub()["cases"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let ids = |field: &str| -> Vec<u32> {
            case[field].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
        };
        assert_eq!(tokenizer.encode(text, Specials::Parse).unwrap(), ids("ids"), "{text:?}");
        assert_eq!(tokenizer.encode(text, Specials::ParseAndFrame).unwrap(), ids("framed"), "{text:?}");
        assert_eq!(tokenizer.decode(&ids("ids"), SpecialText::Show).unwrap(), case["shown"].as_str().unwrap());
    }
    let bos = tokenizer.id_of("<s>").unwrap();
    assert!(tokenizer.is_special(bos));
    assert!(!tokenizer.encode("<s>", Specials::Plain).unwrap().contains(&bos));
}

#[test]
fn words_are_cut_as_by_python_regex() {
    let golden: Json = serde_json::from_str(include_str!("../../tests/golden/words.json")).unwrap();
    let spelling = Spelling::byte_level();
    for case in golden["cases"].as_array().unwrap() {
        let (pre, text) = (case["pre"].as_str().unwrap(), case["text"].as_str().unwrap());
        let mut cut = PreTokenizedString::from(text);
        pre::find(Some(pre)).unwrap().pre_tokenizer().unwrap().unwrap().pre_tokenize(&mut cut).unwrap();
        let words: Vec<String> = cut
            .get_splits(OffsetReferential::Normalized, OffsetType::Byte)
            .into_iter()
            .map(|(word, ..)| String::from_utf8(spelling.bytes(word)).unwrap())
            .filter(|word| !word.is_empty())
            .collect();
        let expected: Vec<&str> = case["words"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
        assert_eq!(words, expected, "{pre}: {text:?}");
    }
}

#[test]
fn whole_words_come_first_where_the_model_says_so() {
    let spec = |pre: &str| VocabSpec {
        model: "gpt2".into(),
        pre: Some(pre.into()),
        tokens: ["a", "b", "c", "ab", "bc", "abc"].map(str::to_owned).to_vec(),
        merges: vec!["b c".into(), "a b".into(), "ab c".into()],
        ..VocabSpec::default()
    };
    // Merging "b c" first leaves "a" alone; "abc" is reached only as a whole word.
    assert_eq!(spec("qwen2").build().unwrap().encode("abc", Specials::Plain).unwrap(), [0, 4]);
    assert_eq!(spec("llama-bpe").build().unwrap().encode("abc", Specials::Plain).unwrap(), [5]);
}

#[test]
fn listed_merges_over_text_know_spaces_and_bytes() {
    let spec = VocabSpec {
        model: "gemma4".into(),
        tokens: ["<bos>", "▁", "a", "▁a", "<0xC3>", "<0xA9>", "  "].map(str::to_owned).to_vec(),
        types: vec![3, 1, 1, 1, 6, 6, 4],
        merges: vec!["▁ a".into()],
        bos: Some(0),
        ..VocabSpec::default()
    };
    let tokenizer = spec.build().unwrap();
    let ids = tokenizer.encode("a a  é", Specials::ParseAndFrame).unwrap();
    assert_eq!(ids, [0, 2, 3, 6, 4, 5]);
    assert_eq!(tokenizer.decode(&ids, SpecialText::Skip).unwrap(), "a a  é");
}

#[test]
fn contradictions_are_refused_by_key() {
    let good = converted();
    let n_tokens = good.tokens.len() as u32;
    let alter = |f: &dyn Fn(&mut VocabSpec)| {
        let mut spec = good.clone();
        f(&mut spec);
        spec
    };
    let cases: Vec<(&str, VocabSpec)> = vec![
        ("tokenizer.ggml.model", alter(&|s| s.model = "t5".into())),
        ("tokenizer.ggml.pre", alter(&|s| s.pre = None)),
        ("tokenizer.ggml.pre", alter(&|s| s.pre = Some("brand-new".into()))),
        ("tokenizer.ggml.tokens", alter(&|s| s.tokens.clear())),
        ("tokenizer.ggml.tokens", alter(&|s| s.tokens[1] = s.tokens[0].clone())),
        ("tokenizer.ggml.token_type", alter(&|s| s.types.push(1))),
        ("tokenizer.ggml.token_type", alter(&|s| s.types[0] = 77)),
        ("tokenizer.ggml.tokens", alter(&|s| s.types[0] = 6)),
        ("tokenizer.ggml.merges", alter(&|s| s.merges.clear())),
        ("tokenizer.ggml.merges", alter(&|s| s.merges[0] = "nospace".into())),
        ("tokenizer.ggml.merges", alter(&|s| s.merges[0] = String::new())),
        ("tokenizer.ggml.merges", alter(&|s| s.merges[0] = format!("a {}", "z".repeat(500)))),
        ("tokenizer.ggml.bos_token_id", alter(&|s| s.bos = Some(n_tokens))),
        ("tokenizer.ggml.eos_token_id", alter(&|s| s.eos = Some(u32::MAX))),
        ("tokenizer.ggml.add_bos_token", alter(&|s| s.bos = None)),
        ("tokenizer.ggml.add_eos_token", alter(&|s| (s.eos, s.add_eos) = (None, Some(true)))),
        ("tokenizer.ggml.scores", alter(&|s| s.model = "llama".into())),
        (
            "not a number",
            alter(&|s| {
                s.model = "llama".into();
                s.scores = vec![f32::NAN; s.tokens.len()];
            }),
        ),
    ];
    for (key, spec) in cases {
        let error = spec.build().unwrap_err().to_string();
        assert!(error.contains(key), "{key}: {error}");
    }
}

#[test]
fn the_unknown_token_is_the_one_that_is_named() {
    let spec = VocabSpec {
        model: "llama".into(),
        tokens: ["a", "?", "b"].map(str::to_owned).to_vec(),
        scores: vec![0.0; 3],
        unk: Some(1),
        ..VocabSpec::default()
    };
    let tokenizer = VocabSpec { add_space_prefix: Some(false), ..spec }.build().unwrap();
    assert_eq!(tokenizer.encode("a漢漢b", Specials::Plain).unwrap(), [0, 1, 2]);
    assert!(tokenizer.is_special(1) && !tokenizer.is_special(0) && !tokenizer.is_special(3));
}

#[test]
fn holes_in_the_id_space_are_tolerated() {
    let mut spec = converted();
    spec.tokens.extend([String::new(), String::new()]);
    spec.types.extend([5, 5]);
    let tokenizer = spec.build().unwrap();
    assert_eq!(tokenizer.vocab_size(), spec.tokens.len());
}
