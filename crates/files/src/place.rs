//! Where a checkpoint's files lie: a folder on disk, or files held in the program. It hands out bytes and text by name and
//! refuses names that would leave the folder.

use std::borrow::Cow;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Result, excerpt};
use crate::mmap::FileBytes;

/// A folder of files.
#[derive(Clone, Debug)]
pub enum Place {
    /// On disk.
    Folder(PathBuf),
    /// In the program: a name for messages, and (file name, content) pairs.
    Embedded(&'static str, &'static [(&'static str, &'static [u8])]),
}

/// Text files (configs, templates, indices) beyond this are refused.
const MOST_TEXT_BYTES: u64 = 256 << 20;

impl Place {
    /// What messages call it.
    pub fn path(&self) -> PathBuf {
        match self {
            Place::Folder(path) => path.clone(),
            Place::Embedded(name, _) => PathBuf::from(name),
        }
    }

    /// The path of a file in it.
    pub fn path_of(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// True if a file of that name is there.
    pub fn has(&self, name: &str) -> bool {
        match self {
            Place::Folder(path) => path.join(name).is_file(),
            Place::Embedded(_, files) => files.iter().any(|(n, _)| *n == name),
        }
    }

    /// The names of all files directly in it, sorted.
    pub fn names(&self) -> Result<Vec<String>> {
        let mut names: Vec<String> = match self {
            Place::Folder(path) => {
                let entries = std::fs::read_dir(path).map_err(Error::io("list", path))?;
                let names = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
                names.collect()
            }
            Place::Embedded(_, files) => files.iter().map(|(name, _)| (*name).to_owned()).collect(),
        };
        names.sort();
        Ok(names)
    }

    /// The bytes of a large file, mapped.
    pub fn map(&self, name: &str) -> Result<FileBytes> {
        let path = self.path_of(name);
        check_name(&path, name)?;
        match self {
            Place::Folder(_) => FileBytes::map(&path),
            Place::Embedded(_, files) => {
                let file = files.iter().find(|(n, _)| *n == name);
                let (_, bytes) = file.ok_or_else(|| Error::missing(&self.path(), name, name))?;
                Ok(FileBytes::embedded(&path, bytes))
            }
        }
    }

    /// The bytes of a small file; none if it is not there.
    pub fn read(&self, name: &str) -> Result<Option<Cow<'static, [u8]>>> {
        let path = self.path_of(name);
        check_name(&path, name)?;
        match self {
            Place::Folder(_) if !path.is_file() => Ok(None),
            Place::Folder(_) => {
                let file = std::fs::File::open(&path).map_err(Error::io("open", &path))?;
                let mut bytes = Vec::new();
                file.take(MOST_TEXT_BYTES + 1).read_to_end(&mut bytes).map_err(Error::io("read", &path))?;
                if bytes.len() as u64 > MOST_TEXT_BYTES {
                    let found = format!("more than {MOST_TEXT_BYTES} bytes");
                    return Err(Error::format(&path, "file", found, "a text file of ordinary size"));
                }
                Ok(Some(Cow::Owned(bytes)))
            }
            Place::Embedded(_, files) => Ok(files.iter().find(|(n, _)| *n == name).map(|(_, b)| Cow::Borrowed(*b))),
        }
    }

    /// The text of a small file; none if it is not there.
    pub fn text(&self, name: &str) -> Result<Option<String>> {
        let Some(bytes) = self.read(name)? else { return Ok(None) };
        let text = String::from_utf8(bytes.into_owned()).map_err(|e| {
            let found = format!("another byte at {}", e.utf8_error().valid_up_to());
            Error::format(&self.path_of(name), "text", found, "UTF-8")
        })?;
        Ok(Some(text))
    }
}

/// Refuses a file name that is not one plain name below the folder.
pub(crate) fn check_name(whose: &Path, name: &str) -> Result<()> {
    let plain = !name.is_empty()
        && !name.contains(['\\', '\0', ':'])
        && Path::new(name).components().all(|c| matches!(c, Component::Normal(_)));
    if plain {
        return Ok(());
    }
    Err(Error::format(whose, "file name", format!("'{}'", excerpt(name)), "a name inside the model's own folder"))
}
