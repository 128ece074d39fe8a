//! Letting go: objects that no name reaches, and on request history, oldest first, until age and budget are kept. Never a head, never
//! what a tag points at. It holds the store alone; a kill in between leaves rubbish and no loss.

use std::collections::{HashMap, HashSet};

use crate::error::{Error, Result};
use crate::graph::{Graph, Stored};
use crate::hash::Hash;
use crate::store::{Hold, Store};

/// What gc may let go beside unreachable objects.
#[derive(Clone, Copy, Debug, Default)]
pub struct GcSpec {
    /// Commits written before this moment (milliseconds since 1970) are let go, unless a name or tag points at them.
    pub before_ms: Option<u64>,
    /// Disk bytes that all objects may take: history goes, oldest first, until they do.
    pub budget_bytes: Option<u64>,
    /// Whether to do it or only to say it.
    pub run: GcRun,
}

/// Whether gc acts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GcRun {
    /// Sweep.
    #[default]
    Sweep,
    /// Say what would be swept; change nothing.
    Pretend,
}

/// What gc did, or would do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GcReport {
    /// Commits let go.
    pub commits_dropped: usize,
    /// Objects swept, manifests included.
    pub objects_swept: usize,
    /// Disk bytes that freed.
    pub bytes_freed: u64,
    /// Unfinished writes removed.
    pub leftovers: usize,
    /// Objects that stay.
    pub objects_kept: usize,
    /// Their disk bytes.
    pub bytes_kept: u64,
    /// Bytes by which heads and tags alone exceed the budget.
    pub over_budget: u64,
}

impl Store {
    /// Collects. Waits for writers to end; refuses while anything that a name reaches is damaged.
    pub fn gc(&self, spec: &GcSpec) -> Result<GcReport> {
        let hold = if spec.run == GcRun::Sweep { Hold::Exclusive } else { Hold::Shared };
        let _lock = self.lock(hold)?;
        let graph = self.graph()?;
        let stored = self.all_objects(&mut |_| {})?;
        let kept = choose(&graph, &|h| stored.get(h).map_or(0, |s: &Stored| s.disk_bytes), spec);
        let live: HashSet<&Hash> =
            kept.iter().chain(kept.iter().filter_map(|h| graph.nodes.get(h)).flat_map(|n| &n.objects)).collect();
        let leftovers = self.list("tmp")?;
        let (stay, go): (Vec<_>, Vec<_>) = stored.iter().partition(|(hash, _)| live.contains(hash));
        let bytes = |list: &[(&Hash, &Stored)]| list.iter().map(|(_, s)| s.disk_bytes).sum::<u64>();
        let report = GcReport {
            commits_dropped: graph.nodes.len() - kept.len(),
            objects_swept: go.len(),
            bytes_freed: bytes(&go),
            leftovers: leftovers.len(),
            objects_kept: stay.len(),
            bytes_kept: bytes(&stay),
            over_budget: bytes(&stay).saturating_sub(spec.budget_bytes.unwrap_or(u64::MAX)),
        };
        if spec.run == GcRun::Pretend {
            return Ok(report);
        }
        for hash in &kept {
            // Said before it is done: a parent that is gone without this mark is damage.
            let parent = graph.nodes.get(hash).and_then(|n| n.parent);
            if parent.is_some_and(|p| !kept.contains(&p)) {
                self.mark_shallow(hash)?;
            }
        }
        let remove = |path: &std::path::Path| self.disk().remove(path).map_err(Error::io("remove", path));
        go.iter().try_for_each(|(_, s)| remove(&s.path))?;
        leftovers.iter().try_for_each(|path| remove(path))?;
        for mark in self.list("shallow")? {
            let of = mark.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse::<Hash>().ok());
            if of.is_some_and(|h| !kept.contains(&h)) {
                remove(&mark)?;
            }
        }
        if report.commits_dropped > 0 || report.objects_swept > 0 {
            self.renew_index()?;
        }
        Ok(report)
    }

    /// Notes that the parent of this manifest was let go on purpose.
    pub(crate) fn mark_shallow(&self, manifest: &Hash) -> Result<()> {
        if self.is_shallow(manifest) {
            return Ok(());
        }
        self.replace(&self.path("shallow").join(manifest.to_string()), b"")
    }
}

/// The commits to keep.
fn choose(graph: &Graph, disk_bytes: &dyn Fn(&Hash) -> u64, spec: &GcSpec) -> HashSet<Hash> {
    let before = spec.before_ms.unwrap_or(0);
    let aged = graph.nodes.iter().filter(|(_, n)| !n.root && n.created_ms < before).map(|(h, _)| *h);
    let mut dropped: HashSet<Hash> = aged.collect();
    let mut kept = graph.reach(&dropped);
    let Some(budget) = spec.budget_bytes else { return kept };
    let mut users: HashMap<Hash, usize> = HashMap::new();
    let mut children: HashMap<Hash, usize> = HashMap::new();
    for (hash, node) in kept.iter().filter_map(|h| graph.nodes.get_key_value(h)) {
        node.objects.iter().chain([hash]).for_each(|o| *users.entry(*o).or_default() += 1);
        node.parent.into_iter().for_each(|p| *children.entry(p).or_default() += 1);
    }
    let mut live: u64 = users.keys().map(disk_bytes).sum();
    let mut oldest: Vec<(u64, Hash)> =
        kept.iter().filter_map(|h| graph.nodes.get(h).filter(|n| !n.root).map(|n| (n.created_ms, *h))).collect();
    oldest.sort_unstable();
    for (_, first) in oldest {
        if live <= budget {
            break;
        }
        // With clocks that went back a parent may be younger than its child; it goes along when nothing else leads to it.
        let mut at = Some(first);
        while let Some(hash) = at.take() {
            let Some(node) = graph.nodes.get(&hash).filter(|_| dropped.insert(hash)) else { break };
            for object in node.objects.iter().chain([&hash]) {
                if let Some(n) = users.get_mut(object) {
                    *n -= 1;
                    live -= if *n == 0 { disk_bytes(object) } else { 0 };
                }
            }
            if let Some((parent, n)) = node.parent.and_then(|p| Some((p, children.get_mut(&p)?))) {
                *n -= 1;
                let free = *n == 0 && graph.nodes.get(&parent).is_some_and(|n| !n.root);
                at = free.then_some(parent);
            }
        }
    }
    kept = graph.reach(&dropped);
    kept
}
