//! Weights made of random bytes, as a source of any form, and the forms there are. Knows no file format.

#![allow(dead_code, unreachable_pub)] // each test binary uses its part

use std::sync::atomic::{AtomicUsize, Ordering};

use reverie_tensor::{DType, Form, Grouped, Levels, Scales, WeightSource};

/// Splitmix64: a seed, a stream.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// In -1..1.
    pub fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// Values of which a few are far larger than the rest, as activations are.
    pub fn activations(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| if self.below(50) == 0 { self.float() * 30.0 } else { self.float() }).collect()
    }
}

/// A matrix of random bytes.
pub struct Synthetic {
    pub n: usize,
    pub k: usize,
    pub form: Form,
    /// Codes of grouped forms, raw floats of dense ones.
    pub values: Vec<u8>,
    pub scales: Vec<u8>,
    pub done: AtomicUsize,
}

impl Synthetic {
    pub fn new(n: usize, k: usize, form: Form, random: &mut Random) -> Synthetic {
        let (values, scales) = match &form {
            Form::Dense(d) => {
                let mut bytes = vec![0; n * k * d.size()];
                (0..n * k).for_each(|i| d.write(&mut bytes, i, random.float()));
                (bytes, Vec::new())
            }
            Form::Grouped(g) => {
                let mask = ((1u32 << g.bits) - 1) as u8;
                let codes = (0..n * k).map(|_| random.next() as u8 & mask).collect();
                let units = n * k / g.scales.unit_weights(g.block);
                (codes, (0..units).flat_map(|_| scale_unit(g.scales, random)).collect())
            }
        };
        Synthetic { n, k, form, values, scales, done: AtomicUsize::new(0) }
    }

    /// Makes a few floats infinite or NaN.
    pub fn spoil(&mut self, random: &mut Random) {
        let bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
        for (i, v) in bad.into_iter().enumerate() {
            let row = random.below(self.n);
            match &self.form {
                Form::Dense(d) => d.write(&mut self.values, row * self.k + i, v),
                Form::Grouped(g) => {
                    let d = match g.scales {
                        Scales::Exponent => continue,
                        Scales::Float8 => {
                            self.scales[row * g.row_scale_bytes(self.k)] = [0x7f, 0xff, 0x7e][i];
                            continue;
                        }
                        Scales::Float(d) | Scales::FloatBias(d) => d,
                        _ => DType::F16,
                    };
                    let row_bytes = g.row_scale_bytes(self.k);
                    d.write(&mut self.scales[row * row_bytes..], 0, v);
                }
            }
        }
    }
}

fn scale_unit(kind: Scales, random: &mut Random) -> Vec<u8> {
    let mut unit: Vec<u8> = (0..kind.unit_bytes()).map(|_| random.next() as u8).collect();
    let mut float = |d: DType, i| d.write(&mut unit, i, random.float() * 0.02);
    match kind {
        Scales::Float(d) => float(d, 0),
        Scales::FloatBias(d) => {
            float(d, 0);
            float(d, 1);
        }
        // Every exponent, in the open range of f32 for most.
        Scales::Exponent => {
            unit[0] = if random.below(8) == 0 { random.next() as u8 } else { 110 + random.below(20) as u8 }
        }
        // Every float, NaN seldom.
        Scales::Float8 => unit[0] = if unit[0] & 0x7f == 0x7f && random.below(64) > 0 { 0x80 } else { unit[0] },
        Scales::Nibbles16 | Scales::Six8 => {
            float(DType::F16, 0);
            float(DType::F16, 1);
        }
        Scales::Six16 | Scales::Byte16 => float(DType::F16, 0),
    }
    unit
}

impl WeightSource for Synthetic {
    fn shape(&self) -> (usize, usize) {
        (self.n, self.k)
    }
    fn form(&self) -> Form {
        self.form.clone()
    }
    fn row_f32(&self, row: usize, out: &mut [f32]) {
        match &self.form {
            Form::Dense(d) => out.iter_mut().enumerate().for_each(|(i, v)| *v = d.read(&self.values, row * self.k + i)),
            Form::Grouped(g) => {
                let mut bytes = vec![0; g.row_scale_bytes(self.k)];
                let (mut scales, mut biases) = (vec![0.0; self.k / g.block], vec![0.0; self.k / g.block]);
                self.row_scales(row, &mut bytes);
                g.decode_scales(&bytes, &mut scales, &mut biases);
                for (i, v) in out.iter_mut().enumerate() {
                    *v = g.level(self.values[row * self.k + i]) as f32 * scales[i / g.block];
                    if g.scales.has_bias() {
                        *v += biases[i / g.block];
                    }
                }
            }
        }
    }
    fn row_codes(&self, row: usize, out: &mut [u8]) {
        out.copy_from_slice(&self.values[row * self.k..(row + 1) * self.k]);
    }
    fn row_scales(&self, row: usize, out: &mut [u8]) {
        let n = out.len();
        out.copy_from_slice(&self.scales[row * n..(row + 1) * n]);
    }
    fn row_dense(&self, row: usize, out: &mut [u8]) {
        let n = out.len();
        out.copy_from_slice(&self.values[row * n..(row + 1) * n]);
    }
    fn done(&self) {
        self.done.fetch_add(1, Ordering::Relaxed);
    }
}

/// Every form that panels hold: all widths with plain scales of all blocks and types, tables, and the K-quants' scales.
pub fn all_forms() -> Vec<Form> {
    let mut forms: Vec<Form> = [DType::F32, DType::F16, DType::BF16].map(Form::Dense).into();
    let mut grouped = |bits, levels, block, scales| forms.push(Form::Grouped(Grouped { bits, levels, block, scales }));
    let floats = [DType::F16, DType::BF16, DType::F32];
    for (i, bits) in [2, 3, 4, 5, 6, 8].into_iter().enumerate() {
        for (j, block) in [16, 32, 64, 128].into_iter().enumerate() {
            let d = floats[(i + j) % 3];
            if block > 16 {
                grouped(bits, Levels::Offset(0), block, Scales::FloatBias(d));
            }
            grouped(bits, Levels::Offset(1 << (bits - 1)), block, Scales::Float(d));
        }
        for (scales, block) in [
            (Scales::Nibbles16, 16),
            (Scales::Six16, 16),
            (Scales::Six8, 32),
            (Scales::Byte16, 16),
            (Scales::Exponent, 32),
        ] {
            if scales != Scales::Nibbles16 || bits == 2 {
                grouped(bits, Levels::Offset(1 << (bits - 1)), block, scales);
            }
        }
    }
    let doubled_e2m1 = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];
    let iq4_nl = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
    let gentle = [-7, -6, -5, -4, -3, -2, -1, 0, 0, 1, 2, 3, 4, 5, 6, 7];
    for table in
        [doubled_e2m1, iq4_nl, gentle, [i8::MIN; 16], std::array::from_fn(|i| if i % 2 == 0 { -128 } else { 127 })]
    {
        grouped(4, Levels::Table(table), 32, Scales::Exponent);
        grouped(4, Levels::Table(table), 32, Scales::Float(DType::F16));
        grouped(4, Levels::Table(table), 16, Scales::Float(DType::F16));
        grouped(4, Levels::Table(table), 16, Scales::Float8);
    }
    forms
}
