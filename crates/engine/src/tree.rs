//! The prefix tree: every page that was computed stays findable by its tokens until the budget takes it. A node is one page of
//! tokens with its keys and values (one tensor a layer) and the marks inside it: places where every layer can stand. Nodes share
//! their tensors with the sessions that wrote them. Knows ids and handles, no text and no disk format.

use std::collections::VecDeque;

use reverie_memory::Hash;
use reverie_model::{Checkpoint, Standing, State};
use reverie_tensor::Tensor;
use reverie_tensor::backend::PAGE_TOKENS;

/// Steps of the clock after which a hit counts half.
const HALF_LIFE: f64 = 64.0;

/// Divergences that are remembered.
const KEPT_DIVERGENCES: usize = 16;

/// Ids shown on each side of a divergence.
const SHOWN_TOKENS: usize = 8;

/// A place where every layer can stand.
#[derive(Clone)]
pub(crate) struct Mark {
    pub(crate) point: Checkpoint,
    /// After the mark's last token, if they were computed.
    pub(crate) logits: Option<Tensor>,
    why: Why,
    heat: Heat,
}

/// Why a mark was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// A step of a long read; thinned out as the read grows.
    Interval,
    /// The end of a read or of an answer, or a point that the caller announced.
    Turn,
}

/// Hits with a half-life.
#[derive(Clone, Copy, Default)]
struct Heat {
    value: f64,
    stamp: u64,
}

impl Heat {
    fn now(&self, clock: u64) -> f64 {
        self.value * (-(clock.saturating_sub(self.stamp) as f64) / HALF_LIFE).exp2()
    }

    fn hit(&mut self, clock: u64) {
        *self = Heat { value: self.now(clock) + 1.0, stamp: clock };
    }
}

struct Node {
    parent: Option<usize>,
    children: Vec<usize>,
    /// Position of its first token, a multiple of the page.
    start: usize,
    /// At most a page; only a full page has children.
    tokens: Vec<u32>,
    /// One a layer with keys and values.
    page: Vec<Tensor>,
    /// Its name in the store, once it was written or read there. Of a whole page only.
    stored: Option<Hash>,
    /// Ascending by position.
    marks: Vec<Mark>,
    heat: Heat,
    pins: u32,
}

/// Where a prompt left what was known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Divergence {
    /// Index of the first token that differs.
    pub at: usize,
    /// What the nearest known text goes on with.
    pub known: Vec<u32>,
    /// What was asked for instead.
    pub asked: Vec<u32>,
}

/// What the tree did so far.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Reads that found something.
    pub hits: u64,
    /// Reads that found nothing.
    pub misses: u64,
    /// Tokens that were not computed again.
    pub tokens_saved: u64,
    /// Pages and marks that were given up.
    pub evictions: u64,
    /// Bytes that giving them up freed.
    pub evicted_bytes: u64,
    /// Where prompts left what was known, latest last.
    pub divergences: VecDeque<Divergence>,
}

/// What is known of a token list.
pub(crate) struct Found {
    /// Nodes from the root, the last perhaps in part.
    path: Vec<usize>,
    /// Every node beside the way that begins as the tokens do (those of the way among them), and the position up to which it does.
    near: Vec<(usize, usize)>,
    /// Tokens that some node has.
    pub(crate) matched: usize,
}

/// The tree. Position 0 is its root.
pub(crate) struct Tree {
    nodes: Vec<Option<Node>>,
    free: Vec<usize>,
    roots: Vec<usize>,
    clock: u64,
    standing: Standing,
    counters: Counters,
}

fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(x, y)| x == y).count()
}

