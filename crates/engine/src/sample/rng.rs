//! The sampler's own random numbers: xoshiro256++, seeded through splitmix64. Its whole state is four words, so that a
//! sleeping session draws on from the very bit at which it stopped. Not for secrets.
//!
//! Source: D. Blackman and S. Vigna, "Scrambled linear pseudorandom number generators", ACM TOMS 47(4), 2021.

use std::hash::{BuildHasher, Hasher};

/// xoshiro256++ generator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rng {
    s: [u64; 4],
}

impl Rng {
    /// A generator whose four words are the first four of splitmix64 from `seed`, as the authors advise.
    pub fn from_seed(seed: u64) -> Self {
        let mut x = seed;
        Self { s: std::array::from_fn(|_| splitmix64(&mut x)) }
    }

    /// A generator that goes on from stored words; `None` for all zeros, from which it would never leave.
    pub fn from_words(s: [u64; 4]) -> Option<Self> {
        (s != [0; 4]).then_some(Self { s })
    }

    /// The four words to store.
    pub fn words(&self) -> [u64; 4] {
        self.s
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        let [a, b, c, d] = self.s;
        let out = a.wrapping_add(d).rotate_left(23).wrapping_add(a);
        let (c, d) = (c ^ a, d ^ b);
        self.s = [a ^ d, b ^ c, c ^ (b << 17), d.rotate_left(45)];
        out
    }

    /// A number in [0, 1) on a grid of 2⁻⁵³.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }
}

/// A seed that differs from call to call, for sessions that name none. std keys every `RandomState` from the system's
/// entropy, which spares a dependency.
pub fn fresh_seed() -> u64 {
    std::hash::RandomState::new().build_hasher().finish()
}

fn splitmix64(x: &mut u64) -> u64 {
    *x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*x ^ (*x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Outputs of the authors' C programs from the state 1, 2, 3, 4.
    #[test]
    fn xoshiro_matches_the_published_generator() {
        let mut rng = Rng::from_words([1, 2, 3, 4]).unwrap();
        let got: Vec<u64> = (0..10).map(|_| rng.next_u64()).collect();
        let expected = [
            41943041,
            58720359,
            3588806011781223,
            3591011842654386,
            9228616714210784205,
            9973669472204895162,
            14011001112246962877,
            12406186145184390807,
            15849039046786891736,
            10450023813501588000,
        ];
        assert_eq!(got, expected);
    }

    #[test]
    fn splitmix_matches_the_published_generator() {
        let mut x = 1477776061723855037;
        let got: Vec<u64> = (0..5).map(|_| splitmix64(&mut x)).collect();
        let expected =
            [1985237415132408290, 2979275885539914483, 13511426838097143398, 8488337342461049707, 15141737807933549159];
        assert_eq!(got, expected);
    }

    #[test]
    fn unit_stays_below_one_and_fills_the_range() {
        let mut rng = Rng::from_seed(7);
        let draws: Vec<f64> = (0..20_000).map(|_| rng.unit()).collect();
        assert!(draws.iter().all(|u| (0.0..1.0).contains(u)));
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        assert!((mean - 0.5).abs() < 0.01, "{mean}");
    }

    #[test]
    fn stored_words_go_on_identically_and_zeros_are_refused() {
        let mut rng = Rng::from_seed(3);
        rng.next_u64();
        let mut woken = Rng::from_words(rng.words()).unwrap();
        assert_eq!(rng.next_u64(), woken.next_u64());
        assert_eq!(Rng::from_words([0; 4]), None);
    }

    #[test]
    fn fresh_seeds_differ() {
        assert_ne!(fresh_seed(), fresh_seed());
    }
}
