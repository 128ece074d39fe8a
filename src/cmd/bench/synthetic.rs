//! Random weights of a real model's shape, made row by row as the backend packs them, so that no download and no second copy is
//! needed. Values have about the variance of trained weights; a benchmark on zeros would measure nothing.

use reverie::rooms::files::{Error, ModelConfig, TensorStore};
use reverie::rooms::tensor::quant::{self, PlaneSpec};
use reverie::rooms::tensor::{DType, Form, Grouped, Scales, WeightSource};
use serde_json::{Value, json};
use std::path::Path;

/// Named shapes: the fields of the models' own config.json.
fn shape(name: &str) -> Option<Value> {
    let qwen3 = |width: usize, inner: usize, layers: usize, heads: usize| {
        json!({
            "model_type": "qwen3", "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936,
            "max_position_embeddings": 40_960, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": true,
        })
    };
    match name {
        "olmoe-1b-7b" => Some(json!({
            "model_type": "olmoe", "hidden_size": 2048, "intermediate_size": 1024, "num_hidden_layers": 16,
            "num_attention_heads": 16, "num_key_value_heads": 16, "num_experts": 64, "num_experts_per_tok": 8,
            "norm_topk_prob": false, "vocab_size": 50_304, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
            "rope_theta": 1e4, "tie_word_embeddings": false,
        })),
        "qwen3-0.6b" => Some(qwen3(1024, 3072, 28, 16)),
        "qwen3-1.7b" => Some(qwen3(2048, 6144, 28, 16)),
        "qwen3-4b" => Some(qwen3(2560, 9728, 36, 32)),
        "qwen3.5-0.8b" => Some(json!({
            "model_type": "qwen3_5_text", "hidden_size": 1024, "intermediate_size": 3584, "num_hidden_layers": 24,
            "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 256, "vocab_size": 248_320,
            "max_position_embeddings": 262_144, "rms_norm_eps": 1e-6, "tie_word_embeddings": true,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25},
            "full_attention_interval": 4, "linear_num_key_heads": 16, "linear_num_value_heads": 16,
            "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4,
        })),
        "mamba2-370m" => Some(json!({
            "model_type": "mamba2", "hidden_size": 1024, "num_hidden_layers": 48, "num_heads": 32, "head_dim": 64,
            "state_size": 128, "n_groups": 1, "conv_kernel": 4, "expand": 2, "vocab_size": 50_288,
            "layer_norm_epsilon": 1e-5, "tie_word_embeddings": true,
        })),
        "lfm2-350m" => Some(json!({
            "model_type": "lfm2", "hidden_size": 1024, "block_ff_dim": 6656, "num_hidden_layers": 16,
            "num_attention_heads": 16, "num_key_value_heads": 8, "conv_L_cache": 3, "vocab_size": 65_536,
            "max_position_embeddings": 128_000, "norm_eps": 1e-5, "rope_theta": 1e6, "tie_word_embeddings": true,
            "full_attn_idxs": [2, 5, 8, 10, 12, 14],
        })),
        _ => None,
    }
}

/// Tensors of any name: matrices in one format, vectors near one.
pub struct Store {
    config: Value,
    form: Form,
}

impl Store {
    /// A shape and a format, by name; the error says what there is.
    pub fn new(name: &str, format: &str) -> Result<Store, String> {
        let config = shape(name).ok_or_else(|| {
            format!("--synthetic: found '{name}', expected lfm2-350m, mamba2-370m, olmoe-1b-7b, qwen3-0.6b, qwen3-1.7b, qwen3-4b or qwen3.5-0.8b")
        })?;
        Ok(Store { config, form: form(format)? })
    }

    /// The shape's config.
    pub fn config(&self) -> ModelConfig {
        ModelConfig::new(Path::new("synthetic"), self.config.as_object().cloned().unwrap_or_default())
    }
}

fn form(name: &str) -> Result<Form, String> {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        if dtype.name() == name {
            return Ok(Form::Dense(dtype));
        }
    }
    if let Some(blocks) = quant::find(quant::QUANTS, name).and_then(|q| q.blocks) {
        return Ok(Form::Grouped(blocks.form.clone()));
    }
    let affine = || -> Option<Form> {
        let (bits, group) = name.strip_prefix("affine")?.split_once(':')?;
        let spec = PlaneSpec { bits: bits.parse().ok()?, group: group.parse().ok()?, dtype: DType::BF16 };
        let planes = quant::affine::ENTRY.planes?;
        planes.check("--format", spec).ok()
    };
    // In planes too, but without a choice of bits.
    let plain = || quant::find(quant::QUANTS, name)?.planes?.only();
    affine().or_else(plain).ok_or_else(|| {
        let whole = quant::QUANTS.iter().filter(|q| q.blocks.is_some() || q.planes.is_some_and(|p| p.only().is_some()));
        let names: Vec<&str> = whole.map(|q| q.name).collect();
        format!(
            "--format: found '{name}', expected bf16, f16, f32, affineBITS:GROUP (affine4:64), {}",
            names.join(", ")
        )
    })
}

