//! Dining table of Reverie: sessions, sampling, the byte budget; it knows token ids only.
