//! The model inside the binary: a small trained checkpoint, quantised by this project's own `quantize`, so that a first start needs
//! no download. assets/pocket-hybrid/README.md says what it is and how it was made.

use reverie_files::Checkpoint;
use reverie_tensor::quant::QUANTS;

use crate::error::Result;

/// The name that MODEL takes for it.
pub const EMBEDDED: &str = "pocket-hybrid";

static FILES: &[(&str, &[u8])] = &[
    ("config.json", include_bytes!("../assets/pocket-hybrid/config.json")),
    ("generation_config.json", include_bytes!("../assets/pocket-hybrid/generation_config.json")),
    ("model.safetensors", include_bytes!("../assets/pocket-hybrid/model.safetensors")),
    ("tokenizer.json", include_bytes!("../assets/pocket-hybrid/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../assets/pocket-hybrid/tokenizer_config.json")),
];

/// Opens it.
pub fn checkpoint() -> Result<Checkpoint> {
    Ok(Checkpoint::embedded(EMBEDDED, FILES, QUANTS)?)
}
