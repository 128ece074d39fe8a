//! Against Google's SentencePiece (tests/golden/sentencepiece.json), and against a search that joins one pair at a time.

use proptest::prelude::*;
use serde_json::Value as Json;

use super::*;

fn model(pieces: &[(&str, f32)]) -> SentencePiece {
    let mut list = vec![Piece { text: "<unk>".into(), score: 0.0, kind: PieceKind::Unknown }];
    list.extend(pieces.iter().map(|(text, score)| Piece {
        text: (*text).into(),
        score: *score,
        kind: PieceKind::Normal,
    }));
    SentencePiece::new(&list, WordStart::AsWritten, Ends::default()).unwrap()
}

/// The definition: as long as some neighbours make a piece, join those of the highest score, the leftmost first.
fn naive(text: &str, pieces: &[(&str, f32)]) -> Vec<u32> {
    let score = |text: &str| pieces.iter().find(|(piece, _)| *piece == text).map(|(_, score)| *score);
    let mut symbols: Vec<String> = text.chars().map(String::from).collect();
    loop {
        let mut best: Option<(f32, usize)> = None;
        for at in 0..symbols.len().saturating_sub(1) {
            let found = score(&format!("{}{}", symbols[at], symbols[at + 1]));
            if let Some(found) = found.filter(|found| best.is_none_or(|(score, _)| found > &score)) {
                best = Some((found, at));
            }
        }
        let Some((_, at)) = best else { break };
        let right = symbols.remove(at + 1);
        symbols[at].push_str(&right);
    }
    let mut ids: Vec<u32> = Vec::new();
    for symbol in symbols {
        let id = pieces.iter().position(|(piece, _)| *piece == symbol).map_or(0, |at| at as u32 + 1);
        if id != 0 || ids.last() != Some(&0) {
            ids.push(id);
        }
    }
    ids
}

const PIECES: &[&str] = &[
    "a", "b", "é", "aa", "ab", "ba", "bb", "aaa", "aab", "aba", "abb", "baa", "bab", "aaaa", "abab", "éa", "aéa",
    "aabb",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn joining_is_the_definition(
        text in "[abéx]{0,16}",
        scores in prop::collection::vec(0_u8..4, PIECES.len()),
        dropped in prop::collection::vec(prop::bool::weighted(0.2), PIECES.len()),
    ) {
        // Few different scores, so that ties are the rule.
        let pieces: Vec<(&str, f32)> = PIECES.iter().zip(scores).zip(dropped)
            .filter(|(_, dropped)| !dropped)
            .map(|((piece, score), _)| (*piece, -f32::from(score)))
            .collect();
        prop_assert_eq!(model(&pieces).encode(&text, Specials::Parse), naive(&text, &pieces));
    }
}

#[test]
fn equal_scores_join_from_the_left() {
    let pieces = [("a", 0.0), ("aa", -1.0), ("aaa", -2.0)];
    // a a a a a → aa aa a → aa aaa is made, not aaa aa: (aa, aa) is no piece, (aa, a) is.
    assert_eq!(model(&pieces).encode("aaaaa", Specials::Parse), [2, 3]);
}

#[test]
fn unused_pieces_fall_apart_again() {
    let piece = |text: &str, score, kind| Piece { text: text.into(), score, kind };
    let list = [
        piece("a", 0.0, PieceKind::Normal),
        piece("b", 0.0, PieceKind::Normal),
        piece("ab", -1.0, PieceKind::Unused),
        piece("abb", -2.0, PieceKind::Normal),
        piece("abab", -3.0, PieceKind::Unused),
    ];
    let model = SentencePiece::new(&list, WordStart::AsWritten, Ends::default()).unwrap();
    assert_eq!(model.encode("abb", Specials::Parse), [3]);
    assert_eq!(model.encode("ab", Specials::Parse), [0, 1]);
    assert_eq!(model.encode("abab", Specials::Parse), [0, 1, 0, 1]);
}

#[test]
fn control_tokens_cannot_be_spelt_in_plain_text() {
    let piece = |text: &str, kind| Piece { text: text.into(), score: 0.0, kind };
    let list = [
        piece("<unk>", PieceKind::Unknown),
        piece("<s>", PieceKind::Control),
        piece("<", PieceKind::Normal),
        piece("s", PieceKind::Normal),
        piece(">", PieceKind::Normal),
        piece("<s", PieceKind::Normal),
        piece("[X]", PieceKind::UserDefined),
    ];
    let ends = Ends { open: Some(1), close: None };
    let model = SentencePiece::new(&list, WordStart::AsWritten, ends).unwrap();
    assert_eq!(model.encode("<s>", Specials::Plain), [5, 4]);
    assert_eq!(model.encode("<s>", Specials::Parse), [1]);
    assert_eq!(model.encode("s[X]s", Specials::Plain), [3, 6, 3]);
    assert_eq!(model.encode("s", Specials::ParseAndFrame), [1, 3]);
    assert_eq!(model.encode("", Specials::Plain), [0_u32; 0]);
    let ends = Ends { open: Some(1), close: Some(6) };
    let model = SentencePiece::new(&list, WordStart::AsWritten, ends).unwrap();
    assert_eq!(model.encode("s", Specials::ParseAndFrame), [1, 3, 6]);
    assert_eq!(model.encode("s", Specials::Parse), [3]);
}

#[test]
fn encodes_as_google_does() {
    let golden: Json = serde_json::from_str(include_str!("../../../tests/golden/sentencepiece.json")).unwrap();
    let pieces: Vec<Json> = golden["pieces"].as_array().unwrap().clone();
    let spec = crate::VocabSpec {
        model: "llama".into(),
        tokens: pieces.iter().map(|p| p[0].as_str().unwrap().to_owned()).collect(),
        scores: pieces.iter().map(|p| p[1].as_f64().unwrap() as f32).collect(),
        types: pieces.iter().map(|p| p[2].as_i64().unwrap() as i32).collect(),
        bos: golden["bos"].as_u64().map(|id| id as u32),
        eos: golden["eos"].as_u64().map(|id| id as u32),
        unk: golden["unk"].as_u64().map(|id| id as u32),
        ..crate::VocabSpec::default()
    };
    let tokenizer = spec.build().unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert!(cases.len() > 25);
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let ids: Vec<u32> = case["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        assert_eq!(tokenizer.encode(text, Specials::Plain).unwrap(), ids, "{text:?}");
        let decoded = tokenizer.decode(&ids, crate::SpecialText::Skip).unwrap();
        assert_eq!(decoded, case["decoded"].as_str().unwrap(), "{text:?}");
        let framed = tokenizer.encode(text, Specials::ParseAndFrame).unwrap();
        assert_eq!(framed.first().copied(), spec.bos);
    }
}

#[test]
fn long_runs_take_no_quadratic_time() {
    let pieces = [("a", 0.0), ("aa", -1.0), ("aaaa", -2.0), ("aaaaaaaa", -3.0)];
    let ids = model(&pieces).encode(&"a".repeat(200_000), Specials::Parse);
    assert_eq!(ids, vec![4; 25_000]);
}
