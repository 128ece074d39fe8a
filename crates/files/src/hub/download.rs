//! One file from the hub into its blob: taken up where it broke off, hashed while it arrives, renamed only when whole.
//! Knows offsets, hashes and the blob's lock; which files are wanted, and how they are shown, is decided elsewhere.

use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::path::Path;

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};

use super::cache::{Lock, RepoCache};
use super::client::{Client, Fault, RemoteFile, text_of};
use super::{HubError, Notice};

const CHUNK_BYTES: usize = 256 << 10;

/// What happens while a file comes in.
pub(super) enum News {
    /// Bytes of this file that are here by now.
    Bytes(u64),
    /// Something the user should know.
    Notice(Notice),
}

/// The hash that an ETag promises, fed as the bytes come; of several, one must be met, and of none, nothing.
struct Checksum {
    algorithm: &'static str,
    contexts: Vec<Context>,
}

impl Checksum {
    fn new(file: &RemoteFile) -> Self {
        let is_hex = file.etag.bytes().all(|b| b.is_ascii_hexdigit());
        let (algorithm, contexts) = match (file.etag.len(), file.size_bytes) {
            // Of the content: what the hub gives for large files.
            (64, _) if is_hex && file.is_linked => ("SHA-256", vec![Context::new(&SHA256)]),
            // Git's blob id, which the hub gives for small files; mirrors give the plain SHA-1 in its place.
            (40, Some(size_bytes)) if is_hex => {
                let plain = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
                let mut blob = plain.clone();
                blob.update(format!("blob {size_bytes}\0").as_bytes());
                ("git SHA-1", vec![blob, plain])
            }
            _ => ("", Vec::new()),
        };
        Self { algorithm, contexts }
    }

    fn update(&mut self, bytes: &[u8]) {
        self.contexts.iter_mut().for_each(|context| context.update(bytes));
    }

    fn check(self, file: &RemoteFile) -> Result<(), HubError> {
        let found: Vec<String> = self.contexts.into_iter().map(hex).collect();
        match found.into_iter().reduce(|first, next| if next.eq_ignore_ascii_case(&file.etag) { next } else { first }) {
            Some(found) if !found.eq_ignore_ascii_case(&file.etag) => {
                let (file, expected) = (file.name.clone(), file.etag.clone());
                Err(HubError::Checksum { file, algorithm: self.algorithm, expected, found })
            }
            _ => Ok(()),
        }
    }
}

fn hex(context: Context) -> String {
    context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Brings one file into its blob, unless it is there.
pub(super) fn bring(
    client: &Client<'_>,
    cache: &RepoCache,
    file: &RemoteFile,
    tell: &mut dyn FnMut(News),
) -> Result<(), HubError> {
    let blob = cache.blob(&file.etag);
    if is_whole(&blob, file) {
        return Ok(());
    }
    let incomplete = cache.incomplete(&file.etag);
    let mut has_told = false;
    let lock = cache.lock(&file.etag, &mut || {
        if !std::mem::replace(&mut has_told, true) {
            tell(News::Notice(Notice::OtherDownload { file: file.name.clone() }));
        }
        tell(News::Bytes(fs::metadata(&incomplete).map_or(0, |meta| meta.len())));
    })?;
    if matches!(lock, Lock::Unsupported) {
        tell(News::Notice(Notice::NoLocks { folder: cache.root().to_owned() }));
    }
    if is_whole(&blob, file) {
        return Ok(());
    }
    if blob.exists() {
        tell(News::Notice(Notice::Restart { file: file.name.clone(), reason: "the cached copy has another size" }));
    }

    let mut partial = Partial::open(&incomplete, file)?;
    let mut trial = client.trial(&file.url);
    let mut most_bytes = partial.done_bytes;
    while partial.is_open_ended() {
        match partial.extend(client, tell) {
            Ok(()) => break,
            Err(fault) => {
                // Only what was never here before counts, so that a server that always starts over comes to an end.
                if partial.done_bytes > most_bytes {
                    most_bytes = partial.done_bytes;
                    trial.progressed();
                }
                trial.after(fault, &mut |notice| tell(News::Notice(notice)))?;
            }
        }
    }
    partial.finish(&blob)
}

fn is_whole(blob: &Path, file: &RemoteFile) -> bool {
    fs::metadata(blob)
        .is_ok_and(|meta| meta.is_file() && file.size_bytes.is_none_or(|size_bytes| meta.len() == size_bytes))
}

/// A file on its way.
struct Partial<'a> {
    file: &'a RemoteFile,
    path: &'a Path,
    out: File,
    done_bytes: u64,
    checksum: Checksum,
}

impl<'a> Partial<'a> {
    /// Takes up what an earlier attempt left.
    fn open(path: &'a Path, file: &'a RemoteFile) -> Result<Self, HubError> {
        let out = File::options().read(true).append(true).create(true).open(path).map_err(HubError::io(path))?;
        let mut partial = Self { file, path, out, done_bytes: 0, checksum: Checksum::new(file) };
        let left_bytes = partial.out.metadata().map_err(HubError::io(path))?.len();
        if file.size_bytes.is_some_and(|size_bytes| left_bytes > size_bytes) {
            partial.restart()?;
        } else {
            partial.take_up(left_bytes)?;
        }
        Ok(partial)
    }

