//! Reads the vocabulary out of a GGUF file that is known to be good; the real reader, which trusts nothing, is in another room.

use std::collections::HashMap;

use reverie_text::VocabSpec;

enum Field {
    Number(u64),
    Float(f32),
    Truth(bool),
    Text(String),
    List(Vec<Field>),
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (head, rest) = self.0.split_first_chunk().unwrap();
        self.0 = rest;
        *head
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    fn text(&mut self) -> String {
        let len = self.u64() as usize;
        let (text, rest) = self.0.split_at(len);
        self.0 = rest;
        String::from_utf8(text.to_vec()).unwrap()
    }

    fn field(&mut self, kind: u32) -> Field {
        match kind {
            0 | 1 => Field::Number(self.take::<1>()[0].into()),
            2 | 3 => Field::Number(u16::from_le_bytes(self.take()).into()),
            4 | 5 => Field::Number(self.u32().into()),
            6 => Field::Float(f32::from_le_bytes(self.take())),
            7 => Field::Truth(self.take::<1>()[0] != 0),
            8 => Field::Text(self.text()),
            9 => {
                let (kind, len) = (self.u32(), self.u64());
                Field::List((0..len).map(|_| self.field(kind)).collect())
            }
            _ => Field::Number(self.u64()),
        }
    }
}

pub fn vocabulary(bytes: &[u8]) -> VocabSpec {
    let mut reader = Reader(bytes);
    assert_eq!(&reader.take::<4>(), b"GGUF");
    let (_version, _n_tensors, n_fields) = (reader.u32(), reader.u64(), reader.u64());
    let mut fields = HashMap::new();
    for _ in 0..n_fields {
        let (key, kind) = (reader.text(), reader.u32());
        fields.insert(key, reader.field(kind));
    }
    let get = |key: &str| fields.get(&format!("tokenizer.ggml.{key}"));
    let text = |key: &str| match get(key) {
        Some(Field::Text(text)) => Some(text.clone()),
        _ => None,
    };
    let list = |key: &str| match get(key) {
        Some(Field::List(list)) => list.as_slice(),
        _ => &[],
    };
    let texts = |key: &str| {
        list(key).iter().filter_map(|f| if let Field::Text(t) = f { Some(t.clone()) } else { None }).collect()
    };
    let id = |key: &str| match get(key) {
        Some(Field::Number(id)) => u32::try_from(*id).ok(),
        _ => None,
    };
    let truth = |key: &str| match get(key) {
        Some(Field::Truth(truth)) => Some(*truth),
        _ => None,
    };
    VocabSpec {
        model: text("model").unwrap(),
        pre: text("pre"),
        tokens: texts("tokens"),
        scores: list("scores").iter().filter_map(|f| if let Field::Float(x) = f { Some(*x) } else { None }).collect(),
        types: list("token_type")
            .iter()
            .filter_map(|f| if let Field::Number(n) = f { Some(*n as i32) } else { None })
            .collect(),
        merges: texts("merges"),
        bos: id("bos_token_id"),
        eos: id("eos_token_id"),
        unk: id("unknown_token_id"),
        pad: id("padding_token_id"),
        eot: id("eot_token_id"),
        add_bos: truth("add_bos_token"),
        add_eos: truth("add_eos_token"),
        add_space_prefix: truth("add_space_prefix"),
    }
}
