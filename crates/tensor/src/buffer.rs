//! Host memory: aligned buffers, one pool that lends them again, one meter that counts every byte. A buffer may lie over a file, which
//! is then its first content. A phantom memory counts without allocating; it is how a plan is measured before it runs.
//! It refuses to know what the bytes mean.

#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::BTreeMap;
use std::fs::File;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use memmap2::{MmapMut, MmapOptions, UncheckedAdvice};

use crate::error::{Error, Result};

/// Alignment of every buffer: one cache line, one AVX-512 register.
pub const ALIGN: usize = 64;

/// Address space that weights are cut from: they are packed one after another and live as long as the model, so that
/// neighbours share huge pages. What is not touched is not resident.
const SLAB_BYTES: usize = 256 << 20;

/// Address space that pages, slots and experts of some size are cut from, for the same reason.
const STATE_SLAB_BYTES: usize = 32 << 20;

/// State below this size comes from the allocator.
const STATE_LEAST_BYTES: usize = 16 << 10;

/// Bytes of freed state that may stay resident for the next to come, however little is in use.
const STATE_REST_BYTES: u64 = 2 << 20;

/// Scratch of this size and more comes from the system directly: zero pages appear where they are first touched.
const LARGE_BYTES: usize = 1 << 20;

/// Part of a file below this size is read into memory rather than mapped: a mapping costs as much as copying this.
const MAPPED_LEAST_BYTES: usize = 64 << 10;

/// Most files that are mapped at a time. Linux allows a process 65,530 mappings, of which others need some.
const MOST_MAPPED_FILES: usize = 16 << 10;

/// What a buffer is for; the meter counts each apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Packed weights; live as long as the model.
    Weights,
    /// Pages and recurrent slots.
    State,
    /// Activations and workspaces; lent again when dropped.
    Scratch,
    /// Packed weights that go and come back while the model lives.
    Experts,
}

impl Class {
    const fn index(self) -> usize {
        self as usize
    }

    /// The word used in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Class::Weights => "weights",
            Class::State => "state",
            Class::Scratch => "scratch",
            Class::Experts => "experts",
        }
    }
}

/// Bytes held now and at most, by class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Weights, state, scratch (which includes what the pool keeps for reuse), experts.
    pub by_class: [u64; 4],
    /// Sum of the classes.
    pub total: u64,
    /// Largest sum seen.
    pub peak: u64,
    /// Scratch that is kept for reuse and goes first when the budget is short.
    pub idle: u64,
    /// The budget, if one is set.
    pub limit: Option<u64>,
}

impl Usage {
    /// Bytes of one class.
    pub fn of(&self, class: Class) -> u64 {
        self.by_class[class.index()]
    }
}

/// Somebody who holds memory for speed alone.
pub trait Holder: Send + Sync {
    /// Drops buffers of at least `bytes` in all, or what there is.
    fn give_back(&self, bytes: u64);
}

#[derive(Default)]
struct Ledger {
    usage: Usage,
    /// Free scratch buffers by capacity.
    free: BTreeMap<usize, Vec<Block>>,
    weights: Shelf,
    state: Shelf,
    /// Freed state and experts by capacity; not counted as used.
    rest: BTreeMap<usize, Vec<Block>>,
    /// Bytes of it that are resident.
    rest_bytes: usize,
    /// Who may be asked for memory when the budget is short.
    holders: Vec<Weak<dyn Holder>>,
    /// One handle here, and one in every file that is mapped.
    mapped: Arc<()>,
}

/// The slab that a class is being cut from, and how much of it is taken.
#[derive(Default)]
struct Shelf(Option<(Arc<Slab>, usize)>);

impl Shelf {
    /// `cap` zero bytes, from a new slab of at least `slab_bytes` if the last one has no room.
    fn cut(&mut self, cap: usize, slab_bytes: usize) -> Option<Block> {
        let room = self.0.as_ref().is_some_and(|(slab, taken)| slab.bytes - taken >= cap);
        if !room {
            self.0 = Some((Arc::new(Slab::map(slab_bytes.max(cap))?), 0));
        }
        let (slab, taken) = self.0.as_mut()?;
        // SAFETY: `taken + cap` is at most the slab's length, as was just made sure.
        let ptr = unsafe { slab.start.add(*taken) };
        *taken += cap;
        Some(Block { ptr: Some(ptr), cap, home: Home::Slab(Arc::clone(slab)), zero: true })
    }
}