    /// Hashes the bytes that are here.
    fn take_up(&mut self, left_bytes: u64) -> Result<(), HubError> {
        let mut left = self.out.try_clone().map_err(HubError::io(self.path))?.take(left_bytes);
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            match left.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => self.count(buffer.get(..n).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(HubError::io(self.path)(error)),
            }
        }
    }

    fn count(&mut self, bytes: &[u8]) {
        self.checksum.update(bytes);
        self.done_bytes += bytes.len() as u64;
    }

    fn restart(&mut self) -> Result<(), HubError> {
        self.out.set_len(0).map_err(HubError::io(self.path))?;
        self.done_bytes = 0;
        self.checksum = Checksum::new(self.file);
        Ok(())
    }

    /// Whether bytes are missing, as far as the size is known.
    fn is_open_ended(&self) -> bool {
        self.file.size_bytes.is_none_or(|size_bytes| self.done_bytes < size_bytes)
    }

    /// One request, from the first missing byte to the end.
    fn extend(&mut self, client: &Client<'_>, tell: &mut dyn FnMut(News)) -> Result<(), Fault> {
        tell(News::Bytes(self.done_bytes));
        let response = client.open(self.file, self.done_bytes)?;
        let status = response.status().as_u16();
        let range = text_of(response.headers(), "content-range").and_then(ContentRange::parse);
        let announced = match (status, range) {
            (206, Some(range)) if range.first == self.done_bytes => range.total,
            (206 | 416, _) if self.done_bytes > 0 => {
                self.restart()?;
                return Err(Fault::Passing {
                    reason: "the server cannot continue where it broke off".into(),
                    wait: None,
                });
            }
            (200, _) => {
                if self.done_bytes > 0 {
                    let reason = "the server does not resume";
                    tell(News::Notice(Notice::Restart { file: self.file.name.clone(), reason }));
                    self.restart()?;
                }
                text_of(response.headers(), "content-length").and_then(|text| text.trim().parse().ok())
            }
            _ => {
                let reason = format!("HTTP {status} where the file was expected");
                return Err(HubError::BadAnswer { url: self.file.url.clone(), reason }.into());
            }
        };
        if let (Some(expected_bytes), Some(found_bytes)) = (self.file.size_bytes, announced)
            && expected_bytes != found_bytes
        {
            return Err(self.discard(expected_bytes, found_bytes).into());
        }
        let end_bytes = self.file.size_bytes.or(announced);
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let bytes = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => buffer.get(..n).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Fault::Passing { reason: error.to_string(), wait: None }),
            };
            let after_bytes = self.done_bytes + bytes.len() as u64;
            if let Some(end_bytes) = end_bytes.filter(|end_bytes| after_bytes > *end_bytes) {
                return Err(self.discard(end_bytes, after_bytes).into());
            }
            self.write(bytes, end_bytes)?;
            tell(News::Bytes(self.done_bytes));
        }
        match end_bytes.filter(|end_bytes| self.done_bytes < *end_bytes) {
            Some(end_bytes) => {
                let reason = format!("the connection closed after {} of {end_bytes} bytes", self.done_bytes);
                Err(Fault::Passing { reason, wait: None })
            }
            None => Ok(()),
        }
    }

    fn write(&mut self, bytes: &[u8], end_bytes: Option<u64>) -> Result<(), HubError> {
        if let Err(error) = self.out.write_all(bytes) {
            // A part of the chunk may have gone in; the rest of this run does not count on it, and the next reads it back.
            let needed_bytes = end_bytes.unwrap_or_default().saturating_sub(self.done_bytes);
            return Err(HubError::write(self.path.to_owned(), error, needed_bytes));
        }
        self.count(bytes);
        Ok(())
    }

    /// Deletes what arrived, since it cannot be right.
    fn discard(&self, expected_bytes: u64, found_bytes: u64) -> HubError {
        match fs::remove_file(self.path) {
            Ok(()) => HubError::Size { file: self.file.name.clone(), expected_bytes, found_bytes },
            Err(error) => HubError::io(self.path)(error),
        }
    }

    /// Checks the whole and gives it its name.
    fn finish(self, blob: &Path) -> Result<(), HubError> {
        if let Err(error) = self.checksum.check(self.file) {
            drop(self.out);
            fs::remove_file(self.path).map_err(HubError::io(self.path))?;
            return Err(error);
        }
        self.out.sync_all().map_err(HubError::io(self.path))?;
        drop(self.out);
        fs::rename(self.path, blob).map_err(HubError::io(blob))
    }
}

/// `bytes 100-199/200` or `bytes 100-199/*` (RFC 9110, section 14.4).
struct ContentRange {
    first: u64,
    total: Option<u64>,
}

impl ContentRange {
    fn parse(text: &str) -> Option<Self> {
        let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
        let (first, _) = range.split_once('-')?;
        Some(Self { first: first.parse().ok()?, total: total.parse().ok() })
    }
}
