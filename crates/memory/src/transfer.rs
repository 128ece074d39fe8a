//! push and pull: the same state at two places. Only what is missing moves; objects first, manifests after what they name, the name
//! last and only forward, its tags after it. What stops half-way leaves objects that nothing names.

use std::collections::{BTreeSet, HashSet};

use crate::error::{Error, Result};
use crate::hash::Hash;
use crate::landing::{Arrival, Landing, Progress, Transfer, prove, prove_manifest};
use crate::name::check_name;
use crate::refs::TagTarget;
use crate::remote::{Remote, Send};
use crate::store::{Hold, Store};

/// Most commits that are taken from elsewhere in one go.
const MAX_COMMITS: usize = 1 << 20;

impl Store {
    /// Brings `name`, its history and the tags along it to a place elsewhere, under `to` if given. Refused if the name there has a history
    /// of its own.
    pub fn push(
        &self,
        name: &str,
        remote: &Remote,
        to: Option<&str>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Transfer> {
        let to = to.unwrap_or(name);
        check_name(to)?;
        let _lock = self.lock(Hold::Shared)?;
        let head = match self.head(name)? {
            Some(head) => head,
            None if self.tag_target(name)?.is_some() => {
                let way = format!(
                    "a name: `reverie state fork {name} NEW` makes one, and tags along its history travel with it"
                );
                return Err(Error::refused("what is to be pushed", format!("the tag '{name}'"), way));
            }
            None => return Err(self.no_name(name)),
        };
        let place = &*remote.place;
        let there = place.head(to)?;
        // A label that means something else there refuses the whole, before anything moves.
        let tags = self.along(self.tags()?, head)?;
        if !tags.is_empty() {
            let known = place.tags()?;
            for tag in &tags {
                let meant = known.iter().find(|t| t.label == tag.label);
                tag.is_new(meant.map(|t| TagTarget { manifest: t.manifest, tokens: t.tokens }))?;
            }
        }
        let put_tags = || -> Result<Vec<String>> {
            let mut labels = Vec::new();
            for tag in &tags {
                if place.put_tag(tag)? {
                    labels.push(tag.label.clone());
                }
            }
            Ok(labels)
        };
        let done = |landing, commits, moved: Progress, tags| Transfer {
            name: to.to_owned(),
            head: there.as_ref().filter(|_| landing == Landing::UpToDate).map_or(head, |h| h.hash),
            landing,
            commits,
            objects: moved.done,
            bytes: moved.bytes,
            tags,
        };
        let same = there.as_ref().is_some_and(|h| h.hash == head);
        if same && remote.send == Send::Missing {
            return Ok(done(Landing::UpToDate, 0, Progress::default(), put_tags()?));
        }
        let mut chain = Vec::new();
        let mut forward = there.is_none();
        for step in self.history(head) {
            let step = step?;
            forward |= there.as_ref().is_some_and(|h| h.hash == step.0);
            if forward && there.is_some() && remote.send == Send::Missing {
                break;
            }
            chain.push(step);
        }
        if !forward {
            let found = there.map_or_else(String::new, |h| h.hash.to_string());
            let expected =
                format!("a commit in the history of '{name}'; pull it under another name, or push under another");
            return Err(Error::Moved { name: to.to_owned(), found: format!("{found} at {}", remote.url), expected });
        }
        let mut moved = Progress::default();
        let payload: Vec<Hash> = Arrival { chain: chain.clone(), ..Arrival::default() }.objects().into_iter().collect();
        let manifests: Vec<Hash> = chain.iter().rev().map(|(h, _)| *h).collect();
        self.put_missing(remote, &payload, &mut moved, progress)?;
        if let Some((last, manifest)) = chain.last()
            && manifest.parent.is_some()
            && self.is_shallow(last)
        {
            place.mark_shallow(last)?;
        }
        self.put_missing(remote, &manifests, &mut moved, progress)?;
        if same {
            return Ok(done(Landing::UpToDate, chain.len(), moved, put_tags()?));
        }
        place.point(to, there.as_ref(), &head)?;
        let landing = if there.is_some() { Landing::Forwarded } else { Landing::Created };
        Ok(done(landing, chain.len(), moved, put_tags()?))
    }

    /// Puts those objects that are not there with the length they have here, then looks again: a place that lost or cut one is
    /// found out before a name moves.
    fn put_missing(
        &self,
        remote: &Remote,
        objects: &[Hash],
        moved: &mut Progress,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<()> {
        let mut lengths = Vec::new();
        for object in objects {
            lengths.push((*object, self.header(object)?.1));
        }
        let lacking = || -> Result<Vec<Hash>> {
            let there = remote.place.sizes(objects)?;
            Ok(lengths.iter().filter(|(o, n)| there.get(o) != Some(n)).map(|(o, _)| *o).collect())
        };
        let missing = if remote.send == Send::All { objects.to_vec() } else { lacking()? };
        moved.total += missing.len();
        remote.place.put(&missing, &|object| self.object_file(object), &mut |_, bytes| {
            moved.done += 1;
            moved.bytes += bytes;
            progress(*moved);
        })?;
        match lacking()?.first() {
            None => Ok(()),
            Some(lost) => {
                let what = format!("object {lost} at {}", remote.url);
                Err(Error::damaged(what, "another length, or nothing", "what was just written; push again"))
            }
        }
    }

    /// Fetches `name` with its history, under `to` if given. Refused if the name here has a history of its own.
    pub fn pull(
        &self,
        name: &str,
        remote: &Remote,
        to: Option<&str>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Transfer> {
        let to = to.unwrap_or(name);
        check_name(to)?;
        let writer = self.writer()?;
        let place = &*remote.place;
        let there = place.head(name)?.ok_or_else(|| Error::Missing {
            what: format!("'{name}'"),
            place: remote.url.clone(),
            hint: "`reverie state pull URL` without a name takes all that are there".into(),
        })?;
        let known: HashSet<Hash> = self.graph()?.nodes.into_keys().collect();
        let mut moved = Progress::default();
        let mut arrival = Arrival::default();
        let mut files = Vec::new();
        let mut at = Some(there.hash);
        let mut seen = HashSet::new();
        while let Some(hash) = at.take().filter(|h| !known.contains(h)) {
            if !seen.insert(hash) || seen.len() > MAX_COMMITS {
                return Err(Error::refused(format!("the history at {}", remote.url), "no end", "parents that end"));
            }
            let mut file = Vec::new();
            place.fetch(&[hash], &mut |_, bytes| {
                file = bytes;
                Ok(())
            })?;
            let manifest = prove_manifest(&hash, &file)?;
            at = match manifest.parent {
                Some(_) if place.is_shallow(&hash)? => {
                    arrival.shallow = true;
                    None
                }
                parent => parent,
            };
            files.push((hash, file));
            arrival.chain.push((hash, manifest));
        }
        if arrival.chain.is_empty() {
            arrival.chain.push((there.hash, self.manifest(&there.hash)?));
        }
        let missing: BTreeSet<Hash> = arrival.objects().into_iter().filter(|o| self.header(o).is_err()).collect();
        moved.total = missing.len() + files.len();
        let missing: Vec<Hash> = missing.into_iter().collect();
        place.fetch(&missing, &mut |object, file| {
            prove(&object, &file)?;
            writer.put_file(&object, &[&file])?;
            moved.done += 1;
            moved.bytes += file.len() as u64;
            progress(moved);
            Ok(())
        })?;
        for (hash, file) in files.iter().rev() {
            writer.put_file(hash, &[file])?;
            moved.done += 1;
            moved.bytes += file.len() as u64;
            progress(moved);
        }
        arrival.tags = place.tags()?;
        let (head, landing, tags) = writer.land(to, &arrival)?;
        Ok(Transfer {
            name: to.to_owned(),
            head,
            landing,
            commits: files.len(),
            objects: moved.done,
            bytes: moved.bytes,
            tags,
        })
    }
}
