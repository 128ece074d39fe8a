//! Where the hub is, where its cache lies and how patient to be, read once from the environment into one value.
//! Knows the variables that Hugging Face's own tools obey; touches no network, and no file but the token's.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::HubError;

/// The public hub.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// An access token. Its `Debug` form hides the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Wraps a token; `None` where the text is blank or could not stand in a header line.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        let sound = !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic());
        sound.then(|| Self(text.to_owned()))
    }

    pub(super) fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// How long to wait for a server, and how often to ask again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Tries in a row that bring nothing before giving up; at least one is made.
    pub attempts: u32,
    /// Wait after the first failed try; it doubles after each further one, up to 8 s.
    pub first_wait: Duration,
    /// Limit for connecting.
    pub connect: Duration,
    /// Limit for an answer to begin, and for a running transfer to stay silent.
    pub stall: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            attempts: 5,
            first_wait: Duration::from_millis(500),
            connect: Duration::from_secs(10),
            stall: Duration::from_secs(30),
        }
    }
}

/// Everything that [`super::fetch`] depends on besides the id.
#[derive(Clone, Debug)]
pub struct HubConfig {
    /// Address of the hub, without a slash at its end.
    pub endpoint: String,
    /// The folder that holds `models--owner--name`.
    pub cache_dir: PathBuf,
    /// Sent to the endpoint's own host only.
    pub token: Option<Token>,
    /// Use what the cache holds and open no connection.
    pub offline: bool,
    /// Certificates (PEM) to trust instead of the built-in roots.
    pub ca_bundle: Option<PathBuf>,
    /// Time-outs and retries.
    pub patience: Patience,
}

impl HubConfig {
    /// A hub at `endpoint` with its cache in `cache_dir`; no token, online, default patience.
    pub fn new(endpoint: &str, cache_dir: impl Into<PathBuf>) -> Self {
        Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            cache_dir: cache_dir.into(),
            token: None,
            offline: false,
            ca_bundle: None,
            patience: Patience::default(),
        }
    }

    /// Reads the environment as `huggingface_hub` does.
    ///
    /// `HF_ENDPOINT`; `HF_HUB_CACHE`, else `HF_HOME/hub`, else `XDG_CACHE_HOME/huggingface/hub`, else
    /// `~/.cache/huggingface/hub`; `HF_TOKEN`, else the file `HF_TOKEN_PATH` or `HF_HOME/token` (unless
    /// `HF_HUB_DISABLE_IMPLICIT_TOKEN`); `HF_HUB_OFFLINE`; and, for networks with their own authority,
    /// `REQUESTS_CA_BUNDLE` or `SSL_CERT_FILE`. Proxies are taken from `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`.
    ///
    /// # Errors
    /// [`HubError::NoCacheFolder`] where nothing says where the cache is.
    pub fn from_env() -> Result<Self, HubError> {
        Self::from_lookup(&|name| std::env::var(name).ok(), std::env::home_dir())
    }

    fn from_lookup(lookup: &dyn Fn(&str) -> Option<String>, home: Option<PathBuf>) -> Result<Self, HubError> {
        let var = |name: &str| lookup(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        let path = |name: &str| var(name).map(|text| expand_home(&text, home.as_deref()));
        let is_set = |name: &str| {
            var(name).is_some_and(|text| matches!(text.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"))
        };

        let hf_home = path("HF_HOME")
            .or_else(|| path("XDG_CACHE_HOME").map(|dir| dir.join("huggingface")))
            .or_else(|| home.as_ref().map(|dir| dir.join(".cache").join("huggingface")));
        let cache_dir = path("HF_HUB_CACHE")
            .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| hf_home.as_ref().map(|dir| dir.join("hub")))
            .ok_or(HubError::NoCacheFolder)?;
        let token_file = path("HF_TOKEN_PATH").or_else(|| hf_home.as_ref().map(|dir| dir.join("token")));
        let token = if is_set("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            None
        } else {
            let from_file = || token_file.and_then(|file| fs::read_to_string(file).ok());
            var("HF_TOKEN")
                .or_else(|| var("HUGGING_FACE_HUB_TOKEN"))
                .or_else(from_file)
                .and_then(|text| Token::new(&text))
        };

        Ok(Self {
            token,
            offline: is_set("HF_HUB_OFFLINE") || is_set("TRANSFORMERS_OFFLINE"),
            ca_bundle: path("REQUESTS_CA_BUNDLE").or_else(|| path("SSL_CERT_FILE")),
            ..Self::new(&var("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned()), cache_dir)
        })
    }
}

fn expand_home(text: &str, home: Option<&Path>) -> PathBuf {
    match (text.strip_prefix('~'), home) {
        (Some(""), Some(home)) => home.to_owned(),
        (Some(rest), Some(home)) if rest.starts_with('/') => home.join(rest.trim_start_matches('/')),
        _ => PathBuf::from(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&str, &str)]) -> HubConfig {
        let lookup = |name: &str| vars.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        HubConfig::from_lookup(&lookup, Some(PathBuf::from("/home/u"))).unwrap()
    }

    #[test]
    fn cache_folder_follows_the_order_of_the_python_tools() {
        let all =
            [("HF_HUB_CACHE", "/a"), ("HUGGINGFACE_HUB_CACHE", "/b"), ("HF_HOME", "~/c"), ("XDG_CACHE_HOME", "/d")];
        let expected = ["/a", "/b", "/home/u/c/hub", "/d/huggingface/hub", "/home/u/.cache/huggingface/hub"];
        for (skip, folder) in expected.iter().enumerate() {
            assert_eq!(read(&all[skip..]).cache_dir, Path::new(folder));
        }
        assert!(matches!(HubConfig::from_lookup(&|_| None, None), Err(HubError::NoCacheFolder)));
    }

    #[test]
    fn endpoint_offline_and_bundle() {
        let plain = read(&[]);
        assert_eq!(plain.endpoint, DEFAULT_ENDPOINT);
        assert!(!plain.offline && plain.token.is_none() && plain.ca_bundle.is_none());
        let set = read(&[
            ("HF_ENDPOINT", "http://mirror:8080/hf/"),
            ("HF_HUB_OFFLINE", "yes"),
            ("SSL_CERT_FILE", "/s.pem"),
            ("REQUESTS_CA_BUNDLE", ""),
        ]);
        assert_eq!(set.endpoint, "http://mirror:8080/hf");
        assert!(set.offline);
        assert_eq!(set.ca_bundle.as_deref(), Some(Path::new("/s.pem")));
        assert!(!read(&[("HF_HUB_OFFLINE", "0")]).offline);
    }

    #[test]
    fn token_comes_from_variable_then_file_and_stays_hidden() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().to_str().unwrap();
        fs::write(dir.path().join("token"), "from-file\n").unwrap();
        let secret = |config: &HubConfig| config.token.as_ref().map(|token| token.secret().to_owned());
        let both = read(&[("HF_HOME", home), ("HF_TOKEN", " from-variable ")]);
        assert_eq!(secret(&both).as_deref(), Some("from-variable"));
        assert!(!format!("{both:?}").contains("from-variable"));
        assert_eq!(secret(&read(&[("HF_HOME", home)])).as_deref(), Some("from-file"));
        assert_eq!(secret(&read(&[("HF_HOME", home), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")])), None);
        assert_eq!(Token::new("a\r\nX-Evil: b"), None);
    }
}
