//! Everything that names reach, in memory: commits, their parents, the objects they need. gc, stats and transfers reckon with it; it
//! changes nothing.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::hash::Hash;
use crate::store::Store;

/// Commits that names and tags reach.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    pub(crate) nodes: HashMap<Hash, Node>,
}

/// One commit.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) created_ms: u64,
    /// None at the first commit, and where history was let go.
    pub(crate) parent: Option<Hash>,
    /// Objects it mentions, each once.
    pub(crate) objects: Vec<Hash>,
    /// True where a name or a tag points here.
    pub(crate) root: bool,
}

/// An object as a file.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) path: PathBuf,
    pub(crate) disk_bytes: u64,
}

impl Graph {
    /// The commits from `head` back are added; those that are known end the walk.
    pub(crate) fn add(&mut self, store: &Store, head: Hash) -> Result<()> {
        for step in store.history(head) {
            let (hash, manifest) = step?;
            let root = hash == head;
            if let Some(known) = self.nodes.get_mut(&hash) {
                known.root |= root;
                break;
            }
            let unique: HashSet<Hash> = manifest.objects().copied().collect();
            let parent = manifest.parent.filter(|_| !store.is_shallow(&hash));
            let objects = unique.into_iter().collect();
            self.nodes.insert(hash, Node { created_ms: manifest.created_ms, parent, objects, root });
        }
        Ok(())
    }

    /// Commits in reach of a root, where those in `dropped` are gone.
    pub(crate) fn reach(&self, dropped: &HashSet<Hash>) -> HashSet<Hash> {
        let mut kept = HashSet::new();
        for (hash, _) in self.nodes.iter().filter(|(_, n)| n.root) {
            let mut at = Some(*hash);
            while let Some(hash) = at.filter(|h| !dropped.contains(h) && kept.insert(*h)) {
                at = self.nodes.get(&hash).and_then(|n| n.parent);
            }
        }
        kept
    }
}

impl Store {
    /// All commits of all names and tags. Fails where one cannot be read: what is damaged is not reckoned away.
    pub(crate) fn graph(&self) -> Result<Graph> {
        let mut graph = Graph::default();
        for named in self.refs()? {
            graph.add(self, named.head)?;
        }
        for tag in self.tags()? {
            graph.add(self, tag.manifest)?;
        }
        Ok(graph)
    }

    /// All object files by name. What is no object's file goes to `stray`.
    pub(crate) fn all_objects(&self, stray: &mut dyn FnMut(PathBuf)) -> Result<BTreeMap<Hash, Stored>> {
        let mut found = BTreeMap::new();
        for folder in self.list("objects")? {
            if !folder.is_dir() {
                stray(folder);
                continue;
            }
            for entry in std::fs::read_dir(&folder).map_err(Error::io("list", &folder))? {
                let path = entry.map_err(Error::io("list", &folder))?.path();
                let two = |p: &std::path::Path| Some(p.file_name()?.to_str()?.to_owned());
                let name = two(&folder).zip(two(&path)).map(|(a, b)| a + &b).and_then(|n| n.parse::<Hash>().ok());
                let meta = path.metadata().map_err(Error::io("examine", &path))?;
                match name.filter(|n| meta.is_file() && self.object_path(n) == path) {
                    Some(name) => drop(found.insert(name, Stored { path, disk_bytes: meta.len() })),
                    None => stray(path),
                }
            }
        }
        Ok(found)
    }

    /// What lies directly in a folder of the store.
    pub(crate) fn list(&self, folder: &str) -> Result<Vec<PathBuf>> {
        let path = self.path(folder);
        let entries = match std::fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::io("list", &path)(e)),
        };
        let mut found: Vec<PathBuf> =
            entries.map(|e| e.map(|e| e.path())).collect::<std::io::Result<_>>().map_err(Error::io("list", &path))?;
        found.sort();
        Ok(found)
    }
}
