//! How a plan's tensor names are spelt in a checkpoint. Plans use the names that transformers writes for a bare text model
//! ("model.layers.0.self_attn.q_proj.weight"); checkpoints wrap them, or are GGUF files with names of their own.

use reverie_files::TensorStore;

/// From the plan's spelling to the checkpoint's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Names {
    /// Hugging Face names.
    Wrapped {
        /// What stands in place of the leading "model.".
        prefix: &'static str,
        /// What the checkpoint calls the parts below it.
        top: &'static Top,
        /// Pairs of leaves (plan's, file's) below a layer; a pair covers what lies below its leaf too. Of those
        /// that fit, and the plan's own word after them, the first that the checkpoint has counts.
        leaves: Leaves,
    },
    /// GGUF names by these pairs of leaves, beside the common ones.
    Gguf(Leaves),
}

/// Pairs of names: the plan's, the file's.
pub type Leaves = &'static [(&'static str, &'static str)];

/// What a checkpoint calls the parts of a decoder, where plans say "embed_tokens", "norm" and "layers".
#[derive(Debug, PartialEq, Eq)]
pub struct Top {
    embed: &'static str,
    norm: &'static str,
    layers: &'static str,
}

/// Spellings of the leading "model.", most specific first.
const PREFIXES: &[&str] = &[
    "model.",
    "language_model.model.",
    "model.language_model.model.",
    "model.language_model.",
    "language_model.",
    "backbone.",
    "rwkv.",
    "",
];

/// Spellings of the parts below it.
static TOPS: &[Top] = &[
    Top { embed: "embed_tokens", norm: "norm", layers: "layers" },
    Top { embed: "embed_tokens", norm: "final_layernorm", layers: "layers" },
    Top { embed: "embed_tokens", norm: "final_norm", layers: "layers" },
    Top { embed: "embed_tokens", norm: "embedding_norm", layers: "layers" },
    Top { embed: "embeddings", norm: "norm_f", layers: "layers" },
    Top { embed: "embeddings", norm: "norm", layers: "layers" },
    Top { embed: "embeddings", norm: "ln_out", layers: "blocks" },
    Top { embed: "embeddings", norm: "ln_out", layers: "layers" },
    Top { embed: "embeddings", norm: "out_norm", layers: "blocks" },
    Top { embed: "word_embeddings", norm: "norm", layers: "layers" },
];

