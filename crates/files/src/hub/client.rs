//! The hub's side of the wire: which commit, which files, what a file is, and its bytes from a given offset.
//! Follows redirects by hand, since the token belongs to the hub alone; knows nothing of caches, and of disks only the bundle.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use ureq::http::{HeaderMap, Response, Uri, header};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use super::cache::is_commit;
use super::id::is_safe_path;
use super::{HubConfig, HubError, HubId, Notice, Patience};

const USER_AGENT: &str = concat!("reverie/", env!("CARGO_PKG_VERSION"));
const MAX_REDIRECTS: usize = 10;
const MAX_LISTING_BYTES: u64 = 32 << 20;
const MAX_MESSAGE_CHARS: usize = 200;
const LONGEST_WAIT: Duration = Duration::from_secs(8);
/// The most that a server may ask us to wait.
const LONGEST_ASKED_WAIT: Duration = Duration::from_secs(30);
/// RFC 3986, unreserved characters.
const IN_SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Why a request brought nothing.
pub(super) enum Fault {
    /// Worth trying again, after the wait that the server asks for, if it does.
    Passing { reason: String, wait: Option<Duration> },
    /// Not worth it.
    Final(HubError),
}

impl From<HubError> for Fault {
    fn from(error: HubError) -> Self {
        Self::Final(error)
    }
}

/// A revision, resolved.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) commit: String,
    pub(super) names: Vec<String>,
}

/// What the hub says about one file.
#[derive(Clone, Debug)]
pub(super) struct RemoteFile {
    pub(super) name: String,
    pub(super) url: String,
    /// Names the blob.
    pub(super) etag: String,
    /// The ETag was announced for the stored object, so 64 digits in it are the SHA-256 of the content.
    pub(super) is_linked: bool,
    pub(super) size_bytes: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Redirects {
    /// To the content.
    Follow,
    /// Until an answer describes the file, as the hub does before it points elsewhere.
    UntilDescribed,
}

struct Ask<'a> {
    url: &'a str,
    /// The file or revision in question, for errors.
    what: &'a str,
    redirects: Redirects,
    head: Head,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Head {
    Only,
    AndBodyFrom(u64),
}

pub(super) struct Client<'a> {
    config: &'a HubConfig,
    id: &'a HubId,
    agent: Agent,
    origin: Origin,
}

impl<'a> Client<'a> {
    pub(super) fn new(config: &'a HubConfig, id: &'a HubId) -> Result<Self, HubError> {
        let origin = config.endpoint.parse().ok().as_ref().and_then(Origin::of);
        let origin = origin.ok_or_else(|| HubError::BadEndpoint { endpoint: config.endpoint.clone() })?;
        let mut tls = TlsConfig::builder();
        if let Some(path) = &config.ca_bundle {
            tls = tls.root_certs(read_bundle(path)?);
        }
        let agent = Agent::config_builder()
            .user_agent(USER_AGENT)
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_resolve(Some(config.patience.connect))
            .timeout_connect(Some(config.patience.connect))
            .timeout_recv_response(Some(config.patience.stall))
            .timeout_per_read(Some(config.patience.stall))
            .tls_config(tls.build())
            .build()
            .new_agent();
        Ok(Self { config, id, agent, origin })
    }

    /// Asks which commit the revision stands at and which files it has.
    pub(super) fn list(&self) -> Result<Listing, Fault> {
        #[derive(serde::Deserialize)]
        struct Answer {
            sha: String,
            siblings: Vec<Sibling>,
        }
        #[derive(serde::Deserialize)]
        struct Sibling {
            rfilename: String,
        }

        let revision = self.id.revision();
        let url = self.listing_url();
        let what = format!("revision `{revision}`");
        let ask = Ask { url: &url, what: &what, redirects: Redirects::Follow, head: Head::AndBodyFrom(0) };
        let response = self.send(&ask)?;
        let mut text = Vec::new();
        let body = response.into_body().into_reader();
        body.take(MAX_LISTING_BYTES + 1).read_to_end(&mut text).map_err(|error| passing(&error))?;
        let bad = |reason: String| HubError::BadAnswer { url: url.clone(), reason };
        if text.len() as u64 > MAX_LISTING_BYTES {
            return Err(bad(format!("the list of files is longer than {MAX_LISTING_BYTES} bytes")).into());
        }
        let answer: Answer = serde_json::from_slice(&text)
            .map_err(|error| bad(format!("expected JSON with sha and siblings: {error}")))?;
        if !is_commit(&answer.sha) {
            return Err(bad(format!("{:?} is not a commit", answer.sha)).into());
        }
        let names: Vec<String> = answer.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
        match names.iter().find(|name| !is_safe_path(name)) {
            Some(name) => Err(HubError::HostileName { id: self.id.repository(), name: name.clone() }.into()),
            None => Ok(Listing { commit: answer.sha, names }),
        }
    }

