//! States that arrive from elsewhere, by file or over the network: what they must bring, what their name may do here. Nothing that
//! arrives is believed before it is proved.

use std::collections::{BTreeSet, HashSet};

use crate::error::{Error, Result};
use crate::hash::Hash;
use crate::history::TagInfo;
use crate::manifest::Manifest;
use crate::object::{self, Header, Kind, MAX_OBJECT_BYTES};
use crate::store::Store;
use crate::writer::{Expect, Writer};

/// How far a transfer is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Objects done.
    pub done: usize,
    /// Objects in all, as far as is known by now.
    pub total: usize,
    /// Bytes moved.
    pub bytes: u64,
}

/// What a transfer did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// The name it went to.
    pub name: String,
    /// Its head there.
    pub head: Hash,
    /// What became of the name.
    pub landing: Landing,
    /// Commits concerned.
    pub commits: usize,
    /// Objects that had to move, manifests included.
    pub objects: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Labels of moments in its history that are new there.
    pub tags: Vec<String>,
}

/// What became of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Landing {
    /// It was new.
    Created,
    /// It moved forward: the old head is part of the new history.
    Forwarded,
    /// It was there already, or further.
    UpToDate,
}

impl Landing {
    /// The word for reports.
    pub fn word(self) -> &'static str {
        match self {
            Landing::Created => "created",
            Landing::Forwarded => "forwarded",
            Landing::UpToDate => "up to date",
        }
    }
}

/// Most bytes of an object's file: raw, or compressed by a codec at its worst.
pub(crate) const MAX_FILE_BYTES: u64 = MAX_OBJECT_BYTES + (MAX_OBJECT_BYTES >> 6);

/// Proves that `file` is the object `name`; gives its header and, of a manifest, the parsed one.
pub(crate) fn prove(name: &Hash, file: &[u8]) -> Result<(Header, Option<Manifest>)> {
    let mut raw = Vec::new();
    let manifest = is_manifest(file);
    let header = object::decode(name, &mut &*file, file.len() as u64, &mut |piece| {
        if manifest {
            raw.extend_from_slice(piece);
        }
    })?;
    Ok((header, if manifest { Some(Manifest::parse(&raw)?) } else { None }))
}

fn is_manifest(file: &[u8]) -> bool {
    Header::read("an object", &mut &*file)
        .is_ok_and(|h| h.kind == Kind::Manifest && h.raw_bytes <= crate::manifest::MAX_MANIFEST_BYTES)
}

/// As [`prove`], for what must be a manifest.
pub(crate) fn prove_manifest(name: &Hash, file: &[u8]) -> Result<Manifest> {
    let refuse = || Error::refused(format!("object {name}"), "no manifest", "a manifest");
    prove(name, file)?.1.ok_or_else(refuse)
}

/// Commits that arrive, newest first, of one name.
#[derive(Debug, Default)]
pub(crate) struct Arrival {
    pub(crate) chain: Vec<(Hash, Manifest)>,
    /// True where the last one's parent is meant to be missing.
    pub(crate) shallow: bool,
    /// Tags; those of the history of the first commit are meant.
    pub(crate) tags: Vec<TagInfo>,
}

impl Arrival {
    /// Objects that the commits need, each once.
    pub(crate) fn objects(&self) -> BTreeSet<Hash> {
        self.chain.iter().flat_map(|(_, m)| m.objects().copied()).collect()
    }
}

impl Writer {
    /// Gives an arrival its name and its tags: all objects must be put. Moves a name only forward, and a tag never. Gives the head,
    /// what became of the name, and the labels that are new.
    pub(crate) fn land(&self, name: &str, arrival: &Arrival) -> Result<(Hash, Landing, Vec<String>)> {
        let store = self.store();
        self.settle(None)?;
        let none = || Error::refused("a state that arrives", "no commit", "at least one");
        let (head, _) = arrival.chain.first().ok_or_else(none)?;
        let (landing, expect) = store.landing(name, head, &arrival.chain)?;
        for (hash, manifest) in &arrival.chain {
            store.header(hash)?;
            manifest.objects().try_for_each(|o| store.header(o).map(drop))?;
        }
        if let Some((last, manifest)) = arrival.chain.last()
            && let Some(parent) = &manifest.parent
            && store.header(parent).is_err()
        {
            if !arrival.shallow {
                return Err(Error::no_object(parent, store.place()));
            }
            store.mark_shallow(last)?;
        }
        // What has its parent now needs no excuse.
        for (hash, _) in arrival.chain.iter().rev().skip(1).filter(|(hash, _)| store.is_shallow(hash)) {
            store.remove_file(&store.path("shallow").join(hash.to_string()))?;
        }
        // A label that means something else here refuses the whole, before the name moves.
        let tags = store.along(arrival.tags.clone(), *head)?;
        for tag in &tags {
            tag.is_new(store.tag_target(&tag.label)?)?;
        }
        match expect {
            Some(expect) => self.publish(name, expect, head, &arrival.chain)?,
            None => self.sync_and_list(None, &arrival.chain)?,
        }
        let mut labels = Vec::new();
        for tag in tags {
            if store.land_tag(&tag)? {
                labels.push(tag.label);
            }
        }
        Ok((*head, landing, labels))
    }
}

impl Store {
    /// What a name may do when `chain` (newest first, head included) arrives for it.
    fn landing(&self, name: &str, head: &Hash, chain: &[(Hash, Manifest)]) -> Result<(Landing, Option<Expect>)> {
        let Some(here) = self.head(name)? else { return Ok((Landing::Created, Some(Expect::Absent))) };
        if here == *head {
            return Ok((Landing::UpToDate, None));
        }
        let beyond = chain.last().and_then(|(_, m)| m.parent);
        let below = beyond.filter(|p| self.header(p).is_ok());
        let mut arriving: HashSet<Hash> = chain.iter().map(|(h, _)| *h).collect();
        arriving.extend(beyond);
        if arriving.contains(&here) || below.is_some_and(|p| self.is_ancestor(&here, p)) {
            return Ok((Landing::Forwarded, Some(Expect::Head(here))));
        }
        if self.is_ancestor(head, here) {
            return Ok((Landing::UpToDate, None));
        }
        Err(Error::Moved {
            name: name.to_owned(),
            found: format!("{here}, with a history of its own"),
            expected: format!("a commit that {head} follows; give what arrives another name (`--as`)"),
        })
    }

    /// True where `ancestor` is in the history of `head`, which may be damaged further down.
    pub(crate) fn is_ancestor(&self, ancestor: &Hash, head: Hash) -> bool {
        self.history(head).map_while(Result::ok).any(|(hash, _)| hash == *ancestor)
    }
}
