//! What can go wrong between a hub id and files on disk, each with what to do about it.

use std::io;
use std::path::{Path, PathBuf};

/// A refusal or failure of the hub, the network, the cache or the disk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// No variable and no home folder say where the cache is.
    #[error("found no place for the model cache: set HF_HOME or HF_HUB_CACHE to a folder")]
    NoCacheFolder,
    /// The endpoint is no web address.
    #[error("the hub's address `{endpoint}` is not usable: expected http://host or https://host; check HF_ENDPOINT")]
    BadEndpoint {
        /// As configured.
        endpoint: String,
    },
    /// The bundle of certificates cannot be used.
    #[error("cannot use the certificates in {}: {reason}; check REQUESTS_CA_BUNDLE and SSL_CERT_FILE", path.display())]
    CaBundle {
        /// The bundle.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// No such repository, or a private one.
    #[error("no model `{id}` at {endpoint}: check the spelling; if it is private, {token_hint}")]
    NotFound {
        /// `owner/name`.
        id: String,
        /// The hub asked.
        endpoint: String,
        /// What to do about the token.
        token_hint: &'static str,
    },
    /// The repository exists, the revision or file does not.
    #[error("`{id}` at {endpoint} has no {what}: see {endpoint}/{id}/tree/main for what it has")]
    EntryNotFound {
        /// `owner/name`.
        id: String,
        /// The hub asked.
        endpoint: String,
        /// The revision or file asked for.
        what: String,
    },
    /// The owner wants a licence accepted first.
    #[error(
        "`{id}` is gated: open {endpoint}/{id} in a browser, ask for access with your account, then {token_hint} \
         (the hub says: {message})"
    )]
    Gated {
        /// `owner/name`.
        id: String,
        /// The hub asked.
        endpoint: String,
        /// What to do about the token.
        token_hint: &'static str,
        /// The hub's own words.
        message: String,
    },
    /// The hub refuses this account or token.
    #[error("{endpoint} refuses access to `{id}` (HTTP {status}: {message}): {token_hint}")]
    Denied {
        /// `owner/name`.
        id: String,
        /// The hub asked.
        endpoint: String,
        /// HTTP status.
        status: u16,
        /// The hub's own words.
        message: String,
        /// What to do about the token.
        token_hint: &'static str,
    },
    /// The network or the server failed as often as patience allows.
    #[error(
        "cannot reach {url} (tried {attempts}×; last: {reason}): check the network, the proxy and HF_ENDPOINT, then run \
         the same again: what has arrived is kept"
    )]
    Unreachable {
        /// What was asked for.
        url: String,
        /// Tries made.
        attempts: u32,
        /// The last failure.
        reason: String,
    },
    /// An answer that no hub should give.
    #[error("{url} gave an answer that cannot be used: {reason}; check that HF_ENDPOINT is a Hugging Face hub")]
    BadAnswer {
        /// What was asked for.
        url: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// A file name that leaves its folder.
    #[error(
        "`{id}` lists a file named {name:?}, which would lie outside its folder: nothing was downloaded; do not use this repository"
    )]
    HostileName {
        /// `owner/name`.
        id: String,
        /// As listed.
        name: String,
    },
    /// Nothing in the repository that this engine loads.
    #[error("`{id}` cannot be loaded: {reason}")]
    NoModel {
        /// The id, or the cached folder.
        id: String,
        /// What is missing and what was found instead.
        reason: String,
    },
    /// Several GGUF files, none chosen, or a choice that fits none or several.
    #[error("`{id}` {problem}; name one of them as `{id}:FILE`:\n  {}", files.join("\n  "))]
    ChooseGguf {
        /// `owner/name`.
        id: String,
        /// Why no single file is meant.
        problem: String,
        /// The files there are.
        files: Vec<String>,
    },
    /// Not in the cache, and no network may be used.
    #[error("`{id}` is not whole in the cache {}: {reason}; {remedy}", cache.display())]
    NotCached {
        /// The id.
        id: String,
        /// The cache folder.
        cache: PathBuf,
        /// What is missing.
        reason: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The server sent more or less than it announced.
    #[error(
        "{file} has {found_bytes} bytes where {expected_bytes} were announced; the partial file was deleted: run the same again"
    )]
    Size {
        /// File in the repository.
        file: String,
        /// Announced first.
        expected_bytes: u64,
        /// Found later.
        found_bytes: u64,
    },
    /// The content is not what the hub says that it is.
    #[error(
        "{file} arrived damaged: its {algorithm} is {found}, the hub says {expected}; the partial file was deleted: run the same again"
    )]
    Checksum {
        /// File in the repository.
        file: String,
        /// Name of the hash.
        algorithm: &'static str,
        /// From the hub.
        expected: String,
        /// Of what arrived.
        found: String,
    },
    /// No room on the disk.
    #[error(
        "the disk is full: {} needs {needed_bytes} bytes more; free some space or point HF_HUB_CACHE at another disk, then run \
         the same again: what has arrived is kept", path.display()
    )]
    DiskFull {
        /// The partial file.
        path: PathBuf,
        /// What is still to come, where the size is known.
        needed_bytes: u64,
    },
    /// Any other failure of the disk.
    #[error("{}: {source}", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

impl HubError {
    pub(super) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::write(path, source, 0)
    }

    /// A failed write, told apart from a full disk.
    pub(super) fn write(path: PathBuf, source: io::Error, needed_bytes: u64) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { path, needed_bytes },
            _ => Self::Io { path, source },
        }
    }
}