    /// Address of the listing.
    pub(super) fn listing_url(&self) -> String {
        let revision = utf8_percent_encode(self.id.revision(), IN_SEGMENT);
        format!("{}/api/models/{}/revision/{revision}", self.config.endpoint, self.id.repository())
    }

    /// Address of a file at a commit.
    pub(super) fn file_url(&self, commit: &str, name: &str) -> String {
        let path: Vec<String> = name.split('/').map(|part| utf8_percent_encode(part, IN_SEGMENT).to_string()).collect();
        format!("{}/{}/resolve/{commit}/{}", self.config.endpoint, self.id.repository(), path.join("/"))
    }

    /// Asks what a file is, without its bytes.
    pub(super) fn describe(&self, commit: &str, name: &str) -> Result<RemoteFile, Fault> {
        let url = self.file_url(commit, name);
        let ask = Ask { url: &url, what: name, redirects: Redirects::UntilDescribed, head: Head::Only };
        let response = self.send(&ask)?;
        let headers = response.headers();
        let linked = text_of(headers, "x-linked-etag");
        let etag = linked.or_else(|| text_of(headers, "etag")).map(plain_etag);
        let Some(etag) = etag.filter(is_blob_name) else {
            let reason = format!("expected an ETag of letters, digits, - and _ for {name}, found {etag:?}");
            return Err(HubError::BadAnswer { url, reason }.into());
        };
        let length = response.status().is_success().then(|| text_of(headers, "content-length")).flatten();
        let size_bytes = text_of(headers, "x-linked-size").or(length).and_then(|text| text.trim().parse().ok());
        let (etag, is_linked) = (etag.to_owned(), linked.is_some());
        Ok(RemoteFile { name: name.to_owned(), url, etag, is_linked, size_bytes })
    }

    /// Opens a file at `offset`; the answer may be 200 (all of it), 206 (from there on) or 416 (nothing there).
    pub(super) fn open(&self, file: &RemoteFile, offset: u64) -> Result<Response<Body>, Fault> {
        let head = Head::AndBodyFrom(offset);
        self.send(&Ask { url: &file.url, what: &file.name, redirects: Redirects::Follow, head })
    }

