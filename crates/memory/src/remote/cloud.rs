//! A bucket as a place elsewhere, through the `object_store` crate. Names move by conditional writes: create if absent, replace if
//! unchanged; a place that offers neither is refused. Async ends here: one private thread waits for each call.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::path::Path;
use object_store::{
    Error as Refusal, ObjectStore, ObjectStoreExt, ObjectStoreScheme, PutMode, PutOptions, PutPayload, RetryConfig,
    UpdateVersion,
};
use tokio::runtime::{Builder, Runtime};

use super::{Head, Heard, Place, Sink, Source, Version};
use crate::error::{Error, Result};
use crate::hash::Hash;
use crate::history::TagInfo;
use crate::landing::MAX_FILE_BYTES;
use crate::refs::{self, MAX_REF_BYTES, TagTarget};

/// Questions under way at once.
const ASKED: usize = 32;
/// Objects under way at once; each is held in memory.
const MOVING: usize = 4;
/// How long one request is repeated.
const PATIENCE: Duration = Duration::from_secs(30);
/// Writes of a name before a place is given up that stores something else.
const TRIES: usize = 3;

/// A bucket, or a part of one.
#[derive(Debug)]
pub(crate) struct Cloud {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    url: String,
    runtime: Runtime,
}

impl Cloud {
    pub(crate) fn open(url: &str) -> Result<Cloud> {
        let bad = |e: &dyn std::fmt::Display| Error::Remote {
            url: url.to_owned(),
            action: "use this URL".into(),
            reason: e.to_string(),
        };
        // TLS by ring, whatever else the process has; a second installation is refused, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let parsed = url::Url::parse(url).map_err(|e| bad(&e))?;
        let (scheme, prefix) = ObjectStoreScheme::parse(&parsed).map_err(|e| bad(&e))?;
        let retry = RetryConfig { max_retries: 5, retry_timeout: PATIENCE, ..RetryConfig::default() };
        let store: Result<Arc<dyn ObjectStore>, Refusal> = match scheme {
            ObjectStoreScheme::AmazonS3 => {
                AmazonS3Builder::from_env().with_url(url).with_retry(retry).build().map(|s| Arc::new(s) as _)
            }
            ObjectStoreScheme::GoogleCloudStorage => {
                GoogleCloudStorageBuilder::from_env().with_url(url).with_retry(retry).build().map(|s| Arc::new(s) as _)
            }
            ObjectStoreScheme::MicrosoftAzure => {
                MicrosoftAzureBuilder::from_env().with_url(url).with_retry(retry).build().map(|s| Arc::new(s) as _)
            }
            _ => return Err(bad(&"expected s3://, gs:// or az://")),
        };
        let store = store.map_err(|e| bad(&e))?;
        Cloud::build(store, prefix, url)
    }

    pub(crate) fn over(store: Arc<dyn ObjectStore>, prefix: &str, url: &str) -> Result<Cloud> {
        let prefix = Path::parse(prefix).map_err(|e| Error::refused("a prefix", e, "names with / between them"))?;
        Cloud::build(store, prefix, url)
    }

    fn build(store: Arc<dyn ObjectStore>, prefix: Path, url: &str) -> Result<Cloud> {
        let runtime = Builder::new_current_thread().enable_all().build();
        let reason =
            |e: std::io::Error| Error::Remote { url: url.to_owned(), action: "start".into(), reason: e.to_string() };
        Ok(Cloud { store, prefix, url: url.to_owned(), runtime: runtime.map_err(reason)? })
    }