/// A mapping whose parts are owned one by one.
struct Slab {
    start: NonNull<u8>,
    bytes: usize,
    map: MmapMut,
}

// SAFETY: the mapping is owned; its parts are handed out once each.
unsafe impl Send for Slab {}
// SAFETY: shared access reads only the start and the length.
unsafe impl Sync for Slab {}

impl Slab {
    /// Anonymous memory, zero, in huge pages where the system grants them.
    fn map(bytes: usize) -> Option<Slab> {
        let mut map = MmapMut::map_anon(bytes).ok()?;
        // A wish: without it the pages are small.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Some(Slab { start: NonNull::new(map.as_mut_ptr())?, bytes, map })
    }

    /// Gives the memory behind a part back to the system; the part reads as zero from then on. False where that does not work.
    fn vacate(&self, ptr: NonNull<u8>, bytes: usize) -> bool {
        let offset = ptr.as_ptr() as usize - self.start.as_ptr() as usize;
        if !cfg!(target_os = "linux") || !offset.is_multiple_of(SYSTEM_PAGE) || !bytes.is_multiple_of(SYSTEM_PAGE) {
            return false;
        }
        // SAFETY: the range lies in the mapping, which is private and anonymous, and its owner has given it up.
        unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, offset, bytes) }.is_ok()
    }
}

/// The least the system gives and takes.
const SYSTEM_PAGE: usize = 4096;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Host,
    Phantom,
}

/// One byte budget and the pool behind it. Clones share both.
#[derive(Clone)]
pub struct Memory {
    ledger: Arc<Mutex<Ledger>>,
    kind: Kind,
}

/// Part of a file, mapped privately: what is written stays in memory.
struct FileMap {
    _map: MmapMut,
    _counted: Arc<()>,
}

/// Where a block's memory comes from and goes back to.
enum Home {
    /// The allocator, or nowhere for a phantom.
    Heap,
    /// A slab, whose other parts belong to others.
    Slab(Arc<Slab>),
    /// A file, which is unmapped with the last of its blocks.
    File { _map: Arc<FileMap> },
}

/// A raw aligned allocation, or none for a phantom.
struct Block {
    ptr: Option<NonNull<u8>>,
    cap: usize,
    home: Home,
    /// True if every byte is known to be zero.
    zero: bool,
}

// SAFETY: a Block owns its allocation exclusively; nothing else holds the pointer.
unsafe impl Send for Block {}
// SAFETY: shared access to a Block reads only the pointer value and the capacity.
unsafe impl Sync for Block {}

impl Drop for Block {
    fn drop(&mut self) {
        if let (Home::Heap, Some(ptr), Ok(layout)) = (&self.home, self.ptr, Layout::from_size_align(self.cap, ALIGN)) {
            // SAFETY: `ptr` came from `alloc_zeroed` with this very layout and is freed once.
            unsafe { dealloc(ptr.as_ptr(), layout) };
        }
    }
}

impl Block {
    /// The slab it is a part of.
    fn slab(&self) -> Option<&Arc<Slab>> {
        match &self.home {
            Home::Slab(slab) => Some(slab),
            Home::Heap | Home::File { .. } => None,
        }
    }
}

impl Memory {
    /// Real host memory, without a budget.
    pub fn host() -> Memory {
        Memory { ledger: Arc::default(), kind: Kind::Host }
    }

    /// Memory that counts and never allocates.
    pub fn phantom() -> Memory {
        Memory { ledger: Arc::default(), kind: Kind::Phantom }
    }

    /// Sets the budget in bytes; allocations beyond it are refused.
    pub fn set_limit(&self, limit: Option<u64>) {
        self.lock().usage.limit = limit;
    }

    /// What is held now.
    pub fn usage(&self) -> Usage {
        self.lock().usage
    }

    /// Forgets the peak so far: the next reading covers what comes after.
    pub fn reset_peak(&self) {
        let mut ledger = self.lock();
        ledger.usage.peak = ledger.usage.total;
    }

    /// Gives back the scratch that is kept for reuse.
    pub fn trim(&self) {
        self.lock().trim();
    }

    fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has `holder` asked for memory whenever the budget is short of it, as long as it lives.
    pub fn ask_when_short(&self, holder: &Arc<dyn Holder>) {
        let mut ledger = self.lock();
        ledger.holders.retain(|h| h.strong_count() > 0);
        ledger.holders.push(Arc::downgrade(holder));
    }