impl Tree {
    pub(crate) fn new(standing: Standing) -> Tree {
        Tree {
            nodes: Vec::new(),
            free: Vec::new(),
            roots: Vec::new(),
            clock: 0,
            standing,
            counters: Counters::default(),
        }
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    fn node(&self, at: usize) -> &Node {
        self.nodes[at].as_ref().expect("a linked node exists")
    }

    fn node_mut(&mut self, at: usize) -> &mut Node {
        self.nodes[at].as_mut().expect("a linked node exists")
    }

    fn children(&self, at: Option<usize>) -> &[usize] {
        at.map_or(&self.roots, |n| &self.node(n).children)
    }

    /// The child that shares most with `tokens`, and how much.
    fn nearest(&self, at: Option<usize>, tokens: &[u32]) -> Option<(usize, usize)> {
        let shared = self.children(at).iter().map(|&c| (c, common(&self.node(c).tokens, tokens)));
        shared.filter(|(_, n)| *n > 0).max_by_key(|(_, n)| *n)
    }

    /// The longest known prefix of `tokens`.
    pub(crate) fn find(&self, tokens: &[u32]) -> Found {
        let (mut path, mut near, mut matched, mut at) = (Vec::new(), Vec::new(), 0, None);
        loop {
            let shared = |&c: &usize| (c, common(&self.node(c).tokens, &tokens[matched..]));
            let here: Vec<_> = self.children(at).iter().map(shared).filter(|(_, n)| *n > 0).collect();
            let Some(&(child, n)) = here.iter().max_by_key(|(_, n)| *n) else { break };
            near.extend(here.iter().map(|(c, n)| (*c, matched + n)));
            path.push(child);
            matched += n;
            if n < PAGE_TOKENS {
                break;
            }
            at = Some(child);
        }
        Found { path, near, matched }
    }

    /// The deepest position up to `to` at which every layer can stand.
    pub(crate) fn stand(&self, found: &Found, to: usize) -> usize {
        let to = to.min(found.matched);
        match self.standing {
            Standing::Anywhere => to,
            Standing::AtMarks => self.deepest_mark(found, to).map_or(0, |(_, m)| m.point.position()),
        }
    }

    fn deepest_mark(&self, found: &Found, to: usize) -> Option<(usize, &Mark)> {
        let of = |&(n, end): &(usize, usize)| {
            let mark = self.node(n).marks.iter().rfind(|m| m.point.position() <= end.min(to))?;
            Some((n, mark))
        };
        found.near.iter().filter_map(of).max_by_key(|(_, m)| (m.point.position(), m.logits.is_some()))
    }

    fn mark_at(&self, found: &Found, position: usize) -> Option<(usize, &Mark)> {
        self.deepest_mark(found, position).filter(|(_, m)| m.point.position() == position)
    }

    /// A state that stands at `at`, which `stand` gave, with the logits there if they are known. `empty` is any state of the model.
    pub(crate) fn state(&mut self, found: &Found, at: usize, empty: &State) -> Option<(State, Option<Tensor>)> {
        self.clock += 1;
        let clock = self.clock;
        let pages = at.div_ceil(PAGE_TOKENS);
        let mark = self.mark_at(found, at);
        let logits = mark.and_then(|(_, m)| m.logits.clone());
        // The last page is that of the mark, which may stand beside the way.
        let mut path: Vec<usize> = found.path.iter().take(pages).copied().collect();
        if let (Some(last), Some((node, _))) = (path.last_mut(), mark) {
            *last = node;
        }
        let page = |&n: &usize| &*self.node(n).page;
        let state = empty.standing(at, self.standing, path.iter().map(page), mark.map(|(_, m)| &m.point))?;
        for n in path {
            let node = self.node_mut(n);
            node.heat.hit(clock);
            node.marks.iter_mut().filter(|m| m.point.position() == at).for_each(|m| m.heat.hit(clock));
        }
        Some((state, logits))
    }

    /// True if the logits after `position` are known on this path.
    pub(crate) fn has_logits(&self, found: &Found, position: usize) -> bool {
        self.mark_at(found, position).is_some_and(|(_, m)| m.logits.is_some())
    }

    /// Counts a read of which `reused` tokens were known.
    pub(crate) fn count(&mut self, reused: usize, diverged: Option<&Divergence>) {
        if reused > 0 {
            self.counters.hits += 1;
        } else {
            self.counters.misses += 1;
        }
        self.counters.tokens_saved += reused as u64;
        if let Some(d) = diverged {
            if self.counters.divergences.len() == KEPT_DIVERGENCES {
                self.counters.divergences.pop_front();
            }
            self.counters.divergences.push_back(d.clone());
        }
    }

    /// Where `tokens` leave what is known, if what is known goes on differently.
    pub(crate) fn divergence(&self, tokens: &[u32], found: &Found) -> Option<Divergence> {
        let at = found.matched;
        if at == tokens.len() {
            return None;
        }
        // What the nearest known text says from `at` on: the rest of the last node, or its first child.
        let mut known: Vec<u32> = Vec::new();
        let mut next = match found.path.last() {
            Some(&last) if self.node(last).start + self.node(last).tokens.len() > at => {
                let node = self.node(last);
                known.extend(&node.tokens[at - node.start..]);
                node.children.first()
            }
            last => self.children(last.copied()).first(),
        };
        while let Some(&n) = next.filter(|_| known.len() < SHOWN_TOKENS) {
            known.extend(&self.node(n).tokens);
            next = self.node(n).children.first();
        }
        if known.is_empty() {
            return None;
        }
        known.truncate(SHOWN_TOKENS);
        let asked = tokens[at..].iter().take(SHOWN_TOKENS).copied().collect();
        Some(Divergence { at, known, asked })
    }

    /// Keeps what a session holds: its pages by handle, and a mark where it stands. Whole pages that are known already replace
    /// the session's own, so that equal text is held once. `logits` are asked for where they are not known yet.
    pub(crate) fn keep(
        &mut self,
        tokens: &[u32],
        state: &mut State,
        logits: impl FnOnce() -> Option<Tensor>,
        why: Why,
    ) {
        debug_assert_eq!(tokens.len(), state.len());
        if tokens.is_empty() {
            return;
        }
        self.clock += 1;
        let mut at = None;
        let mut path = Vec::new();
        for (p, page) in tokens.chunks(PAGE_TOKENS).enumerate() {
            let known = self.nearest(at, page);
            let here = match known {
                // The node has all of it.
                Some((n, shared)) if shared == page.len() => {
                    if shared == PAGE_TOKENS {
                        state.share_page(p, &self.node(n).page);
                    }
                    n
                }
                // The node is the beginning of it.
                Some((n, shared)) if shared == self.node(n).tokens.len() => {
                    let node = self.node_mut(n);
                    node.tokens = page.to_vec();
                    node.page = state.page(p);
                    n
                }
                _ => self.add(at, p * PAGE_TOKENS, page, state.page(p)),
            };
            path.push(here);
            at = Some(here);
        }
        let (clock, point) = (self.clock, state.checkpoint());
        let Some(&last) = path.last() else { return };
        let marks = &mut self.node_mut(last).marks;
        let after = marks.iter().filter(|m| m.point.position() < point.position()).count();
        if marks.get(after).is_none_or(|m| m.point.position() != point.position()) {
            marks.insert(after, Mark { point, logits: None, why, heat: Heat::default() });
        }
        let mark = &mut marks[after];
        mark.heat.hit(clock);
        if why == Why::Turn {
            mark.why = why;
        }
        if mark.logits.is_none() {
            mark.logits = logits();
        }
    }

    fn add(&mut self, parent: Option<usize>, start: usize, tokens: &[u32], page: Vec<Tensor>) -> usize {
        let mut heat = Heat::default();
        heat.hit(self.clock);
        let node = Node {
            parent,
            children: Vec::new(),
            start,
            tokens: tokens.to_vec(),
            page,
            stored: None,
            marks: Vec::new(),
            heat,
            pins: 0,
        };
        let at = match self.free.pop() {
            Some(at) => {
                self.nodes[at] = Some(node);
                at
            }
            None => {
                self.nodes.push(Some(node));
                self.nodes.len() - 1
            }
        };
        match parent {
            Some(p) => self.node_mut(p).children.push(at),
            None => self.roots.push(at),
        }
        at
    }

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
        true
    }

