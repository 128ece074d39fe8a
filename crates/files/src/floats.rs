//! One safetensors file of f32 tensors from memory: for results, not for models.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::error::Result;
use crate::write::{PendingFile, header_bytes};

/// A named f32 tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct FloatTensor {
    /// Its name.
    pub name: String,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// As many values as the extents say.
    pub values: Vec<f32>,
}

/// Writes the tensors in the given order; the file appears whole or not at all.
pub fn write_floats(path: &Path, tensors: &[FloatTensor]) -> Result<()> {
    let (mut header, mut at) = (Map::<String, Value>::new(), 0usize);
    for t in tensors {
        let end = at + t.values.len() * 4;
        header.insert(t.name.clone(), json!({"dtype": "F32", "shape": t.shape, "data_offsets": [at, end]}));
        at = end;
    }
    let header = header_bytes(header);
    let mut file = PendingFile::create(path)?;
    file.write_at(0, &header)?;
    let mut place = header.len() as u64;
    for t in tensors {
        let bytes: Vec<u8> = t.values.iter().flat_map(|v| v.to_le_bytes()).collect();
        file.write_at(place, &bytes)?;
        place += bytes.len() as u64;
    }
    file.finish()
}
