//! Element types that a file may name. The engine computes with five of them (`DType`); the others are sized and listed, so
//! that a file which holds one can be checked and the tensor refused by name where it is used.

use reverie_tensor::DType;
use reverie_tensor::quant::{Blocks, QuantEntry};

/// The element type of a stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Element {
    F64,
    F32,
    F16,
    BF16,
    F8E4M3,
    F8E5M2,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    Bool,
}

/// How a tensor's data is stored.
#[derive(Clone, Copy, Debug)]
pub enum Storage {
    /// Plain elements.
    Plain(Element),
    /// Blocks of a weight format.
    Blocks(QuantEntry, &'static Blocks),
}

impl Storage {
    /// The word for messages and listings.
    pub fn name(&self) -> &'static str {
        match self {
            Storage::Plain(element) => element.name(),
            Storage::Blocks(row, _) => row.name,
        }
    }
}

use Element::*;

/// Every element type with its safetensors name and its bytes.
const ELEMENTS: &[(Element, &str, usize)] = &[
    (F64, "F64", 8),
    (F32, "F32", 4),
    (F16, "F16", 2),
    (BF16, "BF16", 2),
    (F8E4M3, "F8_E4M3", 1),
    (F8E5M2, "F8_E5M2", 1),
    (I64, "I64", 8),
    (I32, "I32", 4),
    (I16, "I16", 2),
    (I8, "I8", 1),
    (U64, "U64", 8),
    (U32, "U32", 4),
    (U16, "U16", 2),
    (U8, "U8", 1),
    (Bool, "BOOL", 1),
];

impl Element {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        ELEMENTS.iter().find(|row| row.0 == self).map_or(1, |row| row.2)
    }

    /// The safetensors spelling.
    pub fn name(self) -> &'static str {
        ELEMENTS.iter().find(|row| row.0 == self).map_or("?", |row| row.1)
    }

    /// From the safetensors spelling.
    pub fn parse(name: &str) -> Option<Element> {
        ELEMENTS.iter().find(|row| row.1 == name).map(|row| row.0)
    }

    /// All safetensors spellings, for messages.
    pub fn names() -> String {
        ELEMENTS.iter().map(|row| row.1).collect::<Vec<_>>().join(", ")
    }

    /// The engine's type, if it computes with it.
    pub fn dtype(self) -> Option<DType> {
        match self {
            F32 => Some(DType::F32),
            F16 => Some(DType::F16),
            BF16 => Some(DType::BF16),
            U32 => Some(DType::U32),
            U8 => Some(DType::U8),
            _ => None,
        }
    }
}

impl From<DType> for Element {
    fn from(dtype: DType) -> Element {
        match dtype {
            DType::F32 => F32,
            DType::F16 => F16,
            DType::BF16 => BF16,
            DType::U32 => U32,
            DType::U8 => U8,
        }
    }
}
