//! Which files of a repository a model needs: the small ones of a checkpoint and its safetensors, or one GGUF.
//! Works on names alone, so that a listing from the hub and one from the cache are judged by the same rules.

use std::collections::{BTreeMap, BTreeSet};

use super::HubError;

/// The map from tensor to shard.
pub(super) const INDEX: &str = "model.safetensors.index.json";
const CONFIG: &str = "config.json";
const SINGLE: &str = "model.safetensors";

/// Files beside the weights; `config.json` must be there, the others where the repository has them.
const BESIDE: [&str; 7] = [
    "chat_template.jinja",
    "chat_template.json",
    CONFIG,
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
];

/// Weight files of other loaders, named in an error where nothing usable is found.
const FOREIGN_ENDINGS: [&str; 7] = [".bin", ".h5", ".msgpack", ".npz", ".onnx", ".pth", ".safetensors"];

/// What to bring.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// A folder: `beside` first, then the weights, which the index names where there is one.
    Checkpoint { beside: Vec<String>, weights: Weights },
    /// One file.
    Gguf(String),
}

/// How the safetensors of a checkpoint are known.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Weights {
    /// Read [`INDEX`] to learn the shards.
    Indexed,
    /// These.
    Listed(Vec<String>),
}

/// Chooses among the `names` of a repository; `wanted` is the GGUF that the user named, `id` serves the errors.
pub(super) fn choose(id: &str, names: &[String], wanted: Option<&str>) -> Result<Choice, HubError> {
    if let Some(wanted) = wanted {
        return named_gguf(id, names, wanted).map(Choice::Gguf);
    }
    let has = |name: &str| names.iter().any(|other| other == name);
    let weights = if has(INDEX) {
        Weights::Indexed
    } else if has(SINGLE) {
        Weights::Listed(vec![SINGLE.to_owned()])
    } else {
        Weights::Listed(names.iter().filter(|name| is_weights(name)).cloned().collect())
    };
    if weights == Weights::Listed(Vec::new()) {
        return only_gguf(id, names).map(Choice::Gguf);
    }
    if !has(CONFIG) {
        let reason = format!("it has safetensors but no {CONFIG}, which says what the tensors are");
        return Err(HubError::NoModel { id: id.to_owned(), reason });
    }
    if let Weights::Listed(files) = &weights {
        check_shards(id, files)?;
    }
    let beside = BESIDE.iter().filter(|name| has(name)).map(|name| (*name).to_owned()).collect();
    Ok(Choice::Checkpoint { beside, weights })
}

/// The shards that an index names, sorted; each must be among `names`.
pub(super) fn indexed_shards(id: &str, index: &[u8], names: &[String]) -> Result<Vec<String>, HubError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let refuse = |reason: String| HubError::NoModel { id: id.to_owned(), reason };
    let index: Index = serde_json::from_slice(index)
        .map_err(|error| refuse(format!("{INDEX} does not map tensors to files ({error})")))?;
    let shards: BTreeSet<String> = index.weight_map.into_values().collect();
    if shards.is_empty() {
        return Err(refuse(format!("{INDEX} names no file")));
    }
    let listed: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    match shards.iter().find(|shard| !listed.contains(shard.as_str())) {
        Some(shard) => Err(refuse(format!("{INDEX} names {shard:?}, which is not there"))),
        None => Ok(shards.into_iter().collect()),
    }
}

/// At the top level, and not the second copy that some repositories carry in the layout of the model's own code.
fn is_weights(name: &str) -> bool {
    name.ends_with(".safetensors") && !name.contains('/') && !name.starts_with("consolidated")
}

