//! The bytes that every token id stands for, in one flat table.
//! It refuses to know how a vocabulary was trained and how text is cut.

use crate::error::{Result, TextError};

/// Highest id a vocabulary may use; the largest in circulation have about 300,000 tokens.
pub(crate) const MAX_ID: u32 = (1 << 22) - 1;

/// What happens to white space at the very beginning of a text, where an encoder put a space that nobody wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leading {
    /// Bytes are the text.
    Keep,
    /// Up to this many leading spaces vanish.
    Spaces(usize),
    /// Every space of the first token vanishes (Metaspace decoders).
    FirstPiece,
}

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    start: u32,
    len: u32,
    known: bool,
    special: bool,
}

/// Id → bytes, and whether the id is a special token.
#[derive(Debug, Clone)]
pub(crate) struct Pieces {
    slots: Vec<Slot>,
    bytes: Vec<u8>,
    pub(crate) leading: Leading,
}

impl Pieces {
    pub(crate) fn new(leading: Leading) -> Self {
        Self { slots: Vec::new(), bytes: Vec::new(), leading }
    }

    /// Sets the bytes of `id`; a second call for the same id replaces the first. `false` if the id is absurd.
    #[must_use]
    pub(crate) fn set(&mut self, id: u32, bytes: &[u8], special: Kind) -> bool {
        let (Ok(start), Ok(len)) = (u32::try_from(self.bytes.len()), u32::try_from(bytes.len())) else {
            return false;
        };
        if id > MAX_ID {
            return false;
        }
        let index = id as usize;
        if index >= self.slots.len() {
            self.slots.resize(index + 1, Slot::default());
        }
        self.bytes.extend_from_slice(bytes);
        self.slots[index] = Slot { start, len, known: true, special: special == Kind::Special };
        true
    }

    pub(crate) fn vocab_size(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn get(&self, id: u32) -> Result<&[u8]> {
        let unknown = TextError::UnknownId { id, vocab_size: self.slots.len() };
        match self.slots.get(id as usize) {
            Some(slot) if slot.known => {
                let start = slot.start as usize;
                self.bytes.get(start..start + slot.len as usize).ok_or(unknown)
            }
            _ => Err(unknown),
        }
    }

    pub(crate) fn is_special(&self, id: u32) -> bool {
        self.slots.get(id as usize).is_some_and(|slot| slot.special)
    }
}

/// Whether a token carries text or control.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    Special,
}
