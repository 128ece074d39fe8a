//! Places elsewhere: another folder, or a bucket. Both hold the same files under the same names as a store; what differs is how a name
//! is moved without losing somebody else's.

#[cfg(feature = "cloud")]
mod cloud;
mod folder;

use std::collections::HashMap;
use std::fmt::Debug;

use crate::error::{Error, Result, excerpt};
use crate::hash::Hash;
use crate::history::TagInfo;

/// Receives the bytes of an object's file.
pub(crate) type Sink<'a> = dyn FnMut(Hash, Vec<u8>) -> Result<()> + 'a;
/// Gives the bytes of an object's file.
pub(crate) type Source<'a> = dyn Fn(&Hash) -> Result<Vec<u8>> + 'a;
/// Hears each object that is through, and its bytes.
pub(crate) type Heard<'a> = dyn FnMut(&Hash, u64) + 'a;

/// What a place elsewhere can do.
pub(crate) trait Place: std::marker::Send + Sync + Debug {
    /// Lengths of the files of those objects that are there.
    fn sizes(&self, objects: &[Hash]) -> Result<HashMap<Hash, u64>>;
    /// Puts the files of objects.
    fn put(&self, objects: &[Hash], source: &Source<'_>, heard: &mut Heard<'_>) -> Result<()>;
    /// Gets the files of objects, unproved, in any order.
    fn fetch(&self, objects: &[Hash], sink: &mut Sink<'_>) -> Result<()>;
    /// All names.
    fn names(&self) -> Result<Vec<String>>;
    /// The head of a name, with what is needed to move it.
    fn head(&self, name: &str) -> Result<Option<Head>>;
    /// Moves a name, if it still is where `was` says.
    fn point(&self, name: &str, was: Option<&Head>, head: &Hash) -> Result<()>;
    /// All tags.
    fn tags(&self) -> Result<Vec<TagInfo>>;
    /// Puts a tag whose manifest is there; false if it is there already. Refused if the label means something else.
    fn put_tag(&self, tag: &TagInfo) -> Result<bool>;
    /// Whether the manifest's parent was let go on purpose.
    fn is_shallow(&self, manifest: &Hash) -> Result<bool>;
    /// Notes that it was.
    fn mark_shallow(&self, manifest: &Hash) -> Result<()>;
}

/// A name elsewhere, as it was seen.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) hash: Hash,
    /// The place's own word for this version of the file.
    #[cfg_attr(not(feature = "cloud"), allow(dead_code))]
    pub(crate) version: Version,
}

/// What a conditional write compares.
#[derive(Clone, Debug, Default)]
pub(crate) struct Version {
    #[cfg_attr(not(feature = "cloud"), allow(dead_code))]
    pub(crate) e_tag: Option<String>,
    #[cfg_attr(not(feature = "cloud"), allow(dead_code))]
    pub(crate) version: Option<String>,
}

/// A place to push to and to pull from.
#[derive(Debug)]
pub struct Remote {
    pub(crate) url: String,
    pub(crate) place: Box<dyn Place>,
    pub(crate) send: Send,
}

/// Which objects a push sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Send {
    /// Those that are not there with the length they have here.
    #[default]
    Missing,
    /// All of the state's: heals a place that kept the length and lost the content.
    All,
}

impl Remote {
    /// Opens `file://…` or a path (a store, created if absent), `s3://bucket/…`, `gs://bucket/…` or `az://container/…`. Credentials
    /// come from the environment, under the names that the providers' own tools use.
    pub fn open(url: &str) -> Result<Remote> {
        let place: Box<dyn Place> = match url.split_once("://") {
            None => Box::new(folder::Folder::open(std::path::Path::new(url))?),
            Some(("file", path)) => {
                let path = path.strip_prefix("localhost").unwrap_or(path);
                Box::new(folder::Folder::open(std::path::Path::new(path))?)
            }
            #[cfg(feature = "cloud")]
            Some(("s3" | "gs" | "az", _)) => Box::new(cloud::Cloud::open(url)?),
            #[cfg(not(feature = "cloud"))]
            Some(("s3" | "gs" | "az", _)) => {
                return Err(Error::refused(excerpt(url), "a build without the feature 'cloud'", "a build with it"));
            }
            Some((scheme, _)) => {
                let found = format!("'{}://'", excerpt(scheme));
                return Err(Error::refused("the URL of a place", found, "file://, s3://, gs://, az://, or a path"));
            }
        };
        Ok(Remote { url: url.to_owned(), place, send: Send::Missing })
    }

    /// A place in an object store of the caller's, below `prefix`. `url` is what messages call it.
    #[cfg(feature = "cloud")]
    pub fn over(store: std::sync::Arc<dyn object_store::ObjectStore>, prefix: &str, url: &str) -> Result<Remote> {
        Ok(Remote {
            url: url.to_owned(),
            place: Box::new(cloud::Cloud::over(store, prefix, url)?),
            send: Send::Missing,
        })
    }

    /// The same place, where a push sends `send`.
    pub fn sending(self, send: Send) -> Remote {
        Remote { send, ..self }
    }

    /// All names at the place.
    pub fn names(&self) -> Result<Vec<String>> {
        self.place.names()
    }
}
