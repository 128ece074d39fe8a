//! The three compute forms of a weight matrix and the one interface through which a format shows them.
//! A format says how its bytes become a form; kernels know the forms and no format.

use half::f16;

use crate::dtype::DType;
use crate::quant;

/// How a matrix is computed with.
#[derive(Clone, Debug, PartialEq)]
pub enum Form {
    /// Plain floats.
    Dense(DType),
    /// Integer codes with a scale (and possibly a bias) per block along K.
    Grouped(Grouped),
}

/// `weight = level(code) · scale (+ bias)`, one scale per `block` weights along K.
#[derive(Clone, Debug, PartialEq)]
pub struct Grouped {
    /// Bits of a code: 2, 3, 4, 5, 6 or 8.
    pub bits: u8,
    /// What integer a code stands for.
    pub levels: Levels,
    /// Weights that share a scale: 16, 32, 64 or 128. K is a multiple of 32 and of `block`.
    pub block: usize,
    /// How the scales are stored.
    pub scales: Scales,
}

/// The integer that a code stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Levels {
    /// `code - zero`.
    Offset(i32),
    /// `table[code]`, for 4-bit codes.
    Table([i8; 16]),
}

/// How a row's scales are stored. `WeightSource::row_scales` yields these bytes, row by row, in K order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scales {
    /// Per block a scale of this dtype: little-endian.
    Float(DType),
    /// Per block a scale and then a bias, both of this dtype.
    FloatBias(DType),
    /// Per block of 32 one exponent byte e: the scale is 2^(e - 128) (MXFP4, whose levels are doubled).
    Exponent,
    /// Per block one byte, an 8-bit float (e4m3): the scale is half of it (NVFP4, whose levels are doubled).
    Float8,
    /// Per 256 weights: f16 d, f16 dmin, 16 bytes, one a block, of each four blocks in the order 0, 2, 1, 3: scale d·(b & 15),
    /// bias -dmin·(b >> 4). (Q2_K.) Codes of 2 bits. Read as little-endian words, the nibbles of two blocks that lie side
    /// by side are in one place of the word's halves: products of integers leave them integers (`reference::linear::int8`).
    Nibbles16,
    /// Per 256 weights: f16 d, 12 bytes; sixteen signed 6-bit scales in Q3_K's order, minus 32, times d. (Q3_K.)
    Six16,
    /// Per 256 weights: f16 d, f16 dmin, 12 bytes: eight 6-bit scales and eight 6-bit minima in Q4_K's order;
    /// scale d·sc, bias -dmin·m. (Q4_K, Q5_K.)
    Six8,
    /// Per 256 weights: f16 d, 16 signed bytes; scale d·b per 16 weights. (Q6_K.)
    Byte16,
}

impl Scales {
    /// Weights along K that one unit of scale bytes serves, given the block length.
    pub fn unit_weights(self, block: usize) -> usize {
        match self {
            Scales::Float(_) | Scales::FloatBias(_) | Scales::Float8 => block,
            Scales::Exponent => 32,
            Scales::Nibbles16 | Scales::Six16 | Scales::Six8 | Scales::Byte16 => 256,
        }
    }

    /// Bytes of one unit.
    pub fn unit_bytes(self) -> usize {
        match self {
            Scales::Float(d) => d.size(),
            Scales::FloatBias(d) => 2 * d.size(),
            Scales::Exponent | Scales::Float8 => 1,
            Scales::Nibbles16 => 20,
            Scales::Six16 => 14,
            Scales::Six8 => 16,
            Scales::Byte16 => 18,
        }
    }

    /// True if a block has a bias besides its scale.
    pub fn has_bias(self) -> bool {
        matches!(self, Scales::FloatBias(_) | Scales::Nibbles16 | Scales::Six8)
    }
}

impl Grouped {
    /// Bytes of the scales of one row of `k` weights.
    pub fn row_scale_bytes(&self, k: usize) -> usize {
        k / self.scales.unit_weights(self.block) * self.scales.unit_bytes()
    }

    /// Bytes of one row of `k` weights at the native width: codes and scales.
    pub fn row_bytes(&self, k: usize) -> usize {
        k * self.bits as usize / 8 + self.row_scale_bytes(k)
    }

    /// The integer that `code` stands for.
    pub fn level(&self, code: u8) -> i32 {
        match self.levels {
            Levels::Offset(zero) => i32::from(code) - zero,
            Levels::Table(t) => i32::from(t[usize::from(code & 15)]),
        }
    }
}

impl Form {
    /// Bytes of one row of `k` weights at the native width.
    pub fn row_bytes(&self, k: usize) -> usize {
        match self {
            Form::Dense(d) => k * d.size(),
            Form::Grouped(g) => g.row_bytes(k),
        }
    }

    /// True if a block has a bias besides its scale.
    pub fn has_bias(&self) -> bool {
        matches!(self, Form::Grouped(g) if g.scales.has_bias())
    }

    /// Bits per weight, scales included.
    pub fn bits_per_weight(&self, k: usize) -> f64 {
        self.row_bytes(k) as f64 * 8.0 / k as f64
    }
}

/// A weight matrix as a file shows it: [N, K], rows are outputs. Rows are pulled one at a time, so that a view may select,
/// reorder or join rows of any format.
pub trait WeightSource: Sync {
    /// (N, K): output rows and the length of each.
    fn shape(&self) -> (usize, usize);

    /// The compute form.
    fn form(&self) -> Form;