    /// Keeps count of the tries for `url`.
    pub(super) fn trial(&self, url: &str) -> Trial<'a> {
        Trial::new(&self.config.patience, url)
    }

    fn send(&self, ask: &Ask<'_>) -> Result<Response<Body>, Fault> {
        let bad = |reason: String| HubError::BadAnswer { url: ask.url.to_owned(), reason };
        let parse = |text: &str| {
            let uri: Option<Uri> = text.parse().ok();
            uri.and_then(|uri| Origin::of(&uri).map(|origin| (uri, origin)))
                .ok_or_else(|| bad(format!("{text:?} is not a web address")))
        };
        let (mut uri, mut origin) = parse(ask.url)?;
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send_once(ask, &uri, &origin)?;
            let status = response.status();
            let location = text_of(response.headers(), "location").filter(|_| status.is_redirection());
            let Some(location) = location else {
                return self.judge(ask, response, &origin);
            };
            let (next, next_origin) = parse(&resolve(&uri, &origin, location))?;
            if origin.is_secure() && !next_origin.is_secure() {
                return Err(bad("it points from https to http".to_owned()).into());
            }
            let is_described = ["x-linked-etag", "etag"].iter().any(|name| response.headers().contains_key(*name));
            if ask.redirects == Redirects::UntilDescribed && next_origin != origin && is_described {
                return Ok(response);
            }
            (uri, origin) = (next, next_origin);
        }
        Err(bad(format!("more than {MAX_REDIRECTS} redirects")).into())
    }

    fn send_once(&self, ask: &Ask<'_>, uri: &Uri, origin: &Origin) -> Result<Response<Body>, Fault> {
        let request = if ask.head == Head::Only { self.agent.head(uri) } else { self.agent.get(uri) };
        // Sizes and offsets are those of the plain content.
        let mut request = request.header(header::ACCEPT_ENCODING, "identity");
        if let Head::AndBodyFrom(offset @ 1..) = ask.head {
            request = request.header(header::RANGE, format!("bytes={offset}-"));
        }
        if let Some(token) = self.config.token.as_ref().filter(|_| *origin == self.origin) {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.secret()));
        }
        let sent = if origin.is_this_machine() { request.config().proxy(None).build().call() } else { request.call() };
        sent.map_err(|error| match error {
            // What TLS calls a bad peer stays one.
            ureq::Error::Io(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                let reason = format!("no secure connection: {error}; SSL_CERT_FILE may name the certificates to trust");
                Fault::Final(HubError::Unreachable { url: uri.to_string(), attempts: 1, reason })
            }
            error => passing(&error),
        })
    }

    /// Tells a usable answer from a passing fault and from a refusal.
    fn judge(&self, ask: &Ask<'_>, response: Response<Body>, origin: &Origin) -> Result<Response<Body>, Fault> {
        let status = response.status().as_u16();
        let is_from_hub = *origin == self.origin;
        match status {
            200 | 206 | 416 => return Ok(response),
            408 | 429 | 500..=599 => {}
            // A signed address of the store behind the hub has run out: the hub hands out a new one.
            401 | 403 | 404 | 410 if !is_from_hub => {}
            _ => return Err(self.refusal(ask, status, response.headers()).into()),
        }
        let asked = text_of(response.headers(), "retry-after").and_then(|text| text.trim().parse().ok());
        let wait = asked.map(|seconds| Duration::from_secs(seconds).min(LONGEST_ASKED_WAIT));
        let host = if is_from_hub { "" } else { &origin.authority };
        Err(Fault::Passing { reason: format!("HTTP {status} {host}").trim_end().to_owned(), wait })
    }

    fn refusal(&self, ask: &Ask<'_>, status: u16, headers: &HeaderMap) -> HubError {
        let (id, endpoint) = (self.id.repository(), self.config.endpoint.clone());
        let message = text_of(headers, "x-error-message").unwrap_or("no reason given");
        let message: String = message.chars().filter(|c| !c.is_control()).take(MAX_MESSAGE_CHARS).collect();
        let token_hint = if self.config.token.is_some() {
            "check that the account of your HF_TOKEN may read it"
        } else {
            "set HF_TOKEN to an access token of an account that may read it"
        };
        match (status, text_of(headers, "x-error-code").unwrap_or_default()) {
            (_, "GatedRepo") => HubError::Gated { id, endpoint, token_hint, message },
            (_, "RevisionNotFound" | "EntryNotFound") => {
                HubError::EntryNotFound { id, endpoint, what: ask.what.to_owned() }
            }
            (_, "RepoNotFound") | (404, _) => HubError::NotFound { id, endpoint, token_hint },
            (401 | 403, _) => HubError::Denied { id, endpoint, status, message, token_hint },
            _ => HubError::BadAnswer { url: ask.url.to_owned(), reason: format!("HTTP {status}: {message}") },
        }
    }
}

/// Tries in a row that brought nothing.
pub(super) struct Trial<'a> {
    patience: &'a Patience,
    attempts: u32,
    url: String,
    failed: u32,
}

impl<'a> Trial<'a> {
    fn new(patience: &'a Patience, url: &str) -> Self {
        Self { patience, attempts: patience.attempts, url: url.to_owned(), failed: 0 }
    }

    /// With less patience than configured.
    pub(super) fn at_most(self, attempts: u32) -> Self {
        Self { attempts: self.attempts.min(attempts), ..self }
    }

    /// Repeats a request until it succeeds or patience ends.
    pub(super) fn run<T>(
        mut self,
        notify: &mut dyn FnMut(Notice),
        request: &mut dyn FnMut() -> Result<T, Fault>,
    ) -> Result<T, HubError> {
        loop {
            match request() {
                Ok(value) => return Ok(value),
                Err(fault) => self.after(fault, notify)?,
            }
        }
    }

    /// Something arrived: the count starts anew.
    pub(super) fn progressed(&mut self) {
        self.failed = 0;
    }

    /// Waits before the next try, or gives up with the reason.
    pub(super) fn after(&mut self, fault: Fault, notify: &mut dyn FnMut(Notice)) -> Result<(), HubError> {
        let (reason, asked) = match fault {
            Fault::Final(error) => return Err(error),
            Fault::Passing { reason, wait } => (reason, wait),
        };
        self.failed += 1;
        if self.failed >= self.attempts {
            return Err(HubError::Unreachable { url: self.url.clone(), attempts: self.failed, reason });
        }
        let doubled = self.patience.first_wait.saturating_mul(1 << (self.failed - 1).min(16));
        let wait = asked.unwrap_or(doubled.min(LONGEST_WAIT));
        notify(Notice::Retry { reason, wait });
        std::thread::sleep(wait);
        Ok(())
    }
}

fn passing(error: &dyn std::fmt::Display) -> Fault {
    Fault::Passing { reason: error.to_string(), wait: None }
}

