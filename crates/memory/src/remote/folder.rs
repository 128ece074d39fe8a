//! Another folder as a place elsewhere: a store like any other, with its own locks.

use std::collections::HashMap;
use std::path::Path;

use super::{Head, Heard, Place, Sink, Source, Version};
use crate::error::Result;
use crate::hash::Hash;
use crate::history::TagInfo;
use crate::store::Store;
use crate::writer::{Expect, Writer};

/// A store, held by a writer for as long as the transfer takes.
#[derive(Debug)]
pub(crate) struct Folder {
    store: Store,
    writer: Writer,
}

impl Folder {
    pub(crate) fn open(path: &Path) -> Result<Folder> {
        let store = Store::open(path)?;
        Ok(Folder { writer: store.writer()?, store })
    }
}

impl Place for Folder {
    fn sizes(&self, objects: &[Hash]) -> Result<HashMap<Hash, u64>> {
        Ok(objects.iter().filter_map(|o| Some((*o, self.store.header(o).ok()?.1))).collect())
    }

    fn put(&self, objects: &[Hash], source: &Source<'_>, heard: &mut Heard<'_>) -> Result<()> {
        for object in objects {
            let file = source(object)?;
            self.writer.put_file(object, &[&file])?;
            heard(object, file.len() as u64);
        }
        self.writer.sync(None)
    }

    fn fetch(&self, objects: &[Hash], sink: &mut Sink<'_>) -> Result<()> {
        objects.iter().try_for_each(|o| sink(*o, self.store.object_file(o)?))
    }

    fn names(&self) -> Result<Vec<String>> {
        Ok(self.store.refs()?.into_iter().map(|r| r.name).collect())
    }

    fn head(&self, name: &str) -> Result<Option<Head>> {
        Ok(self.store.head(name)?.map(|hash| Head { hash, version: Version::default() }))
    }

    fn point(&self, name: &str, was: Option<&Head>, head: &Hash) -> Result<()> {
        let manifest = self.store.manifest(head)?;
        let row = [(*head, manifest)];
        self.writer.publish(name, was.map_or(Expect::Absent, |h| Expect::Head(h.hash)), head, &row)
    }

    fn tags(&self) -> Result<Vec<TagInfo>> {
        self.store.tags()
    }

    fn put_tag(&self, tag: &TagInfo) -> Result<bool> {
        self.store.land_tag(tag)
    }

    fn is_shallow(&self, manifest: &Hash) -> Result<bool> {
        Ok(self.store.is_shallow(manifest))
    }

    fn mark_shallow(&self, manifest: &Hash) -> Result<()> {
        self.store.mark_shallow(manifest)
    }
}
