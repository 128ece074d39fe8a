//! How text is cut before merging, by the name that `tokenizer.ggml.pre` spells. The expressions are those of the models' own
//! tokenizer.json files; which name stands for which is the registry of llama.cpp's `convert_hf_to_gguf_update.py`.
//! Text is taken as it is written: GGUF has no place for a Unicode form. It refuses to know vocabularies.

use tokenizers::normalizers::{NormalizerWrapper, Replace};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior};

use super::AddBos;
use crate::error::{Result, TextError, excerpt};

/// One way of cutting text.
pub(super) struct PreEntry {
    names: &'static [&'static str],
    /// Each expression cuts what the ones before it left; matches and what lies between them become words.
    splits: &'static [&'static str],
    pub(super) letters: Letters,
    pub(super) merging: Merging,
    pub(super) add_bos: AddBos,
}

/// What the names in the vocabulary are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Letters {
    /// GPT-2's byte alphabet.
    Bytes,
    /// Text with `▁` for a space, and byte tokens.
    Text,
}

/// Whether a word that is a token is taken whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Merging {
    Always,
    WholeWordsFirst,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const DIGIT: &str = r"\p{N}";
const DIGITS_3: &str = r"\p{N}{1,3}";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK3_CJK: &str = r"[\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+";
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
const DEEPSEEK_CJK: &str = r"[\x{4E00}-\x{9FA5}\x{800}-\x{4E00}\x{AC00}-\x{D7FF}]+";
const DEEPSEEK_LETTERS: &str = r"\s?[A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}\x{295}-\x{2AF}\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1}\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}]+";
const DEEPSEEK_PUNCTUATION: &str = r"\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]+";
const BLOOM: &str = r" ?[^(\s|.,!?\x{2026}\x{3002}\x{FF0C}\x{3001}\x{964}\x{6D4}\x{60C})]+";
const EXAONE_MOE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+";
const BAILING: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const SEED_CODER: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";

const BASE: PreEntry =
    PreEntry { names: &[], splits: &[GPT2], letters: Letters::Bytes, merging: Merging::Always, add_bos: AddBos::No };

/// Every way of cutting that is known, alphabetically by its first name.
const PRES: &[PreEntry] = &[
    PreEntry { names: &["bailingmoe", "bailingmoe2", "llada-moe"], splits: &[BAILING], ..BASE },
    PreEntry { names: &["bloom", "gpt3-finnish", "poro-chat"], splits: &[BLOOM], ..BASE },
    PreEntry { names: &["chatglm-bpe"], splits: &[LLAMA3], ..BASE },
    PreEntry {
        names: &["codeshell", "command-r", "exaone", "mellum2", "minerva-7b", "refact", "smollm", "starcoder"],
        splits: &[DIGIT, GPT2],
        ..BASE
    },
    PreEntry { names: &["dbrx", "smaug-bpe"], splits: &[LLAMA3], ..BASE },
    PreEntry {
        names: &["deepseek-coder"],
        splits: &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", DEEPSEEK_CJK, DIGIT],
        ..BASE
    },
    PreEntry {
        names: &["deepseek-llm"],
        splits: &[r"[\r\n]", DEEPSEEK_LETTERS, DEEPSEEK_PUNCTUATION, r"\s+$", DEEPSEEK_CJK, r"\p{N}+"],
        ..BASE
    },
    PreEntry {
        names: &["deepseek-v3", "hunyuan-dense", "hy_v4", "joyai-llm"],
        splits: &[DIGITS_3, DEEPSEEK3_CJK, DEEPSEEK3],
        ..BASE
    },
    PreEntry { names: &["default"], splits: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"], ..BASE },
    PreEntry { names: &["exaone-moe"], splits: &[EXAONE_MOE], ..BASE },
    PreEntry { names: &["falcon"], splits: &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, r"[0-9][0-9][0-9]"], ..BASE },
    PreEntry {
        names: &["falcon-h1", "falcon3", "lfm2", "llama-bpe", "llama-v3", "llama3", "midm-2.0", "pixtral"],
        splits: &[LLAMA3],
        merging: Merging::WholeWordsFirst,
        add_bos: AddBos::Yes,
        ..BASE
    },
    PreEntry { names: &["gemma4"], splits: &[], letters: Letters::Text, add_bos: AddBos::Yes, ..BASE },
    PreEntry { names: &["glm4", "glm5"], splits: &[LLAMA3], merging: Merging::WholeWordsFirst, ..BASE },
    PreEntry {
        names: &[
            "a.x-4.0",
            "exaone4",
            "gigachat",
            "gpt-2",
            "granite-docling",
            "jais",
            "mellum",
            "modern-bert",
            "mpt",
            "olmo",
            "phi-2",
            "trillion",
        ],
        ..BASE
    },
    PreEntry { names: &["gpt-4o", "kanana2", "llama4", "minimax-m2"], splits: &[GPT4O], ..BASE },
    PreEntry {
        names: &["deepseek-r1-qwen", "grok-2", "hunyuan", "kormo", "megrez", "qwen2", "solar-open", "stablelm2"],
        splits: &[QWEN2],
        ..BASE
    },
    PreEntry { names: &["qwen35"], splits: &[QWEN35], ..BASE },
    PreEntry { names: &["seed-coder"], splits: &[SEED_CODER], ..BASE },
    PreEntry { names: &["tekken"], splits: &[TEKKEN], merging: Merging::WholeWordsFirst, add_bos: AddBos::Yes, ..BASE },
    PreEntry { names: &["viking"], splits: &[BLOOM, DIGIT], ..BASE },
];

