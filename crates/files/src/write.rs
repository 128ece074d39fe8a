//! Writers that leave nothing half-written: everything goes to files beside the target and takes its name at the end.
//! Tensors are streamed in any order to places that the header fixed before; no tensor is held in memory.

mod folder;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Map, Value, json};

use crate::element::Element;
use crate::error::{Error, Result, excerpt};
use crate::safetensors::{INDEX, SINGLE};
pub use folder::PendingFolder;

/// A file that takes its name when it is complete; until then, and if it is dropped, it leaves nothing behind.
#[derive(Debug)]
pub struct PendingFile {
    file: File,
    temporary: PathBuf,
    target: PathBuf,
    named: bool,
}

impl PendingFile {
    /// Starts a file. The temporary lies in the same folder, so that renaming is atomic.
    pub fn create(target: &Path) -> Result<PendingFile> {
        let name = target.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if name.is_empty() {
            return Err(Error::format(target, "file to write", "no file name", "a path that ends in one"));
        }
        static STARTED: AtomicU64 = AtomicU64::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let temporary = target.with_file_name(format!(".{name}.{}.{number}.partial", std::process::id()));
        let mut options = OpenOptions::new();
        let file = options
            .write(true)
            .create(true)
            .truncate(true)
            .open(&temporary)
            .map_err(Error::io("create a file beside", target))?;
        Ok(PendingFile { file, temporary, target: target.to_owned(), named: false })
    }

    /// Writes at a place.
    pub fn write_at(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        self.file
            .seek(SeekFrom::Start(at))
            .and_then(|_| self.file.write_all(bytes))
            .map_err(Error::io("write", &self.temporary))
    }

    /// Makes the content durable and gives the file its name, in place of what had it before.
    pub fn finish(mut self) -> Result<()> {
        self.file.sync_all().map_err(Error::io("flush", &self.temporary))?;
        fs::rename(&self.temporary, &self.target).map_err(Error::io("rename to", &self.target))?;
        self.named = true;
        sync_folder(&self.target)
    }
}

impl Drop for PendingFile {
    fn drop(&mut self) {
        if !self.named {
            // Nothing more can be done about a temporary that will not go.
            drop(fs::remove_file(&self.temporary));
        }
    }
}

/// Makes a rename durable, where folders can be flushed.
fn sync_folder(file: &Path) -> Result<()> {
    #[cfg(unix)]
    if let Some(folder) = file.parent() {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        File::open(folder).and_then(|f| f.sync_all()).map_err(Error::io("flush", folder))?;
    }
    #[cfg(not(unix))]
    let _ = file;
    Ok(())
}

/// Writes a whole file at once, or nothing.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = PendingFile::create(path)?;
    file.write_at(0, bytes)?;
    file.finish()
}

/// Writes indented JSON with a final newline, or nothing.
pub fn write_json(path: &Path, value: &Value) -> Result<()> {
    write_file(path, format!("{value:#}\n").as_bytes())
}

/// A header as it stands at the beginning of a safetensors file: its length, then JSON padded with spaces so that data starts at
/// a multiple of 8.
pub(crate) fn header_bytes(header: Map<String, Value>) -> Vec<u8> {
    let mut json = Value::from(header).to_string();
    let padded = json.len().next_multiple_of(8);
    json.extend(std::iter::repeat_n(' ', padded - json.len()));
    [&(json.len() as u64).to_le_bytes(), json.as_bytes()].concat()
}

/// A tensor that will be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name.
    pub name: String,
    /// Element type.
    pub element: Element,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// Bytes of its data; none if they do not fit in 64 bits.
    pub fn bytes(&self) -> Option<u64> {
        let size = self.element.size() as u64;
        self.shape.iter().try_fold(size, |bytes, &extent| bytes.checked_mul(extent as u64))
    }
}

/// Writes `model.safetensors`, or shards with an index, into a folder, or one file of any name.
#[derive(Debug)]
pub struct SafeTensorsWriter {
    /// The folder of the shards, or the one file.
    place: PathBuf,
    /// Names go into an index if there are several.
    indexed: Indexed,
    shards: Vec<(String, PendingFile)>,
    slots: BTreeMap<String, Slot>,
    total_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Indexed {
    /// A folder's files.
    Shards,
    /// One file that is nobody's shard.
    Alone,
}

/// Where a tensor goes, and how much of it is there.
#[derive(Debug)]
struct Slot {
    shard: usize,
    start: u64,
    bytes: u64,
    written: u64,
    /// The end of what was appended, not yet in the file.
    pending: Vec<u8>,
}

/// Bytes of one tensor that are gathered before they are written.
const PENDING_BYTES: usize = 1 << 20;

impl SafeTensorsWriter {
    /// Starts the files for these tensors. A shard takes tensors in the given order until the next would exceed `most_bytes`;
    /// `metadata` goes into every header.
    pub fn create(folder: &Path, tensors: &[TensorSpec], most_bytes: u64, metadata: &[(&str, &str)]) -> Result<Self> {
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        let groups = split(folder, tensors, most_bytes)?;
        let mut writer = SafeTensorsWriter::empty(folder, Indexed::Shards);
        for (i, group) in groups.iter().enumerate() {
            let name = match groups.len() {
                1 => SINGLE.to_owned(),
                n => format!("model-{:05}-of-{n:05}.safetensors", i + 1),
            };
            let file = PendingFile::create(&folder.join(&name))?;
            writer.shards.push((name, file));
            writer.start_shard(i, group, metadata)?;
        }
        Ok(writer)
    }

