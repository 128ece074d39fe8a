//! What the tree gives up: leaves, marks and windowed layers' parts of pages, least used first, and the marks of a long read as it grows.
//! Knows bytes and heat; when it is time, others say.

use std::collections::BTreeSet;

use reverie_tensor::Tensor;

use super::{Mark, Node, Tree, Why};

impl Tree {
    /// Gives up every second interval mark of the path of `tokens` once it has more than `most`, and says so.
    pub(crate) fn thin(&mut self, tokens: &[u32], most: usize) -> bool {
        let path = self.find(tokens).path;
        let intervals = |tree: &Tree| -> Vec<(usize, usize)> {
            let of = |&n: &usize| {
                tree.node(n).marks.iter().filter(|m| m.why == Why::Interval).map(move |m| (n, m.point.position()))
            };
            path.iter().flat_map(of).collect()
        };
        let marks = intervals(self);
        if marks.len() <= most {
            return false;
        }
        for (n, position) in marks.into_iter().step_by(2) {
            self.node_mut(n).marks.retain(|m| m.point.position() != position || m.why != Why::Interval);
        }
        self.thin_windows(&path);
        true
    }

    /// Gives up the windowed layers' part of those nodes of `path` that no mark needs.
    fn thin_windows(&mut self, path: &[usize]) {
        if !self.standing.windowed() {
            return;
        }
        let mut needed = BTreeSet::new();
        for (at, node) in self.nodes.iter().enumerate().filter_map(|(at, n)| Some((at, n.as_ref()?))) {
            for mark in &node.marks {
                let mut next = Some(at);
                for _ in self.standing.needed(mark.point.position()) {
                    let Some(n) = next else { break };
                    needed.insert(n);
                    next = self.node(n).parent;
                }
            }
        }
        path.iter().filter(|n| !needed.contains(n)).for_each(|&n| self.drop_window(n));
    }

    fn drop_window(&mut self, n: usize) {
        let node = self.node_mut(n);
        (node.page.windowed, node.window_tokens) = (Vec::new(), 0);
    }

    /// Bytes that only the tree holds.
    pub(crate) fn held_bytes(&self) -> u64 {
        let of = |n: &Node| own_bytes(n.page.tensors()) + n.marks.iter().map(mark_bytes).sum::<u64>();
        self.nodes.iter().flatten().map(of).sum()
    }

    /// Gives up pages and marks that no session holds, least used first and leaves before their parents, until `bytes` are
    /// free. Gives what was freed.
    pub(crate) fn evict(&mut self, bytes: u64) -> u64 {
        let mut freed = 0;
        while freed < bytes {
            let mut candidates = self.candidates();
            if candidates.is_empty() {
                break;
            }
            candidates.sort_by(|a, b| a.heat.total_cmp(&b.heat).then(a.what.cmp(&b.what)));
            for c in candidates {
                if freed >= bytes {
                    break;
                }
                freed += c.bytes;
                self.counters.evictions += 1;
                self.counters.evicted_bytes += c.bytes;
                match c.what {
                    What::Window => self.drop_window(c.node),
                    What::Mark(position) => self.node_mut(c.node).marks.retain(|m| m.point.position() != position),
                    What::Node => self.remove(c.node),
                }
            }
        }
        freed
    }

    /// What could be given up now: leaves that nobody else holds, and marks and windowed layers' parts anywhere.
    fn candidates(&self) -> Vec<Candidate> {
        let mut found = Vec::new();
        for (at, node) in self.nodes.iter().enumerate() {
            let Some(node) = node.as_ref().filter(|n| n.pins == 0) else { continue };
            let marks: u64 = node.marks.iter().map(mark_bytes).sum();
            if node.children.is_empty() {
                let bytes = own_bytes(node.page.tensors()) + marks;
                // A leaf that a session still holds would free nothing. One without bytes is only a path to nowhere.
                let empty = node.page.tensors().next().is_none() && node.marks.is_empty();
                if empty || bytes > 0 && node.page.tensors().all(|t| t.shared_by() == 1) {
                    found.push(Candidate { heat: node.heat.now(self.clock), node: at, what: What::Node, bytes });
                    continue;
                }
            }
            let bytes = own_bytes(node.page.windowed.iter());
            if bytes > 0 {
                let heat = node.window_heat.now(self.clock);
                found.push(Candidate { heat, node: at, what: What::Window, bytes });
            }
            for m in &node.marks {
                let bytes = mark_bytes(m);
                if bytes > 0 {
                    let heat = m.heat.now(self.clock);
                    found.push(Candidate { heat, node: at, what: What::Mark(m.point.position()), bytes });
                }
            }
        }
        found
    }
}

struct Candidate {
    heat: f64,
    node: usize,
    what: What,
    bytes: u64,
}

/// What of a node could be given up, in the order in which it goes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    /// The windowed layers' part of its page: the rest serves sessions that come here from a place before.
    Window,
    /// A mark alone, by its position.
    Mark(usize),
    Node,
}

fn own_bytes<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> u64 {
    tensors.filter(|t| t.shared_by() == 1).map(|t| t.len_bytes() as u64).sum()
}

fn mark_bytes(mark: &Mark) -> u64 {
    let held = mark.point.slots().chain(&mark.last).filter(|t| t.shared_by() == 1);
    held.map(|t| t.len_bytes() as u64).sum()
}
