//! The GGUF reader: metadata, tensor table and data of versions 2 and 3, little-endian, whole or split over several files.
//! A count or length is believed only as far as the file can hold it. It refuses to know what keys and tensors mean.
//! Source of the format: ggml's `docs/gguf.md`.

mod read;
mod value;
mod vocab;
pub mod write;

pub use value::{List, Metadata, Value};
pub use vocab::GgufVocab;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use reverie_tensor::quant::{self, QuantEntry};

use crate::element::{Element, Storage};
use crate::error::{Error, Result, excerpt};
use crate::mmap::FileBytes;
use read::Cursor;

/// One tensor as the table describes it, verified.
#[derive(Clone, Debug)]
pub struct Stored {
    /// How its data is stored.
    pub storage: Storage,
    /// Extents, outermost first (GGUF itself writes them innermost first).
    pub shape: Vec<usize>,
    /// Bytes in the file.
    pub range: Range<usize>,
}

/// A verified header: everything but the data.
#[derive(Clone, Debug)]
pub struct Header {
    /// The file's version: 2 or 3.
    pub version: u32,
    /// All keys.
    pub metadata: Metadata,
    /// Tensors by name.
    pub tensors: BTreeMap<String, Stored>,
}

/// GGUF files and where each tensor lies.
#[derive(Debug)]
pub struct Gguf {
    /// The file, or all parts of a split one.
    pub files: Vec<FileBytes>,
    /// The keys of the first file.
    pub metadata: Metadata,
    /// Tensors by name: index of the file, and the entry.
    pub tensors: BTreeMap<String, (usize, Stored)>,
}

const MAGIC: [u8; 4] = *b"GGUF";
/// Alignment of tensor data where the metadata sets none.
const ALIGNMENT: u64 = 32;
/// ggml's own bound on dimensions.
const MOST_DIMS: u32 = 4;
/// Bytes of the shortest table entry: empty name, one dimension.
const LEAST_TENSOR_BYTES: u64 = 8 + 4 + 8 + 4 + 8;

/// ggml's type numbers of plain elements.
const PLAIN: &[(u32, Element)] = &[
    (0, Element::F32),
    (1, Element::F16),
    (24, Element::I8),
    (25, Element::I16),
    (26, Element::I32),
    (27, Element::I64),
    (28, Element::F64),
    (30, Element::BF16),
];

/// Types of ggml that no build reads, for messages.
const UNREAD: &[(u32, &str)] = &[
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (40, "NVFP4"),
];

/// Reads and verifies a header. `path` is what messages call the file, `rows` the weight formats to accept.
pub fn header(path: &Path, bytes: &[u8], rows: &[QuantEntry]) -> Result<Header> {
    let mut cursor = Cursor::new(path, bytes);
    let magic = cursor.array::<4>("magic")?;
    if magic != MAGIC {
        let found = format!("'{}'", magic.escape_ascii());
        return Err(Error::format(path, "magic", found, "'GGUF': this is no GGUF file"));
    }
    let version = cursor.u32("version")?;
    match version {
        2 | 3 => {}
        _ if version & 0xffff == 0 => {
            return Err(Error::format(path, "byte order", "big-endian", "little-endian: convert the file"));
        }
        _ => return Err(Error::format(path, "version", version, "2 or 3: convert the model anew with a current tool")),
    }
    let n_tensors = cursor.count("tensor count", LEAST_TENSOR_BYTES)?;
    let metadata = Metadata::read(&mut cursor)?;
    let alignment = match metadata.optional_u64("general.alignment")? {
        None => ALIGNMENT,
        Some(a) if a.is_power_of_two() && a <= 1 << 20 => a,
        Some(a) => return Err(Error::format(path, "general.alignment", a, "a power of two up to 1048576")),
    };
    let mut table = BTreeMap::new();
    for _ in 0..n_tensors {
        let name = cursor.string("tensor name")?;
        let entry = Entry::read(&mut cursor, &name, rows)?;
        if table.insert(name.clone(), entry).is_some() {
            return Err(Error::format(path, of(&name), "two entries", "one"));
        }
    }
    let start = (cursor.at() as u64).next_multiple_of(alignment);
    let tensors = place(path, table, (start, bytes.len() as u64, alignment))?;
    Ok(Header { version, metadata, tensors })
}

