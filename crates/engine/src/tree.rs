//! The prefix tree: every page that was computed stays findable by its tokens until the budget takes it. A node is one page of
//! tokens with its keys and values (one tensor a layer; those of windowed layers only near places where sessions stood) and the marks
//! inside it: places where somebody stood. Nodes share their tensors with the sessions that wrote them. Knows ids and handles, no text
//! and no disk format.

mod evict;

use std::collections::{BTreeMap, VecDeque};

use reverie_memory::Hash;
use reverie_model::{Checkpoint, Page, Standing, State};
use reverie_tensor::Tensor;
use reverie_tensor::backend::PAGE_TOKENS;

/// Steps of the clock after which a hit counts half.
const HALF_LIFE: f64 = 64.0;

/// Divergences that are remembered.
const KEPT_DIVERGENCES: usize = 16;

/// Ids shown on each side of a divergence.
const SHOWN_TOKENS: usize = 8;

/// A place where somebody stood: every layer can, as long as its window is kept.
#[derive(Clone)]
pub(crate) struct Mark {
    pub(crate) point: Checkpoint,
    /// The stream after the final norm at the mark's last token `[1, D]`, if somebody wanted it: the logits are one product away.
    pub(crate) last: Option<Tensor>,
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

/// What a whole page is called in the store: the part of the layers that see every token, and that of the windowed ones.
#[derive(Clone, Copy, Default)]
pub(crate) struct Stored {
    pub(crate) whole: Option<Hash>,
    pub(crate) windowed: Option<Hash>,
}

/// What is known of a page along some tokens.
#[derive(Clone, Default)]
pub(crate) struct Known {
    pub(crate) page: Page,
    /// True if all of its tokens are.
    pub(crate) is_whole: bool,
    /// Its first tokens for which the windowed layers' part is there.
    pub(crate) window_tokens: usize,
    /// Of a whole page only.
    pub(crate) stored: Stored,
}

struct Node {
    parent: Option<usize>,
    children: Vec<usize>,
    /// Position of its first token, a multiple of the page.
    start: usize,
    /// At most a page; only a full page has children.
    tokens: Vec<u32>,
    page: Page,
    /// Its first tokens for which the windowed layers' part is there.
    window_tokens: usize,
    /// When that part was last what a session stood on.
    window_heat: Heat,
    /// Its names in the store, once it was written or read there. Of a whole page only.
    stored: Stored,
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
        if self.standing.anywhere() {
            return to;
        }
        found.near.iter().map(|&(n, end)| self.deepest_in(found, n, end.min(to))).max().unwrap_or(0)
    }

    /// The deepest position in node `n` up to `end` at which every layer can stand, or 0.
    fn deepest_in(&self, found: &Found, n: usize, end: usize) -> usize {
        let node = self.node(n);
        if self.standing.recurrent() {
            let mut marks = node.marks.iter().rev().map(|m| m.point.position()).filter(|&p| p <= end);
            return marks.find(|&p| self.window_is_whole(found, n, p)).unwrap_or(0);
        }
        // A shorter text needs what a longer one does and more: one try is enough.
        let at = end.min(node.start + node.window_tokens);
        if at > node.start && self.window_is_whole(found, n, at) { at } else { 0 }
    }

    /// True if the windowed layers can stand at `at`, inside node `n`.
    fn window_is_whole(&self, found: &Found, n: usize, at: usize) -> bool {
        let last = self.node(n);
        let whole = |p: usize| match found.path.get(p) {
            _ if p * PAGE_TOKENS == last.start => last.start + last.window_tokens >= at,
            Some(&before) => self.node(before).window_tokens == PAGE_TOKENS,
            None => false,
        };
        self.standing.needed(at).all(whole)
    }

    /// The node in which a state at `at` ends, and the mark there if there is one; one with its last row first. The way may have
    /// neighbours that begin as it does.
    fn place(&self, found: &Found, at: usize) -> Option<(usize, Option<&Mark>)> {
        let ends = |&&(n, end): &&(usize, usize)| self.node(n).start < at && at <= end;
        let place = |&(n, end): &(usize, usize)| {
            let mark = self.node(n).marks.iter().find(|m| m.point.position() == at);
            let stands = match (self.standing.anywhere(), self.standing.recurrent() && mark.is_none()) {
                (true, _) => true,
                (_, true) => false,
                _ => self.window_is_whole(found, n, at),
            };
            stands.then_some((n, end, mark))
        };
        let places = found.near.iter().filter(ends).filter_map(place);
        let best = places.max_by_key(|(_, end, m)| (m.is_some_and(|m| m.last.is_some()), m.is_some(), *end))?;
        Some((best.0, best.2))
    }

    /// A state that stands at `at`, which `stand` gave, with the last row there if it is known. `empty` is any state of the model.
    pub(crate) fn state(&mut self, found: &Found, at: usize, empty: &State) -> Option<(State, Option<Tensor>)> {
        self.clock += 1;
        let clock = self.clock;
        let (node, mark) = self.place(found, at)?;
        let last_row = mark.and_then(|m| m.last.clone());
        let mut path: Vec<usize> = found.path.iter().take(at.div_ceil(PAGE_TOKENS)).copied().collect();
        *path.last_mut()? = node;
        let page = |&n: &usize| &self.node(n).page;
        let state = empty.at(at, path.iter().map(page), mark.map(|m| &m.point))?;
        let needed = self.standing.needed(at);
        for (p, n) in path.into_iter().enumerate() {
            let node = self.node_mut(n);
            node.heat.hit(clock);
            if needed.contains(&p) {
                node.window_heat.hit(clock);
            }
            node.marks.iter_mut().filter(|m| m.point.position() == at).for_each(|m| m.heat.hit(clock));
        }
        Some((state, last_row))
    }

