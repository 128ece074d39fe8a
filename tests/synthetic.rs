//! Checkpoints from nothing: a plan is put together on the dry backend by a store that notes every tensor it is asked for; those are
//! then written with random values. So a test needs to know no mixer's tensors, only its config fields.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use reverie::Registries;
use reverie::rooms::cpu::{Cpu, CpuSpec};
use reverie::rooms::files::{Error, ModelConfig, TensorStore};
use reverie::rooms::model::arch::Source;
use reverie::rooms::model::{Error as ModelError, assemble};
use reverie::rooms::tensor::dry::Dry;
use reverie::rooms::tensor::{Backend, DType, Form, WeightSource};
use serde_json::{Map, Value};

/// Tensors by name, as bare text models spell them.
pub type Shapes = BTreeMap<String, Vec<usize>>;

/// Gives whatever it is asked for, and notes it.
#[derive(Default)]
struct Anything {
    asked: Mutex<Shapes>,
    /// Shapes of tensors that are read without saying which shape they should have.
    known: Shapes,
}

struct Blank((usize, usize));

impl WeightSource for Blank {
    fn shape(&self) -> (usize, usize) {
        self.0
    }
    fn form(&self) -> Form {
        Form::Dense(DType::F32)
    }
    fn row_f32(&self, _: usize, out: &mut [f32]) {
        out.fill(0.0);
    }
    fn row_codes(&self, _: usize, _: &mut [u8]) {}
    fn row_scales(&self, _: usize, _: &mut [u8]) {}
    fn row_dense(&self, _: usize, out: &mut [u8]) {
        out.fill(0);
    }
}

impl TensorStore for Anything {
    fn contains(&self, name: &str) -> bool {
        let first_expert = name.contains(".experts.0.") && name.ends_with("_proj.weight");
        first_expert || ["model.embed_tokens.weight", "model.norm.weight"].contains(&name)
    }
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        // Taps have a shape to check, known or not.
        if name.contains("conv") && name.ends_with(".weight") {
            return Some(self.known.get(name).cloned().unwrap_or_else(|| vec![0]));
        }
        // What no config says: the ranks of narrow ways, the rows of stacked projections.
        let narrow: &[(&str, [usize; 2])] =
            &[("x_proj.0.linear.weight", [40, 64]), (".0.weight", [8, 64]), ("qkv_proj.weight", [192, 64])];
        narrow.iter().find(|(leaf, _)| name.ends_with(leaf)).map(|(_, shape)| shape.to_vec())
    }
    fn matrix<'a>(&'a self, name: &str, (n, k): (usize, usize)) -> Result<Box<dyn WeightSource + 'a>, Error> {
        self.asked.lock().expect("lock").insert(name.to_owned(), vec![n, k]);
        Ok(Box::new(Blank((n, k))))
    }
    fn floats(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>), Error> {
        let shape = self.known.get(name).cloned().unwrap_or_else(|| vec![0]);
        self.asked.lock().expect("lock").insert(name.to_owned(), shape.clone());
        let n = shape.iter().product();
        Ok((shape, vec![0.1; n]))
    }
    fn vector(&self, name: &str, n: usize) -> Result<Vec<f32>, Error> {
        self.asked.lock().expect("lock").insert(name.to_owned(), vec![n]);
        Ok(vec![0.1; n])
    }
}

/// The tensors that a model of this config has.
pub fn shapes(config: &Map<String, Value>, registries: &Registries) -> Result<Shapes, ModelError> {
    let config = ModelConfig::new(Path::new("synthetic"), config.clone());
    let arch = registries.arch(config.text("model_type").map_err(ModelError::from)?)?;
    let cpu: Arc<dyn Backend> = Arc::new(Cpu::new(CpuSpec { threads: Some(1), ..CpuSpec::default() })?);
    let dry: Arc<dyn Backend> = Arc::new(Dry::new(cpu));
    let layers = config.usize("num_hidden_layers").map_err(ModelError::from)?;
    let mut store = Anything::default();
    for _ in 0..200 {
        let plan = (arch.plan)(&Source::hugging_face(&config, &store, registries)?)?;
        match assemble(plan, &store, &dry, None, &mut |_, _| {}) {
            Ok(_) => return Ok(store.asked.into_inner().expect("lock")),
            // A tensor that was read without a shape: the refusal says the right one, or how many channels are missing.
            Err(ModelError::TensorShape { name, expected, .. }) => {
                let extents: Vec<usize> = expected
                    .trim_matches(['[', ']'])
                    .split(", ")
                    .map(|n| if n == "layers" { layers } else { n.parse().unwrap_or(1) })
                    .collect();
                match expected.split_once(" channels").and_then(|(n, _)| n.parse::<usize>().ok()) {
                    Some(channels) if name.ends_with("q_conv1d.weight") => {
                        let (layer, asked) =
                            (name.trim_end_matches("q_conv1d.weight"), store.asked.lock().expect("lock"));
                        for part in ["q", "k", "v"] {
                            let rows = asked.get(&format!("{layer}{part}_proj.weight")).map_or(channels / 3, |s| s[0]);
                            let own = store.known.get_mut(&format!("{layer}{part}_conv1d.weight"));
                            own.expect("read before")[0] = rows;
                        }
                    }
                    Some(channels) => store.known.get_mut(&name).expect("a shape")[0] = channels,
                    None => drop(store.known.insert(name, extents)),
                }
            }
            Err(other) => return Err(other),
        }
    }
    Err(ModelError::config("synthetic checkpoint", "no end of wrong shapes", format!("{:?}", store.known)))
}

/// Writes a checkpoint folder: random values, the tokenizer of the fixtures.
pub fn write(folder: &Path, config: &Map<String, Value>, tensors: &Shapes) {
    let root = crate::fixtures::root().join("llama");
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(root.join(file), folder.join(file)).expect("copy");
    }
    std::fs::write(folder.join("config.json"), Value::Object(config.clone()).to_string()).expect("config");
    let (mut header, mut data) = (Map::new(), Vec::new());
    for (name, shape) in tensors {
        let from = data.len();
        for value in values(name, shape) {
            data.extend_from_slice(&value.to_le_bytes());
        }
        header.insert(
            name.clone(),
            serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [from, data.len()]}),
        );
    }
    let header = Value::Object(header).to_string();
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
    std::fs::write(folder.join("model.safetensors"), file).expect("tensors");
}

/// Norms about one, matrices that keep magnitudes, small vectors.
fn values(name: &str, shape: &[usize]) -> Vec<f32> {
    let mut x =
        name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)) | 1;
    let (centre, spread) = match shape {
        [_] if name.contains("norm") => (1.0, 0.1),
        [_] => (0.0, 0.3),
        [_, k] => (0.0, 1.7 / (*k as f32).sqrt()),
        _ => (0.0, 0.5),
    };
    let unit = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 40) as f32 / 8_388_608.0 - 1.0
    };
    std::iter::repeat_with(unit).take(shape.iter().product()).map(|u| centre + spread * u).collect()
}