fn of(name: &str) -> String {
    format!("tensor '{}'", excerpt(name))
}

/// A table entry before its place in the file is known.
struct Entry {
    storage: Storage,
    shape: Vec<usize>,
    bytes: u64,
    offset: u64,
}

impl Entry {
    fn read(cursor: &mut Cursor<'_>, name: &str, rows: &[QuantEntry]) -> Result<Entry> {
        let path = cursor.path();
        let refuse = |what: &str, found: String, expected: &str| {
            Error::format(path, format!("{what} of {}", of(name)), found, expected)
        };
        let n_dims = cursor.u32("number of dimensions")?;
        if n_dims == 0 || n_dims > MOST_DIMS {
            return Err(refuse("number of dimensions", n_dims.to_string(), "1 to 4"));
        }
        let mut dims = Vec::new();
        for _ in 0..n_dims {
            dims.push(cursor.u64("dimension")?);
        }
        let number = cursor.u32("tensor type")?;
        let offset = cursor.u64("tensor offset")?;
        let storage = storage(number, rows).ok_or_else(|| {
            let known = UNREAD.iter().find(|(n, _)| *n == number).map_or(String::new(), |(_, n)| format!(" ({n})"));
            let expected = "F32, F16, BF16 or a format that `reverie list` shows: convert the model to one of them";
            refuse("type", format!("number {number}{known}"), expected)
        })?;
        let (block, block_bytes) = match storage {
            Storage::Plain(element) => (1, element.size() as u64),
            Storage::Blocks(_, blocks) => (blocks.weights as u64, blocks.bytes as u64),
        };
        let inner = dims.first().copied().unwrap_or(0);
        if !inner.is_multiple_of(block) {
            return Err(refuse("row length", inner.to_string(), &format!("a multiple of {block}, the type's block")));
        }
        let elements = dims.iter().try_fold(1u64, |product, &dim| product.checked_mul(dim));
        let bytes = elements.and_then(|e| (e / block).checked_mul(block_bytes));
        let shape = dims.iter().rev().map(|&dim| usize::try_from(dim)).collect::<Result<Vec<_>, _>>();
        let (Some(bytes), Ok(shape)) = (bytes, shape) else {
            return Err(refuse("dimensions", format!("{dims:?}"), "a product that fits in memory"));
        };
        Ok(Entry { storage, shape, bytes, offset })
    }
}

fn storage(number: u32, rows: &[QuantEntry]) -> Option<Storage> {
    let plain = PLAIN.iter().find(|(n, _)| *n == number).map(|(_, element)| Storage::Plain(*element));
    plain.or_else(|| quant::find_ggml(rows, number).map(|(row, blocks)| Storage::Blocks(*row, blocks)))
}

/// Verifies that every tensor lies within the data, aligned and apart from the others.
fn place(
    path: &Path,
    table: BTreeMap<String, Entry>,
    (start, end, alignment): (u64, u64, u64),
) -> Result<BTreeMap<String, Stored>> {
    let mut order: Vec<_> = table.iter().map(|(name, entry)| (entry.offset, entry.bytes, name)).collect();
    order.sort();
    let mut taken = 0;
    for (offset, bytes, name) in order {
        let refuse =
            |found: String, expected: String| Error::format(path, format!("offset of {}", of(name)), found, expected);
        if !offset.is_multiple_of(alignment) {
            return Err(refuse(offset.to_string(), format!("a multiple of {alignment}, the alignment")));
        }
        if offset < taken {
            return Err(refuse(offset.to_string(), format!("{taken} or more: the tensor before it ends there")));
        }
        let data_bytes = end.saturating_sub(start);
        taken = match offset.checked_add(bytes) {
            Some(last) if last <= data_bytes => last,
            _ => {
                let found = format!("{offset} with {bytes} bytes");
                let expected = format!(
                    "a range within {data_bytes} bytes of data: the file is truncated or damaged; download it again"
                );
                return Err(refuse(found, expected));
            }
        };
    }
    let placed = table.into_iter().map(|(name, entry)| {
        // Both ends lie within the file, whose length is a usize; an empty tensor may stand behind its end.
        let first = if entry.bytes == 0 { 0 } else { (start + entry.offset) as usize };
        (name, Stored { storage: entry.storage, shape: entry.shape, range: first..first + entry.bytes as usize })
    });
    Ok(placed.collect())
}

