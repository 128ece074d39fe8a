//! Names and what they stand for: resolving words to commits, walking parents, forking, renaming, tagging. Every change of a name is
//! one compare-and-swap under the refs' lock.

use std::collections::HashSet;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, excerpt};
use crate::hash::Hash;
use crate::manifest::Manifest;
use crate::name::{Spec, check_name};
use crate::refs::{self, TagTarget};
use crate::store::{Hold, Store};
use crate::writer::{Expect, expected};

/// A moment of a state: a stored manifest and how many of its tokens are meant.
#[derive(Clone, Debug, PartialEq)]
pub struct Commit {
    /// The name or tag through which it was found.
    pub name: Option<String>,
    /// The stored manifest's name.
    pub hash: Hash,
    /// Tokens that are meant: all, or those up to a turn's end or a tag.
    pub tokens: usize,
    /// The stored manifest, whole.
    pub manifest: Manifest,
}

impl Commit {
    /// The state that is meant: the manifest, cut to `tokens`. Refused where it cannot stand there.
    pub fn state(&self) -> Result<Manifest> {
        self.manifest.cut(self.tokens).ok_or_else(|| {
            let stand: Vec<String> = self.manifest.snapshots.iter().map(|s| s.position.to_string()).collect();
            let what = format!("commit {} at token {}", self.hash.short(), self.tokens);
            Error::refused(what, "layers whose state cannot be cut there", format!("one of {}", stand.join(", ")))
        })
    }
}

/// A name and its head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefInfo {
    /// The name.
    pub name: String,
    /// The manifest it points at.
    pub head: Hash,
}

/// A tag: a moment with a label, which never moves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TagInfo {
    /// The label.
    pub label: String,
    /// The manifest.
    pub manifest: Hash,
    /// Tokens of it that are meant.
    pub tokens: usize,
}

impl TagInfo {
    /// True if a place, where the label means `there`, lacks the tag. Refused if it means something else there: a label never moves.
    pub(crate) fn is_new(&self, there: Option<TagTarget>) -> Result<bool> {
        match there {
            None => Ok(true),
            Some(there) if (there.manifest, there.tokens) == (self.manifest, self.tokens) => Ok(false),
            Some(there) => Err(Error::refused(
                format!("the tag '{}', which is at both places", self.label),
                format!("token {} of commit {} where it was to go", there.tokens, there.manifest.short()),
                format!("token {} of {}: remove one of the two", self.tokens, self.manifest.short()),
            )),
        }
    }
}

impl Store {
    /// All names with their heads, by name.
    pub fn refs(&self) -> Result<Vec<RefInfo>> {
        let named = |name: String| Ok(self.head(&name)?.map(|head| RefInfo { name, head }));
        self.names("refs")?.into_iter().filter_map(|name| named(name).transpose()).collect()
    }

    /// All tags, by label.
    pub fn tags(&self) -> Result<Vec<TagInfo>> {
        let named = |label: String| Ok(self.tag_target(&label)?.map(|t| t.of(label)));
        self.names("tags")?.into_iter().filter_map(|label| named(label).transpose()).collect()
    }