    /// The whole pages of `tokens` that are known from the first on.
    pub(crate) fn whole_pages(&self, tokens: &[u32]) -> Vec<Vec<Tensor>> {
        let found = self.find(tokens);
        found.path.iter().take(found.matched / PAGE_TOKENS).map(|&n| self.node(n).page.clone()).collect()
    }

    /// Marks on the path of `tokens`, ascending.
    pub(crate) fn marks(&self, tokens: &[u32]) -> Vec<Mark> {
        let found = self.find(tokens);
        let of =
            |&(n, end): &(usize, usize)| self.node(n).marks.iter().filter(move |m| m.point.position() <= end).cloned();
        let mut marks: Vec<Mark> = found.near.iter().flat_map(of).collect();
        marks.sort_by_key(|m| m.point.position());
        marks.dedup_by_key(|m| m.point.position());
        marks
    }

    /// The stored names of the whole pages of `tokens`, as far as they are known.
    pub(crate) fn stored(&self, tokens: &[u32]) -> Vec<Option<Hash>> {
        let found = self.find(tokens);
        found.path.iter().take(found.matched / PAGE_TOKENS).map(|&n| self.node(n).stored).collect()
    }

    /// Remembers the stored name of whole page `p` of `tokens`.
    pub(crate) fn set_stored(&mut self, tokens: &[u32], names: &[Hash]) {
        let found = self.find(tokens);
        for (&n, name) in found.path.iter().take(found.matched / PAGE_TOKENS).zip(names) {
            self.node_mut(n).stored = Some(*name);
        }
    }