impl Gguf {
    /// Opens a file. Where it is the first part of a split model (`-00001-of-000NN.gguf`), opens the others too.
    pub fn open(path: &Path, rows: &[QuantEntry]) -> Result<Gguf> {
        let file = FileBytes::map(path)?;
        let head = header(path, file.bytes(), rows)?;
        let count = head.metadata.optional_u64("split.count")?.unwrap_or(1);
        let number = head.metadata.optional_u64("split.no")?.unwrap_or(0);
        if count <= 1 {
            return Gguf::join(vec![(file, head)]);
        }
        if number != 0 {
            let expected = "0: open the first part, whose name ends in -00001-of-…";
            return Err(Error::format(path, "split.no", number, expected));
        }
        let mut parts = vec![(file, head)];
        for (i, part) in (1..).zip(parts_of(path, count)?) {
            if !part.is_file() {
                let looked_for = format!("{}; download all {count} parts into one folder", part.display());
                return Err(Error::missing(path, format!("part {} of {count}", i + 1), looked_for));
            }
            let file = FileBytes::map(&part)?;
            let head = header(&part, file.bytes(), rows)?;
            let found = (head.metadata.optional_u64("split.no")?, head.metadata.optional_u64("split.count")?);
            if found != (Some(i), Some(count)) {
                let found = format!("{found:?}");
                return Err(Error::format(&part, "split.no and split.count", found, format!("{i} and {count}")));
            }
            parts.push((file, head));
        }
        let expected =
            parts.first().and_then(|(_, head)| head.metadata.optional_u64("split.tensors.count").transpose());
        let all = Gguf::join(parts)?;
        if let Some(expected) = expected.transpose()?
            && expected != all.tensors.len() as u64
        {
            let found = format!("{} in all parts", all.tensors.len());
            return Err(Error::format(path, "split.tensors.count", found, expected.to_string()));
        }
        Ok(all)
    }

    /// Reads one file that is already in memory.
    pub fn from_bytes(file: FileBytes, rows: &[QuantEntry]) -> Result<Gguf> {
        let head = header(file.path(), file.bytes(), rows)?;
        Gguf::join(vec![(file, head)])
    }

    fn join(parts: Vec<(FileBytes, Header)>) -> Result<Gguf> {
        let mut all = Gguf { files: Vec::new(), metadata: Metadata::default(), tensors: BTreeMap::new() };
        for (at, (file, head)) in parts.into_iter().enumerate() {
            if at == 0 {
                all.metadata = head.metadata;
            }
            for (name, stored) in head.tensors {
                if all.tensors.insert(name.clone(), (at, stored)).is_some() {
                    return Err(Error::format(file.path(), of(&name), "a second copy in another part", "one"));
                }
            }
            all.files.push(file);
        }
        Ok(all)
    }
}

/// The paths of parts 2 to `count`, by the naming rule of ggml's split tool.
fn parts_of(path: &Path, count: u64) -> Result<Vec<PathBuf>> {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let ending = format!("-00001-of-{count:05}.gguf");
    let Some(stem) = name.strip_suffix(&ending).filter(|_| count < 100_000) else {
        return Err(Error::format(
            path,
            "file name",
            excerpt(name),
            format!("a name that ends in {ending}: split.count is {count}"),
        ));
    };
    Ok((2..=count).map(|i| path.with_file_name(format!("{stem}-{i:05}-of-{count:05}.gguf"))).collect())
}

#[cfg(test)]
mod tests;