    /// Waits for `work` on a thread of its own: the caller's may belong to another runtime, in which waiting is forbidden.
    fn wait<T: Send>(&self, work: impl Future<Output = T> + Send) -> T {
        std::thread::scope(|s| match s.spawn(|| self.runtime.block_on(work)).join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    fn at(&self, below: &str) -> Path {
        below.split('/').fold(self.prefix.clone(), |path, part| path.join(part))
    }

    fn object(&self, object: &Hash) -> Path {
        let name = object.to_string();
        let (folder, file) = name.split_at(2);
        self.at(&format!("objects/{folder}/{file}"))
    }

    fn error(&self, action: impl Into<String>, e: impl std::fmt::Display) -> Error {
        Error::Remote { url: self.url.clone(), action: action.into(), reason: e.to_string() }
    }

    /// A small file and its version; None if there is none.
    async fn small(&self, path: &Path, most_bytes: u64) -> Result<Option<(Vec<u8>, Version)>> {
        let got = match self.store.get(path).await {
            Ok(got) => got,
            Err(Refusal::NotFound { .. }) => return Ok(None),
            Err(e) => return Err(self.error(format!("read {path}"), e)),
        };
        if got.meta.size > most_bytes {
            return Err(Error::damaged(path, format!("{} bytes", got.meta.size), format!("at most {most_bytes}")));
        }
        let version = Version { e_tag: got.meta.e_tag.clone(), version: got.meta.version.clone() };
        let bytes = got.bytes().await.map_err(|e| self.error(format!("read {path}"), e))?;
        Ok(Some((bytes.to_vec(), version)))
    }

    async fn write(&self, path: &Path, bytes: Vec<u8>, mode: PutMode) -> Result<(), Refusal> {
        let options = PutOptions { mode, ..PutOptions::default() };
        self.store.put_opts(path, PutPayload::from(bytes), options).await.map(drop)
    }
}

/// A small file that changes under a condition.
struct Small<'a> {
    what: String,
    path: Path,
    bytes: Vec<u8>,
    /// What other bytes in its place say.
    parse: &'a dyn Fn(&[u8]) -> Result<String>,
}

impl Cloud {
    /// All names of files below a folder, ascending.
    fn below(&self, folder: &str) -> Result<Vec<String>> {
        let root = self.at(folder);
        let listed: Vec<_> = self
            .wait(self.store.list(Some(&root)).try_collect())
            .map_err(|e| self.error(format!("list {folder}"), e))?;
        let below = format!("{root}/");
        let name = |meta: object_store::ObjectMeta| meta.location.as_ref().strip_prefix(&below).map(str::to_owned);
        let mut names: Vec<String> = listed.into_iter().filter_map(name).collect();
        names.sort();
        names.iter().try_for_each(|n| crate::name::check_name(n))?;
        Ok(names)
    }

    fn tag(&self, label: &str) -> Result<Option<TagTarget>> {
        crate::name::check_name(label)?;
        let seen = self.wait(self.small(&self.at(&format!("tags/{label}")), MAX_REF_BYTES as u64))?;
        seen.map(|(bytes, _)| refs::parse_tag(label, &bytes)).transpose()
    }

    /// Writes a file if the condition of `mode` holds. None once it is there; else what is there in its place.
    fn settle(&self, file: &Small<'_>, mut mode: PutMode) -> Result<Option<Option<String>>> {
        let Small { what, path, bytes, parse } = file;
        for _ in 0..TRIES {
            let sent = self.wait(self.write(path, bytes.clone(), mode));
            if let Err(Refusal::NotImplemented { .. } | Refusal::NotSupported { .. }) = &sent {
                return Err(self.error(
                    format!("write the {what}"),
                    "this place has no conditional write, so another writer's state could be lost; use one that has",
                ));
            }
            // What counts is what is there: a request may be carried out and reported as failed, or the other way round.
            let (found, version) = self.wait(self.small(path, MAX_REF_BYTES as u64))?.unzip();
            match (found.map(|f| if f == *bytes { Ok(None) } else { parse(&f).map(Some) }), sent) {
                (Some(Ok(None)), _) => return Ok(None),
                (Some(Err(damage)), Err(Refusal::Precondition { .. } | Refusal::AlreadyExists { .. })) => {
                    return Err(damage);
                }
                // Our own, cut short: once more, over exactly that.
                (Some(Err(_)), _) => mode = version.unwrap_or_default().update(),
                (found, Err(Refusal::Precondition { .. } | Refusal::AlreadyExists { .. })) => {
                    return Ok(Some(found.and_then(Result::ok).flatten()));
                }
                (_, Err(e)) => return Err(self.error(format!("write the {what}"), e)),
                (_, Ok(())) => break,
            }
        }
        Err(self.error(format!("write the {what}"), "it took the write and stored something else"))
    }
}

impl Version {
    /// A write over exactly this version.
    fn update(&self) -> PutMode {
        PutMode::Update(UpdateVersion { e_tag: self.e_tag.clone(), version: self.version.clone() })
    }
}

impl Place for Cloud {
    fn sizes(&self, objects: &[Hash]) -> Result<HashMap<Hash, u64>> {
        let ask = |object: Hash| async move {
            match self.store.head(&self.object(&object)).await {
                Ok(meta) => Ok(Some((object, meta.size))),
                Err(Refusal::NotFound { .. }) => Ok(None),
                Err(e) => Err(self.error(format!("look for object {object}"), e)),
            }
        };
        let answers = stream::iter(objects.iter().copied().map(ask)).buffer_unordered(ASKED);
        let answers: Vec<_> = self.wait(answers.try_collect())?;
        Ok(answers.into_iter().flatten().collect())
    }

