//! Unpacking of narrow codes to bytes, and back: contiguous bits, nibble planes, two-bit planes, one-bit planes.
//! Plain integer code in a shape that compilers vectorise; it knows no format.

/// Contiguous codes of `bits` bits, lowest first, to one a byte: MLX's packing at every width. `out` has K codes, K a multiple
/// of 8; `packed` K · bits / 8 bytes.
pub fn unpack(bits: u8, packed: &[u8], out: &mut [u8]) {
    match bits {
        2 => unpack_width::<2>(packed, out),
        3 => unpack_width::<3>(packed, out),
        4 => unpack_width::<4>(packed, out),
        5 => unpack_width::<5>(packed, out),
        6 => unpack_width::<6>(packed, out),
        _ => out.copy_from_slice(packed),
    }
}

/// The inverse of `unpack`. Codes lie below 2^bits.
pub fn pack(bits: u8, codes: &[u8], packed: &mut [u8]) {
    match bits {
        2 => pack_width::<2>(codes, packed),
        3 => pack_width::<3>(codes, packed),
        4 => pack_width::<4>(codes, packed),
        5 => pack_width::<5>(codes, packed),
        6 => pack_width::<6>(codes, packed),
        _ => packed.copy_from_slice(codes),
    }
}

/// Bits `from..to` of every field that is `field` wide.
const fn mask(field: u32, from: u32, to: u32) -> u64 {
    let one = (u64::MAX >> (64 - (to - from))) << from;
    let (mut all, mut at) = (0, 0);
    while at < 64 {
        all |= one << at;
        at += field;
    }
    all
}

/// Eight codes of `BITS` bits, side by side, to eight bytes: halves, quarters and eighths are moved apart in turn.
const fn spread<const BITS: u32>(x: u64) -> u64 {
    let x = (x & const { mask(64, 0, 4 * BITS) }) | ((x & const { mask(64, 4 * BITS, 8 * BITS) }) << (32 - 4 * BITS));
    let x = (x & const { mask(32, 0, 2 * BITS) }) | ((x & const { mask(32, 2 * BITS, 4 * BITS) }) << (16 - 2 * BITS));
    (x & const { mask(16, 0, BITS) }) | ((x & const { mask(16, BITS, 2 * BITS) }) << (8 - BITS))
}

/// The inverse of `spread`.
const fn gather<const BITS: u32>(x: u64) -> u64 {
    let x = (x & const { mask(16, 0, BITS) }) | ((x >> (8 - BITS)) & const { mask(16, BITS, 2 * BITS) });
    let x = (x & const { mask(32, 0, 2 * BITS) }) | ((x >> (16 - 2 * BITS)) & const { mask(32, 2 * BITS, 4 * BITS) });
    (x & const { mask(64, 0, 4 * BITS) }) | ((x >> (32 - 4 * BITS)) & const { mask(64, 4 * BITS, 8 * BITS) })
}

const fn spread_width<const BITS: usize>(word: u64) -> [u8; 8] {
    match BITS {
        2 => spread::<2>(word),
        3 => spread::<3>(word),
        4 => spread::<4>(word),
        5 => spread::<5>(word),
        _ => spread::<6>(word),
    }
    .to_le_bytes()
}

fn unpack_width<const BITS: usize>(packed: &[u8], out: &mut [u8]) {
    let (out, _) = out.as_chunks_mut::<8>();
    // A whole word is read where one is left: the bits above the eight codes fall to the masks.
    let words = packed.windows(8).step_by(BITS).filter_map(|w| w.first_chunk());
    let mut done = 0;
    for (word, out) in words.zip(&mut *out) {
        *out = spread_width::<BITS>(u64::from_le_bytes(*word));
        done += 1;
    }
    // Shifted together, not copied through memory: a narrow store read back wide stalls.
    let rest = packed.as_chunks::<BITS>().0.iter().zip(out).skip(done);
    for (bytes, out) in rest {
        let word = bytes.iter().rev().fold(0, |word, &byte| (word << 8) | u64::from(byte));
        *out = spread_width::<BITS>(word);
    }
}