    /// Pins or unpins the pages of `tokens`: what is pinned is never given up.
    pub(crate) fn pin(&mut self, tokens: &[u32], by: i32) {
        for n in self.find(tokens).path {
            let pins = &mut self.node_mut(n).pins;
            *pins = pins.saturating_add_signed(by);
        }
    }

    /// Bytes that only the tree holds.
    pub(crate) fn held_bytes(&self) -> u64 {
        let of = |n: &Node| own_bytes(&n.page) + n.marks.iter().map(mark_bytes).sum::<u64>();
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
            candidates.sort_by(|a, b| a.heat.total_cmp(&b.heat));
            for c in candidates {
                if freed >= bytes {
                    break;
                }
                freed += c.bytes;
                self.counters.evictions += 1;
                self.counters.evicted_bytes += c.bytes;
                match c.mark {
                    Some(position) => self.node_mut(c.node).marks.retain(|m| m.point.position() != position),
                    None => self.remove(c.node),
                }
            }
        }
        freed
    }

    /// What could be given up now: leaves that nobody else holds, and marks anywhere.
    fn candidates(&self) -> Vec<Candidate> {
        let mut found = Vec::new();
        for (at, node) in self.nodes.iter().enumerate() {
            let Some(node) = node.as_ref().filter(|n| n.pins == 0) else { continue };
            let marks: u64 = node.marks.iter().map(mark_bytes).sum();
            if node.children.is_empty() {
                let bytes = own_bytes(&node.page) + marks;
                // A leaf that a session still holds would free nothing. One without bytes is only a path to nowhere.
                let empty = node.page.is_empty() && node.marks.is_empty();
                if empty || bytes > 0 && node.page.iter().all(|t| t.shared_by() == 1) {
                    found.push(Candidate { heat: node.heat.now(self.clock), node: at, mark: None, bytes });
                    continue;
                }
            }
            for m in &node.marks {
                let bytes = mark_bytes(m);
                if bytes > 0 {
                    let heat = m.heat.now(self.clock);
                    found.push(Candidate { heat, node: at, mark: Some(m.point.position()), bytes });
                }
            }
        }
        found
    }

    fn remove(&mut self, at: usize) {
        let Some(node) = self.nodes[at].take() else { return };
        match node.parent {
            Some(p) => self.node_mut(p).children.retain(|&c| c != at),
            None => self.roots.retain(|&c| c != at),
        }
        self.free.push(at);
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        *self = Tree { counters: std::mem::take(&mut self.counters), ..Tree::new(self.standing) };
    }
}

struct Candidate {
    heat: f64,
    node: usize,
    /// A mark alone, by its position; none for the whole node.
    mark: Option<usize>,
    bytes: u64,
}

fn own_bytes(tensors: &[Tensor]) -> u64 {
    tensors.iter().filter(|t| t.shared_by() == 1).map(|t| t.len_bytes() as u64).sum()
}

fn mark_bytes(mark: &Mark) -> u64 {
    let logits = mark.logits.iter().filter(|t| t.shared_by() == 1).map(Tensor::len_bytes).sum::<usize>();
    mark.point.tensors().filter(|t| t.shared_by() == 1).map(Tensor::len_bytes).sum::<usize>() as u64 + logits as u64
}