/// The entry of that name; a name nobody knows is refused, because the tokens would be wrong without a word.
pub(super) fn find(name: Option<&str>) -> Result<&'static PreEntry> {
    let found = name.and_then(|name| PRES.iter().find(|entry| entry.names.contains(&name)));
    found.ok_or_else(|| {
        let mut known: Vec<&str> = PRES.iter().flat_map(|entry| entry.names.iter().copied()).collect();
        known.sort_unstable();
        let found = name.map_or_else(|| "missing".to_owned(), excerpt);
        TextError::UnknownName { field: "tokenizer.ggml.pre", found, known: known.join(", ") }
    })
}

impl PreEntry {
    pub(super) fn normalizer(&self) -> tokenizers::Result<Option<NormalizerWrapper>> {
        match self.letters {
            Letters::Text => Ok(Some(NormalizerWrapper::Replace(Replace::new(" ", "\u{2581}")?))),
            Letters::Bytes => Ok(None),
        }
    }

    pub(super) fn pre_tokenizer(&self) -> tokenizers::Result<Option<PreTokenizerWrapper>> {
        let mut stages = Vec::with_capacity(self.splits.len() + 1);
        for regex in self.splits {
            let pattern = SplitPattern::Regex((*regex).to_owned());
            stages.push(PreTokenizerWrapper::Split(Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?));
        }
        if self.letters == Letters::Bytes {
            stages.push(PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, false)));
        }
        Ok((!stages.is_empty()).then(|| PreTokenizerWrapper::Sequence(Sequence::new(stages))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_compiles_and_no_name_is_twice() {
        let mut names: Vec<&str> = PRES.iter().flat_map(|entry| entry.names.iter().copied()).collect();
        let n_names = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), n_names);
        for entry in PRES {
            assert!(entry.names.is_sorted(), "{:?}", entry.names);
            entry.pre_tokenizer().unwrap();
            entry.normalizer().unwrap();
        }
    }

    #[test]
    fn unknown_names_are_refused_with_the_known_ones() {
        let error = find(Some("wizard-9")).err().unwrap().to_string();
        assert!(error.contains("wizard-9") && error.contains("llama-bpe"), "{error}");
        assert!(find(None).err().unwrap().to_string().contains("missing"));
    }
}
