//! The stream joined is the text of the whole, for any ids, any prefix and every kind of vocabulary.

use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::Value as Json;

use super::*;
use crate::gguf_vocab::VocabSpec;

fn hub(name: &str) -> Tokenizer {
    let golden: Json = serde_json::from_str(include_str!("../../tests/golden/hub.json")).unwrap();
    let model = golden["models"].as_array().unwrap().iter().find(|model| model["name"] == name).unwrap();
    Tokenizer::from_json_bytes(&serde_json::to_vec(&model["tokenizer"]).unwrap()).unwrap()
}

/// Every byte as a token, two words that begin with a space, a control token.
fn sentencepiece() -> Tokenizer {
    let mut spec = VocabSpec { model: "llama".into(), ..VocabSpec::default() };
    let mut add = |token: String, kind: i32| {
        spec.tokens.push(token);
        spec.scores.push(0.0);
        spec.types.push(kind);
    };
    add("<unk>".into(), 2);
    add("<s>".into(), 3);
    (0..=255).for_each(|byte: u8| add(format!("<0x{byte:02X}>"), 6));
    for token in ["▁", "▁▁", "▁a", "é", "▁été"] {
        add(token.into(), 1);
    }
    spec.build().unwrap()
}

fn metaspace() -> Tokenizer {
    let json = r#"{"model": {"type": "BPE", "vocab": {"▁": 0, "▁a": 1, "a▁b": 2, "é": 3, "▁▁": 4}, "merges": []},
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}}"#;
    Tokenizer::from_json_bytes(json.as_bytes()).unwrap()
}

fn stream(tokenizer: &Tokenizer, ids: &[u32], spec: DetokenizerSpec) -> String {
    let mut detokenizer = Detokenizer::new(tokenizer, spec);
    let mut text = String::new();
    for id in ids {
        text.push_str(detokenizer.push(*id).unwrap());
    }
    text.push_str(detokenizer.finish());
    text
}

fn check(tokenizer: &Tokenizer, ids: &[u32]) {
    for specials in [SpecialText::Skip, SpecialText::Show] {
        let start = DetokenizerSpec { position: Position::Start, specials };
        for end in 0..=ids.len() {
            assert_eq!(stream(tokenizer, &ids[..end], start), tokenizer.decode(&ids[..end], specials).unwrap());
        }
    }
}

static TOKENIZERS: LazyLock<[Tokenizer; 4]> =
    LazyLock::new(|| [hub("byte_level"), hub("byte_fallback"), sentencepiece(), metaspace()]);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_stream_is_the_whole(picks in prop::collection::vec(any::<prop::sample::Index>(), 0..24)) {
        for tokenizer in TOKENIZERS.iter() {
            let ids: Vec<u32> = picks.iter().map(|pick| pick.index(tokenizer.vocab_size()) as u32).collect();
            check(tokenizer, &ids);
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_come_out_as_lossy_utf8(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
        let [_, _, tokenizer, _] = &*TOKENIZERS;
        let ids: Vec<u32> = bytes.iter().map(|byte| tokenizer.id_of(&format!("<0x{byte:02X}>")).unwrap()).collect();
        let text = stream(tokenizer, &ids, DetokenizerSpec::answer());
        prop_assert_eq!(text, String::from_utf8_lossy(&bytes).into_owned());
    }

    #[test]
    fn a_continuation_adds_what_it_adds_to_the_prompt(text in "[a é漢🦀]{0,12}") {
        for tokenizer in TOKENIZERS.iter().take(3) {
            let prompt = tokenizer.encode("a", crate::Specials::Plain).unwrap();
            let answer = tokenizer.encode(&text, crate::Specials::Plain).unwrap();
            let whole = tokenizer.decode(&[prompt.clone(), answer.clone()].concat(), SpecialText::Skip).unwrap();
            let streamed = stream(tokenizer, &answer, DetokenizerSpec::answer());
            prop_assert_eq!(tokenizer.decode(&prompt, SpecialText::Skip).unwrap() + &streamed, whole);
        }
    }
}

#[test]
fn characters_are_never_split() {
    let [_, _, tokenizer, _] = &*TOKENIZERS;
    let mut detokenizer = Detokenizer::new(tokenizer, DetokenizerSpec::answer());
    let mut pieces = Vec::new();
    for byte in "é漢🦀".bytes() {
        pieces.push(detokenizer.push(tokenizer.id_of(&format!("<0x{byte:02X}>")).unwrap()).unwrap().to_owned());
    }
    assert_eq!(pieces, ["", "é", "", "", "漢", "", "", "", "🦀"]);
    assert_eq!(detokenizer.finish(), "");
}

#[test]
fn broken_bytes_are_replaced_as_soon_as_they_are_certain() {
    let [_, _, tokenizer, _] = &*TOKENIZERS;
    let id = |byte: u8| tokenizer.id_of(&format!("<0x{byte:02X}>")).unwrap();
    let mut detokenizer = Detokenizer::new(tokenizer, DetokenizerSpec::answer());
    assert_eq!(detokenizer.push(id(0xE2)).unwrap(), "");
    assert_eq!(detokenizer.push(id(0x82)).unwrap(), "");
    assert_eq!(detokenizer.push(id(b'x')).unwrap(), "\u{fffd}x");
    assert_eq!(detokenizer.push(id(0xFF)).unwrap(), "\u{fffd}");
    assert_eq!(detokenizer.push(id(0xF0)).unwrap(), "");
    assert_eq!(detokenizer.finish(), "\u{fffd}");
    assert_eq!(detokenizer.finish(), "");
}

#[test]
fn the_first_space_goes_only_at_the_start() {
    let [_, _, tokenizer, metaspace] = &*TOKENIZERS;
    let a = tokenizer.id_of("▁a").unwrap();
    let start = DetokenizerSpec { position: Position::Start, specials: SpecialText::Skip };
    assert_eq!(stream(tokenizer, &[1, a, a], start), "a a");
    assert_eq!(stream(tokenizer, &[a, a], DetokenizerSpec::answer()), " a a");
    assert_eq!(stream(tokenizer, &[1, a], DetokenizerSpec { specials: SpecialText::Show, ..start }), "<s> a");
    let spaces = metaspace.id_of("▁▁").unwrap();
    assert_eq!(stream(metaspace, &[spaces, spaces], start), "  ");
}

#[test]
fn an_unknown_id_leaves_the_stream_as_it_was() {
    let [_, _, tokenizer, _] = &*TOKENIZERS;
    let mut detokenizer = Detokenizer::new(tokenizer, DetokenizerSpec::answer());
    assert_eq!(detokenizer.push(tokenizer.id_of("<0xC3>").unwrap()).unwrap(), "");
    assert!(detokenizer.push(u32::MAX).is_err());
    assert_eq!(detokenizer.push(tokenizer.id_of("<0xA9>").unwrap()).unwrap(), "é");
}
