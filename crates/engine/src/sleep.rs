//! Sleep and wake: a session's pages, snapshots and logits become objects of the store, a manifest says what they are, and the same
//! bits come back in any process. A page object holds the bytes of one page of every layer, in layer order; a snapshot object the
//! slots of every layer. What the tokens say, the caller tells.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use reverie_memory::{Expect, Hash, Identity, Manifest, Snapshot, Store, Turn, Value, Writer};
use reverie_model::{Checkpoint, State};
use reverie_tensor::backend::PAGE_TOKENS;
use reverie_tensor::{Backend, Class, DType, KvSpec, Tensor};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::session::Session;

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

/// Runs `work` on every job, on at most `n` threads; the first error ends it.
fn each<J: Send>(n: usize, jobs: Vec<J>, work: impl Fn(J) -> Result<()> + Sync) -> Result<()> {
    let n = n.min(jobs.len());
    let queue = Mutex::new(jobs.into_iter());
    let run = || -> Result<()> {
        loop {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
            match next {
                Some(job) => work(job)?,
                None => return Ok(()),
            }
        }
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..n).map(|_| scope.spawn(run)).collect();
        let mut result = run();
        for other in others {
            let ended = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            result = result.and(ended);
        }
        result
    })
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

/// The tensors of a page: over the object's file where that can be had, else filled from it. Either way every byte is held against
/// the object's name.
fn raise_page(store: &Store, backend: &dyn Backend, object: &Hash, specs: &[KvSpec]) -> Result<Vec<Tensor>> {
    let parts: Vec<_> = specs.iter().map(|s| (s.page_elements(), s.dtype)).collect();
    let bytes = specs.iter().map(|s| s.page_bytes() as u64).sum();
    if let Some((file, begins)) = store.raw_file(object, bytes)?
        && let Some(page) = backend.over_file(&file, begins, &parts)?
        && let Some(bytes) = page.iter().map(Tensor::host_bytes).collect::<Option<Vec<_>>>()
    {
        store.prove(object, &bytes)?;
        return Ok(page);
    }
    let blank = |&(n, dtype): &(usize, DType)| backend.blank(&[n], dtype, Class::State);
    let mut page = parts.iter().map(blank).collect::<reverie_tensor::Result<Vec<_>>>()?;
    fill(store, backend, object, &mut page.iter_mut().collect::<Vec<_>>())?;
    Ok(page)
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

    /// A session that stands where `manifest` says, with its logits if they were stored. For an earlier place, cut the manifest first.
    pub fn wake(self: &Arc<Self>, manifest: &Manifest) -> Result<Session> {
        let mut session = self.session();
        session.wake(manifest)?;
        Ok(session)
    }

    /// The state at `at`, where `manifest` can stand: whole pages that the tree has are shared, the others are read, in parallel.
    pub(crate) fn raise(&self, store: &Store, manifest: &Manifest, at: usize) -> Result<(State, Option<Tensor>)> {
        let backend = self.model.backend().as_ref();
        let empty = self.empty_state();
        let specs = empty.page_specs();
        let tokens = &manifest.tokens[..at];
        if manifest.page_tokens != PAGE_TOKENS {
            return Err(Error::PageTokens { found: manifest.page_tokens, expected: PAGE_TOKENS });
        }
        let all = at.div_ceil(PAGE_TOKENS);
        let mut pages = self.tree().whole_pages(tokens);
        // Where no layer keeps keys and values, pages are empty and there is nothing to read.
        let known = if specs.is_empty() { all } else { pages.len() };
        pages.resize(all, Vec::new());
        let mut point = None;
        if self.model.is_recurrent() && at > 0 {
            let object = manifest.snapshots.iter().find(|s| s.position == at).map(|s| s.object);
            let object = object.ok_or(Error::CannotStand { at, deepest: manifest.stands(at) })?;
            let mut fresh = Checkpoint::blank(at, self.model.state_specs(), backend)?;
            fill(store, backend, &object, &mut fresh.tensors_mut().collect::<Vec<_>>())?;
            point = Some(fresh);
        }
        let jobs: Vec<_> = pages[known..].iter_mut().zip(&manifest.pages[known.min(manifest.pages.len())..]).collect();
        if jobs.len() + known < all {
            return Err(Error::CannotStand { at, deepest: jobs.len() * PAGE_TOKENS });
        }
        each(readers(), jobs, |(page, object)| {
            *page = raise_page(store, backend, object, &specs)?;
            Ok(())
        })?;
        let state = empty.standing(at, self.model.standing(), pages.iter().map(|p| &p[..]), point.as_ref());
        let state = state.ok_or(Error::CannotStand { at, deepest: 0 })?;
        let logits = match manifest.logits.filter(|_| at == manifest.tokens.len()) {
            Some(object) => {
                let bytes = store.get(&object)?;
                let values: Vec<f32> =
                    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
                let vocab = self.model.plan().vocab;
                if values.len() != vocab {
                    return Err(reverie_tensor::Error::shape("stored logits", values.len(), vocab).into());
                }
                Some(backend.upload(&values, &[1, vocab], DType::F32, Class::Scratch)?)
            }
            None => None,
        };
        Ok((state, logits))
    }
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
        self.mark();
        let parent = match expect {
            Expect::Head(head) => Some(head),
            Expect::Absent => None,
            Expect::Any => store.head(name)?,
        };
        let writer = store.writer()?;
        let mut asleep = Asleep { hash: Hash::of(b""), state_bytes: 0, new_bytes: 0, disk_bytes: 0, new_pages: 0 };
        let pages = self.put_pages(&writer, &mut asleep)?;
        let snapshots = self.put_snapshots(&writer, &mut asleep)?;
        let logits = match &self.logits {
            Some(logits) => {
                let values = engine.model.backend().read(logits)?;
                let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                let stored = writer.put(&[&bytes])?;
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
            logits,
            page_tokens: PAGE_TOKENS,
            pages,
            parent,
            sampler: note.sampler,
            snapshots: snapshots.clone(),
            text: note.text,
            tokens: self.tokens.clone(),
            turns: note.turns,
            ..Manifest::default()
        };
        asleep.hash = writer.commit(name, expect, &manifest)?;
        self.asleep = snapshots;
        Ok(asleep)
    }

    /// Puts the pages, the last one with nothing beyond its last token, and gives their names.
    fn put_pages(&self, writer: &Writer, asleep: &mut Asleep) -> Result<Vec<Hash>> {
        let backend = self.engine.model.backend().as_ref();
        let specs = self.state.page_specs();
        if specs.is_empty() {
            return Ok(Vec::new());
        }
        let known = self.engine.tree().stored(&self.tokens);
        let n = self.tokens.len().div_ceil(PAGE_TOKENS);
        // A name that a sweep has taken away is written again.
        let there = |name: &Hash| writer.has(name);
        let mut names: Vec<Option<Hash>> = (0..n).map(|p| known.get(p).copied().flatten().filter(there)).collect();
        let page_bytes: u64 = specs.iter().map(|s| s.page_bytes() as u64).sum();
        asleep.state_bytes += page_bytes * names.iter().flatten().count() as u64;
        let tally = Mutex::new(asleep);
        let jobs: Vec<(usize, &mut Option<Hash>)> = names.iter_mut().enumerate().filter(|(_, n)| n.is_none()).collect();
        each(writers(), jobs, |(p, name)| {
            let page = self.state.page(p);
            let filled = (self.tokens.len() - p * PAGE_TOKENS).min(PAGE_TOKENS);
            let mut parts = page.iter().map(|t| bytes_of(backend, t)).collect::<Result<Vec<_>>>()?;
            if filled < PAGE_TOKENS {
                parts.iter_mut().zip(&specs).for_each(|(bytes, spec)| spec.clear_after(filled, bytes.to_mut()));
            }
            let stored = put(writer, &parts)?;
            tally.lock().unwrap_or_else(PoisonError::into_inner).count(&stored, 1);
            *name = Some(stored.hash);
            Ok(())
        })?;
        let names: Vec<Hash> = names.into_iter().flatten().collect();
        let whole = &names[..self.tokens.len() / PAGE_TOKENS];
        self.engine.tree().set_stored(&self.tokens, whole);
        Ok(names)
    }

    /// Puts the slots of every mark on the way, and gives their places: those of this process and those that were asleep before.
    fn put_snapshots(&self, writer: &Writer, asleep: &mut Asleep) -> Result<Vec<Snapshot>> {
        let backend = self.engine.model.backend().as_ref();
        if !self.state.is_recurrent() {
            return Ok(Vec::new());
        }
        let mut snapshots = self.asleep.clone();
        for mark in self.engine.tree().marks(&self.tokens) {
            let position = mark.point.position();
            if snapshots.iter().any(|s| s.position == position) {
                continue;
            }
            let parts = mark.point.tensors().map(|t| bytes_of(backend, t)).collect::<Result<Vec<_>>>()?;
            let stored = put(writer, &parts)?;
            asleep.count(&stored, 0);
            snapshots.push(Snapshot { object: stored.hash, position });
        }
        snapshots.sort_by_key(|s| s.position);
        Ok(snapshots)
    }

    /// Stands where `manifest` says.
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
    pub(crate) fn take_up(&mut self, store: &Store, manifest: &Manifest, at: usize) -> Result<()> {
        let (state, logits) = self.engine.raise(store, manifest, at)?;
        self.tokens = manifest.tokens[..at].to_vec();
        (self.state, self.logits) = (state, logits);
        self.asleep = manifest.snapshots.iter().copied().filter(|s| s.position <= at).collect();
        self.mark();
        let whole = &manifest.pages[..(at / PAGE_TOKENS).min(manifest.pages.len())];
        self.engine.tree().set_stored(&self.tokens, whole);
        Ok(())
    }

    /// Stands deeper along `tokens` if the store has a state that can: `least` tokens further than the session does.
    pub(crate) fn look_below(&mut self, tokens: &[u32], least: usize) -> Result<()> {
        let engine = Arc::clone(&self.engine);
        let Some(Cellar { store, identity }) = engine.cellar() else { return Ok(()) };
        // Logits may be missing there: the last token is then read again, so a place before it is needed.
        let worth = |at: usize| at >= self.tokens.len() + least;
        if !worth(tokens.len()) {
            return Ok(());
        }
        let Some(found) = store.find(identity, tokens)? else { return Ok(()) };
        let whole = found.stands == tokens.len()
            && found.manifest.tokens.len() == tokens.len()
            && found.manifest.logits.is_some();
        let at = if whole { found.stands } else { found.manifest.stands(found.stands.min(tokens.len() - 1)) };
        if !worth(at) {
            return Ok(());
        }
        engine.make_room(tokens.len(), self.state.bytes())?;
        self.take_up(store, &found.manifest, at)
    }
}
