use super::*;
use proptest::prelude::*;
use serde_json::json;

fn hash(n: usize) -> Hash {
    Hash::of(&n.to_le_bytes())
}

/// Ten tokens in pages of four, two turns.
fn small() -> Manifest {
    Manifest {
        page_tokens: 4,
        tokens: (0..10).collect(),
        pages: (0..3).map(hash).collect(),
        text: "héllo wörld".into(),
        turns: vec![
            Turn { role: "user".into(), text_end: 6, tokens: 5 },
            Turn { role: "assistant".into(), text_end: 13, tokens: 10 },
        ],
        last: Some(hash(9)),
        sampler: json!({"seed": u64::MAX, "a": [0.1, 1e-7]}),
        ..Manifest::default()
    }
}

#[test]
fn it_reads_what_it_wrote_in_one_spelling() {
    let bytes = small().to_bytes().unwrap();
    let again = Manifest::parse(&bytes).unwrap();
    assert_eq!(again, small());
    assert_eq!(again.to_bytes().unwrap(), bytes);
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.starts_with(r#"{"created_ms":0,"extra":null,"#) && text.ends_with(r#""version":2}"#), "{text}");
    assert!(text.contains(r#""sampler":{"a":[0.1,1e-7],"seed":18446744073709551615}"#), "{text}");
}

#[test]
fn keys_ascend_at_every_depth() {
    let text = String::from_utf8(small().to_bytes().unwrap()).unwrap();
    fn walk(v: &Value) {
        match v {
            Value::Object(m) => {
                let keys: Vec<&String> = m.keys().collect();
                assert!(keys.is_sorted(), "{keys:?}");
                m.values().for_each(walk);
            }
            Value::Array(a) => a.iter().for_each(walk),
            _ => {}
        }
    }
    walk(&serde_json::from_str(&text).unwrap());
    let mut at = 0;
    for key in [
        "created_ms",
        "extra",
        "forked_from",
        "identity",
        "last",
        "page_tokens",
        "pages",
        "parent",
        "sampler",
        "snapshots",
        "text",
        "tokens\":[",
        "turns",
        "version",
    ] {
        let found = text[at..].find(&format!("\"{key}")).unwrap_or_else(|| panic!("{key} out of order in {text}"));
        at += found;
    }
}

#[test]
fn unsound_manifests_are_refused_by_field() {
    type Spoil = fn(&mut Manifest);
    let cases: &[(&str, Spoil)] = &[
        ("version", |m| m.version = 1),
        ("page_tokens", |m| m.page_tokens = 0),
        ("page_tokens", |m| m.page_tokens = usize::MAX),
        ("pages", |m| m.pages.truncate(2)),
        ("pages", |m| m.pages.push(hash(7))),
        ("pages", |m| m.pages.clear()),
        ("turns[0].tokens", |m| m.turns[0].tokens = 0),
        ("turns[1].tokens", |m| m.turns[1].tokens = 5),
        ("turns[1].tokens", |m| m.turns[1].tokens = 11),
        ("turns[1].text_end", |m| m.turns[1].text_end = 5),
        ("turns[0].text_end", |m| m.turns[0].text_end = 2),
        ("turns[1].text_end", |m| m.turns[1].text_end = usize::MAX),
        ("role", |m| m.turns[1].role = "x".repeat(65)),
        ("snapshots[0].position", |m| m.snapshots = vec![Snapshot { object: hash(1), position: 11 }]),
        ("snapshots[0].position", |m| m.snapshots = vec![Snapshot { object: hash(1), position: 0 }]),
        ("snapshots[1].position", |m| m.snapshots = vec![Snapshot { object: hash(1), position: 4 }; 2]),
        ("windows[0].page", |m| m.windows = vec![Window { object: hash(1), page: 3, tokens: 1 }]),
        ("windows[1].page", |m| m.windows = vec![Window { object: hash(1), page: 1, tokens: 4 }; 2]),
        ("windows[0].tokens", |m| m.windows = vec![Window { object: hash(1), page: 2, tokens: 3 }]),
        ("windows[0].tokens", |m| m.windows = vec![Window { object: hash(1), page: 0, tokens: 0 }]),
        ("windows[0].page", |m| m.windows = vec![Window { object: hash(1), page: usize::MAX, tokens: 1 }]),
        ("identity", |m| {
            m.identity.insert("x".repeat(300), String::new());
        }),
    ];
    for (field, spoil) in cases {
        let mut bad = small();
        spoil(&mut bad);
        let refusal = bad.check().expect_err(field).to_string();
        assert!(refusal.contains(field), "{field}: {refusal}");
        let bytes = serde_json::to_vec(&bad).unwrap();
        assert!(Manifest::parse(&bytes).is_err(), "{field} parses");
    }
    assert!(Manifest { last: Some(hash(0)), ..Manifest::default() }.check().is_err());
}

#[test]
fn unknown_fields_and_huge_claims_are_refused() {
    let text = String::from_utf8(small().to_bytes().unwrap()).unwrap();
    for (from, to) in [
        (r#""version":2"#, r#""version":2,"path":"../../etc""#),
        (r#""page_tokens":4"#, r#""page_tokens":99999999999999999999999"#),
        (r#""tokens":[0,"#, r#""tokens":[-1,"#),
        (r#""tokens":[0,"#, r#""tokens":[4294967296,"#),
        (r#""text_end":6"#, r#""text_end":18446744073709551615"#),
        (r#""last":""#, r#""last":"../"#),
    ] {
        let bad = text.replacen(from, to, 1);
        assert_ne!(bad, text);
        assert!(Manifest::parse(bad.as_bytes()).is_err(), "{to}");
    }
    assert!(Manifest::parse(&[b'['; 100_000]).is_err());
}

#[test]
fn a_cut_is_the_state_as_it_was() {
    let cut = small().cut(5).expect("attention can be cut anywhere");
    cut.check().unwrap();
    assert_eq!((cut.tokens.len(), cut.pages.len(), cut.turns.len()), (5, 2, 1));
    assert_eq!((cut.text.as_str(), cut.last, cut.sampler.clone()), ("héllo", None, Value::Null));
    assert_eq!(small().cut(10), Some(small()));
    assert_eq!(small().cut(11), None);
    let hybrid = Manifest {
        snapshots: vec![Snapshot { object: hash(1), position: 4 }, Snapshot { object: hash(2), position: 10 }],
        ..small()
    };
    assert_eq!(hybrid.cut(5), None);
    assert_eq!(hybrid.cut(4).map(|m| m.snapshots.len()), Some(1));
    assert_eq!((hybrid.stands(3), hybrid.stands(9), hybrid.stands(99)), (0, 4, 10));
    let window = |page, tokens| Window { object: hash(page), page, tokens };
    let windowed = Manifest { windows: vec![window(0, 4), window(1, 4), window(2, 2)], ..hybrid.clone() };
    windowed.check().unwrap();
    assert_eq!(Manifest::parse(&windowed.to_bytes().unwrap()).unwrap(), windowed);
    assert_eq!(windowed.objects().count(), 3 + 2 + 3 + 1);
    assert_eq!(windowed.cut(4).map(|m| m.windows), Some(vec![window(0, 4)]));
    let anywhere = Manifest { snapshots: Vec::new(), ..windowed };
    assert_eq!(anywhere.cut(6).map(|m| m.windows), Some(vec![window(0, 4), window(1, 2)]));
    Manifest { pages: Vec::new(), ..anywhere.clone() }.check().unwrap();
    assert!(Manifest { pages: Vec::new(), windows: vec![window(1, 4)], ..anywhere }.check().is_err());
    assert_eq!(hybrid.cut(0).map(|m| (m.pages.len(), m.snapshots.len())), Some((0, 0)));
}

#[test]
fn eight_thousand_tokens_stay_far_below_the_allowance() {
    // The worst ids there can be, and text as English compresses.
    let mut seed = 1u64;
    let mut next = || {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        seed >> 33
    };
    let words: Vec<String> =
        (0..3000).map(|_| (0..3 + next() % 7).map(|_| (b'a' + (next() % 26) as u8) as char).collect()).collect();
    let text: Vec<&str> = (0..6500).map(|_| words[(next() % 3000) as usize].as_str()).collect();
    let manifest = Manifest {
        tokens: (0..8192).map(|_| (next() % 151_936) as u32).collect(),
        pages: (0..128).map(hash).collect(),
        text: text.join(" "),
        ..Manifest::default()
    };
    let raw = manifest.to_bytes().unwrap();
    let disk = crate::object::encode(&[&raw], crate::object::Kind::Manifest).unwrap().body.unwrap().len();
    assert!(disk < 56 << 10, "{disk} bytes");
    println!("{} raw, {disk} on disk", raw.len());
}

proptest! {
    #[test]
    fn round_trip(tokens in proptest::collection::vec(any::<u32>(), 0..300), page_tokens in 1usize..70, text in ".{0,200}",
                  created_ms: u64, float: f64, key in ".{0,9}", cut in 0usize..300) {
        let pages = (0..tokens.len().div_ceil(page_tokens)).map(hash).collect();
        let extra = json!({key.clone(): float, "list": [float, text.clone()]});
        let manifest = Manifest { tokens, page_tokens, pages, text, created_ms, extra, identity: [(key, "v".into())].into(), ..Manifest::default() };
        let bytes = manifest.to_bytes().unwrap();
        let again = Manifest::parse(&bytes).unwrap();
        prop_assert_eq!(&again, &manifest);
        prop_assert_eq!(again.to_bytes().unwrap(), bytes);
        if let Some(cut) = manifest.cut(cut) {
            cut.check().unwrap();
        }
    }

    #[test]
    fn any_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = Manifest::parse(&bytes);
    }
}

#[test]
fn every_field_is_there_and_windows_only_where_there_are_some() {
    let whole: serde_json::Value = serde_json::from_slice(&Manifest::default().to_bytes().unwrap()).unwrap();
    let parse = |value: &serde_json::Value| Manifest::parse(&serde_json::to_vec(value).unwrap());
    assert_eq!(parse(&whole).unwrap(), Manifest::default());
    for field in whole.as_object().unwrap().keys() {
        let mut less = whole.clone();
        less.as_object_mut().unwrap().remove(field);
        let refusal = parse(&less).unwrap_err().to_string();
        assert!(refusal.contains(field.as_str()), "{field}: {refusal}");
    }
    for (field, value) in [("windows", serde_json::json!([])), ("logits", serde_json::Value::Null)] {
        let mut more = whole.clone();
        more[field] = value;
        assert!(parse(&more).unwrap_err().to_string().contains(field));
    }
}
