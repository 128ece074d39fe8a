//! Sleep and wake: a session's pages, snapshots and last row become objects of the store, a manifest says what they are, and the same
//! bits come back in any process. A page object holds the bytes of one page of every layer that sees all tokens, in layer order, as far as
//! it has tokens; a window object the same of the windowed layers; a snapshot object the slots of every layer. What the tokens say, the
//! caller tells.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use reverie_memory::threads::together;
use reverie_memory::{Expect, Hash, Identity, Manifest, Snapshot, Store, Turn, Value, Window, Writer};
use reverie_model::{Checkpoint, Page, State};
use reverie_tensor::backend::PAGE_TOKENS;
use reverie_tensor::{Backend, Class, DType, KvSpec, Tensor};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::proof::{Claim, Proof};
use crate::session::{Last, Session};
use crate::tree::Stored;

/// Where an engine's sessions sleep, and what their bytes depend on.
#[derive(Clone, Debug)]
pub struct Cellar {
    /// The store.
    pub store: Store,
    /// Weights, tokenizer, template, adapter, plan, cache scheme and numerics, by content.
    pub identity: Identity,
}

/// What a caller says about a state that goes to sleep.
#[derive(Clone, Debug, Default)]
pub struct Note {
    /// What the tokens say.
    pub text: String,
    /// Ends of turns, ascending.
    pub turns: Vec<Turn>,
    /// How the next token would be chosen.
    pub sampler: Value,
    /// Whatever the caller needs when it wakes the state.
    pub extra: Value,
    /// The commit that this state was split from, under another name.
    pub forked_from: Option<Hash>,
}

/// What going to sleep took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asleep {
    /// The commit.
    pub hash: Hash,
    /// Bytes of the state.
    pub state_bytes: u64,
    /// Of them, bytes that the store did not have.
    pub new_bytes: u64,
    /// Bytes that were written to the disk, without the manifest.
    pub disk_bytes: u64,
    /// Pages that the store did not have.
    pub new_pages: usize,
}

impl Asleep {
    fn count(&mut self, put: &reverie_memory::Put, page: usize) {
        self.state_bytes += put.bytes;
        if put.new {
            self.new_bytes += put.bytes;
            self.disk_bytes += put.disk_bytes;
            self.new_pages += page;
        }
    }
}

/// Threads that read objects: what is read is hashed, which takes a core.
fn readers() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(16)
}

/// Threads that write objects: most of them wait for a disk, which flushes several files in the time of one.
fn writers() -> usize {
    (4 * readers()).min(32)
}

/// The bytes of a tensor, where they lie if the host has them.
fn bytes_of<'a>(backend: &dyn Backend, x: &'a Tensor) -> Result<Cow<'a, [u8]>> {
    Ok(match x.host_bytes() {
        Some(bytes) => Cow::Borrowed(bytes),
        None => Cow::Owned(backend.read_bytes(x)?),
    })
}