    /// A buffer of `len` bytes with whatever the last user left in them; `Buffer::is_zero` says if that is nothing.
    pub fn take(&self, len: usize, class: Class) -> Result<Buffer> {
        let cap = capacity(len, class);
        // What holders keep goes in and out all the time: it does not push out scratch that the next step wants again.
        let first = if class == Class::Experts { Idle::Stays } else { Idle::Goes };
        self.asking(cap, |idle| self.try_take((len, cap), class, idle.unwrap_or(first)))
    }

    /// Runs `take`, and once more after holders were asked, with scratch that goes, if the budget is short of `cap` bytes.
    fn asking<T>(&self, cap: usize, take: impl Fn(Option<Idle>) -> Result<T>) -> Result<T> {
        match take(None) {
            Err(Error::Budget { used, limit, .. }) => {
                // Holders give back through `Buffer::drop`, which locks the ledger: they are asked outside it.
                let holders: Vec<_> = self.lock().holders.iter().filter_map(Weak::upgrade).collect();
                holders.iter().for_each(|h| h.give_back((used + cap as u64).saturating_sub(limit)));
                take(Some(Idle::Goes))
            }
            done => done,
        }
    }

    fn try_take(&self, (len, cap): (usize, usize), class: Class, idle: Idle) -> Result<Buffer> {
        let mut ledger = self.lock();
        if class == Class::Scratch {
            // Anything up to an eighth larger serves: the pool then settles on few sizes.
            let found = ledger.free.range(cap..=cap + cap / 8).find(|(_, v)| !v.is_empty()).map(|(&c, _)| c);
            if let Some(block) = found.and_then(|c| ledger.free.get_mut(&c)).and_then(Vec::pop) {
                ledger.usage.idle -= block.cap as u64;
                return Ok(Buffer { block: Some(block), len, class, memory: self.clone() });
            }
        }
        ledger.admit(cap, class, idle)?;
        let block = match self.kind {
            Kind::Phantom => Block { ptr: None, cap, home: Home::Heap, zero: true },
            Kind::Host => ledger.block(cap, class).ok_or(Error::OutOfMemory { class: class.name(), bytes: cap })?,
        };
        ledger.charge(cap, class);
        Ok(Buffer { block: Some(block), len, class, memory: self.clone() })
    }

    /// Buffers of state of these lengths over the bytes of `file` from `from` on, one behind another, counted in full. Nothing is
    /// read before it is looked at; what is written is copied and leaves the file as it is. None where that cannot be had or is not
    /// worth it: the caller then reads.
    ///
    /// The file must stay as it is while a buffer lives: one that is cut ends the process at the next look behind its new end, one
    /// that is overwritten shows through. Removing it, or putting another in its place, does no harm.
    pub fn over_file(&self, file: &File, from: u64, lens: &[usize]) -> Result<Option<Vec<Buffer>>> {
        let bytes: usize = lens.iter().sum();
        let aligned = from.is_multiple_of(ALIGN as u64) && lens.iter().all(|n| n.is_multiple_of(ALIGN));
        let there = || file.metadata().is_ok_and(|m| m.len() >= from + bytes as u64);
        if self.kind == Kind::Phantom || !cfg!(unix) || bytes < MAPPED_LEAST_BYTES || !aligned || !there() {
            return Ok(None);
        }
        self.asking(bytes, |_| self.map(file, from, lens))
    }

    fn map(&self, file: &File, from: u64, lens: &[usize]) -> Result<Option<Vec<Buffer>>> {
        let bytes: usize = lens.iter().sum();
        let mut ledger = self.lock();
        if Arc::strong_count(&ledger.mapped) > MOST_MAPPED_FILES {
            return Ok(None);
        }
        ledger.admit(bytes, Class::State, Idle::Goes)?;
        // SAFETY: the mapping is private to these buffers and as long as the file was a moment ago; that nobody cuts or overwrites
        // the file is what the caller answers for.
        let Ok(mut map) = (unsafe { MmapOptions::new().offset(from).len(bytes).map_copy(file) }) else {
            return Ok(None);
        };
        let Some(start) = NonNull::new(map.as_mut_ptr()) else { return Ok(None) };
        let map = Arc::new(FileMap { _map: map, _counted: Arc::clone(&ledger.mapped) });
        ledger.charge(bytes, Class::State);
        let mut at = 0;
        let buffer = |&len: &usize| {
            // SAFETY: `at` is at most the sum of the lengths, which is the length of the mapping.
            let ptr = unsafe { start.add(at) };
            at += len;
            let block = Block { ptr: Some(ptr), cap: len, home: Home::File { _map: Arc::clone(&map) }, zero: false };
            Buffer { block: Some(block), len, class: Class::State, memory: self.clone() }
        };
        Ok(Some(lens.iter().map(buffer).collect()))
    }
}

