//! A small GGUF writer: keys and tensors to the bytes of a version 3 file. It serves tests and tools; nothing is streamed.

use super::{ALIGNMENT, MAGIC};

/// A file in the making.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    n_keys: u64,
    keys: Vec<u8>,
    n_tensors: u64,
    table: Vec<u8>,
    data: Vec<u8>,
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl Builder {
    /// A file without keys and tensors.
    pub fn new() -> Builder {
        Builder::default()
    }

    /// Adds a key whose value is already encoded, as GGUF's type number says.
    pub fn raw(mut self, key: &str, kind: u32, value: &[u8]) -> Builder {
        self.n_keys += 1;
        put_text(&mut self.keys, key);
        self.keys.extend(kind.to_le_bytes());
        self.keys.extend(value);
        self
    }

    /// Adds a u32.
    pub fn u32(self, key: &str, value: u32) -> Builder {
        self.raw(key, 4, &value.to_le_bytes())
    }

    /// Adds an i32.
    pub fn i32(self, key: &str, value: i32) -> Builder {
        self.raw(key, 5, &value.to_le_bytes())
    }

    /// Adds an f32.
    pub fn f32(self, key: &str, value: f32) -> Builder {
        self.raw(key, 6, &value.to_le_bytes())
    }

    /// Adds a bool.
    pub fn flag(self, key: &str, value: Flag) -> Builder {
        self.raw(key, 7, &[u8::from(value == Flag::On)])
    }

    /// Adds a string.
    pub fn text(self, key: &str, value: &str) -> Builder {
        let mut bytes = Vec::new();
        put_text(&mut bytes, value);
        self.raw(key, 8, &bytes)
    }

    /// Adds an array of strings.
    pub fn texts<T: AsRef<str>>(self, key: &str, values: &[T]) -> Builder {
        let mut bytes = 8u32.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|value| put_text(&mut bytes, value.as_ref()));
        self.raw(key, 9, &bytes)
    }

    /// Adds an array of i32.
    pub fn i32s(self, key: &str, values: &[i32]) -> Builder {
        let mut bytes = 5u32.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        self.raw(key, 9, &bytes)
    }

    /// Adds an array of f32.
    pub fn f32s(self, key: &str, values: &[f32]) -> Builder {
        let mut bytes = 6u32.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        self.raw(key, 9, &bytes)
    }

    /// Adds a tensor: shape outermost first, ggml's type number, its bytes.
    pub fn tensor(mut self, name: &str, shape: &[usize], kind: u32, bytes: &[u8]) -> Builder {
        let offset = self.data.len().next_multiple_of(ALIGNMENT as usize);
        self.data.resize(offset, 0);
        self.data.extend(bytes);
        self.entry(name, shape, kind, offset as u64)
    }

    /// Adds a table entry that points anywhere; its data is not checked.
    pub fn entry(mut self, name: &str, shape: &[usize], kind: u32, offset: u64) -> Builder {
        self.n_tensors += 1;
        put_text(&mut self.table, name);
        self.table.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|&dim| self.table.extend((dim as u64).to_le_bytes()));
        self.table.extend(kind.to_le_bytes());
        self.table.extend(offset.to_le_bytes());
        self
    }

    /// The file.
    pub fn build(self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend(self.n_tensors.to_le_bytes());
        out.extend(self.n_keys.to_le_bytes());
        out.extend(self.keys);
        out.extend(self.table);
        out.resize(out.len().next_multiple_of(ALIGNMENT as usize), 0);
        out.extend(self.data);
        out
    }
}

/// A bool with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Flag {
    Off,
    On,
}
