//! How a model on the hub is named: `owner/name`, `owner/name@revision`, `owner/name:file.gguf`, or both together.
//! Reads text only; whether the model exists, or whether a folder of that name lies on disk, is asked elsewhere.

use std::fmt;

/// A model on the hub, as the user named it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HubId {
    /// User or organisation.
    pub owner: String,
    /// Repository name.
    pub name: String,
    /// Branch, tag or commit; `None` is `main`.
    pub revision: Option<String>,
    /// Which GGUF of the repository: its file name, or the quantisation that its name ends in (`Q4_K_M`).
    pub file: Option<String>,
}

impl HubId {
    /// `owner/name`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }

    /// The branch, tag or commit asked for.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }
}

impl fmt::Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)?;
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        if let Some(file) = &self.file {
            write!(f, ":{file}")?;
        }
        Ok(())
    }
}

/// Endings that say that the text is a path to a file, not the name of a repository.
const FILE_ENDINGS: [&str; 3] = [".gguf", ".safetensors", ".json"];

/// Longest owner or repository name that the hub allows, in bytes.
const MAX_NAME_BYTES: usize = 96;

/// Reads a hub id, or `None` where the text cannot be one (a path, a plain word).
///
/// A relative path of two parts has the same shape as an id, so ask the disk first.
pub fn parse_model_id(text: &str) -> Option<HubId> {
    let (text, file) = split_off(text, ':');
    let (text, revision) = split_off(text, '@');
    let (owner, name) = text.split_once('/')?;
    let lower = name.to_ascii_lowercase();
    let is_file = FILE_ENDINGS.iter().any(|ending| lower.ends_with(ending));
    let sound = is_name(owner)
        && is_name(name)
        && !is_file
        && revision.is_none_or(is_safe_path)
        && file.is_none_or(|file| is_safe_path(file) && !file.contains(':'));
    sound.then(|| HubId {
        owner: owner.to_owned(),
        name: name.to_owned(),
        revision: revision.map(str::to_owned),
        file: file.map(str::to_owned),
    })
}

fn split_off(text: &str, mark: char) -> (&str, Option<&str>) {
    match text.split_once(mark) {
        Some((head, tail)) => (head, Some(tail)),
        None => (text, None),
    }
}

/// The hub's rule for owners and repositories; `--` is kept free for the cache's folder names.
fn is_name(text: &str) -> bool {
    let edge = |c: char| c == '-' || c == '.';
    !text.is_empty()
        && text.len() <= MAX_NAME_BYTES
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        && !text.starts_with(edge)
        && !text.ends_with(edge)
        && !text.contains("--")
        && !text.contains("..")
}

/// Whether a name with slashes stays inside the folder that it is joined to, on every system.
pub(super) fn is_safe_path(text: &str) -> bool {
    let is_foreign = |c: char| c.is_control() || c == '\\' || (cfg!(windows) && c == ':');
    !text.contains(is_foreign) && text.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_form() {
        let id = parse_model_id("Qwen/Qwen3-0.6B").unwrap();
        assert_eq!((id.owner.as_str(), id.name.as_str(), id.revision()), ("Qwen", "Qwen3-0.6B", "main"));
        let id = parse_model_id("a/b@refs/pr/3:q/x-Q4_K_M.gguf").unwrap();
        assert_eq!(id.revision.as_deref(), Some("refs/pr/3"));
        assert_eq!(id.file.as_deref(), Some("q/x-Q4_K_M.gguf"));
        for text in ["a/b", "a/b@v1.0", "a/b:Q4_K_M", "a/b@refs/pr/3:q/x.gguf"] {
            assert_eq!(parse_model_id(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn paths_and_words_are_not_ids() {
        for text in [
            "",
            "pocket",
            "/a/b",
            "./a",
            "../a",
            "a/",
            "/a",
            "a/b/c",
            "~/a",
            "C:\\a",
            "a\\b/c",
            "a/..",
            "a--b/c",
            "a/b--c",
            "a/.b",
            "-a/b",
            "a b/c",
            "models/x.gguf",
            "models/x.GGUF",
            "m/config.json",
            "a/b@",
            "a/b:",
            "a/b@../x",
            "a/b:../x.gguf",
            "a/b:/x.gguf",
            "a/b@x\n",
            "é/b",
        ] {
            assert_eq!(parse_model_id(text), None, "{text:?}");
        }
        assert_eq!(parse_model_id(&format!("a/{}", "b".repeat(97))), None);
    }
}