    /// Starts one file for these tensors.
    pub fn in_file(file: PendingFile, tensors: &[TensorSpec], metadata: &[(&str, &str)]) -> Result<Self> {
        let mut writer = SafeTensorsWriter::empty(&file.target, Indexed::Alone);
        let groups = split(&writer.place, tensors, u64::MAX)?;
        writer.shards.push((String::new(), file));
        for group in &groups {
            writer.start_shard(0, group, metadata)?;
        }
        Ok(writer)
    }

    fn empty(place: &Path, indexed: Indexed) -> SafeTensorsWriter {
        let (place, shards, slots) = (place.to_owned(), Vec::new(), BTreeMap::new());
        SafeTensorsWriter { place, indexed, shards, slots, total_bytes: 0 }
    }

    /// Lays out one shard, larger elements first so that all are aligned, and writes its header.
    fn start_shard(&mut self, shard: usize, group: &[(&TensorSpec, u64)], metadata: &[(&str, &str)]) -> Result<()> {
        let mut order = group.to_vec();
        order.sort_by_key(|(tensor, _)| std::cmp::Reverse(tensor.element.size()));
        let mut header = Map::new();
        if !metadata.is_empty() {
            let metadata: Map<_, _> = metadata.iter().map(|(k, v)| ((*k).to_owned(), Value::from(*v))).collect();
            header.insert("__metadata__".into(), metadata.into());
        }
        let mut at = 0;
        for (tensor, bytes) in &order {
            let (dtype, end) = (tensor.element.name(), at + bytes);
            header
                .insert(tensor.name.clone(), json!({"dtype": dtype, "shape": tensor.shape, "data_offsets": [at, end]}));
            let slot = Slot { shard, start: at, bytes: *bytes, written: 0, pending: Vec::new() };
            if self.slots.insert(tensor.name.clone(), slot).is_some() {
                let found = format!("'{}' twice", excerpt(&tensor.name));
                return Err(Error::format(&self.place, "tensor to write", found, "each name once"));
            }
            at = end;
        }
        let header = header_bytes(header);
        let head = header.len() as u64;
        for (tensor, _) in &order {
            if let Some(slot) = self.slots.get_mut(&tensor.name) {
                slot.start += head;
            }
        }
        self.total_bytes += at;
        if let Some((_, file)) = self.shards.get_mut(shard) {
            file.write_at(0, &header)?;
        }
        Ok(())
    }

    /// Appends to a tensor. Tensors may be written in any order and by turns.
    pub fn append(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let what = || format!("data of tensor '{}'", excerpt(name));
        let Some(slot) = self.slots.get_mut(name) else {
            return Err(Error::format(
                &self.place,
                what(),
                "a name that was not announced",
                "one of those given to create",
            ));
        };
        let appended = slot.written + slot.pending.len() as u64;
        let left = slot.bytes - appended;
        if bytes.len() as u64 > left {
            let found = format!("{} more bytes", bytes.len());
            return Err(Error::format(&self.place, what(), found, format!("at most {left}")));
        }
        let Some((_, file)) = self.shards.get_mut(slot.shard) else { return Ok(()) };
        let mut write = |bytes: &[u8]| {
            file.write_at(slot.start + slot.written, bytes)?;
            slot.written += bytes.len() as u64;
            Ok(())
        };
        let complete = bytes.len() as u64 == left;
        if slot.pending.len() + bytes.len() < PENDING_BYTES && !complete {
            slot.pending.extend_from_slice(bytes);
            return Ok(());
        }
        // What is large is written from where it lies.
        let pending = std::mem::take(&mut slot.pending);
        if !pending.is_empty() {
            write(&pending)?;
        }
        write(bytes)
    }

    /// Checks that every tensor is complete, gives the files their names, and writes the index. A single file gets an index too
    /// if a stale one lies there.
    pub fn finish(self) -> Result<()> {
        if let Some((name, slot)) = self.slots.iter().find(|(_, slot)| slot.written != slot.bytes) {
            let what = format!("data of tensor '{}'", excerpt(name));
            let found = format!("{} bytes", slot.written + slot.pending.len() as u64);
            return Err(Error::format(&self.place, what, found, slot.bytes.to_string()));
        }
        let names: Vec<String> = self.shards.iter().map(|(name, _)| name.clone()).collect();
        for (_, file) in self.shards {
            file.finish()?;
        }
        let index = self.place.join(INDEX);
        if self.indexed == Indexed::Shards && (names.len() > 1 || index.exists()) {
            let map: Map<String, Value> = self
                .slots
                .iter()
                .filter_map(|(tensor, slot)| Some((tensor.clone(), Value::from(names.get(slot.shard)?.as_str()))))
                .collect();
            write_json(&index, &json!({"metadata": {"total_size": self.total_bytes}, "weight_map": map}))?;
        }
        Ok(())
    }
}

/// Tensors with their bytes, cut into shards.
fn split<'a>(folder: &Path, tensors: &'a [TensorSpec], most_bytes: u64) -> Result<Vec<Vec<(&'a TensorSpec, u64)>>> {
    let mut groups = vec![Vec::new()];
    let mut filled = 0u64;
    for tensor in tensors {
        let Some(bytes) = tensor.bytes() else {
            let what = format!("shape of tensor '{}'", excerpt(&tensor.name));
            return Err(Error::format(
                folder,
                what,
                format!("{:?}", tensor.shape),
                "extents whose product fits in 64 bits",
            ));
        };
        if filled > 0 && filled.saturating_add(bytes) > most_bytes {
            groups.push(Vec::new());
            filled = 0;
        }
        filled = filled.saturating_add(bytes);
        if let Some(group) = groups.last_mut() {
            group.push((tensor, bytes));
        }
    }
    Ok(groups)
}

#[cfg(test)]
mod tests;
