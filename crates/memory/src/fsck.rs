//! Proving that all is whole: every object against its name, every name against its state, the index against both. It names what is
//! damaged, missing or stray, and tells it from a write that was interrupted. Repair sets damage aside; it invents nothing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use redb::ReadableDatabase;

use crate::error::{Error, Result};
use crate::hash::Hash;
use crate::index::{self, Broken};
use crate::manifest::Manifest;
use crate::object;
use crate::store::{Hold, OURS, Store};

/// What kind of thing was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FindingKind {
    /// What an interrupted write left behind. No loss: nothing that was reported as written is concerned.
    InFlight,
    /// A file that is none of the store's.
    Stray,
    /// The index is broken or incomplete; it is rebuilt from the rest.
    Index,
    /// Bytes that are not what was written.
    Damaged,
    /// Something that a state needs is not there.
    Missing,
}

impl FindingKind {
    /// The word for reports.
    pub fn word(self) -> &'static str {
        match self {
            FindingKind::InFlight => "in flight",
            FindingKind::Stray => "stray",
            FindingKind::Index => "index",
            FindingKind::Damaged => "damaged",
            FindingKind::Missing => "missing",
        }
    }
}

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What kind.
    pub kind: FindingKind,
    /// The file, object or name.
    pub what: String,
    /// In words.
    pub detail: String,
    /// What was done about it, with repair.
    pub done: Option<&'static str>,
}

/// Whether fsck changes anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FsckRun {
    /// Look only.
    Check,
    /// Remove leftovers, set damage aside under `damaged/`, rebuild the index.
    Repair,
}

/// The result of a check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FsckReport {
    /// All findings.
    pub findings: Vec<Finding>,
    /// Objects read.
    pub objects: usize,
    /// Bytes read.
    pub bytes: u64,
    /// Names and tags.
    pub names: usize,
    /// Commits that they reach.
    pub commits: usize,
}

impl FsckReport {
    /// True where everything that was ever reported as written is there and whole.
    pub fn is_whole(&self) -> bool {
        self.findings.iter().all(|f| matches!(f.kind, FindingKind::InFlight | FindingKind::Stray))
    }
}

impl Store {
    /// Reads and proves everything. `progress` hears bytes done and bytes in all.
    pub fn fsck(&self, run: FsckRun, progress: &mut dyn FnMut(u64, u64)) -> Result<FsckReport> {
        let _lock = self.lock(if run == FsckRun::Repair { Hold::Exclusive } else { Hold::Shared })?;
        let mut check = Check { store: self, run, report: FsckReport::default(), whole: BTreeSet::new() };
        check.strays()?;
        check.objects(progress)?;
        check.names()?;
        check.index()?;
        check.report.findings.sort_by(|a, b| (b.kind, &a.what).cmp(&(a.kind, &b.what)));
        Ok(check.report)
    }
}

struct Check<'a> {
    store: &'a Store,
    run: FsckRun,
    report: FsckReport,
    /// Objects that are what their names say.
    whole: BTreeSet<Hash>,
}