/// `…-00002-of-00005.safetensors` promises five files, with or without an index.
fn check_shards(id: &str, files: &[String]) -> Result<(), HubError> {
    let mut promised: BTreeMap<(&str, usize), usize> = BTreeMap::new();
    for file in files {
        if let Some((stem, count)) = shard_of(file, ".safetensors") {
            *promised.entry((stem, count)).or_default() += 1;
        }
    }
    match promised.iter().find(|((_, count), found)| *found != count) {
        Some(((stem, count), found)) => {
            let reason = format!("`{stem}` is split into {count} files, of which {found} are there");
            Err(HubError::NoModel { id: id.to_owned(), reason })
        }
        None => Ok(()),
    }
}

/// The stem and the count of `stem-00001-of-00003<ending>`.
fn shard_of<'a>(name: &'a str, ending: &str) -> Option<(&'a str, usize)> {
    let (head, count) = name.strip_suffix(ending)?.rsplit_once("-of-")?;
    let (stem, number) = head.rsplit_once('-')?;
    number.parse::<usize>().ok()?;
    Some((stem, count.parse().ok()?))
}

fn ggufs(names: &[String]) -> Vec<String> {
    let mut files: Vec<String> =
        names.iter().filter(|name| name.to_ascii_lowercase().ends_with(".gguf")).cloned().collect();
    files.sort();
    files
}

fn only_gguf(id: &str, names: &[String]) -> Result<String, HubError> {
    let is_projector = |file: &String| file.rsplit('/').next().is_some_and(|name| name.starts_with("mmproj"));
    let files: Vec<String> = ggufs(names).into_iter().filter(|file| !is_projector(file)).collect();
    match files.as_slice() {
        [] => Err(HubError::NoModel { id: id.to_owned(), reason: nothing_usable(names) }),
        [file] => whole_gguf(id, file),
        _ => Err(HubError::ChooseGguf { id: id.to_owned(), problem: format!("has {} GGUF files", files.len()), files }),
    }
}

/// By file name, or by the quantisation at the name's end, in any case of letters.
fn named_gguf(id: &str, names: &[String], wanted: &str) -> Result<String, HubError> {
    let files = ggufs(names);
    if files.iter().any(|file| file == wanted) {
        return whole_gguf(id, wanted);
    }
    let matching: Vec<&String> = files.iter().filter(|file| ends_in_quantisation(file, wanted)).collect();
    match matching.as_slice() {
        [file] => whole_gguf(id, file),
        _ if files.is_empty() => Err(HubError::NoModel {
            id: id.to_owned(),
            reason: format!("`{wanted}` was asked for, and it has no GGUF"),
        }),
        [] => Err(HubError::ChooseGguf { id: id.to_owned(), problem: format!("has no `{wanted}`"), files }),
        _ => {
            let problem = format!("has {} files for `{wanted}`", matching.len());
            let files = matching.into_iter().cloned().collect();
            Err(HubError::ChooseGguf { id: id.to_owned(), problem, files })
        }
    }
}

fn ends_in_quantisation(file: &str, wanted: &str) -> bool {
    let lower = file.to_ascii_lowercase();
    let head = lower.strip_suffix(".gguf").and_then(|stem| stem.strip_suffix(&wanted.to_ascii_lowercase()));
    head.is_some_and(|head| head.ends_with(['-', '.', '/']))
}

fn whole_gguf(id: &str, file: &str) -> Result<String, HubError> {
    match shard_of(file, ".gguf") {
        Some((_, count)) if count > 1 => {
            let reason = format!(
                "{file} is one of {count} parts of a split GGUF, and only whole ones are read; join them with \
                 llama.cpp's gguf-split --merge, or choose a smaller quantisation"
            );
            Err(HubError::NoModel { id: id.to_owned(), reason })
        }
        _ => Ok(file.to_owned()),
    }
}

