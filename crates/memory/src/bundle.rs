//! A state as one file, to carry: a header, its manifests, all their objects, and the hash of it all. Layout in docs/STATE-FORMAT.md.
//! Import proves everything before a name moves.

use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::disk::private;
use crate::error::{Error, Result, excerpt};
use crate::hash::Hash;
use crate::history::TagInfo;
use crate::landing::{Arrival, MAX_FILE_BYTES, Progress, Transfer, prove, prove_manifest};
use crate::name::check_name;
use crate::store::Store;

/// Version of the layout that this code writes and reads.
const EXPORT_VERSION: u32 = 3;

const MAGIC: &[u8; 8] = b"RVSTATE1";
/// Most bytes of the header.
const MAX_HEADER: u32 = 1 << 20;
/// Most manifests of a file.
const MAX_MANIFESTS: u64 = 1 << 20;

/// How much of a state's past an export takes along.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Depth {
    /// The state as it is.
    #[default]
    Head,
    /// All its commits.
    History,
}

/// Header of an export file: keys ascend, as in all our JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportHeader {
    /// The newest manifest.
    pub head: Hash,
    /// How many of the entries, from the first, are manifests: the head, then parent after parent.
    pub manifests: u64,
    /// What the state was called.
    pub name: String,
    /// Entries in all.
    pub objects: u64,
    /// Tags of these manifests, by label.
    pub tags: Vec<TagInfo>,
    /// Of the layout.
    pub version: u32,
}