    /// True if the last row at `position` is known on this path.
    pub(crate) fn has_last(&self, found: &Found, position: usize) -> bool {
        self.place(found, position).is_some_and(|(_, m)| m.is_some_and(|m| m.last.is_some()))
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
    /// the session's own, so that equal text is held once. `last_row` is asked for where it is not known yet.
    pub(crate) fn keep(
        &mut self,
        tokens: &[u32],
        state: &mut State,
        last_row: impl FnOnce() -> Option<Tensor>,
        why: Why,
    ) {
        debug_assert_eq!(tokens.len(), state.len());
        if tokens.is_empty() {
            return;
        }
        self.clock += 1;
        let held = self.standing.held(tokens.len());
        let mut at = None;
        let mut path = Vec::new();
        for (p, page) in tokens.chunks(PAGE_TOKENS).enumerate() {
            let known = self.nearest(at, page);
            let here = match known {
                // The node has all of it.
                Some((n, shared)) if shared == page.len() => {
                    if shared == PAGE_TOKENS {
                        state.share_page(p, &self.whole_page(n));
                    }
                    n
                }
                // The node is the beginning of it.
                Some((n, shared)) if shared == self.node(n).tokens.len() => {
                    let node = self.node_mut(n);
                    node.tokens = page.to_vec();
                    node.page.whole = state.page(p).whole;
                    n
                }
                _ => self.add(at, p * PAGE_TOKENS, page, state.page(p).whole),
            };
            if held.contains(&p) {
                self.keep_window(here, page.len(), state.page(p).windowed);
            }
            path.push(here);
            at = Some(here);
        }
        let (clock, point) = (self.clock, state.checkpoint().without_pages());
        let Some(&last) = path.last() else { return };
        let marks = &mut self.node_mut(last).marks;
        let after = marks.iter().filter(|m| m.point.position() < point.position()).count();
        if marks.get(after).is_none_or(|m| m.point.position() != point.position()) {
            marks.insert(after, Mark { point, last: None, why, heat: Heat::default() });
        }
        let mark = &mut marks[after];
        mark.heat.hit(clock);
        if why == Why::Turn {
            mark.why = why;
        }
        if mark.last.is_none() {
            mark.last = last_row();
        }
    }

    /// A node's page, its windowed part only if that is whole.
    fn whole_page(&self, n: usize) -> Page {
        let node = self.node(n);
        let windowed = if node.window_tokens == PAGE_TOKENS { node.page.windowed.clone() } else { Vec::new() };
        Page { windowed, ..node.page.clone() }
    }

    /// Keeps the windowed layers' part of a node's first `n_tokens`, unless it has more.
    fn keep_window(&mut self, n: usize, n_tokens: usize, windowed: Vec<Tensor>) {
        let clock = self.clock;
        let node = self.node_mut(n);
        if windowed.is_empty() {
            return;
        }
        node.window_heat.hit(clock);
        if node.window_tokens < n_tokens {
            (node.page.windowed, node.window_tokens) = (windowed, n_tokens);
        }
    }

    fn add(&mut self, parent: Option<usize>, start: usize, tokens: &[u32], whole: Vec<Tensor>) -> usize {
        let mut heat = Heat::default();
        heat.hit(self.clock);
        let node = Node {
            parent,
            children: Vec::new(),
            start,
            tokens: tokens.to_vec(),
            page: Page { whole, windowed: Vec::new() },
            window_tokens: 0,
            window_heat: Heat::default(),
            stored: Stored::default(),
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

    /// The pages of `tokens` that are known from the first on, the last perhaps in part.
    pub(crate) fn known(&self, tokens: &[u32]) -> Vec<Known> {
        let found = self.find(tokens);
        let known = |&n: &usize| {
            let node = self.node(n);
            let shared = common(&node.tokens, &tokens[node.start..]);
            let is_whole = shared == PAGE_TOKENS;
            let stored = if is_whole { node.stored } else { Stored::default() };
            Known { page: node.page.clone(), is_whole, window_tokens: node.window_tokens.min(shared), stored }
        };
        found.path.iter().map(known).collect()
    }

    /// Marks on the path of `tokens` at which every layer can stand, ascending.
    pub(crate) fn marks(&self, tokens: &[u32]) -> Vec<Mark> {
        let found = self.find(tokens);
        let of = |&(n, end): &(usize, usize)| {
            let within = self.node(n).marks.iter().filter(move |m| m.point.position() <= end);
            let found = &found;
            within.filter(move |m| self.window_is_whole(found, n, m.point.position())).cloned()
        };
        let mut marks: Vec<Mark> = found.near.iter().flat_map(of).collect();
        marks.sort_by_key(|m| m.point.position());
        marks.dedup_by_key(|m| m.point.position());
        marks
    }

    /// Remembers what the whole pages of `tokens` are called in the store, by page.
    pub(crate) fn set_stored(&mut self, tokens: &[u32], names: &BTreeMap<usize, Stored>) {
        let found = self.find(tokens);
        for (p, &n) in found.path.iter().take(found.matched / PAGE_TOKENS).enumerate() {
            let Some(name) = names.get(&p) else { continue };
            let stored = &mut self.node_mut(n).stored;
            stored.whole = name.whole.or(stored.whole);
            stored.windowed = name.windowed.or(stored.windowed);
        }
    }

    /// Pins or unpins the pages of `tokens`: what is pinned is never given up.
    pub(crate) fn pin(&mut self, tokens: &[u32], by: i32) {
        for n in self.find(tokens).path {
            let pins = &mut self.node_mut(n).pins;
            *pins = pins.saturating_add_signed(by);
        }
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
        let standing = self.standing.clone();
        *self = Tree { counters: std::mem::take(&mut self.counters), ..Tree::new(standing) };
    }
}