fn pack_width<const BITS: usize>(codes: &[u8], packed: &mut [u8]) {
    let (codes, _) = codes.as_chunks::<8>();
    let (packed, _) = packed.as_chunks_mut::<BITS>();
    for (codes, packed) in codes.iter().zip(packed) {
        let word = u64::from_le_bytes(*codes);
        let word = match BITS {
            2 => gather::<2>(word),
            3 => gather::<3>(word),
            4 => gather::<4>(word),
            5 => gather::<5>(word),
            _ => gather::<6>(word),
        };
        packed.copy_from_slice(&word.to_le_bytes()[..BITS]);
    }
}

/// ggml's nibble planes: the low nibbles of `N` bytes, then the high ones. `out` has 2N codes.
#[inline(always)]
pub fn nibbles<const N: usize>(bytes: &[u8; N], out: &mut [u8]) {
    let (low, high) = out.split_at_mut(N);
    for ((b, low), high) in bytes.iter().zip(low).zip(high) {
        (*low, *high) = (b & 15, b >> 4);
    }
}

/// ggml's two-bit planes: bits 0 and 1 of 32 bytes, then 2 and 3, and so on. `out` has 128 codes.
#[inline(always)]
pub fn crumbs(bytes: &[u8; 32], out: &mut [u8]) {
    for (plane, out) in out.chunks_exact_mut(32).enumerate() {
        out.iter_mut().zip(bytes).for_each(|(o, b)| *o = (b >> (2 * plane)) & 3);
    }
}

/// As `crumbs`, laid onto codes of four bits as bits 4 and 5.
#[inline(always)]
pub fn crumbs_onto(bytes: &[u8; 32], codes: &mut [u8]) {
    for (plane, codes) in codes.chunks_exact_mut(32).enumerate() {
        codes.iter_mut().zip(bytes).for_each(|(c, b)| *c |= ((b >> (2 * plane)) & 3) << 4);
    }
}

/// ggml's one-bit planes: bit 0 of 32 bytes for the first 32 codes, bit 1 for the next; laid onto the codes as bit `AT`.
#[inline(always)]
pub fn planes_onto<const AT: u32>(bytes: &[u8; 32], codes: &mut [u8]) {
    for (plane, codes) in codes.chunks_exact_mut(32).enumerate() {
        codes.iter_mut().zip(bytes).for_each(|(c, b)| *c |= ((b >> plane) & 1) << AT);
    }
}

/// One bit a code, lowest first, laid onto 32 codes of four bits as bit 4.
#[inline(always)]
pub fn fifth_bits_onto(bytes: &[u8; 4], codes: &mut [u8; 32]) {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let (codes, _) = codes.as_chunks_mut::<8>();
    for (&byte, codes) in bytes.iter().zip(codes) {
        // Byte j keeps bit j only; adding 0x7f carries any set bit into bit 7, which then moves to bit 4.
        let single = (u64::from(byte) * ONES) & 0x8040_2010_0804_0201;
        let fifth = ((single + 0x7f * ONES) & (0x80 * ONES)) >> 3;
        *codes = (u64::from_le_bytes(*codes) | fifth).to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cheap source of varied bytes.
    fn noise(n: usize) -> Vec<u8> {
        let mut x = 0x9e37_79b9_7f4a_7c15u64;
        std::iter::repeat_with(|| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            (x >> 24) as u8
        })
        .take(n)
        .collect()
    }

    #[test]
    fn contiguous_codes_are_read_bit_by_bit() {
        for bits in [2u8, 3, 4, 5, 6, 8] {
            let packed = noise(64 * usize::from(bits) / 8);
            let mut codes = vec![0; 64];
            unpack(bits, &packed, &mut codes);
            for (i, &code) in codes.iter().enumerate() {
                let expected = (0..usize::from(bits)).fold(0, |acc, b| {
                    let at = i * usize::from(bits) + b;
                    acc | ((packed[at / 8] >> (at % 8)) & 1) << b
                });
                assert_eq!(code, expected, "{bits} bits, code {i}");
            }
            let mut back = vec![0; packed.len()];
            pack(bits, &codes, &mut back);
            assert_eq!(back, packed, "{bits} bits");
        }
    }

    #[test]
    fn fifth_bits_follow_their_byte_order() {
        for word in [0u32, 1, 0x8000_0000, 0xdead_beef, u32::MAX] {
            let mut codes = [3; 32];
            fifth_bits_onto(&word.to_le_bytes(), &mut codes);
            for (i, code) in codes.iter().enumerate() {
                assert_eq!(u32::from(*code), 3 | ((word >> i) & 1) << 4, "{word:x} bit {i}");
            }
        }
    }
}