impl Store {
    /// Writes what `spec` names to `file`, whole or not at all.
    pub fn export(
        &self,
        spec: &str,
        file: &Path,
        depth: Depth,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Transfer> {
        let _lock = self.lock(crate::store::Hold::Shared)?;
        let commit = self.resolve(spec)?;
        if commit.tokens != commit.manifest.tokens.len() {
            let what = format!("'{}'", excerpt(spec));
            return Err(Error::refused(
                what,
                "a moment inside a commit",
                "a whole commit: fork from there, and export the fork",
            ));
        }
        let mut arrival = Arrival::default();
        let all_tags = self.along(self.tags()?, commit.hash)?;
        for step in self.history(commit.hash).take(if depth == Depth::Head { 1 } else { usize::MAX }) {
            arrival.chain.push(step?);
        }
        let name =
            commit.name.filter(|n| self.head(n).is_ok_and(|h| h.is_some())).unwrap_or_else(|| commit.hash.short());
        let objects = arrival.objects();
        let manifests: Vec<Hash> = arrival.chain.iter().map(|(h, _)| *h).collect();
        let order: Vec<Hash> =
            manifests.iter().copied().chain(objects.into_iter().filter(|o| !manifests.contains(o))).collect();
        let header = ExportHeader {
            head: commit.hash,
            manifests: manifests.len() as u64,
            name: name.clone(),
            objects: order.len() as u64,
            tags: all_tags.into_iter().filter(|t| manifests.contains(&t.manifest)).collect(),
            version: EXPORT_VERSION,
        };
        let part = file.with_file_name(format!(
            ".{}.part-{}",
            file.file_name().unwrap_or_default().to_string_lossy(),
            std::process::id()
        ));
        let written = self.write_export(&part, &header, &order, progress);
        let bytes = written.inspect_err(|_| drop(std::fs::remove_file(&part)))?;
        std::fs::rename(&part, file).map_err(Error::io("create", file))?;
        if let Some(folder) = file.parent().filter(|p| !p.as_os_str().is_empty()) {
            self.sync_folder(folder)?;
        }
        let landing = crate::landing::Landing::Created;
        let tags = header.tags.into_iter().map(|t| t.label).collect();
        Ok(Transfer { name, head: commit.hash, landing, commits: manifests.len(), objects: order.len(), bytes, tags })
    }

    fn write_export(
        &self,
        part: &Path,
        header: &ExportHeader,
        order: &[Hash],
        progress: &mut dyn FnMut(Progress),
    ) -> Result<u64> {
        let file = private().write(true).create(true).truncate(true).open(part).map_err(Error::io("create", part))?;
        let mut out = Sealing { file: std::io::BufWriter::new(file), hasher: blake3::Hasher::new(), bytes: 0 };
        let json = serde_json::to_vec(header).map_err(|e| Error::refused("an export header", e, "JSON"))?;
        if json.len() > MAX_HEADER as usize {
            let found = format!("{} bytes with {} tags", json.len(), header.tags.len());
            return Err(Error::refused("an export header", found, format!("at most {MAX_HEADER}; remove some tags")));
        }
        let io = |e| Error::io("write", part)(e);
        out.add(MAGIC).map_err(io)?;
        out.add(&(json.len() as u32).to_le_bytes()).map_err(io)?;
        out.add(&json).map_err(io)?;
        for (i, hash) in order.iter().enumerate() {
            let entry = self.object_file(hash)?;
            out.add(hash.as_bytes()).map_err(io)?;
            out.add(&(entry.len() as u64).to_le_bytes()).map_err(io)?;
            out.add(&entry).map_err(io)?;
            progress(Progress { done: i + 1, total: order.len(), bytes: out.bytes });
        }
        let seal = out.hasher.finalize();
        out.file.write_all(seal.as_bytes()).map_err(io)?;
        let file = out.file.into_inner().map_err(|e| io(e.into_error()))?;
        file.sync_all().map_err(io)?;
        Ok(out.bytes + 32)
    }

    /// The file of an object, proved.
    pub(crate) fn object_file(&self, hash: &Hash) -> Result<Vec<u8>> {
        let (file, file_bytes) = self.open_object(hash)?;
        let mut bytes = Vec::new();
        file.take(file_bytes).read_to_end(&mut bytes).map_err(Error::io("read", &self.object_path(hash)))?;
        prove(hash, &bytes)?;
        Ok(bytes)
    }

    /// Takes in an export file under `name`, or under the name it carries. The whole file is proved before anything is written, and
    /// every object against its name before the state gets its own.
    pub fn import(&self, file: &Path, name: Option<&str>, progress: &mut dyn FnMut(Progress)) -> Result<Transfer> {
        let mut source = File::open(file).map_err(Error::io("open", file))?;
        let length = source.metadata().map_err(Error::io("examine", file))?.len();
        check_trailer(file, &mut source, length)?;
        let source = File::open(file).map_err(Error::io("open", file))?;
        let mut reader =
            ExportReader::new(&file.display().to_string(), BufReader::with_capacity(1 << 20, source), length)?;
        let name = name.unwrap_or(&reader.header.name).to_owned();
        check_name(&name)?;
        let writer = self.writer()?;
        let total = reader.header.objects as usize;
        let mut report = Progress { done: 0, total, bytes: 0 };
        let mut moved = 0;
        while let Some(entry) = reader.entry()? {
            report.done += 1;
            report.bytes += entry.file.len() as u64;
            if self.header(&entry.hash).is_err() {
                writer.put_file(&entry.hash, &[&entry.file])?;
                moved += 1;
            }
            progress(report);
        }
        let arrival = reader.finish()?;
        let (head, landing, tags) = writer.land(&name, &arrival)?;
        Ok(Transfer { name, head, landing, commits: arrival.chain.len(), objects: moved, bytes: report.bytes, tags })
    }
}

struct Sealing<W: Write> {
    file: std::io::BufWriter<W>,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl<W: Write> Sealing<W> {
    fn add(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        self.file.write_all(bytes)
    }
}

/// Holds the hash at the end of a file against all before it.
fn check_trailer(file: &Path, source: &mut File, length: u64) -> Result<()> {
    let what = format!("the export file {}", file.display());
    let body =
        length.checked_sub(32).ok_or_else(|| Error::damaged(&what, format!("{length} bytes"), "more than 32"))?;
    let mut hasher = blake3::Hasher::new();
    let mut left = source.take(body);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match left.read(&mut buffer).map_err(Error::io("read", file))? {
            0 => break,
            n => drop(hasher.update(buffer.get(..n).unwrap_or_default())),
        }
    }
    let mut trailer = [0; 32];
    left.into_inner().read_exact(&mut trailer).map_err(Error::io("read", file))?;
    match Hash::from(hasher.finalize()) == Hash::from_bytes(trailer) {
        true => Ok(()),
        false => {
            Err(Error::damaged(what, "content that the hash at its end contradicts", "the file as it was written"))
        }
    }
}

/// One object of an export file, proved to be what its name says and needed by a manifest before it.
#[derive(Debug)]
pub struct ExportEntry {
    /// Its name.
    pub hash: Hash,
    /// Its file, header and body.
    pub file: Vec<u8>,
}

/// Reads an export file entry by entry, trusting nothing; the hash at the end is somebody else's business.
#[derive(Debug)]
pub struct ExportReader<R> {
    what: String,
    source: R,
    /// Bytes before the trailer that are not read yet.
    left: u64,
    /// The header.
    pub header: ExportHeader,
    next: u64,
    arrival: Arrival,
    wanted: BTreeSet<Hash>,
    had: HashSet<Hash>,
}

impl<R: Read> ExportReader<R> {
    /// Reads the header of a file of `length` bytes.
    pub fn new(what: &str, mut source: R, length: u64) -> Result<ExportReader<R>> {
        let what = format!("the export file {what}");
        let mut head = [0; 12];
        source.read_exact(&mut head).map_err(|e| Error::damaged(&what, e, "at least 12 bytes"))?;
        let [magic @ .., a, b, c, d] = head;
        let json_bytes = u32::from_le_bytes([a, b, c, d]);
        if magic != *MAGIC || json_bytes > MAX_HEADER || u64::from(json_bytes) + 44 > length {
            let found = format!("{magic:02x?} and a header of {json_bytes} bytes");
            return Err(Error::refused(
                what,
                found,
                format!("{MAGIC:02x?}, at most {MAX_HEADER} bytes and inside the file"),
            ));
        }
        let mut json = vec![0; json_bytes as usize];
        source.read_exact(&mut json).map_err(|e| Error::damaged(&what, e, "a header"))?;
        let bad = |e: serde_json::Error| Error::refused(what.clone(), e, "the header of docs/STATE-FORMAT.md");
        let header: ExportHeader = serde_json::from_slice(&json).map_err(bad)?;
        let left = length - 44 - u64::from(json_bytes);
        // An entry is 40 bytes and an object's header at least.
        let sane = (1..=header.objects.min(MAX_MANIFESTS)).contains(&header.manifests) && header.objects <= left / 64;
        if header.version != EXPORT_VERSION || !sane {
            let found =
                format!("version {}, {} manifests, {} objects", header.version, header.manifests, header.objects);
            let expected = format!("version {EXPORT_VERSION}, a manifest or more, no more objects than fit");
            return Err(Error::refused(what, found, expected));
        }
        check_name(&header.name)?;
        if !header.tags.is_sorted_by(|a, b| a.label < b.label) {
            return Err(Error::refused(what, format!("{} tags out of order", header.tags.len()), "labels that ascend"));
        }
        header.tags.iter().try_for_each(|t| check_name(&t.label))?;
        let arrival = Arrival { shallow: true, tags: header.tags.clone(), ..Arrival::default() };
        let wanted = BTreeSet::from([header.head]);
        Ok(ExportReader { what, source, left, header, next: 0, arrival, wanted, had: HashSet::new() })
    }

