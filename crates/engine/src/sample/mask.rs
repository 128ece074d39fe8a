//! The hook for grammars: which tokens may come next. It refuses to know why; a grammar, a schema or a list of
//! forbidden words answers id by id, or as a set of bits.

/// Says which tokens may be chosen. Applied after every adjusting step, so that no bias brings a masked token back.
pub trait Mask {
    /// Whether token `id` may be chosen.
    fn allows(&self, id: u32) -> bool;

    /// Puts the logits \[V\] of all other tokens at -inf.
    fn apply(&self, logits: &mut [f32]) {
        for (id, logit) in (0..).zip(logits) {
            if !self.allows(id) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

impl<F: Fn(u32) -> bool> Mask for F {
    fn allows(&self, id: u32) -> bool {
        self(id)
    }
}

/// A mask as packed bits: token `id` is bit `id % 32` of word `id / 32`, set where allowed; ids past the end are not.
#[derive(Debug, Clone, Copy)]
pub struct BitMask<'a>(pub &'a [u32]);

impl Mask for BitMask<'_> {
    fn allows(&self, id: u32) -> bool {
        self.0.get(id as usize / 32).is_some_and(|word| word >> (id % 32) & 1 == 1)
    }

    fn apply(&self, logits: &mut [f32]) {
        let words = self.0.iter().copied().chain(std::iter::repeat(0));
        for (chunk, word) in logits.chunks_mut(32).zip(words) {
            match word {
                u32::MAX => {}
                0 => chunk.fill(f32::NEG_INFINITY),
                _ => (0..).zip(chunk).filter(|(bit, _)| word >> bit & 1 == 0).for_each(|(_, x)| *x = f32::NEG_INFINITY),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_and_closure_agree() {
        let words = [0b1010, u32::MAX, 0, 1 << 31];
        let bits = BitMask(&words);
        let closure = |id: u32| bits.allows(id);
        let (mut a, mut b) = (vec![1.0f32; 200], vec![1.0f32; 200]);
        bits.apply(&mut a);
        closure.apply(&mut b);
        assert_eq!(a, b);
        let allowed: Vec<usize> = (0..200).filter(|&i| a[i] == 1.0).collect();
        let expected: Vec<usize> = [1, 3].into_iter().chain(32..64).chain([127]).collect();
        assert_eq!(allowed, expected);
    }
}