impl Check<'_> {
    fn find(&mut self, kind: FindingKind, what: impl ToString, detail: impl ToString) -> &mut Finding {
        let finding = Finding { kind, what: what.to_string(), detail: detail.to_string(), done: None };
        self.report.findings.push(finding);
        // One was pushed just now.
        self.report.findings.last_mut().unwrap_or_else(|| unreachable!())
    }

    /// True if the object is what its name says. One that came since the objects were walked is looked at now.
    fn is_whole(&mut self, object: &Hash) -> bool {
        let whole = self.whole.contains(object) || {
            let read = self.store.open_object(object);
            read.and_then(|(mut f, n)| object::decode(object, &mut f, n, &mut |_| {})).is_ok()
        };
        if whole {
            self.whole.insert(*object);
        }
        whole
    }

    fn repairs(&self) -> bool {
        self.run == FsckRun::Repair
    }

    fn below(&self, path: &Path) -> String {
        path.strip_prefix(self.store.place()).unwrap_or(path).display().to_string()
    }

    fn strays(&mut self) -> Result<()> {
        for path in self.store.list("")? {
            let known = path.file_name().and_then(|n| n.to_str()).is_some_and(|n| OURS.contains(&n));
            if !known {
                let what = self.below(&path);
                self.find(FindingKind::Stray, what, "nothing of the store's");
            }
        }
        let unfinished = self.store.path("index.new");
        let unfinished = unfinished.exists().then_some(unfinished);
        for path in self.store.list("tmp")?.into_iter().chain(unfinished) {
            let what = self.below(&path);
            let repairs = self.repairs();
            let finding = self.find(FindingKind::InFlight, what, "a write that has not ended, or was interrupted");
            if repairs {
                finding.done = Some("removed");
                self.remove(&path)?;
            }
        }
        Ok(())
    }

    fn objects(&mut self, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        let mut strays: Vec<PathBuf> = Vec::new();
        let stored = self.store.all_objects(&mut |path| strays.push(path))?;
        for path in strays {
            let what = self.below(&path);
            self.find(FindingKind::Stray, what, "a file that is no object's");
        }
        let total = stored.values().map(|s| s.disk_bytes).sum();
        for (name, file) in stored {
            let mut manifest = Vec::new();
            let read = self.store.open_object(&name).and_then(|(mut source, file_bytes)| {
                let header = object::decode(&name, &mut source, file_bytes, &mut |_| {})?;
                if header.kind == object::Kind::Manifest {
                    manifest = self.store.get(&name)?;
                    Manifest::parse(&manifest)?;
                }
                Ok(())
            });
            self.report.objects += 1;
            self.report.bytes += file.disk_bytes;
            match read {
                Ok(()) => drop(self.whole.insert(name)),
                Err(e) => self.set_aside(&file.path, &name.to_string(), &e)?,
            }
            progress(self.report.bytes, total);
        }
        Ok(())
    }

    /// Names a damaged file and, with repair, moves it out of the way, so that the same content can be written anew.
    fn set_aside(&mut self, path: &Path, name: &str, why: &Error) -> Result<()> {
        let what = self.below(path);
        let repairs = self.repairs();
        let finding = self.find(FindingKind::Damaged, what, why);
        if repairs {
            finding.done = Some("moved to damaged/");
            let aside = self.store.path("damaged");
            self.store.grow_folder(&aside)?;
            let to = aside.join(name.replace('/', "%"));
            self.store.disk().rename(path, &to).map_err(Error::io("move", path))?;
        }
        Ok(())
    }

    fn names(&mut self) -> Result<()> {
        let mut kept = BTreeSet::new();
        for (folder, word) in [("refs", "the name"), ("tags", "the tag")] {
            for name in self.store.names(folder)? {
                let path = self.store.path(folder).join(&name);
                if crate::name::check_name(&name).is_err() {
                    let what = self.below(&path);
                    self.find(FindingKind::Stray, what, "a file that is no name's");
                    continue;
                }
                self.report.names += 1;
                let head = match folder {
                    "refs" => self.store.head(&name),
                    _ => self.store.tag_target(&name).map(|t| t.map(|t| t.manifest)),
                };
                match head {
                    Ok(Some(head)) => self.state(&format!("{word} '{name}'"), head, &mut kept)?,
                    Ok(None) => {}
                    Err(e) => self.set_aside(&path, &format!("{folder}%{name}"), &e)?,
                }
            }
        }
        for mark in self.store.list("shallow")? {
            let of = mark.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse::<Hash>().ok());
            let empty = mark.metadata().is_ok_and(|m| m.is_file() && m.len() == 0);
            if of.is_none() || !empty {
                let what = self.below(&mark);
                self.find(FindingKind::Damaged, what, "found something else than an empty file named by a hash");
            }
        }
        Ok(())
    }

    /// Walks one state from its head. `seen` holds commits whose story is told.
    fn state(&mut self, who: &str, head: Hash, seen: &mut BTreeSet<Hash>) -> Result<()> {
        let (mut at, mut child) = (Some(head), None::<Hash>);
        while let Some(hash) = at.take().filter(|h| seen.insert(*h)) {
            let lacks = |what: &str| format!("{who} needs it: {what} of commit {}", hash.short());
            let manifest = match self.store.manifest(&hash) {
                Ok(manifest) if self.is_whole(&hash) => manifest,
                _ => {
                    let repairs = self.repairs();
                    let detail = match child {
                        Some(child) => format!("{who} needs it: the parent of commit {}", child.short()),
                        None => format!("{who} points at it and cannot be woken"),
                    };
                    let finding = self.find(FindingKind::Missing, format!("manifest {hash}"), detail);
                    if let Some(child) = child.filter(|_| repairs) {
                        finding.done = Some("history now ends before it");
                        self.store.mark_shallow(&child)?;
                    }
                    return Ok(());
                }
            };
            self.report.commits += 1;
            let parts = manifest.pages.iter().enumerate().map(|(i, o)| (format!("page {i}"), o));
            let parts =
                parts.chain(manifest.snapshots.iter().map(|s| (format!("the snapshot at {}", s.position), &s.object)));
            let parts = parts
                .chain(manifest.windows.iter().map(|w| (format!("the windowed layers' page {}", w.page), &w.object)));
            let parts = parts.chain(manifest.last.iter().map(|o| ("the last row".to_owned(), o)));
            for (part, object) in parts {
                if !self.is_whole(object) {
                    self.find(FindingKind::Missing, format!("object {object}"), lacks(&part));
                }
            }
            at = manifest.parent.filter(|_| !self.store.is_shallow(&hash));
            child = Some(hash);
        }
        Ok(())
    }

    fn index(&mut self) -> Result<()> {
        let found = self.store.look_at_index(&mut |db| {
            index::check(db)?;
            self.all_found(db)
        })?;
        if let Some(Broken(why)) = found {
            let repairs = self.repairs();
            let finding = self.find(FindingKind::Index, "index.redb", why);
            if repairs {
                finding.done = Some("rebuilt");
                self.store.renew_index()?;
            }
        }
        Ok(())
    }

    /// Every head is found through the index, whole.
    fn all_found(&self, db: &redb::Database) -> Result<(), Broken> {
        for named in self.store.refs().unwrap_or_default() {
            let Ok(manifest) = self.store.manifest(&named.head) else { continue };
            let point = index::deepest(&db.begin_read()?, &manifest.identity, &manifest.tokens)?;
            if point.map_or(0, |p| p.common) != manifest.tokens.len() {
                return Err(Broken(format!("the state '{}' is not in it", named.name)));
            }
        }
        Ok(())
    }

    fn remove(&self, path: &Path) -> Result<()> {
        self.store.disk().remove(path).map_err(Error::io("remove", path))
    }
}