    /// The next entry, or None after the last.
    pub fn entry(&mut self) -> Result<Option<ExportEntry>> {
        if self.next == self.header.objects {
            return Ok(None);
        }
        let mut head = [0; 40];
        self.fill(&mut head)?;
        let (name, length) = head.split_at(32);
        let length = length.iter().rev().fold(0u64, |n, &b| n << 8 | u64::from(b));
        let mut hash = [0; 32];
        hash.copy_from_slice(name);
        let hash = Hash::from_bytes(hash);
        if length > self.left.min(MAX_FILE_BYTES) {
            let found = format!("an entry of {length} bytes");
            return Err(Error::refused(&self.what, found, format!("at most the {} that are left", self.left)));
        }
        if !self.wanted.contains(&hash) || !self.had.insert(hash) {
            return Err(Error::refused(
                &self.what,
                format!("object {hash}"),
                "only objects that its manifests need, each once",
            ));
        }
        let mut file = vec![0; length as usize];
        self.fill(&mut file)?;
        if self.next < self.header.manifests {
            let expected = self.arrival.chain.last().map_or(Some(self.header.head), |(_, m)| m.parent);
            let manifest = prove_manifest(&hash, &file)?;
            if expected != Some(hash) {
                return Err(Error::refused(&self.what, format!("manifest {hash}"), "head, parent, parent's parent …"));
            }
            self.wanted.extend(manifest.parent);
            self.arrival.chain.push((hash, manifest));
            if self.next + 1 == self.header.manifests {
                self.wanted = self.arrival.objects();
            }
        } else {
            prove(&hash, &file)?;
        }
        self.next += 1;
        Ok(Some(ExportEntry { hash, file }))
    }

    fn fill(&mut self, into: &mut [u8]) -> Result<()> {
        let short = |e: &dyn std::fmt::Display| Error::damaged(&self.what, e, "as many entries as its header says");
        self.left = self.left.checked_sub(into.len() as u64).ok_or_else(|| short(&"an early end"))?;
        self.source.read_exact(into).map_err(|e| short(&e))
    }

    /// After the last entry: all that arrives.
    pub(crate) fn finish(self) -> Result<Arrival> {
        self.complete()?;
        Ok(self.arrival)
    }

    /// After the last entry: refuses a file in which not all was there that the manifests need, or anything else, or a tag that means
    /// no place.
    pub fn complete(&self) -> Result<()> {
        if self.next < self.header.objects {
            let found = format!("{} entries", self.next);
            return Err(Error::refused(&self.what, found, format!("{}", self.header.objects)));
        }
        if self.left > 0 {
            return Err(Error::refused(&self.what, format!("{} bytes after the last entry", self.left), "none"));
        }
        if let Some(lost) = self.wanted.iter().find(|o| !self.had.contains(o)) {
            return Err(Error::refused(&self.what, format!("no object {lost}"), "all objects that its manifests need"));
        }
        let stands = |tag: &&TagInfo| {
            let of = self.arrival.chain.iter().find(|(hash, _)| *hash == tag.manifest);
            of.is_some_and(|(_, manifest)| manifest.cut(tag.tokens).is_some())
        };
        if let Some(tag) = self.arrival.tags.iter().find(|t| !stands(t)) {
            let found = format!("the tag '{}' of token {} of {}", tag.label, tag.tokens, tag.manifest);
            return Err(Error::refused(&self.what, found, "a place where one of its manifests can stand"));
        }
        Ok(())
    }
}
