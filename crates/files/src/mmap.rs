//! File bytes: mapped read-only, or held in the program itself. The only unsafe room of this crate.
//! It refuses to know what the bytes mean.

#![allow(unsafe_code)]

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::error::{Error, Result};

/// The bytes of one file.
#[derive(Debug)]
pub struct FileBytes {
    path: PathBuf,
    held: Held,
}

#[derive(Debug)]
enum Held {
    Mapped(Mmap),
    Static(&'static [u8]),
}

impl FileBytes {
    /// Maps a file read-only. The file must not shrink while it is mapped: the system ends a process that reads
    /// beyond a file's end.
    pub fn map(path: &Path) -> Result<FileBytes> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        let length = file.metadata().map_err(Error::io("read the length of", path))?.len();
        if length == 0 {
            return Err(Error::format(path, "file", "0 bytes", "a file with content: download or copy it again"));
        }
        // SAFETY: the mapping is read-only and private to this value; every read goes through a slice whose bounds are
        // those of the mapping. A file that another process truncates meanwhile is outside what a program can guard.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io("map", path))?;
        Ok(FileBytes { path: path.to_owned(), held: Held::Mapped(map) })
    }

    /// Bytes that live in the program; `path` is what messages call them.
    pub fn embedded(path: &Path, bytes: &'static [u8]) -> FileBytes {
        FileBytes { path: path.to_owned(), held: Held::Static(bytes) }
    }

    /// Where the bytes came from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// True if the bytes live in the program, not in a file.
    pub fn is_embedded(&self) -> bool {
        matches!(self.held, Held::Static(_))
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.held {
            Held::Mapped(map) => map,
            Held::Static(bytes) => bytes,
        }
    }

    /// Tells the system that these bytes are not needed in memory any more. They may be read again; the pages then come
    /// from the file. Does nothing for bytes in the program, and nothing where the system has no such advice.
    pub fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Held::Mapped(map) = &self.held
            && range.start < range.end
            && range.end <= map.len()
        {
            // SAFETY: the mapping is read-only and backed by a file, so a dropped page is read again unchanged; the
            // range lies within the mapping.
            let advised = unsafe {
                map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.end - range.start)
            };
            // Advice that is not taken costs memory, never correctness.
            drop(advised);
        }
        #[cfg(not(unix))]
        let _ = range;
    }

    /// Tells the system that these bytes will be read soon, so that it may fetch them ahead.
    pub fn prefetch(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Held::Mapped(map) = &self.held
            && range.start < range.end
            && range.end <= map.len()
        {
            drop(map.advise_range(memmap2::Advice::WillNeed, range.start, range.end - range.start));
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}
