//! What a store holds and what sharing saves.

use std::collections::HashMap;

use crate::error::Result;
use crate::hash::Hash;
use crate::store::{Hold, Store};

/// Counts and bytes of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stats {
    /// Names.
    pub names: usize,
    /// Tags.
    pub tags: usize,
    /// Commits that they reach.
    pub commits: usize,
    /// Objects on the disk, manifests included.
    pub objects: usize,
    /// Objects that no name reaches: the next gc sweeps them.
    pub unreachable: usize,
    /// Bytes of all object files.
    pub disk_bytes: u64,
    /// Bytes of the reachable objects before compression, each once.
    pub raw_bytes: u64,
    /// The same, once for every commit that mentions them: what states without sharing would take.
    pub logical_bytes: u64,
}

impl Stats {
    /// How many times the bytes on the disk are used.
    pub fn dedup(&self) -> f64 {
        if self.raw_bytes == 0 { 1.0 } else { self.logical_bytes as f64 / self.raw_bytes as f64 }
    }
}

impl Store {
    /// Counts what is there. Reads manifests and headers, no payload.
    pub fn stats(&self) -> Result<Stats> {
        let _lock = self.lock(Hold::Shared)?;
        let graph = self.graph()?;
        let stored = self.all_objects(&mut |_| {})?;
        let mut mentions: HashMap<Hash, u64> = HashMap::new();
        for (hash, node) in &graph.nodes {
            node.objects.iter().chain([hash]).for_each(|o| *mentions.entry(*o).or_default() += 1);
        }
        let mut stats = Stats {
            names: self.refs()?.len(),
            tags: self.tags()?.len(),
            commits: graph.nodes.len(),
            objects: stored.len(),
            unreachable: stored.keys().filter(|h| !mentions.contains_key(h)).count(),
            disk_bytes: stored.values().map(|s| s.disk_bytes).sum(),
            ..Stats::default()
        };
        for (hash, n) in mentions {
            let raw = self.header(&hash)?.0.raw_bytes;
            stats.raw_bytes += raw;
            stats.logical_bytes += raw * n;
        }
        Ok(stats)
    }
}