    fn put(&self, objects: &[Hash], source: &Source<'_>, heard: &mut Heard<'_>) -> Result<()> {
        for batch in objects.chunks(MOVING) {
            let files = batch.iter().map(|o| Ok((*o, source(o)?))).collect::<Result<Vec<_>>>()?;
            let lengths: Vec<(Hash, u64)> = files.iter().map(|(o, f)| (*o, f.len() as u64)).collect();
            let send = |(object, file): (Hash, Vec<u8>)| async move {
                let sent = self.write(&self.object(&object), file, PutMode::Overwrite).await;
                sent.map_err(|e| self.error(format!("write object {object}"), e))
            };
            self.wait(stream::iter(files.into_iter().map(send)).buffer_unordered(MOVING).try_collect::<Vec<()>>())?;
            lengths.iter().for_each(|(object, bytes)| heard(object, *bytes));
        }
        Ok(())
    }

    fn fetch(&self, objects: &[Hash], sink: &mut Sink<'_>) -> Result<()> {
        for batch in objects.chunks(MOVING) {
            let get = |object: Hash| async move {
                let none = || Error::Missing {
                    what: format!("object {object}"),
                    place: self.url.clone(),
                    hint: "push the state again from where it is whole".into(),
                };
                let got = self.small(&self.object(&object), MAX_FILE_BYTES).await?;
                Ok((object, got.ok_or_else(none)?.0))
            };
            let got = stream::iter(batch.iter().copied().map(get)).buffer_unordered(MOVING);
            let got: Vec<(Hash, Vec<u8>)> = self.wait(got.try_collect::<Vec<_>>())?;
            got.into_iter().try_for_each(|(object, file)| sink(object, file))?;
        }
        Ok(())
    }

    fn names(&self) -> Result<Vec<String>> {
        self.below("refs")
    }

    fn head(&self, name: &str) -> Result<Option<Head>> {
        crate::name::check_name(name)?;
        let path = self.at(&format!("refs/{name}"));
        let Some((bytes, version)) = self.wait(self.small(&path, MAX_REF_BYTES as u64))? else { return Ok(None) };
        Ok(Some(Head { hash: refs::parse_ref(name, &bytes)?, version }))
    }

    fn point(&self, name: &str, was: Option<&Head>, head: &Hash) -> Result<()> {
        crate::name::check_name(name)?;
        if self.tag(name)?.is_some() {
            let found = format!("'{name}', which is a tag at {}", self.url);
            return Err(Error::refused("a name of a state", found, "another name"));
        }
        let path = self.at(&format!("refs/{name}"));
        let file = Small {
            what: format!("name '{name}'"),
            path,
            bytes: refs::render_ref(name, head).into_bytes(),
            parse: &|bytes| refs::parse_ref(name, bytes).map(|h| h.to_string()),
        };
        let Some(found) = self.settle(&file, was.map_or(PutMode::Create, |was| was.version.update()))? else {
            return Ok(());
        };
        let said = |h: Option<String>| h.unwrap_or_else(|| "no such name".to_owned());
        let expected = said(was.map(|h| h.hash.to_string()));
        Err(Error::Moved { name: name.to_owned(), found: said(found), expected })
    }

    fn tags(&self) -> Result<Vec<TagInfo>> {
        let labels = self.below("tags")?;
        let read = |label: String| Ok(self.tag(&label)?.map(|t| t.of(label)));
        labels.into_iter().filter_map(|label| read(label).transpose()).collect()
    }

    fn put_tag(&self, tag: &TagInfo) -> Result<bool> {
        if self.head(&tag.label)?.is_some() {
            let found = format!("'{}', which is a state at {}", tag.label, self.url);
            return Err(Error::refused("a label", found, "another label"));
        }
        if !tag.is_new(self.tag(&tag.label)?)? {
            return Ok(false);
        }
        let target = TagTarget { manifest: tag.manifest, tokens: tag.tokens };
        let file = Small {
            what: format!("tag '{}'", tag.label),
            path: self.at(&format!("tags/{}", tag.label)),
            bytes: refs::render_tag(&tag.label, &target).into_bytes(),
            parse: &|bytes| refs::parse_tag(&tag.label, bytes).map(|_| String::new()),
        };
        match self.settle(&file, PutMode::Create)? {
            None => Ok(true),
            // Somebody else was faster.
            Some(_) => tag.is_new(self.tag(&tag.label)?),
        }
    }

    fn is_shallow(&self, manifest: &Hash) -> Result<bool> {
        Ok(self.wait(self.small(&self.at(&format!("shallow/{manifest}")), 0))?.is_some())
    }

    fn mark_shallow(&self, manifest: &Hash) -> Result<()> {
        let path = self.at(&format!("shallow/{manifest}"));
        let done = self.wait(self.write(&path, Vec::new(), PutMode::Overwrite));
        done.map_err(|e| self.error(format!("write {path}"), e))
    }
}
