//! Zamba2: Mamba-2 layers, some of them behind a transformer block that they share.

use super::{ArchEntry, Source};
use crate::error::{Error, Result};
use crate::mixer::mamba2::OutNorm;
use crate::mixer::shared_attention;
use crate::plan::{Block, Layer, MixerSpec, NormSpec, NormWeight, Part, Plan};
use crate::rewrite::keep_embedding::KeepEmbedding;

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "zamba2",
    aliases: &[],
    about: "Zamba2: Mamba-2 layers and a shared attention block with adapters",
    plan,
    gguf: None,
};

/// Of the norm inside the Mamba-2 layers, which no field says.
const INNER_EPS: f32 = 1e-5;

fn plan(source: &Source<'_>) -> Result<Plan> {
    let config = &source.config;
    let kinds = config.optional_texts(config.spelling(&["layers_block_type", "layer_types"]))?;
    let Some(kinds) = kinds.filter(|k| Some(k.len()) == config.optional_usize("num_hidden_layers").ok().flatten())
    else {
        return Err(Error::config("layers_block_type", "nothing, or too few or many", "a word for each layer"));
    };
    let shared: Vec<usize> = (0..kinds.len()).filter(|i| kinds[*i] == "hybrid").collect();
    let mut plan = source.decoder(ENTRY.name, NormWeight::Plain, |i| {
        let mut scan = source.state_space()?;
        scan.norm = OutNorm::GateFirst(INNER_EPS);
        let (scope, norm, mixer): (_, _, Box<dyn MixerSpec>) = match kinds[i] {
            "mamba" | "linear_attention" => ("mamba", "input_layernorm", Box::new(scan)),
            "hybrid" => {
                let mut behind = shared_attention::Spec::from_config(config, i, &shared)?;
                behind.then = Box::new(scan);
                ("", "mamba_decoder.input_layernorm", Box::new(behind))
            }
            other => return Err(Error::config("layers_block_type", other, "mamba or hybrid")),
        };
        let norm = NormSpec::rms(norm, source.eps()?, NormWeight::Plain);
        Ok(vec![Block::new(scope, Some(norm), Part::Mixer(mixer))])
    })?;
    let keep = Block::new("", None, Part::Rewrite(Box::new(KeepEmbedding)));
    plan.before = Some(Layer { prefix: "model".into(), blocks: vec![keep] });
    Ok(plan)
}
