//! The safetensors reader: one file, or shards with an index. Header, types, offsets and lengths are verified before any byte
//! of data is shown. It refuses to know what the tensors are for.
//! Source of the format: the safetensors repository's README (8 bytes of header length, JSON, data without holes).

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use crate::element::Element;
use crate::error::{Error, Result, excerpt};
use crate::mmap::FileBytes;
use crate::place::{Place, check_name};

/// The index of a sharded checkpoint.
pub const INDEX: &str = "model.safetensors.index.json";
/// The file of an unsharded checkpoint.
pub const SINGLE: &str = "model.safetensors";

/// The reference implementation's bound on a header.
const MOST_HEADER_BYTES: u64 = 100_000_000;

/// One tensor as its header describes it, verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Element type.
    pub element: Element,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// Bytes in the file.
    pub range: Range<usize>,
}

/// A verified header.
#[derive(Clone, Debug, Default)]
pub struct Header {
    /// Tensors by name.
    pub tensors: BTreeMap<String, Stored>,
    /// The `__metadata__` strings.
    pub metadata: BTreeMap<String, String>,
}

/// Reads and verifies the header of a file. `path` is what messages call it.
pub fn header(path: &Path, bytes: &[u8]) -> Result<Header> {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(Error::format(
            path,
            "file length",
            format!("{} bytes", bytes.len()),
            "at least 8: it is truncated",
        ));
    };
    let length = u64::from_le_bytes(*length);
    if length > MOST_HEADER_BYTES {
        let expected = format!("at most {MOST_HEADER_BYTES}: this is no safetensors file, or it is damaged");
        return Err(Error::format(path, "header length", length, expected));
    }
    let Some((json, data)) = rest.split_at_checked(length as usize) else {
        let found = format!("{length} bytes");
        let expected = format!("at most the {} bytes that follow: the file is truncated", rest.len());
        return Err(Error::format(path, "header length", found, expected));
    };
    let raw: RawHeader = serde_json::from_slice(json).map_err(|e| {
        Error::format(path, "header", excerpt(&e.to_string()), "JSON of tensor name to dtype, shape, data_offsets")
    })?;
    let mut header = Header { metadata: raw.metadata, ..Header::default() };
    for (name, info) in raw.tensors {
        let stored = stored(path, &name, info, data.len())?;
        if header.tensors.insert(name.clone(), stored).is_some() {
            return Err(Error::format(path, of(&name), "two entries", "one"));
        }
    }
    check_layout(path, &header.tensors, data.len())?;
    let start = 8 + json.len();
    for stored in header.tensors.values_mut() {
        stored.range = start + stored.range.start..start + stored.range.end;
    }
    Ok(header)
}

fn of(name: &str) -> String {
    format!("tensor '{}'", excerpt(name))
}

/// One entry, its range relative to the data.
fn stored(path: &Path, name: &str, info: RawTensor, data_bytes: usize) -> Result<Stored> {
    let RawTensor { dtype, shape, data_offsets: [start, end] } = info;
    let what = || of(name);
    let element = Element::parse(&dtype).ok_or_else(|| {
        Error::format(
            path,
            format!("dtype of {}", what()),
            format!("'{}'", excerpt(&dtype)),
            format!("one of {}", Element::names()),
        )
    })?;
    let mut extents = Vec::with_capacity(shape.len());
    let mut bytes = Some(element.size());
    for &extent in &shape {
        let extent = usize::try_from(extent).ok();
        bytes = bytes.zip(extent).and_then(|(b, e)| b.checked_mul(e));
        extents.extend(extent);
    }
    let Some(bytes) = bytes else {
        return Err(Error::format(
            path,
            format!("shape of {}", what()),
            format!("{shape:?}"),
            "extents whose product fits in memory",
        ));
    };
    if start > end || end > data_bytes as u64 {
        let expected =
            format!("a range within {data_bytes} bytes of data: the file is truncated or damaged; download it again");
        return Err(Error::format(path, format!("data_offsets of {}", what()), format!("[{start}, {end}]"), expected));
    }
    if end - start != bytes as u64 {
        let found = format!("{} bytes", end - start);
        return Err(Error::format(
            path,
            format!("length of {}", what()),
            found,
            format!("{bytes} for {dtype} {shape:?}"),
        ));
    }
    Ok(Stored { element, shape: extents, range: start as usize..end as usize })
}