fn nothing_usable(names: &[String]) -> String {
    let found: Vec<&str> = names
        .iter()
        .map(String::as_str)
        .filter(|name| FOREIGN_ENDINGS.iter().any(|ending| name.ends_with(ending)))
        .take(5)
        .collect();
    let found = if found.is_empty() { "no weights at all".to_owned() } else { found.join(", ") };
    format!("expected *.safetensors beside {CONFIG}, or a .gguf; found {found}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    fn chosen(list: &[&str], wanted: Option<&str>) -> Choice {
        choose("o/n", &names(list), wanted).unwrap()
    }

    fn refusal(list: &[&str], wanted: Option<&str>) -> String {
        choose("o/n", &names(list), wanted).unwrap_err().to_string()
    }

    #[test]
    fn duplicates_and_foreign_formats_stay_behind() {
        let list = [
            ".gitattributes",
            "README.md",
            "config.json",
            "consolidated.safetensors",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "onnx/model.onnx",
            "original/consolidated.00.pth",
            "original/model.safetensors",
            "pytorch_model.bin",
            "tokenizer.json",
            "x.gguf",
        ];
        let weights = Weights::Listed(names(&list[4..6]));
        let beside = names(&["config.json", "tokenizer.json"]);
        assert_eq!(chosen(&list, None), Choice::Checkpoint { beside: beside.clone(), weights });
        let mut indexed = list.to_vec();
        indexed.push(INDEX);
        assert_eq!(chosen(&indexed, None), Choice::Checkpoint { beside, weights: Weights::Indexed });
        assert_eq!(chosen(&list, Some("x.gguf")), Choice::Gguf("x.gguf".to_owned()));
    }

    #[test]
    fn a_lost_shard_is_noticed_without_an_index() {
        let text = refusal(&["config.json", "model-00002-of-00002.safetensors"], None);
        assert!(text.contains("split into 2 files, of which 1"), "{text}");
    }

    #[test]
    fn index_names_the_shards_once_each() {
        let all = names(&["a.safetensors", "b.safetensors"]);
        let index = br#"{"metadata":{},"weight_map":{"x":"b.safetensors","y":"a.safetensors","z":"b.safetensors"}}"#;
        assert_eq!(indexed_shards("o/n", index, &all).unwrap(), all);
        for bad in [&b"{}"[..], b"[", br#"{"weight_map":{}}"#, br#"{"weight_map":{"x":"../../x"}}"#] {
            assert!(matches!(indexed_shards("o/n", bad, &all), Err(HubError::NoModel { .. })));
        }
    }

    #[test]
    fn one_gguf_or_a_question() {
        let list = ["README.md", "mmproj-f16.gguf", "m-IQ4_XS.gguf", "m-Q4_K_M.gguf", "sub/m-q8_0.gguf"];
        let text = refusal(&list, None);
        assert!(text.contains("has 3 GGUF files") && text.contains("o/n:FILE") && text.contains("sub/m-q8_0.gguf"));
        assert_eq!(chosen(&list, Some("sub/m-q8_0.gguf")), Choice::Gguf("sub/m-q8_0.gguf".to_owned()));
        assert_eq!(chosen(&list, Some("Q8_0")), Choice::Gguf("sub/m-q8_0.gguf".to_owned()));
        assert_eq!(chosen(&list, Some("q4_k_m")), Choice::Gguf("m-Q4_K_M.gguf".to_owned()));
        assert!(refusal(&list, Some("Q5_0")).contains("has no `Q5_0`"));
        assert!(refusal(&list, Some("K_M")).contains("has no `K_M`"));
        assert_eq!(chosen(&list[1..3], None), Choice::Gguf("m-IQ4_XS.gguf".to_owned()));
        assert!(refusal(&["m-00001-of-00002.gguf"], Some("m-00001-of-00002.gguf")).contains("one of 2 parts"));
    }

    #[test]
    fn says_what_was_found_instead() {
        assert!(refusal(&["config.json", "pytorch_model.bin"], None).contains("found pytorch_model.bin"));
        assert!(refusal(&["README.md"], None).contains("no weights at all"));
        assert!(refusal(&["model.safetensors"], None).contains("no config.json"));
        assert!(refusal(&["model.safetensors", "config.json"], Some("a.gguf")).contains("no GGUF"));
    }
}
