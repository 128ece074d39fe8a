//! A cursor over header bytes that never reads past them and never believes a length that they cannot hold.

use std::path::Path;

use crate::error::{Error, Result};

/// Where the reader stands.
pub(super) struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
    /// Bytes of decoded metadata that may still be made.
    budget: usize,
}

/// Most memory that decoded metadata may take: real vocabularies need a few tens of MB.
const METADATA_BUDGET_BYTES: usize = 1 << 30;

impl<'a> Cursor<'a> {
    pub fn new(path: &'a Path, bytes: &'a [u8]) -> Self {
        Cursor { path, bytes, at: 0, budget: METADATA_BUDGET_BYTES }
    }

    pub fn path(&self) -> &'a Path {
        self.path
    }

    pub fn at(&self) -> usize {
        self.at
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The next `length` bytes.
    pub fn take(&mut self, what: &str, length: u64) -> Result<&'a [u8]> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        match usize::try_from(length).ok().and_then(|length| rest.get(..length)) {
            Some(taken) => {
                self.at += taken.len();
                Ok(taken)
            }
            None => {
                let found = format!("a length of {length} bytes at {}", self.at);
                let expected =
                    format!("at most the {} bytes that follow: the file is truncated or damaged", self.left());
                Err(Error::format(self.path, what, found, expected))
            }
        }
    }

    pub fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(what, N as u64)?);
        Ok(array)
    }

    pub fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A count of things that take at least `least` bytes each.
    pub fn count(&mut self, what: &str, least: u64) -> Result<u64> {
        let count = self.u64(what)?;
        let most = self.left() as u64 / least;
        if count > most {
            let expected =
                format!("at most {most}, which is what the rest of the file can hold: it is truncated or damaged");
            return Err(Error::format(self.path, what, count, expected));
        }
        Ok(count)
    }

    /// A string: its length, then UTF-8.
    pub fn string(&mut self, what: &str) -> Result<String> {
        let length = self.u64(what)?;
        let bytes = self.take(what, length)?;
        self.spend(what, bytes.len() + size_of::<String>())?;
        let text = std::str::from_utf8(bytes).map_err(|e| {
            let found = format!("another byte at {}", self.at - bytes.len() + e.valid_up_to());
            Error::format(self.path, what, found, "UTF-8")
        })?;
        Ok(text.to_owned())
    }

    /// Counts decoded memory.
    pub fn spend(&mut self, what: &str, bytes: usize) -> Result<()> {
        match self.budget.checked_sub(bytes) {
            Some(left) => {
                self.budget = left;
                Ok(())
            }
            None => {
                let expected =
                    format!("metadata that decodes to at most {METADATA_BUDGET_BYTES} bytes: the file is damaged");
                Err(Error::format(self.path, what, "more", expected))
            }
        }
    }
}