/// Tensors must fill the data without overlaps and holes.
fn check_layout(path: &Path, tensors: &BTreeMap<String, Stored>, data_bytes: usize) -> Result<()> {
    let mut order: Vec<_> = tensors.iter().collect();
    order.sort_by_key(|(_, stored)| (stored.range.start, stored.range.end));
    let mut end = 0;
    for (name, stored) in order {
        if stored.range.start != end {
            let expected = format!("{end}, where the tensor before it ends (tensors neither overlap nor leave holes)");
            return Err(Error::format(path, format!("start of {}", of(name)), stored.range.start, expected));
        }
        end = stored.range.end;
    }
    if end != data_bytes {
        let expected = format!("{end} bytes, as the tensors take: the file is truncated or damaged; download it again");
        return Err(Error::format(path, "data", format!("{data_bytes} bytes"), expected));
    }
    Ok(())
}

#[derive(Deserialize)]
struct RawTensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// The header's JSON with repeated names still visible.
#[derive(Default)]
struct RawHeader {
    tensors: Vec<(String, RawTensor)>,
    metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors by name")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut header = RawHeader::default();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        header.metadata = map.next_value::<Option<_>>()?.unwrap_or_default();
                    } else {
                        let info =
                            map.next_value().map_err(|e| A::Error::custom(format_args!("{}: {e}", of(&name))))?;
                        header.tensors.push((name, info));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// The files of a checkpoint and where each tensor lies.
#[derive(Debug)]
pub struct SafeTensors {
    /// The shards, in order of name.
    pub files: Vec<FileBytes>,
    /// Tensors by name: index of the file, and the entry.
    pub tensors: BTreeMap<String, (usize, Stored)>,
    /// The `__metadata__` strings of all files together.
    pub metadata: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl SafeTensors {
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` names.
    pub fn open(place: &Place) -> Result<SafeTensors> {
        let folder = place.path();
        let index_path = place.path_of(INDEX);
        let Some(text) = place.read(INDEX)? else {
            if !place.has(SINGLE) {
                let looked_for = format!(
                    "{SINGLE} and {INDEX}; give a folder with a model in the Hugging Face layout, or a .gguf file"
                );
                return Err(Error::missing(&folder, "weights", looked_for));
            }
            return SafeTensors::files(vec![place.map(SINGLE)?]);
        };
        let index: Index = serde_json::from_slice(&text).map_err(|e| {
            Error::format(&index_path, "index", excerpt(&e.to_string()), "JSON with a weight_map of tensor to file")
        })?;
        let mut names: Vec<&String> = index.weight_map.values().collect();
        names.sort();
        names.dedup();
        if place.has(SINGLE) && !names.iter().any(|name| *name == SINGLE) {
            let found = format!("{SINGLE} beside an index that does not name it");
            return Err(Error::format(&folder, "weights", found, "one set of weights: remove the stale one"));
        }
        let mut files = Vec::with_capacity(names.len());
        for name in &names {
            check_name(&index_path, name)?;
            if !place.has(name) {
                let looked_for = format!("{name}, which {INDEX} names; download the missing shard");
                return Err(Error::missing(&folder, "shard", looked_for));
            }
            files.push(place.map(name)?);
        }
        let all = SafeTensors::files(files)?;
        for (tensor, shard) in &index.weight_map {
            let what = || format!("{} in {}", of(tensor), excerpt(shard));
            let path = place.path_of(shard);
            match all.tensors.get(tensor) {
                Some((at, _)) if all.files[*at].path() == path => {}
                Some((at, _)) => {
                    let found = all.files[*at].path().display();
                    return Err(Error::format(&index_path, what(), found, format!("the shard {}", path.display())));
                }
                None => {
                    return Err(Error::format(
                        &index_path,
                        what(),
                        "no such tensor",
                        "every tensor that the index names",
                    ));
                }
            }
        }
        Ok(all)
    }

    /// Reads the headers of files that together make one set of tensors.
    pub fn files(files: Vec<FileBytes>) -> Result<SafeTensors> {
        let mut all = SafeTensors { files: Vec::new(), tensors: BTreeMap::new(), metadata: BTreeMap::new() };
        for (at, file) in files.iter().enumerate() {
            let header = header(file.path(), file.bytes())?;
            all.metadata.extend(header.metadata);
            for (name, stored) in header.tensors {
                if let Some((other, _)) = all.tensors.insert(name.clone(), (at, stored)) {
                    let found = format!("a second copy beside {}", files[other].path().display());
                    return Err(Error::format(file.path(), of(&name), found, "each tensor in one shard"));
                }
            }
        }
        all.files = files;
        Ok(all)
    }

    /// The bytes of a tensor.
    pub fn bytes(&self, name: &str) -> Option<&[u8]> {
        let (at, stored) = self.tensors.get(name)?;
        self.files.get(*at)?.bytes().get(stored.range.clone())
    }
}

#[cfg(test)]
mod tests;
