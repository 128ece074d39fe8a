//! A checkpoint's voice: tokenizer, template, end tokens, recommendations.

use reverie_chat::Voice;
use reverie_files::Checkpoint;
use reverie_files::gguf::GgufVocab;
use reverie_text::{ChatTemplate, GenerationConfig, SpecialTokens, TextError, Tokenizer, TokenizerConfig, VocabSpec};

use crate::error::{Error, Result};

/// Reads whatever describes how the model speaks; `template` takes the place of the checkpoint's own.
pub fn of(checkpoint: &Checkpoint, template: Option<&str>) -> Result<Voice> {
    let here = |source: TextError| Error::Voice { path: checkpoint.path.clone(), source };
    let (tokenizer, special, mut ends) = match checkpoint.gguf_vocab()? {
        Some(vocab) => of_gguf(vocab).map_err(here)?,
        None => {
            let config = match checkpoint.text("tokenizer_config.json")? {
                Some(text) => TokenizerConfig::from_json_bytes(text.as_bytes()).map_err(here)?,
                None => TokenizerConfig::default(),
            };
            let tokenizer = Tokenizer::from_json_bytes(&checkpoint.tokenizer_json()?).map_err(here)?;
            let end = config.special.get("eos_token").and_then(|t| tokenizer.id_of(t));
            (tokenizer, config.special, end.into_iter().collect())
        }
    };
    let generation = match checkpoint.text("generation_config.json")? {
        Some(text) => GenerationConfig::from_json_bytes(text.as_bytes()).map_err(here)?,
        None => GenerationConfig::default(),
    };
    ends.extend(&generation.eos_token_ids);
    if let Some(config) = checkpoint.config() {
        ends.extend(config.ids("eos_token_id")?);
        if let Some(text) = config.section("text_config")? {
            ends.extend(text.ids("eos_token_id")?);
        }
    }
    ends.sort_unstable();
    ends.dedup();
    let template = match template {
        Some(text) => Some(ChatTemplate::new(text, special)?),
        None => {
            let own = checkpoint.templates()?.default;
            own.map(|text| ChatTemplate::new(&text, special)).transpose().map_err(here)?
        }
    };
    Ok(Voice { tokenizer, template, ends, generation })
}

/// Tokens that end a turn in the families whose GGUF files do not list them.
const TURN_ENDS: &[&str] = &["<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<turn|>"];

fn of_gguf(vocab: GgufVocab) -> Result<(Tokenizer, SpecialTokens, Vec<u32>), TextError> {
    let text = |id: Option<u32>| id.and_then(|i| vocab.tokens.get(i as usize)).cloned();
    let mut special = SpecialTokens::none();
    for (name, id) in
        [("bos_token", vocab.bos), ("eos_token", vocab.eos), ("pad_token", vocab.pad), ("unk_token", vocab.unk)]
    {
        if let Some(token) = text(id) {
            special = special.with(name, token);
        }
    }
    let mut ends: Vec<u32> = vocab.eos.into_iter().chain(vocab.eot).collect();
    // The lists move: a vocabulary of 150,000 tokens is not held twice.
    let tokenizer = VocabSpec {
        model: vocab.model,
        pre: vocab.pre,
        tokens: vocab.tokens,
        scores: vocab.scores,
        types: vocab.types,
        merges: vocab.merges,
        bos: vocab.bos,
        eos: vocab.eos,
        unk: vocab.unk,
        pad: vocab.pad,
        eot: vocab.eot,
        add_bos: vocab.add_bos,
        add_eos: vocab.add_eos,
        add_space_prefix: vocab.add_space_prefix,
    }
    .build()?;
    ends.extend(TURN_ENDS.iter().filter_map(|t| tokenizer.id_of(t)).filter(|&id| tokenizer.is_special(id)));
    Ok((tokenizer, special, ends))
}