    /// Commits of a name, newest first, read one by one as the iterator goes. It ends at the first commit, or where history was let go.
    pub fn history(&self, head: Hash) -> History<'_> {
        History { store: self, next: Some(head), seen: HashSet::new() }
    }

    /// All commits of a name (or of whatever else [`resolve`](Store::resolve) knows), newest first.
    pub fn log(&self, name: &str) -> Result<Vec<Commit>> {
        let start = self.resolve(name)?;
        let whole = |(hash, manifest): (Hash, Manifest)| Commit {
            name: start.name.clone(),
            hash,
            tokens: manifest.tokens.len(),
            manifest,
        };
        self.history(start.hash).map(|step| step.map(whole)).collect()
    }

    /// Finds a commit by `name`, `name~2` (two commits back), `name@3` (the end of turn 3), a tag, or at least eight digits of a
    /// manifest's hash. `@` prefers a commit that was made at that very turn, since it has its last row; else the newest is to be cut.
    pub fn resolve(&self, spec: &str) -> Result<Commit> {
        let parsed = Spec::parse(spec)?;
        let (base, mut tokens) = self.base(parsed.base)?;
        let (hash, manifest) = if parsed.back == 0 {
            (base, self.manifest(&base)?)
        } else {
            tokens = None;
            let mut found = self.history(base).skip(parsed.back);
            found.next().transpose()?.ok_or_else(|| Error::Missing {
                what: format!("'{}'", excerpt(spec)),
                place: self.place().display().to_string(),
                hint: format!("`reverie state log {}` shows how far its history goes", parsed.base),
            })?
        };
        let tokens = tokens.unwrap_or(manifest.tokens.len()).min(manifest.tokens.len());
        let commit = Commit { name: Some(parsed.base.to_owned()), hash, tokens, manifest };
        match parsed.turn {
            Some(turn) => self.at_turn(commit, turn),
            None => Ok(commit),
        }
    }

    fn at_turn(&self, commit: Commit, turn: usize) -> Result<Commit> {
        let here = |t: &&crate::manifest::Turn| t.tokens <= commit.tokens;
        let Some(end) = commit.manifest.turns.iter().filter(here).nth(turn - 1).map(|t| t.tokens) else {
            let turns = commit.manifest.turns.iter().filter(here).count();
            let found = format!("turn {turn} of {turns}");
            return Err(Error::refused(commit.name.unwrap_or_default(), found, format!("1 to {turns}")));
        };
        for step in self.history(commit.hash) {
            let (hash, manifest) = step?;
            if manifest.tokens.len() < end {
                break;
            }
            if manifest.tokens.get(..) == commit.manifest.tokens.get(..end) {
                return Ok(Commit { name: commit.name, hash, tokens: end, manifest });
            }
        }
        Ok(Commit { tokens: end, ..commit })
    }

    /// What the first word of a spec names, and how many tokens are meant if not all.
    fn base(&self, word: &str) -> Result<(Hash, Option<usize>)> {
        if let Some(head) = self.head(word)? {
            return Ok((head, None));
        }
        if let Some(target) = self.tag_target(word)? {
            return Ok((target.manifest, Some(target.tokens)));
        }
        if word.len() >= 8 && word.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            match self.by_digits(word)?.as_slice() {
                [one] => return Ok((*one, None)),
                [] => {}
                many => {
                    let found = format!("the start of {} objects", many.len());
                    return Err(Error::refused(format!("'{word}'"), found, "more digits"));
                }
            }
        }
        Err(Error::Missing {
            what: format!("'{}'", excerpt(word)),
            place: self.place().display().to_string(),
            hint: "no name, no tag and no hash opens with it; `reverie state ls` shows what there is".into(),
        })
    }

    fn by_digits(&self, digits: &str) -> Result<Vec<Hash>> {
        let (folder, rest) = digits.split_at(2);
        let Ok(entries) = std::fs::read_dir(self.path("objects").join(folder)) else { return Ok(Vec::new()) };
        let names = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
        Ok(names.filter(|n| n.starts_with(rest)).filter_map(|n| format!("{folder}{n}").parse().ok()).collect())
    }

    /// Makes `new` a second future of what `spec` names: no page is copied. From the end of a commit it is a second name of it;
    /// from inside, a commit of its own that says where it was split.
    pub fn fork(&self, spec: &str, new: &str) -> Result<Hash> {
        check_name(new)?;
        let from = self.resolve(spec)?;
        let writer = self.writer()?;
        let mut state = from.state()?;
        // A state that no name reaches may lack what it names.
        state.objects().try_for_each(|o| self.header(o).map(drop))?;
        let head = if from.tokens == from.manifest.tokens.len() {
            from.hash
        } else {
            (state.parent, state.forked_from) = (None, Some(from.hash));
            writer.put_manifest(&state)?
        };
        writer.publish(new, Expect::Absent, &head, &[])?;
        Ok(head)
    }

    /// Gives a name another spelling; history comes along.
    pub fn rename(&self, from: &str, to: &str) -> Result<()> {
        check_name(to)?;
        let _shared = self.lock(Hold::Shared)?;
        let _refs = self.lock_refs()?;
        let head = self.head(from)?.ok_or_else(|| self.no_name(from))?;
        expected(to, Expect::Absent, self.head(to)?)?;
        self.refuse_taken(to)?;
        let (old, new) = (self.path("refs").join(from), self.path("refs").join(to));
        self.make_room(&new)?;
        // A kill in between leaves both names.
        self.replace(&new, refs::render_ref(to, &head).as_bytes())?;
        self.remove_file(&old)
    }

    /// Removes a name. What only it reached goes with the next gc.
    pub fn remove(&self, name: &str, expect: Expect) -> Result<Hash> {
        check_name(name)?;
        let _shared = self.lock(Hold::Shared)?;
        let _refs = self.lock_refs()?;
        let head = self.head(name)?.ok_or_else(|| self.no_name(name))?;
        expected(name, expect, Some(head))?;
        self.remove_file(&self.path("refs").join(name))?;
        Ok(head)
    }

    /// Labels what `spec` names for good. A label is free once and never moves.
    pub fn tag(&self, spec: &str, label: &str) -> Result<TagInfo> {
        check_name(label)?;
        let _shared = self.lock(Hold::Shared)?;
        let commit = self.resolve(spec)?;
        commit.state()?;
        let _refs = self.lock_refs()?;
        self.refuse_taken(label)?;
        let tag = TagInfo { label: label.to_owned(), manifest: commit.hash, tokens: commit.tokens };
        self.write_tag(&tag)?;
        Ok(tag)
    }

    /// Under the refs' lock: the file of a tag whose label nobody has.
    fn write_tag(&self, tag: &TagInfo) -> Result<()> {
        if self.head(&tag.label)?.is_some() {
            return Err(Error::refused("a label", format!("'{}', which is a state", tag.label), "another label"));
        }
        let path = self.path("tags").join(&tag.label);
        self.make_room(&path)?;
        let target = TagTarget { manifest: tag.manifest, tokens: tag.tokens };
        self.replace(&path, refs::render_tag(&tag.label, &target).as_bytes())
    }

    /// Takes in a tag from elsewhere, whose manifest is here. False if it was here already.
    pub(crate) fn land_tag(&self, tag: &TagInfo) -> Result<bool> {
        check_name(&tag.label)?;
        let _refs = self.lock_refs()?;
        if !tag.is_new(self.tag_target(&tag.label)?)? {
            return Ok(false);
        }
        if self.manifest(&tag.manifest)?.cut(tag.tokens).is_none() {
            let found = format!("token {} of commit {}", tag.tokens, tag.manifest.short());
            return Err(Error::refused(format!("the tag '{}'", tag.label), found, "a place where the state can stand"));
        }
        self.write_tag(tag)?;
        Ok(true)
    }

    /// Those of `tags` that mean moments in the history of `head`, as far as it is here.
    pub(crate) fn along(&self, mut tags: Vec<TagInfo>, head: Hash) -> Result<Vec<TagInfo>> {
        if !tags.is_empty() {
            let commits: HashSet<Hash> = self.history(head).map(|step| Ok(step?.0)).collect::<Result<_>>()?;
            tags.retain(|tag| commits.contains(&tag.manifest));
        }
        Ok(tags)
    }

    /// Removes a tag.
    pub fn untag(&self, label: &str) -> Result<()> {
        let _shared = self.lock(Hold::Shared)?;
        let _refs = self.lock_refs()?;
        self.tag_target(label)?.ok_or_else(|| self.no_name(label))?;
        self.remove_file(&self.path("tags").join(label))
    }

    fn refuse_taken(&self, label: &str) -> Result<()> {
        match self.tag_target(label)? {
            Some(_) => Err(Error::refused("a label", format!("the tag '{label}', which is there"), "a free label")),
            None => Ok(()),
        }
    }

    pub(crate) fn no_name(&self, name: &str) -> Error {
        Error::Missing {
            what: format!("'{}'", excerpt(name)),
            place: self.place().display().to_string(),
            hint: "`reverie state ls` shows what there is".into(),
        }
    }

    pub(crate) fn remove_file(&self, path: &Path) -> Result<()> {
        self.disk().remove(path).map_err(Error::io("remove", path))?;
        self.sync_folder(path.parent().unwrap_or(path))
    }
}

/// Walks from a commit to its parents.
#[derive(Debug)]
pub struct History<'a> {
    store: &'a Store,
    next: Option<Hash>,
    seen: HashSet<Hash>,
}

impl Iterator for History<'_> {
    type Item = Result<(Hash, Manifest)>;

    fn next(&mut self) -> Option<Self::Item> {
        let hash = self.next.take()?;
        if !self.seen.insert(hash) {
            // Content hashes make no cycles; a store whose files were exchanged can.
            return Some(Err(Error::damaged("a history", format!("commit {hash} twice"), "parents that end")));
        }
        let manifest = match self.store.manifest(&hash) {
            Ok(manifest) => manifest,
            Err(e) => return Some(Err(e)),
        };
        self.next = manifest.parent.filter(|_| !self.store.is_shallow(&hash));
        Some(Ok((hash, manifest)))
    }
}
