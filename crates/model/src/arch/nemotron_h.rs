//! Nemotron-H and Nemotron 3: layers that are one part each: Mamba-2, attention without positions, a plain feed-forward with squared
//! ReLU, or experts of such. `time_step_min` is not read: transformers holds the step to it in prefill alone.

use reverie_tensor::Act;
use serde_json::Value;

use super::{ArchEntry, Source, glm4_moe};
use crate::error::{Error, Result};
use crate::ffn::{glu, moe, relu2};
use crate::plan::{NormWeight, Part, Plan};

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "nemotron_h",
    aliases: &[],
    about: "Nemotron-H, Nemotron 3: Mamba-2, attention and squared-ReLU layers, dense or with experts",
    plan,
    gguf: None,
};

/// The layers' kinds: a list of words, or older one letter a layer.
fn kinds(source: &Source<'_>) -> Result<Vec<String>> {
    let config = &source.config;
    if let Some(listed) = config.optional_texts(config.spelling(&["layers_block_type", "layer_types"]))? {
        return Ok(listed.into_iter().map(str::to_owned).collect());
    }
    let letters = config.text("hybrid_override_pattern")?;
    letters
        .chars()
        .map(|letter| match letter {
            'M' => Ok("mamba".to_owned()),
            '*' => Ok("attention".to_owned()),
            '-' => Ok("mlp".to_owned()),
            'E' => Ok("moe".to_owned()),
            other => Err(Error::config("hybrid_override_pattern", other, "the letters M, *, - and E")),
        })
        .collect()
}

fn plan(source: &Source<'_>) -> Result<Plan> {
    let kinds = kinds(source)?;
    let fields = [("num_hidden_layers".to_owned(), kinds.len().into()), ("layer_types".to_owned(), Value::Null)];
    let source = &source.with_fields(fields);
    let config = &source.config;
    if config.has("moe_latent_size") {
        return Err(Error::config("moe_latent_size", "a width", "nothing: experts in a latent space are not computed"));
    }
    let act = config.optional_text("mlp_hidden_act")?.unwrap_or("relu2");
    if act != "relu2" {
        return Err(Error::config("mlp_hidden_act", act, "relu2"));
    }
    source.decoder(ENTRY.name, NormWeight::Plain, |i| {
        let part = match kinds[i].as_str() {
            "mamba" | "linear_attention" => Part::Mixer(Box::new(source.state_space()?)),
            "attention" | "full_attention" => {
                let mut attention = source.attention(i)?;
                attention.rope = None;
                Part::Mixer(Box::new(attention))
            }
            "mlp" => Part::Ffn((relu2::ENTRY.spec)(config, i)?),
            "moe" => {
                let shared = glu::width(config, "moe_shared_expert_intermediate_size")?;
                let experts = glm4_moe::sigmoid_experts(source)?;
                let experts = moe::Spec { act: Act::Relu2, shape: glu::Shape::Plain, ..experts };
                Part::Ffn(Box::new(experts.with_shared("shared_experts", shared)))
            }
            other => return Err(Error::config("layers_block_type", other, "mamba, attention, mlp or moe")),
        };
        Ok(vec![source.lone("mixer", part)?])
    })
}
