//! The few ways in which the store changes a folder, each whole or not at all once `rename` has run. What the bytes mean is
//! nobody's business here. A trait, so that tests can fail, truncate or stop at any single step.

use std::fmt::Debug;
use std::fs::{self, File};
use std::io::{self, IoSlice, Write};
use std::path::Path;

/// Changes to a folder tree. Reading needs no such seam: what is read is verified.
pub trait Disk: Send + Sync + Debug {
    /// Creates a private folder (0700); fine if it is there.
    fn create_folder(&self, path: &Path) -> io::Result<()>;
    /// Writes a new private file (0600) from `parts`.
    fn write_new(&self, path: &Path, parts: &[&[u8]]) -> io::Result<File>;
    /// Brings the bytes of a file to the medium.
    fn flush(&self, file: &File) -> io::Result<()>;
    /// Moves a file over whatever has the new name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes names in a folder durable.
    fn sync_folder(&self, path: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
}

/// The operating system's.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(path)
    }

    fn write_new(&self, path: &Path, parts: &[&[u8]]) -> io::Result<File> {
        let mut file = private().write(true).create_new(true).open(path)?;
        // In one call where the system takes that many: the file then lies in few large pieces of memory, which halves the time of
        // writing and of mapping it.
        let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|p| IoSlice::new(p)).collect();
        let mut left = &mut slices[..];
        IoSlice::advance_slices(&mut left, 0);
        while !left.is_empty() {
            match file.write_vectored(left) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => IoSlice::advance_slices(&mut left, n),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(file)
    }

    fn flush(&self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        // Elsewhere a folder cannot be opened as a file; its names are durable when the call returns.
        if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }
}

/// Options of a file that only its owner may read.
pub(crate) fn private() -> fs::OpenOptions {
    #[allow(unused_mut)]
    let mut options = fs::OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}