/// What becomes of unlent scratch when the budget is short.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Idle {
    Stays,
    Goes,
}

impl Ledger {
    /// Makes sure that `cap` more bytes are within the budget.
    fn admit(&mut self, cap: usize, class: Class, idle: Idle) -> Result<()> {
        let Some(limit) = self.usage.limit else { return Ok(()) };
        if idle == Idle::Goes && self.usage.total + cap as u64 > limit {
            // Unlent scratch goes first: it is only kept for speed.
            self.trim();
        }
        let used = self.usage.total;
        if used + cap as u64 > limit {
            return Err(Error::Budget { class: class.name(), needed: cap as u64, used, limit });
        }
        Ok(())
    }

    fn charge(&mut self, cap: usize, class: Class) {
        self.usage.by_class[class.index()] += cap as u64;
        self.usage.total += cap as u64;
        self.usage.peak = self.usage.peak.max(self.usage.total);
    }

    fn trim(&mut self) {
        let kept: u64 = self.free.iter().map(|(c, v)| (*c * v.len()) as u64).sum();
        self.free.clear();
        self.usage.idle = 0;
        self.usage.by_class[Class::Scratch.index()] -= kept;
        self.usage.total -= kept;
    }

    /// Zeroed memory for a buffer of `class`, from where that class lives.
    fn block(&mut self, cap: usize, class: Class) -> Option<Block> {
        match class {
            Class::Weights => self.weights.cut(cap, SLAB_BYTES),
            Class::State | Class::Experts if cap >= STATE_LEAST_BYTES => {
                match self.rest.get_mut(&cap).and_then(Vec::pop) {
                    Some(block) => {
                        self.rest_bytes -= if block.zero { 0 } else { cap };
                        Some(block)
                    }
                    None => self.state.cut(cap, STATE_SLAB_BYTES),
                }
            }
            Class::Scratch if cap >= LARGE_BYTES => {
                let slab = Slab::map(cap)?;
                Some(Block { ptr: Some(slab.start), cap, home: Home::Slab(Arc::new(slab)), zero: true })
            }
            Class::State | Class::Scratch | Class::Experts => {
                let layout = Layout::from_size_align(cap, ALIGN).ok()?;
                // SAFETY: `cap` is at least ALIGN, so the layout is not empty.
                let ptr = NonNull::new(unsafe { alloc_zeroed(layout) })?;
                Some(Block { ptr: Some(ptr), cap, home: Home::Heap, zero: true })
            }
        }
    }

    /// Keeps a freed piece of a state slab for the next of its size. When more than a thirty-second of all that is used lies idle,
    /// it goes back to the system.
    fn rest(&mut self, block: Block) {
        if block.slab().is_none() {
            return;
        }
        self.rest_bytes += block.cap;
        self.rest.entry(block.cap).or_default().push(block);
        if self.rest_bytes as u64 > (self.usage.total / 32).max(STATE_REST_BYTES) {
            self.sweep();
        }
    }

    /// Unmaps slabs that nobody uses, and gives back the memory behind what is free in the others.
    fn sweep(&mut self) {
        let of = |block: &Block| block.slab().map(Arc::as_ptr);
        let mut free: BTreeMap<Option<*const Slab>, usize> = BTreeMap::new();
        self.rest.values().flatten().for_each(|b| *free.entry(of(b)).or_default() += 1);
        let current = self.state.0.as_ref().map(|(slab, _)| Arc::as_ptr(slab));
        let idle = |slab: &Arc<Slab>| {
            let here = Some(Arc::as_ptr(slab));
            let held = free.get(&here).copied().unwrap_or(0) + usize::from(current == here);
            Arc::strong_count(slab) == held
        };
        let gone: Vec<_> =
            self.rest.values().flatten().filter_map(Block::slab).filter(|s| idle(s)).map(Arc::as_ptr).collect();
        let gone: std::collections::BTreeSet<_> = gone.into_iter().map(Some).collect();
        if gone.contains(&current) {
            self.state.0 = None;
        }
        for list in self.rest.values_mut() {
            list.retain(|b| !gone.contains(&of(b)));
            for block in list.iter_mut().filter(|b| !b.zero) {
                if let (Some(slab), Some(ptr)) = (block.slab(), block.ptr) {
                    block.zero = slab.vacate(ptr, block.cap);
                }
            }
        }
        self.rest_bytes = self.rest.values().flatten().filter(|b| !b.zero).map(|b| b.cap).sum();
    }
}