/// GGUF leaves that mean the same in every family.
const COMMON: &[(&str, &str)] = &[
    ("input_layernorm", "attn_norm"),
    ("mamba.A_log", "ssm_a!"),
    ("mamba.D", "ssm_d!"),
    ("mamba.b_layernorm", "ssm_b_norm"),
    ("mamba.c_layernorm", "ssm_c_norm"),
    ("mamba.conv1d", "ssm_conv1d"),
    ("mamba.dt_bias", "ssm_dt.bias!"),
    ("mamba.dt_layernorm", "ssm_dt_norm"),
    ("mamba.dt_proj", "ssm_dt"),
    ("mamba.in_proj", "ssm_in"),
    ("mamba.norm", "ssm_norm"),
    ("mamba.out_proj", "ssm_out"),
    ("mamba.x_proj", "ssm_x"),
    ("mixer.A_log", "ssm_a!"),
    ("mixer.D", "ssm_d!"),
    ("mixer.b_layernorm", "ssm_b_norm"),
    ("mixer.c_layernorm", "ssm_c_norm"),
    ("mixer.conv1d", "ssm_conv1d"),
    ("mixer.dt_bias", "ssm_dt.bias!"),
    ("mixer.dt_layernorm", "ssm_dt_norm"),
    ("mixer.dt_proj", "ssm_dt"),
    ("mixer.in_proj", "ssm_in"),
    ("mixer.norm", "ssm_norm"),
    ("mixer.out_proj", "ssm_out"),
    ("mixer.x_proj", "ssm_x"),
    ("mlp.down_proj", "ffn_down"),
    ("mlp.e_score_correction_bias", "exp_probs_b.bias!"),
    ("mlp.experts.down_proj", "ffn_down_exps"),
    ("mlp.experts.gate_proj", "ffn_gate_exps"),
    ("mlp.experts.up_proj", "ffn_up_exps"),
    ("mlp.gate", "ffn_gate_inp"),
    ("mlp.gate.e_score_correction_bias", "exp_probs_b.bias!"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.router", "ffn_gate_inp"),
    ("mlp.shared_expert.down_proj", "ffn_down_shexp"),
    ("mlp.shared_expert.gate_proj", "ffn_gate_shexp"),
    ("mlp.shared_expert.up_proj", "ffn_up_shexp"),
    ("mlp.shared_expert_gate", "ffn_gate_inp_shexp"),
    ("mlp.shared_experts.down_proj", "ffn_down_shexp"),
    ("mlp.shared_experts.gate_proj", "ffn_gate_shexp"),
    ("mlp.shared_experts.up_proj", "ffn_up_shexp"),
    ("mlp.up_proj", "ffn_up"),
    ("norm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("self_attn.A_log", "ssm_a!"),
    ("self_attn.b_proj", "ssm_beta"),
    ("self_attn.dt_bias", "ssm_dt.bias!"),
    ("self_attn.f_a_proj", "ssm_f_a"),
    ("self_attn.f_b_proj", "ssm_f_b"),
    ("self_attn.g_a_proj", "ssm_g_a"),
    ("self_attn.g_b_proj", "ssm_g_b"),
    ("self_attn.k_b_proj", "attn_k_b"),
    ("self_attn.k_conv1d", "ssm_conv1d_k"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.kv_a_layernorm", "attn_kv_a_norm"),
    ("self_attn.kv_a_proj_with_mqa", "attn_kv_a_mqa"),
    ("self_attn.kv_b_proj", "attn_kv_b"),
    ("self_attn.o_norm", "ssm_norm"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_a_layernorm", "attn_q_a_norm"),
    ("self_attn.q_a_proj", "attn_q_a"),
    ("self_attn.q_b_proj", "attn_q_b"),
    ("self_attn.q_conv1d", "ssm_conv1d_q"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.sinks", "attn_sinks.weight!"),
    ("self_attn.v_b_proj", "attn_v_b"),
    ("self_attn.v_conv1d", "ssm_conv1d_v"),
    ("self_attn.v_proj", "attn_v"),
];

impl Names {
    /// Finds the wrapper by the names of the embedding and of the final norm.
    pub fn of_hugging_face(weights: &dyn TensorStore) -> Names {
        let all = PREFIXES.iter().flat_map(|prefix| TOPS.iter().map(move |top| (*prefix, top)));
        let has = |prefix: &str, leaf: &str| weights.contains(&format!("{prefix}{leaf}.weight"));
        let (prefix, top) =
            all.clone().find(|(p, top)| has(p, top.embed) && has(p, top.norm)).unwrap_or((PREFIXES[0], &TOPS[0]));
        Names::Wrapped { prefix, top, leaves: &[] }
    }

    /// Layers that the checkpoint numbers: one more than the last of them.
    pub fn layers_held(&self, weights: &dyn TensorStore) -> Option<usize> {
        let start = match self {
            Names::Wrapped { prefix, top, .. } => format!("{prefix}{}.", top.layers),
            Names::Gguf(_) => "blk.".into(),
        };
        let names = weights.names();
        let numbers = names.iter().filter_map(|n| n.strip_prefix(&start)?.split('.').next()?.parse::<usize>().ok());
        numbers.max().map(|last| last.saturating_add(1))
    }

    /// With a family's own words for what lies below a layer, where they are Hugging Face names.
    #[must_use]
    pub fn with_leaves(self, leaves: Leaves) -> Names {
        match self {
            Names::Wrapped { prefix, top, .. } => Names::Wrapped { prefix, top, leaves },
            gguf => gguf,
        }
    }

    /// The checkpoint's spelling of a plan's name.
    pub fn spell(&self, name: &str, weights: &dyn TensorStore) -> String {
        match self {
            Names::Wrapped { prefix, top, leaves } => match name.strip_prefix("model.") {
                Some(rest) => {
                    let mut spellings = below(rest, top, leaves).into_iter().map(|s| format!("{prefix}{s}"));
                    let first = spellings.next().unwrap_or_else(|| name.to_owned());
                    if weights.contains(&first) {
                        first
                    } else {
                        spellings.find(|s| weights.contains(s)).unwrap_or(first)
                    }
                }
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

/// "layers.3.mlp.up_proj.weight" in the words of a checkpoint: at least one spelling, the likeliest first.
fn below(name: &str, top: &Top, leaves: Leaves) -> Vec<String> {
    let swap = |rest: &str, from: &str, to: &str| {
        let tail = rest.strip_prefix(from)?;
        (tail.is_empty() || tail.starts_with('.')).then(|| format!("{to}{tail}"))
    };
    if let Some((layer, leaf)) = name.strip_prefix("layers.").and_then(|r| r.split_once('.')) {
        let own = leaves.iter().filter_map(|(from, to)| swap(leaf, from, to)).chain([leaf.to_owned()]);
        return own.map(|leaf| format!("{}.{layer}.{leaf}", top.layers)).collect();
    }
    let whole = [("embed_tokens", top.embed), ("norm", top.norm)];
    vec![whole.iter().find_map(|(from, to)| swap(name, from, to)).unwrap_or_else(|| name.to_owned())]
}

/// "model.layers.3.mlp.up_proj.weight" → "blk.3.ffn_up.weight". A name without a GGUF spelling is kept and then not found.
fn gguf(name: &str, own: &[(&str, &str)]) -> String {
    let (stem, suffix) = match name.rsplit_once('.') {
        Some((stem, leaf @ ("weight" | "bias"))) => (stem, format!(".{leaf}")),
        _ => (name, String::new()),
    };
    let own_whole = own.iter().find(|(hf, _)| *hf == stem).map(|(_, g)| *g);
    let whole = match stem {
        _ if own_whole.is_some() => own_whole,
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
    // A pair may name a leaf with its suffix ("w_lora.lora.2.bias"), where the file has made a tensor of its own of it.
    let suffixed = format!("{leaf}{suffix}");
    let fits = |hf: &str| hf == leaf || hf == suffixed;
    let exact = own.iter().find(|(hf, _)| *hf == suffixed);
    match exact.or_else(|| own.iter().chain(COMMON).find(|(hf, _)| fits(hf))) {
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
    fn a_familys_own_words() {
        let leaves: Leaves = &[("mlp.up_proj", "ff.w3"), ("mlp", "ff")];
        let top = &TOPS[4];
        for (plan, file) in [
            ("embed_tokens.weight", "embeddings.weight"),
            ("norm.weight", "norm_f.weight"),
            ("norms.weight", "norms.weight"),
            ("layers.1.mlp.up_proj.weight", "layers.1.ff.w3.weight"),
            ("layers.1.mlp.experts.0.up_proj.weight", "layers.1.ff.experts.0.up_proj.weight"),
            ("layers.1.mlp_norm.weight", "layers.1.mlp_norm.weight"),
        ] {
            assert_eq!(below(plan, top, leaves)[0], file);
        }
    }

    #[test]
    fn every_spelling_that_fits() {
        let leaves: Leaves = &[("mlp.up_proj", "ff.w3"), ("mlp", "ff")];
        let all = ["layers.1.ff.w3.weight", "layers.1.ff.up_proj.weight", "layers.1.mlp.up_proj.weight"];
        assert_eq!(below("layers.1.mlp.up_proj.weight", &TOPS[0], leaves), all);
    }

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
