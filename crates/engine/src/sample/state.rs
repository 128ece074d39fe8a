//! What a sampler has to remember across sleep: its seed, the four words of its generator, and one number for each
//! learning step. Text, history and parameters are the session's business.

use super::{Rng, SampleError};

/// A sampler's state, exact to the bit.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplerState {
    seed: u64,
    rng: Rng,
    carried: Vec<(String, f64)>,
}

const MAGIC: [u8; 4] = *b"RSS\x01";

impl SamplerState {
    pub(super) fn new(seed: u64, rng: &Rng, carried: Vec<(String, f64)>) -> Self {
        Self { seed, rng: rng.clone(), carried }
    }

    pub(super) fn seed(&self) -> u64 {
        self.seed
    }

    pub(super) fn rng(&self) -> Rng {
        self.rng.clone()
    }

    pub(super) fn carried(&self) -> &[(String, f64)] {
        &self.carried
    }

    /// The state as bytes, little-endian: magic `RSS` and version 1, seed u64, generator 4 × u64, number of learning
    /// steps u32, then for each the length of its name u32, the name, its number f64.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend(self.seed.to_le_bytes());
        for word in self.rng.words() {
            out.extend(word.to_le_bytes());
        }
        out.extend((self.carried.len() as u32).to_le_bytes());
        for (name, value) in &self.carried {
            out.extend((name.len() as u32).to_le_bytes());
            out.extend(name.as_bytes());
            out.extend(value.to_le_bytes());
        }
        out
    }

    /// Reads what [`SamplerState::to_bytes`] wrote; anything else is refused.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SampleError> {
        let mut rest = bytes;
        let magic: [u8; 4] = take(&mut rest)?;
        if magic != MAGIC {
            return Err(bad("magic and version", format!("{magic:?}"), format!("{MAGIC:?}")));
        }
        let seed = u64::from_le_bytes(take(&mut rest)?);
        let mut words = [0; 4];
        for word in &mut words {
            *word = u64::from_le_bytes(take(&mut rest)?);
        }
        let rng =
            Rng::from_words(words).ok_or_else(|| bad("generator", "only zeros".into(), "a word above 0".into()))?;
        let mut carried = Vec::new();
        for _ in 0..u32::from_le_bytes(take(&mut rest)?) {
            let len = u32::from_le_bytes(take(&mut rest)?) as usize;
            let (name, after) = rest.split_at_checked(len).ok_or_else(|| short(rest.len(), len))?;
            let name = std::str::from_utf8(name)
                .map_err(|_| bad("name of a learning step", format!("{name:?}"), "UTF-8".into()))?;
            rest = after;
            let value = f64::from_le_bytes(take(&mut rest)?);
            if !value.is_finite() {
                return Err(bad("number of a learning step", value.to_string(), "a finite number".into()));
            }
            carried.push((name.to_owned(), value));
        }
        if rest.is_empty() {
            Ok(Self { seed, rng, carried })
        } else {
            Err(bad("length", format!("{} bytes more", rest.len()), "the end".into()))
        }
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], SampleError> {
    let (head, tail) = rest.split_first_chunk::<N>().ok_or_else(|| short(rest.len(), N))?;
    *rest = tail;
    Ok(*head)
}

fn short(found: usize, expected: usize) -> SampleError {
    bad("length", format!("{found} bytes left"), format!("{expected} more"))
}

fn bad(field: &'static str, found: String, expected: String) -> SampleError {
    SampleError::BadState { field, found, expected }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> SamplerState {
        SamplerState::new(9, &Rng::from_seed(9), vec![("mirostat".into(), 7.25), ("other".into(), -0.0)])
    }

    #[test]
    fn bytes_round_trip() {
        let bytes = state().to_bytes();
        assert_eq!(bytes.len(), 4 + 8 + 32 + 4 + (4 + 8 + 8) + (4 + 5 + 8));
        let read = SamplerState::from_bytes(&bytes).unwrap();
        assert_eq!(read, state());
        assert_eq!(read.to_bytes(), bytes);
    }

    #[test]
    fn every_other_length_is_refused() {
        let mut bytes = state().to_bytes();
        for n in 0..bytes.len() {
            assert!(matches!(SamplerState::from_bytes(&bytes[..n]), Err(SampleError::BadState { .. })), "{n}");
        }
        bytes.push(0);
        assert!(matches!(SamplerState::from_bytes(&bytes), Err(SampleError::BadState { field: "length", .. })));
    }

    #[test]
    fn damage_is_refused() {
        let good = state().to_bytes();
        let mut version = good.clone();
        version[3] = 2;
        let mut zeros = good.clone();
        zeros[12..44].fill(0);
        let mut count = good.clone();
        count[44..48].fill(0xff);
        let mut name = good.clone();
        name[52] = 0xff;
        let mut value = good.clone();
        value[60..68].copy_from_slice(&f64::NAN.to_le_bytes());
        for (bytes, field) in [
            (version, "magic and version"),
            (zeros, "generator"),
            (count, "length"),
            (name, "name of a learning step"),
            (value, "number of a learning step"),
        ] {
            let SampleError::BadState { field: found, .. } = SamplerState::from_bytes(&bytes).unwrap_err() else {
                panic!()
            };
            assert_eq!(found, field);
        }
    }
}