fn read_bundle(path: &Path) -> Result<RootCerts, HubError> {
    let bad = |reason: String| HubError::CaBundle { path: path.to_owned(), reason };
    let text = fs::read(path).map_err(|error| bad(error.to_string()))?;
    let mut certificates = Vec::new();
    for item in parse_pem(&text) {
        if let PemItem::Certificate(certificate) = item.map_err(|error| bad(error.to_string()))? {
            certificates.push(certificate);
        }
    }
    if certificates.is_empty() {
        return Err(bad("no certificate found, expected PEM".to_owned()));
    }
    Ok(RootCerts::from(certificates.into_iter()))
}

pub(super) fn text_of<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Without the mark of a weak tag and without quotes.
fn plain_etag(text: &str) -> &str {
    let text = text.trim();
    text.strip_prefix("W/").unwrap_or(text).trim_matches('"')
}

/// Fit to name a file; no dot, so that it cannot be taken for `.incomplete` or a folder.
fn is_blob_name(etag: &&str) -> bool {
    !etag.is_empty() && etag.len() <= 128 && etag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

/// Scheme, host and port: what a token may be sent to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Origin {
    scheme: String,
    authority: String,
    host: String,
}

impl Origin {
    fn of(uri: &Uri) -> Option<Self> {
        let scheme = uri.scheme_str().filter(|scheme| matches!(*scheme, "http" | "https"))?.to_owned();
        let host = uri.host().filter(|host| !host.is_empty())?.to_ascii_lowercase();
        let port = uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
        Some(Self { authority: format!("{host}:{port}"), scheme, host })
    }

    fn is_secure(&self) -> bool {
        self.scheme == "https"
    }

    /// Loopback, which no proxy can reach.
    fn is_this_machine(&self) -> bool {
        self.host == "localhost"
            || self.host.trim_matches(['[', ']']).parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
    }
}

/// The address that a `Location` means, seen from `base` (RFC 3986, section 5.2, for the forms that servers send).
fn resolve(base: &Uri, origin: &Origin, location: &str) -> String {
    let Origin { scheme, authority, .. } = origin;
    if location.starts_with("http://") || location.starts_with("https://") {
        location.to_owned()
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("{scheme}://{rest}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{location}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(text: &str) -> Origin {
        Origin::of(&text.parse().unwrap()).unwrap()
    }

    #[test]
    fn locations_resolve() {
        let base: Uri = "https://h/a/b/c?x=1".parse().unwrap();
        for (location, expected) in [
            ("https://s/x?y=%2F", "https://s/x?y=%2F"),
            ("//s/x", "https://s/x"),
            ("/x?y", "https://h:443/x?y"),
            ("d", "https://h:443/a/b/d"),
        ] {
            assert_eq!(resolve(&base, &origin("https://h"), location), expected);
        }
    }

    #[test]
    fn origins_compare_by_scheme_host_and_port() {
        assert_eq!(origin("https://Hub/a"), origin("https://hub:443/b"));
        for other in ["http://hub", "https://hub:444", "https://cdn.hub"] {
            assert_ne!(origin("https://hub"), origin(other));
        }
        assert!(
            ["http://127.0.0.1:1", "http://localhost", "http://[::1]:2"].iter().all(|u| origin(u).is_this_machine())
        );
        assert!(!origin("http://10.0.0.1").is_this_machine());
    }

    #[test]
    fn etags_name_blobs_only_when_plain() {
        assert_eq!(plain_etag("W/\"abc\""), "abc");
        assert!(["0a", "x-1_2"].iter().all(is_blob_name));
        assert!(!["", "..", "a/b", "a.incomplete", "a\\b", "é"].iter().any(is_blob_name));
    }

    #[test]
    fn addresses_are_escaped() {
        let config = HubConfig::new("http://h/x/", "/c");
        let id = super::super::parse_model_id("o/n@refs/pr/1").unwrap();
        let client = Client::new(&config, &id).unwrap();
        assert_eq!(client.listing_url(), "http://h/x/api/models/o/n/revision/refs%2Fpr%2F1");
        assert_eq!(client.file_url("c0", "a b/ü#?.gguf"), "http://h/x/o/n/resolve/c0/a%20b/%C3%BC%23%3F.gguf");
        for endpoint in ["", "hub", "ftp://h", "http://"] {
            let config = HubConfig::new(endpoint, "/c");
            assert!(matches!(Client::new(&config, &id), Err(HubError::BadEndpoint { .. })), "{endpoint:?}");
        }
    }

    #[test]
    fn a_broken_bundle_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        let id = super::super::parse_model_id("o/n").unwrap();
        let config = HubConfig { ca_bundle: Some(path.clone()), ..HubConfig::new("https://h", "/c") };
        assert!(matches!(Client::new(&config, &id), Err(HubError::CaBundle { .. })));
        fs::write(&path, "no certificate").unwrap();
        let error = Client::new(&config, &id).err().unwrap();
        assert!(error.to_string().contains("no certificate found"), "{error}");
    }
}