fn put(writer: &Writer, parts: &[Cow<'_, [u8]>]) -> Result<reverie_memory::Put> {
    let parts: Vec<&[u8]> = parts.iter().map(|p| &**p).collect();
    Ok(writer.put(&parts)?)
}

/// Fills fresh tensors with the bytes of an object: straight into place where the host has them.
fn fill(store: &Store, backend: &dyn Backend, object: &Hash, tensors: &mut [&mut Tensor]) -> Result<()> {
    if tensors.iter_mut().all(|t| t.host_bytes_mut().is_some()) {
        let mut parts: Vec<&mut [u8]> = tensors.iter_mut().filter_map(|t| t.host_bytes_mut()).collect();
        return Ok(store.read_into(object, &mut parts)?);
    }
    let mut buffers: Vec<Vec<u8>> = tensors.iter().map(|t| vec![0; t.len_bytes()]).collect();
    let mut parts: Vec<&mut [u8]> = buffers.iter_mut().map(|b| &mut b[..]).collect();
    store.read_into(object, &mut parts)?;
    for (tensor, bytes) in tensors.iter_mut().zip(&buffers) {
        backend.write_bytes(tensor, bytes)?;
    }
    Ok(())
}

/// Fills fresh tensors of a page with the bytes of an object that holds its first `rows` tokens.
fn fill_rows(
    store: &Store,
    backend: &dyn Backend,
    object: &Hash,
    rows: usize,
    page: &mut [Tensor],
    specs: &[KvSpec],
) -> Result<()> {
    let mut bytes = vec![0; specs.iter().map(|s| rows * s.row_bytes()).sum()];
    store.read_into(object, &mut [&mut bytes])?;
    let mut rest = &bytes[..];
    for (tensor, spec) in page.iter_mut().zip(specs) {
        let (own, others) = rest.split_at(rows * spec.row_bytes());
        rest = others;
        if let Some(place) = tensor.host_bytes_mut() {
            spec.scatter(rows, own, place);
        } else {
            let mut place = vec![0; spec.page_bytes()];
            spec.scatter(rows, own, &mut place);
            backend.write_bytes(tensor, &place)?;
        }
    }
    Ok(())
}

/// The tensors of a page whose first `filled` tokens are meant: over the object's file where that can be had, which is left to be
/// proved; else filled from it and proved.
fn raise_page(
    store: &Store,
    backend: &dyn Backend,
    object: &Hash,
    specs: &[KvSpec],
    filled: usize,
) -> Result<(Vec<Tensor>, Option<Claim>)> {
    let parts: Vec<_> = specs.iter().map(|s| (s.page_elements(), s.dtype)).collect();
    let bytes = specs.iter().map(|s| s.page_bytes() as u64).sum();
    if let Some((file, begins)) = store.raw_file(object, bytes)?
        && let Some(page) = backend.over_file(&file, begins, &parts)?
        && page.iter().all(|t| t.host_bytes().is_some())
    {
        let claim = Claim { object: *object, tensors: page.clone() };
        return Ok((page, Some(claim)));
    }
    let blank = |&(n, dtype): &(usize, DType)| backend.blank(&[n], dtype, Class::State);
    let mut page = parts.iter().map(blank).collect::<reverie_tensor::Result<Vec<_>>>()?;
    let row_bytes: usize = specs.iter().map(KvSpec::row_bytes).sum();
    let stored = store.header(object)?.0.raw_bytes;
    match (filled..PAGE_TOKENS).find(|rows| (rows * row_bytes) as u64 == stored) {
        Some(rows) => fill_rows(store, backend, object, rows, &mut page, specs)?,
        None => fill(store, backend, object, &mut page.iter_mut().collect::<Vec<_>>())?,
    }
    Ok((page, None))
}

/// Refuses a state that something else computed, by the first field that differs.
fn same_identity(asleep: &Identity, here: &Identity) -> Result<()> {
    let fields: std::collections::BTreeSet<&String> = asleep.keys().chain(here.keys()).collect();
    for field in fields {
        let of = |identity: &Identity| identity.get(field).cloned().unwrap_or_else(|| "nothing".into());
        let (was, is) = (of(asleep), of(here));
        if was != is {
            return Err(Error::Identity { field: field.clone(), asleep: was, here: is });
        }
    }
    Ok(())
}

impl Engine {
    /// Gives the engine a store: from now on its sessions may sleep there, and `sync` finds there what the tree does not have.
    /// Later calls change nothing.
    pub fn attach(&self, cellar: Cellar) {
        let _ = self.cellar.set(cellar);
    }

    /// The store, if there is one.
    pub fn cellar(&self) -> Option<&Cellar> {
        self.cellar.get()
    }

    fn attached(&self) -> Result<&Cellar> {
        self.cellar.get().ok_or(Error::NoStore)
    }

    /// A session that stands where `manifest` says, with its last row if that was stored; its pages are held against their names behind
    /// its back ([`Session::proved`]). For an earlier place, cut the manifest first.
    pub fn wake(self: &Arc<Self>, manifest: &Manifest) -> Result<Session> {
        let mut session = self.session();
        session.wake(manifest)?;
        Ok(session)
    }

    /// The state at `at`, where `manifest` can stand: whole pages that the tree has are shared, the others are mapped or read, in
    /// parallel; what is mapped is left to be proved.
    fn raise(&self, store: &Store, manifest: &Manifest, at: usize) -> Result<(State, Option<Last>, Vec<Claim>)> {
        let backend = self.model.backend().as_ref();
        let empty = self.empty_state();
        let (specs, standing) = (empty.page_specs(), self.model.standing());
        let tokens = &manifest.tokens[..at];
        if manifest.page_tokens != PAGE_TOKENS {
            return Err(Error::PageTokens { found: manifest.page_tokens, expected: PAGE_TOKENS });
        }
        let nowhere = || Error::CannotStand { at, deepest: manifest.stands(at.saturating_sub(1)) };
        let mut point = None;
        if !standing.anywhere() && at > 0 {
            let snapshot = manifest.snapshots.iter().find(|s| s.position == at);
            if snapshot.is_none() && (standing.recurrent() || !manifest.snapshots.is_empty()) {
                return Err(nowhere());
            }
            if let Some(snapshot) = snapshot.filter(|_| standing.recurrent()) {
                let mut fresh = Checkpoint::blank(at, self.model.state_specs(), backend)?;
                fill(store, backend, &snapshot.object, &mut fresh.slots_mut().collect::<Vec<_>>())?;
                point = Some(fresh);
            }
        }
        let known = self.tree().known(tokens);
        let mut pages = vec![Page::default(); at.div_ceil(PAGE_TOKENS)];
        let mut jobs = Vec::new();
        for (p, page) in pages.iter_mut().enumerate() {
            let Page { whole, windowed } = page;
            let (shared, filled) =
                (known.get(p).filter(|_| p < at / PAGE_TOKENS), (at - p * PAGE_TOKENS).min(PAGE_TOKENS));
            match shared.filter(|k| k.page.whole.len() == specs.whole.len() && k.is_whole) {
                Some(known) => whole.clone_from(&known.page.whole),
                // Where every layer has a window or slots, pages are empty and there is nothing to read.
                None if specs.whole.is_empty() => {}
                None => jobs.push((whole, *manifest.pages.get(p).ok_or_else(nowhere)?, &specs.whole, filled)),
            }
            if standing.needed(at).contains(&p) {
                match shared.filter(|k| k.window_tokens == PAGE_TOKENS) {
                    Some(known) => windowed.clone_from(&known.page.windowed),
                    None => {
                        let there = manifest.windows.iter().find(|w| w.page == p && w.tokens >= filled);
                        jobs.push((windowed, there.ok_or_else(nowhere)?.object, &specs.windowed, filled));
                    }
                }
            }
        }
        let claims = Mutex::new(Vec::new());
        together(readers(), jobs, |(tensors, object, specs, filled)| {
            let (page, claim) = raise_page(store, backend, &object, specs, filled)?;
            *tensors = page;
            claims.lock().unwrap_or_else(PoisonError::into_inner).extend(claim);
            Ok::<_, Error>(())
        })?;
        let state = empty.at(at, pages.iter(), point.as_ref()).ok_or_else(nowhere)?;
        let last = match manifest.last.filter(|_| at == manifest.tokens.len()) {
            Some(object) => {
                let mut row = backend.blank(&[1, self.model.plan().width], DType::F32, Class::State)?;
                fill(store, backend, &object, &mut [&mut row])?;
                Some(row.into())
            }
            None => None,
        };
        Ok((state, last, claims.into_inner().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// Some layers' part of a page that goes to the store.
struct Part {
    /// Empty if only its name is known here: it is there.
    tensors: Vec<Tensor>,
    /// Its first tokens that are meant.
    tokens: usize,
    stored: Option<Hash>,
}

impl Session {
    /// Writes what the session has read under `name` as a new commit: only pages that the store lacks. `expect` says what the
    /// name must point at.
    pub fn sleep(&mut self, name: &str, expect: Expect, note: Note) -> Result<Asleep> {
        let engine = Arc::clone(&self.engine);
        let Cellar { store, identity } = engine.attached()?;
        if self.tokens.is_empty() {
            return Err(Error::Empty);
        }
        self.proved()?;
        self.mark();
        let parent = match expect {
            Expect::Head(head) => Some(head),
            Expect::Absent => None,
            Expect::Any => store.head(name)?,
        };
        let writer = store.writer()?;
        let mut asleep = Asleep { hash: Hash::of(b""), state_bytes: 0, new_bytes: 0, disk_bytes: 0, new_pages: 0 };
        let pages = self.put_pages(&writer, &mut asleep)?;
        let (snapshots, windows) = self.put_snapshots(&writer, &mut asleep, &note.turns)?;
        let last = match &self.last {
            Some(last) => {
                let stored = put(&writer, &[bytes_of(engine.model.backend().as_ref(), &last.row)?])?;
                asleep.count(&stored, 0);
                Some(stored.hash)
            }
            None => None,
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
        let manifest = Manifest {
            created_ms: now,
            extra: note.extra,
            forked_from: note.forked_from,
            identity: identity.clone(),
            last,
            page_tokens: PAGE_TOKENS,
            pages,
            parent,
            sampler: note.sampler,
            snapshots: snapshots.clone(),
            text: note.text,
            tokens: self.tokens.clone(),
            turns: note.turns,
            windows: windows.clone(),
            ..Manifest::default()
        };
        asleep.hash = writer.commit(name, expect, &manifest)?;
        (self.asleep, self.windows_asleep) = (snapshots, windows);
        Ok(asleep)
    }

    /// Puts the pages of the layers that see every token, and gives their names.
    fn put_pages(&self, writer: &Writer, asleep: &mut Asleep) -> Result<Vec<Hash>> {
        let specs = self.state.page_specs().whole;
        if specs.is_empty() {
            return Ok(Vec::new());
        }
        let known = self.engine.tree().known(&self.tokens);
        let n = self.tokens.len();
        let part = |p: usize| Part {
            tensors: self.state.page(p).whole,
            tokens: (n - p * PAGE_TOKENS).min(PAGE_TOKENS),
            stored: known.get(p).and_then(|k| k.stored.whole),
        };
        let names = self.put_parts(writer, asleep, (0..n.div_ceil(PAGE_TOKENS)).map(part).collect(), &specs)?;
        let stored = |(p, &name)| (p, Stored { whole: Some(name), windowed: None });
        let whole = names.iter().take(n / PAGE_TOKENS).enumerate().map(stored).collect();
        self.engine.tree().set_stored(&self.tokens, &whole);
        Ok(names)
    }

    /// Puts parts of pages, those that are not full without what lies beyond their last tokens, and gives their names.
    fn put_parts(&self, writer: &Writer, asleep: &mut Asleep, parts: Vec<Part>, specs: &[KvSpec]) -> Result<Vec<Hash>> {
        let backend = self.engine.model.backend().as_ref();
        // A name that a sweep has taken away is written again.
        let there = |part: &Part| part.stored.filter(|name| part.tensors.is_empty() || writer.has(name));
        let mut names: Vec<Option<Hash>> = parts.iter().map(there).collect();
        let row_bytes: usize = specs.iter().map(KvSpec::row_bytes).sum();
        let known = parts.iter().zip(&names).filter(|(_, name)| name.is_some());
        asleep.state_bytes += known.map(|(part, _)| (part.tokens * row_bytes) as u64).sum::<u64>();
        let tally = Mutex::new(asleep);
        let jobs: Vec<_> = parts.iter().zip(&mut names).filter(|(_, name)| name.is_none()).collect();
        together(writers(), jobs, |(part, name)| {
            let mut bytes = part.tensors.iter().map(|t| bytes_of(backend, t)).collect::<Result<Vec<_>>>()?;
            if part.tokens < PAGE_TOKENS {
                let mut rows = Vec::with_capacity(part.tokens * row_bytes);
                bytes.iter().zip(specs).for_each(|(bytes, spec)| spec.gather(part.tokens, bytes, &mut rows));
                bytes = vec![Cow::Owned(rows)];
            }
            let stored = put(writer, &bytes)?;
            tally.lock().unwrap_or_else(PoisonError::into_inner).count(&stored, 1);
            *name = Some(stored.hash);
            Ok::<_, Error>(())
        })?;
        Ok(names.into_iter().flatten().collect())
    }

    /// Puts the slots of every mark on the way and the windowed layers' pages around it, and gives their places: those of this process
    /// and those that were asleep before. A state whose windowed layers still have every page stands anywhere and needs no mark.
    fn put_snapshots(
        &self,
        writer: &Writer,
        asleep: &mut Asleep,
        turns: &[Turn],
    ) -> Result<(Vec<Snapshot>, Vec<Window>)> {
        let backend = self.engine.model.backend().as_ref();
        let standing = self.state.standing();
        if standing.anywhere() {
            return Ok((Vec::new(), Vec::new()));
        }
        let n = self.tokens.len();
        let (marks, known) = {
            let tree = self.engine.tree();
            (tree.marks(&self.tokens), tree.known(&self.tokens))
        };
        // What a sweep has taken away is written again where it is still known.
        let mut snapshots: Vec<Snapshot> = self.asleep.iter().copied().filter(|s| writer.has(&s.object)).collect();
        for mark in marks {
            let position = mark.point.position();
            if snapshots.iter().any(|s| s.position == position) {
                continue;
            }
            let parts = mark.point.slots().map(|t| bytes_of(backend, t)).collect::<Result<Vec<_>>>()?;
            let stored = put(writer, &parts)?;
            asleep.count(&stored, 0);
            snapshots.push(Snapshot { object: stored.hash, position });
        }
        if !standing.recurrent() {
            // Where there are no slots, a turn's end is as good a place as a mark.
            let object = put(writer, &[])?.hash;
            let ends = turns.iter().map(|t| t.tokens).filter(|&end| (1..=n).contains(&end));
            snapshots.extend(ends.map(|position| Snapshot { object, position }));
        }
        snapshots.sort_by_key(|s| s.position);
        snapshots.dedup_by_key(|s| s.position);
        if !standing.windowed() {
            return Ok((snapshots, Vec::new()));
        }
        let best = |p: usize| -> Option<Part> {
            let filled = (n - p * PAGE_TOKENS).min(PAGE_TOKENS);
            let own = self.state.page(p).windowed;
            let known = known.get(p).cloned().unwrap_or_default();
            let (tensors, tokens) =
                if own.is_empty() { (known.page.windowed, known.window_tokens) } else { (own, filled) };
            let before = self.windows_asleep.iter().find(|w| w.page == p && w.tokens >= tokens);
            let before = before.filter(|w| writer.has(&w.object));
            match before {
                Some(w) => {
                    let tensors = if w.tokens == tokens { tensors } else { Vec::new() };
                    Some(Part { tensors, tokens: w.tokens, stored: Some(w.object) })
                }
                None if tokens == 0 => None,
                None => Some(Part { tensors, tokens, stored: known.stored.windowed.filter(|_| tokens == PAGE_TOKENS) }),
            }
        };
        let mut parts: BTreeMap<usize, Part> =
            (0..n.div_ceil(PAGE_TOKENS)).filter_map(|p| Some((p, best(p)?))).collect();
        let whole = |p: usize, at: usize| {
            parts.get(&p).is_some_and(|part| part.tokens >= (at - p * PAGE_TOKENS).min(PAGE_TOKENS))
        };
        if !standing.recurrent() && (0..n.div_ceil(PAGE_TOKENS)).all(|p| whole(p, n)) {
            snapshots.clear();
        } else {
            // What the budget took meanwhile is no place to stand any more.
            snapshots.retain(|s| standing.needed(s.position).all(|p| whole(p, s.position)));
            let needed: BTreeSet<usize> = snapshots.iter().flat_map(|s| standing.needed(s.position)).collect();
            parts.retain(|p, _| needed.contains(p));
        }
        let (pages, parts): (Vec<usize>, Vec<Part>) = parts.into_iter().unzip();
        let tokens: Vec<usize> = parts.iter().map(|part| part.tokens).collect();
        let names = self.put_parts(writer, asleep, parts, &self.state.page_specs().windowed)?;
        let windows = pages.iter().zip(tokens).zip(names);
        let windows: Vec<_> = windows.map(|((&page, tokens), object)| Window { object, page, tokens }).collect();
        let stored = |w: &Window| (w.page, Stored { whole: None, windowed: Some(w.object) });
        let whole = windows.iter().filter(|w| w.tokens == PAGE_TOKENS).map(stored).collect();
        self.engine.tree().set_stored(&self.tokens, &whole);
        Ok((snapshots, windows))
    }

    /// Stands where `manifest` says; what it takes up is then held against its names behind its back ([`Session::proved`]).
    pub fn wake(&mut self, manifest: &Manifest) -> Result<()> {
        let engine = Arc::clone(&self.engine);
        let Cellar { store, identity } = engine.attached()?;
        same_identity(&manifest.identity, identity)?;
        engine.admit(manifest.tokens.len())?;
        self.keep_for_later();
        engine.make_room(manifest.tokens.len(), 0)?;
        self.take_up(store, manifest, manifest.tokens.len())
    }

    /// Stands at `at` of a stored state of the same identity.
    fn take_up(&mut self, store: &Store, manifest: &Manifest, at: usize) -> Result<()> {
        let (state, last, claims) = self.engine.raise(store, manifest, at)?;
        self.tokens = manifest.tokens[..at].to_vec();
        (self.state, self.last) = (state, last);
        self.asleep = manifest.snapshots.iter().copied().filter(|s| s.position <= at).collect();
        self.windows_asleep = manifest.windows.iter().filter_map(|w| w.within(PAGE_TOKENS, at)).collect();
        let mut stored: BTreeMap<usize, Stored> = BTreeMap::new();
        manifest.pages.iter().enumerate().for_each(|(p, &name)| stored.entry(p).or_default().whole = Some(name));
        for w in self.windows_asleep.iter().filter(|w| w.tokens == PAGE_TOKENS) {
            stored.entry(w.page).or_default().windowed = Some(w.object);
        }
        let nothing = claims.is_empty();
        self.unproved = Some(Arc::new(Proof::begin(store, claims, readers(), stored)));
        if nothing { self.proved() } else { Ok(()) }
    }

    /// Stands deeper along `tokens` if the store has a state that can: `least` tokens further than the session does.
    pub(crate) fn look_below(&mut self, tokens: &[u32], least: usize) -> Result<()> {
        let engine = Arc::clone(&self.engine);
        let Some(Cellar { store, identity }) = engine.cellar() else { return Ok(()) };
        // The last row may be missing there: the last token is then read again, so a place before it is needed.
        let worth = |at: usize| at >= self.tokens.len() + least;
        if !worth(tokens.len()) {
            return Ok(());
        }
        let Some(found) = store.find(identity, tokens)? else { return Ok(()) };
        let whole = found.stands == tokens.len()
            && found.manifest.tokens.len() == tokens.len()
            && found.manifest.last.is_some();
        let at = if whole { found.stands } else { found.manifest.stands(found.stands.min(tokens.len() - 1)) };
        if !worth(at) {
            return Ok(());
        }
        engine.make_room(tokens.len(), self.state.bytes())?;
        self.take_up(store, &found.manifest, at)?;
        self.proved()
    }
}