    /// The row's weights as f32, exactly as the format defines them. `out` has K elements. Made of the row's codes and scales, or of
    /// its raw floats, unless a source has a shorter way.
    fn row_f32(&self, row: usize, out: &mut [f32]) {
        let k = out.len();
        match self.form() {
            Form::Dense(d) => {
                let mut floats = vec![0; k * d.size()];
                self.row_dense(row, &mut floats);
                out.iter_mut().enumerate().for_each(|(i, v)| *v = d.read(&floats, i));
            }
            Form::Grouped(g) => {
                let (mut codes, mut scales) = (vec![0; k], vec![0; g.row_scale_bytes(k)]);
                self.row_codes(row, &mut codes);
                self.row_scales(row, &mut scales);
                quant::values(&g, &codes, &scales, out);
            }
        }
    }

    /// The row's codes, one a byte. Grouped forms only. `out` has K elements.
    fn row_codes(&self, row: usize, out: &mut [u8]);

    /// The row's scale bytes in K order, as `Scales` lays them out. Grouped forms only.
    /// `out` has `Grouped::row_scale_bytes(K)` bytes.
    fn row_scales(&self, row: usize, out: &mut [u8]);

    /// The row's raw floats in little-endian order. Dense forms only. `out` has K elements of the form's dtype.
    fn row_dense(&self, row: usize, out: &mut [u8]);

    /// Called once after the last row was pulled: the source may give back what it mapped.
    fn done(&self) {}
}

impl Grouped {
    /// Decodes one row's scale bytes (as `row_scales` yields them) to f32: one scale, and one bias, per block.
    /// Without a bias in the format `biases` is filled with zero. Both have K / block elements.
    pub fn decode_scales(&self, bytes: &[u8], scales: &mut [f32], biases: &mut [f32]) {
        let per_unit = self.scales.unit_weights(self.block) / self.block;
        let units = bytes.chunks_exact(self.scales.unit_bytes());
        for ((unit, s), b) in units.zip(scales.chunks_mut(per_unit)).zip(biases.chunks_mut(per_unit)) {
            decode_unit(self.scales, unit, s, b);
        }
    }
}

/// One unit of scale bytes to f32 scales and biases.
fn decode_unit(kind: Scales, unit: &[u8], scales: &mut [f32], biases: &mut [f32]) {
    let f16 = |i: usize| DType::F16.read(unit, i);
    biases.fill(0.0);
    match kind {
        Scales::Float(d) => scales[0] = d.read(unit, 0),
        Scales::FloatBias(d) => (scales[0], biases[0]) = (d.read(unit, 0), d.read(unit, 1)),
        Scales::Exponent => scales[0] = exponent_scale(unit[0]),
        Scales::Float8 => scales[0] = 0.5 * float8(unit[0]),
        Scales::Nibbles16 => {
            let (d, dmin) = (f16(0), f16(1));
            for (i, &b) in unit[4..20].iter().enumerate() {
                let j = in_halves(i);
                scales[j] = d * f32::from(b & 15);
                biases[j] = -(dmin * f32::from(b >> 4));
            }
        }
        Scales::Six16 => {
            let d = f16(0);
            for (j, s) in scales.iter_mut().enumerate() {
                *s = d * (six_of_sixteen(&unit[2..14], j) as f32 - 32.0);
            }
        }
        Scales::Six8 => {
            let (d, dmin) = (f16(0), f16(1));
            for j in 0..8 {
                let (sc, m) = six_pair(&unit[4..16], j);
                scales[j] = d * sc as f32;
                biases[j] = -(dmin * m as f32);
            }
        }
        Scales::Byte16 => {
            let d = f16(0);
            for (j, &b) in unit[2..18].iter().enumerate() {
                scales[j] = d * f32::from(b as i8);
            }
        }
    }
}

/// Which block byte `i` of `Scales::Nibbles16` serves, and which byte serves block `i`.
pub fn in_halves(i: usize) -> usize {
    i & !3 | [0, 2, 1, 3][i & 3]
}

/// An 8-bit float of a sign, four bits of exponent and three of mantissa (e4m3): finite but for all ones, which is NaN.
/// Source: arXiv 2209.05433.
pub fn float8(byte: u8) -> f32 {
    // The same seven bits one place lower in an f16, whose exponent counts from 2^8 further down.
    let size =
        if byte & 0x7f == 0x7f { f32::NAN } else { 256.0 * f16::from_bits(u16::from(byte & 0x7f) << 7).to_f32() };
    if byte & 0x80 == 0 { size } else { -size }
}

/// 2^(e - 128) as f32, also where that is subnormal.
pub fn exponent_scale(e: u8) -> f32 {
    match e {
        0 => f32::from_bits(0x0020_0000),
        1 => f32::from_bits(0x0040_0000),
        _ => f32::from_bits((u32::from(e) - 1) << 23),
    }
}

/// Scale and minimum `j` of eight, from Q4_K's twelve bytes: the first four in the low six bits of bytes 0..4 and 4..8, the
/// last four as a nibble of bytes 8..12 and the two high bits of the earlier ones.
pub fn six_pair(b: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (b[j] & 63, b[j + 4] & 63)
    } else {
        ((b[j + 4] & 15) | ((b[j - 4] >> 6) << 4), (b[j + 4] >> 4) | ((b[j] >> 6) << 4))
    }
}

/// Scale `j` of sixteen, from Q3_K's twelve bytes: four low bits in bytes 0..8 (low nibbles first), two high bits in
/// bytes 8..12.
pub fn six_of_sixteen(b: &[u8], j: usize) -> u8 {
    let low = if j < 8 { b[j] & 15 } else { b[j - 8] >> 4 };
    low | (((b[8 + j % 4] >> (2 * (j / 4))) & 3) << 4)
}
