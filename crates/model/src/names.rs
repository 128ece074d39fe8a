//! How a plan's tensor names are spelt in a checkpoint. Plans use the names that transformers writes for a bare text model
//! ("model.layers.0.self_attn.q_proj.weight"); checkpoints wrap them, or are GGUF files with names of their own.

use reverie_files::TensorStore;

/// From the plan's spelling to the checkpoint's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Names {
    /// Hugging Face names, with what stands in place of the leading "model.".
    Wrapped(String),
    /// GGUF names by these pairs of leaves, beside the common ones.
    Gguf(&'static [(&'static str, &'static str)]),
}

/// Spellings of the leading "model.", most specific first.
const WRAPPERS: &[&str] =
    &["model.", "language_model.model.", "model.language_model.model.", "model.language_model.", "language_model.", ""];

/// GGUF leaves that mean the same in every family.
const COMMON: &[(&str, &str)] = &[
    ("input_layernorm", "attn_norm"),
    ("mlp.down_proj", "ffn_down"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("post_attention_layernorm", "ffn_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.v_proj", "attn_v"),
];

impl Names {
    /// Finds the wrapper by the embedding's name.
    pub fn of_hugging_face(weights: &dyn TensorStore) -> Names {
        let found = WRAPPERS.iter().find(|w| weights.contains(&format!("{w}embed_tokens.weight")));
        Names::Wrapped((*found.unwrap_or(&"model.")).to_owned())
    }

    /// The checkpoint's spelling of a plan's name.
    pub fn spell(&self, name: &str, weights: &dyn TensorStore) -> String {
        match self {
            Names::Wrapped(wrapper) => match name.strip_prefix("model.") {
                Some(rest) => format!("{wrapper}{rest}"),
                None => ["", "language_model.", "model.language_model.", "model."]
                    .iter()
                    .map(|w| format!("{w}{name}"))
                    .find(|n| weights.contains(n))
                    .unwrap_or_else(|| name.to_owned()),
            },
            Names::Gguf(own) => gguf(name, own),
        }
    }
}

/// "model.layers.3.mlp.up_proj.weight" → "blk.3.ffn_up.weight". A name without a GGUF spelling is kept and then not found.
fn gguf(name: &str, own: &[(&str, &str)]) -> String {
    let (stem, suffix) = match name.rsplit_once('.') {
        Some((stem, leaf @ ("weight" | "bias"))) => (stem, format!(".{leaf}")),
        _ => (name, String::new()),
    };
    let whole = match stem {
        "model.embed_tokens" => Some("token_embd"),
        "model.norm" => Some("output_norm"),
        "lm_head" => Some("output"),
        _ => None,
    };
    if let Some(whole) = whole {
        return format!("{whole}{suffix}");
    }
    let Some((layer, leaf)) = stem.strip_prefix("model.layers.").and_then(|r| r.split_once('.')) else {
        return name.to_owned();
    };
    match own.iter().chain(COMMON).find(|(hf, _)| *hf == leaf) {
        // A GGUF leaf that brings its own suffix ("ssm_a", "ssm_dt.bias") ends the name.
        Some((_, g)) if g.ends_with('!') => format!("blk.{layer}.{}", g.trim_end_matches('!')),
        Some((_, g)) => format!("blk.{layer}.{g}{suffix}"),
        None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gguf_spellings() {
        let own: &[(&str, &str)] =
            &[("post_attention_layernorm", "post_attention_norm"), ("linear_attn.A_log", "ssm_a!")];
        for (plan, file) in [
            ("model.embed_tokens.weight", "token_embd.weight"),
            ("lm_head.weight", "output.weight"),
            ("model.layers.12.self_attn.q_proj.bias", "blk.12.attn_q.bias"),
            ("model.layers.0.post_attention_layernorm.weight", "blk.0.post_attention_norm.weight"),
            ("model.layers.0.linear_attn.A_log", "blk.0.ssm_a"),
        ] {
            assert_eq!(gguf(plan, own), file);
        }
    }
}