/// Bytes that a buffer of `len` takes: cache lines; scratch in steps of an eighth of its power of two, so that lengths that differ by a
/// few rows share buffers.
pub fn capacity(len: usize, class: Class) -> usize {
    let lines = len.max(1).div_ceil(ALIGN) * ALIGN;
    match class {
        Class::State | Class::Experts if lines >= STATE_LEAST_BYTES => lines.div_ceil(SYSTEM_PAGE) * SYSTEM_PAGE,
        Class::Scratch => {
            let step = (lines.next_power_of_two() / 16).max(ALIGN);
            lines.div_ceil(step) * step
        }
        Class::Weights | Class::State | Class::Experts => lines,
    }
}

/// Bytes with an owner; returns to its memory when dropped.
pub struct Buffer {
    block: Option<Block>,
    len: usize,
    class: Class,
    memory: Memory,
}

impl Buffer {
    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if it holds no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// True if every byte is known to be zero, since nobody wrote it yet.
    pub fn is_zero(&self) -> bool {
        self.block.as_ref().is_none_or(|b| b.zero)
    }

    fn written(&mut self) {
        if let Some(block) = &mut self.block {
            block.zero = false;
        }
    }

    /// What it is counted as.
    pub fn class(&self) -> Class {
        self.class
    }

    fn ptr(&self) -> Option<NonNull<u8>> {
        self.block.as_ref().and_then(|b| b.ptr)
    }

    /// The bytes; none for a phantom.
    pub fn bytes(&self) -> Option<&[u8]> {
        // SAFETY: the allocation holds at least `len` initialised bytes (zeroed at birth) and lives as long as self.
        self.ptr().map(|p| unsafe { std::slice::from_raw_parts(p.as_ptr(), self.len) })
    }

    /// The bytes, writable; none for a phantom.
    pub fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        self.written();
        // SAFETY: as in `bytes`; `&mut self` makes the access exclusive.
        self.ptr().map(|p| unsafe { std::slice::from_raw_parts_mut(p.as_ptr(), self.len) })
    }

    /// The bytes as `T`; none for a phantom. Trailing bytes that do not fill a `T` are left out.
    pub fn cast<T: Plain>(&self) -> Option<&[T]> {
        // SAFETY: aligned to 64, initialised, and `Plain` types take any bit pattern.
        self.ptr().map(|p| unsafe { std::slice::from_raw_parts(p.as_ptr().cast::<T>(), self.len / size_of::<T>()) })
    }

    /// The bytes as `T`, writable; none for a phantom.
    pub fn cast_mut<T: Plain>(&mut self) -> Option<&mut [T]> {
        self.written();
        // SAFETY: as in `cast`; `&mut self` makes the access exclusive.
        self.ptr().map(|p| unsafe { std::slice::from_raw_parts_mut(p.as_ptr().cast::<T>(), self.len / size_of::<T>()) })
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(block) = self.block.take() else { return };
        let mut ledger = self.memory.lock();
        if self.class == Class::Scratch {
            ledger.usage.idle += block.cap as u64;
            ledger.free.entry(block.cap).or_default().push(block);
        } else {
            ledger.usage.by_class[self.class.index()] -= block.cap as u64;
            ledger.usage.total -= block.cap as u64;
            if matches!(self.class, Class::State | Class::Experts) {
                ledger.rest(block);
            }
        }
    }
}

/// Types for which every bit pattern is a value.
///
/// # Safety
/// Implementors have no padding, no invalid bit pattern and an alignment of at most 64.
pub unsafe trait Plain: Copy + 'static {}
// SAFETY: plain numbers.
unsafe impl Plain for f32 {}
// SAFETY: plain numbers.
unsafe impl Plain for i32 {}
// SAFETY: plain numbers.
unsafe impl Plain for u32 {}
// SAFETY: plain numbers.
unsafe impl Plain for u16 {}
// SAFETY: plain numbers.
unsafe impl Plain for i8 {}
// SAFETY: plain numbers.
unsafe impl Plain for u8 {}

#[cfg(test)]
mod tests;
