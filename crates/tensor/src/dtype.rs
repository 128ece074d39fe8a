//! Element types of tensors and how one element is read as f32. Knows no quantised block: those are `quant`.

use half::{bf16, f16};

/// The element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// 32-bit IEEE float.
    F32,
    /// 16-bit IEEE float.
    F16,
    /// bfloat16: the upper half of an f32.
    BF16,
    /// Unsigned 32-bit integer.
    U32,
    /// Unsigned byte; also the type of raw storage.
    U8,
}

impl DType {
    /// `value` as this type would hold it.
    pub fn rounded(self, value: f32) -> f32 {
        let mut bytes = [0; 8];
        self.write(&mut bytes, 0, value);
        self.read(&bytes, 0)
    }

    /// Bytes of one element.
    #[inline]
    pub const fn size(self) -> usize {
        match self {
            DType::F32 | DType::U32 => 4,
            DType::F16 | DType::BF16 => 2,
            DType::U8 => 1,
        }
    }

    /// The name used in messages and `--json` output.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::U32 => "u32",
            DType::U8 => "u8",
        }
    }

    /// True for the three float types.
    pub const fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F16 | DType::BF16)
    }

    /// Reads element `i` of little-endian `bytes` as f32. `bytes` must hold at least `i + 1` elements.
    pub fn read(self, bytes: &[u8], i: usize) -> f32 {
        match self {
            DType::F32 => f32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]]),
            DType::F16 => f16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32(),
            DType::BF16 => bf16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32(),
            DType::U32 => {
                u32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]]) as f32
            }
            DType::U8 => f32::from(bytes[i]),
        }
    }

    /// Writes `value` as element `i`, rounding to nearest even.
    pub fn write(self, bytes: &mut [u8], i: usize, value: f32) {
        match self {
            DType::F32 => bytes[4 * i..4 * i + 4].copy_from_slice(&value.to_le_bytes()),
            DType::F16 => bytes[2 * i..2 * i + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes()),
            DType::BF16 => bytes[2 * i..2 * i + 2].copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
            DType::U32 => bytes[4 * i..4 * i + 4].copy_from_slice(&(value as u32).to_le_bytes()),
            DType::U8 => bytes[i] = value as u8,
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
