//! Nemotron-H and Nemotron 3: layers that are one part each: Mamba-2, attention without positions, a plain feed-forward with squared
//! ReLU, or experts of such. `time_step_min` is not read: transformers holds the step to it in prefill alone.

use reverie_tensor::Act;
use serde_json::Value;

use super::{ArchEntry, Source, gguf, glm4_moe};
use crate::error::{Error, Result};
use crate::ffn::{glu, moe, relu2};
use crate::names::Leaves;
use crate::plan::{NormWeight, Part, Plan};

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "nemotron_h",
    aliases: &[],
    about: "Nemotron-H, Nemotron 3: Mamba-2, attention and squared-ReLU layers, dense or with experts",
    plan,
    gguf: Some(&gguf::Dialect {
        arch: "nemotron_h",
        names: GGUF_LEAVES,
        interleaved_rows: false,
        adapt: |metadata, map| gguf::state_space(metadata, map, "nemotron_h"),
    }),
};

/// Where experts work in a space of their own.
const LATENT: moe::Latent = moe::Latent { width: 0, enter: "fc1_latent_proj", leave: "fc2_latent_proj" };

/// GGUF's words for it.
pub(super) const GGUF_LEAVES: Leaves = &[
    ("mixer.down_proj", "ffn_down"),
    ("mixer.experts.down_proj", "ffn_down_exps"),
    ("mixer.experts.up_proj", "ffn_up_exps"),
    ("mixer.fc1_latent_proj", "ffn_latent_down"),
    ("mixer.fc2_latent_proj", "ffn_latent_up"),
    ("mixer.gate", "ffn_gate_inp"),
    ("mixer.gate.e_score_correction_bias", "exp_probs_b.bias!"),
    ("mixer.k_proj", "attn_k"),
    ("mixer.o_proj", "attn_output"),
    ("mixer.q_proj", "attn_q"),
    ("mixer.shared_experts.down_proj", "ffn_down_shexp"),
    ("mixer.shared_experts.up_proj", "ffn_up_shexp"),
    ("mixer.up_proj", "ffn_up"),
    ("mixer.v_proj", "attn_v"),
];

/// The kind of a GGUF file's layer, by the tensors it has.
fn kind_of(source: &Source<'_>, layer: usize) -> String {
    let has = |leaf: &str| source.weights.contains(&format!("blk.{layer}.{leaf}.weight"));
    let signs = [("ssm_in", "mamba"), ("attn_q", "attention"), ("ffn_gate_inp", "moe"), ("ffn_up", "mlp")];
    signs.iter().find(|(leaf, _)| has(leaf)).map_or("", |(_, kind)| kind).to_owned()
}

/// The layers' kinds: a list of words, or older one letter a layer.
fn kinds(source: &Source<'_>) -> Result<Vec<String>> {
    let config = &source.config;
    if source.gguf.is_some() {
        let n = config.usize("num_hidden_layers")?.min(10_000);
        return Ok((0..n).map(|i| kind_of(source, i)).collect());
    }
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

pub(super) fn plan(source: &Source<'_>) -> Result<Plan> {
    let kinds = kinds(source)?;
    // Whatever the config says, transformers uses a head of its own where the checkpoint has one.
    let fields =
        [("num_hidden_layers", kinds.len().into()), ("layer_types", Value::Null), ("tie_word_embeddings", Value::Null)];
    let source = &source.with_fields(fields.map(|(field, value)| (field.to_owned(), value)));
    let config = &source.config;
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
                // transformers does not read `attention_bias`: biases count where the checkpoint has them.
                (attention.qkv_bias, attention.o_bias) = (false, false);
                Part::Mixer(Box::new(attention))
            }
            "mlp" => Part::Ffn((relu2::ENTRY.spec)(config, i)?),
            "moe" => {
                let shared = glu::width(config, "moe_shared_expert_intermediate_size")?;
                let experts = glm4_moe::sigmoid_experts(source)?;
                let latent = match config.has("moe_latent_size") {
                    true => Some(moe::Latent { width: glu::width(config, "moe_latent_size")?, ..LATENT }),
                    false => None,
                };
                let experts = moe::Spec { act: Act::Relu2, shape: glu::Shape::Plain, latent, ..experts };
                Part::Ffn(Box::new(experts.with_shared("shared_experts", shared)))
            }
            other => return Err(Error::config("layers_block_type", other, "mamba, attention, mlp or moe")),
        };
        Ok(vec![source.lone("mixer", part)?])
    })
}