impl TensorStore for Store {
    fn contains(&self, name: &str) -> bool {
        let stacked = ["lm_head.weight", "gate_up_proj.weight", "qkv_proj.weight"];
        name.ends_with(".weight") && !stacked.iter().any(|s| name.ends_with(s))
    }
    fn shape(&self, _name: &str) -> Option<Vec<usize>> {
        None
    }
    fn matrix<'a>(&'a self, name: &str, (n, k): (usize, usize)) -> Result<Box<dyn WeightSource + 'a>, Error> {
        Ok(Box::new(Random { n, k, form: self.form.clone(), seed: seed(name) }))
    }
    fn floats(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>), Error> {
        let channels = self.config["linear_num_key_heads"].as_u64().unwrap_or(0) as usize * 128 * 2
            + self.config["linear_num_value_heads"].as_u64().unwrap_or(0) as usize * 128;
        let mut rng = Rng(seed(name));
        Ok((vec![channels, 1, 4], (0..channels * 4).map(|_| rng.unit() * 0.5).collect()))
    }
    fn vector(&self, name: &str, n: usize) -> Result<Vec<f32>, Error> {
        let mut rng = Rng(seed(name));
        let centre = if name.contains("A_log") || name.contains("dt_bias") { 0.0 } else { 1.0 };
        Ok((0..n).map(|_| centre + 0.1 * rng.unit()).collect())
    }
}

fn seed(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

/// xorshift64*: quick, and good enough for weights.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
    /// Uniform in -1..1.
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / 8_388_608.0 - 1.0
    }
}

/// A random matrix: each row from its own seed.
struct Random {
    n: usize,
    k: usize,
    form: Form,
    seed: u64,
}

impl Random {
    fn rng(&self, row: usize) -> Rng {
        let mut rng = Rng(self.seed ^ (row as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        rng.next();
        rng
    }

    /// Writes scales such that weights have the variance 1/K.
    fn scale_unit(&self, g: &Grouped, unit: &mut [u8], rng: &mut Rng) {
        let half = f32::from(1u16 << (g.bits - 1));
        let step = 1.7 / (half * (self.k as f32).sqrt()) * (1.0 + 0.2 * rng.unit());
        let set = |unit: &mut [u8], i: usize, v: f32| DType::F16.write(unit, i, v);
        unit.iter_mut().for_each(|b| *b = (rng.next() >> 56) as u8);
        match g.scales {
            Scales::Float(d) => d.write(unit, 0, step),
            Scales::FloatBias(d) => {
                d.write(unit, 0, step);
                d.write(unit, 1, -step * (half - 0.5));
            }
            // Levels are up to 12.
            Scales::Exponent => unit[0] = (128.0 + (step * half / 12.0).log2()).round() as u8,
            // The first fifteen floats are multiples of 2^-9.
            Scales::Float8 => unit[0] = (1024.0 * step * half / 12.0).round().clamp(1.0, 15.0) as u8,
            Scales::Nibbles16 => {
                set(unit, 0, step / 8.0);
                set(unit, 1, step * half / 8.0);
            }
            Scales::Six8 => {
                set(unit, 0, step / 32.0);
                set(unit, 1, step * half / 32.0);
            }
            Scales::Six16 => set(unit, 0, step / 16.0),
            Scales::Byte16 => set(unit, 0, step / 64.0),
        }
    }
}

impl WeightSource for Random {
    fn shape(&self) -> (usize, usize) {
        (self.n, self.k)
    }
    fn form(&self) -> Form {
        self.form.clone()
    }
    fn row_codes(&self, row: usize, out: &mut [u8]) {
        let Form::Grouped(g) = &self.form else { return };
        let mask = (0xffu8 >> (8 - g.bits)) as u64 * 0x0101_0101_0101_0101;
        let mut rng = self.rng(row);
        for eight in out.chunks_mut(8) {
            let codes = (rng.next() & mask).to_le_bytes();
            eight.copy_from_slice(&codes[..eight.len()]);
        }
    }
    fn row_scales(&self, row: usize, out: &mut [u8]) {
        let Form::Grouped(g) = &self.form else { return };
        let mut rng = self.rng(row + self.n);
        for unit in out.chunks_mut(g.scales.unit_bytes()) {
            self.scale_unit(g, unit, &mut rng);
        }
    }
    fn row_dense(&self, row: usize, out: &mut [u8]) {
        let Form::Dense(d) = self.form else { return };
        let (mut rng, spread) = (self.rng(row), 1.7 / (self.k as f32).sqrt());
        (0..self.k).for_each(|i| d.write(out, i, rng.unit() * spread));
    }
}
