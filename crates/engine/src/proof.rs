//! What a session woke and nobody has held against its names yet: pages that lie over their objects' files, hashed behind its back.
//! Whoever computes from such a page or hands it on waits here first. Knows bytes and names, no tokens.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use reverie_memory::{Hash, Store};
use reverie_tensor::Tensor;

use crate::error::{Error, Result};
use crate::tree::Stored;

/// A page over its object's file.
pub(crate) struct Claim {
    /// What the file claims to hold.
    pub(crate) object: Hash,
    /// All of its bytes, where the host has them.
    pub(crate) tensors: Vec<Tensor>,
}

impl Claim {
    /// Refuses bytes that are not the object's.
    fn prove(&self, store: &Store) -> Result<()> {
        let bytes: Vec<&[u8]> = self.tensors.iter().filter_map(Tensor::host_bytes).collect();
        Ok(store.prove(&self.object, &bytes)?)
    }

    /// What is false at one look and true at the next is nothing to build on.
    fn wavers(&self) -> Error {
        let (what, found) = (format!("object {}", self.object), "bytes that change while they are read".into());
        reverie_memory::Error::Damaged { what, found, expected: "the bytes that were written".into() }.into()
    }
}

/// The claims of one waking, on their way to being proved.
struct Claims {
    store: Store,
    claims: Vec<Claim>,
    next: AtomicUsize,
    /// The first one that was found false; no number if none was.
    refuted: AtomicUsize,
    dropped: AtomicBool,
}

impl Claims {
    /// Takes claims until there are none left, or one is false, or nobody wants to know.
    fn work(&self) {
        while !self.dropped.load(Ordering::Relaxed) && self.refuted.load(Ordering::Relaxed) == usize::MAX {
            let n = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(claim) = self.claims.get(n) else { return };
            if claim.prove(&self.store).is_err() {
                self.refuted.fetch_min(n, Ordering::Relaxed);
            }
        }
    }
}

/// A proof under way. Shared by a session and its forks; ends with the last of them, done or not.
pub(crate) struct Proof {
    shared: Arc<Claims>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// What the pages are called, for the tree to know once this is proved.
    pub(crate) stored: BTreeMap<usize, Stored>,
}

impl Proof {
    /// Begins to prove on `n` threads.
    pub(crate) fn begin(store: &Store, claims: Vec<Claim>, n: usize, stored: BTreeMap<usize, Stored>) -> Proof {
        let n = n.min(claims.len());
        let shared = Arc::new(Claims {
            store: store.clone(),
            claims,
            next: AtomicUsize::new(0),
            refuted: AtomicUsize::new(usize::MAX),
            dropped: AtomicBool::new(false),
        });
        let run = |_| {
            let shared = Arc::clone(&shared);
            // One that cannot be started leaves its work to whoever waits.
            std::thread::Builder::new().name("proof".into()).spawn(move || shared.work()).ok()
        };
        let threads = Mutex::new((0..n).filter_map(run).collect());
        Proof { shared, threads, stored }
    }

    /// Waits until every byte is proved, and helps.
    ///
    /// # Errors
    /// That of a page that is not what its name says; each time it is asked.
    pub(crate) fn wait(&self) -> Result<()> {
        self.shared.work();
        self.join();
        match self.shared.claims.get(self.shared.refuted.load(Ordering::Relaxed)) {
            Some(claim) => claim.prove(&self.shared.store).and_then(|()| Err(claim.wavers())),
            None => Ok(()),
        }
    }

    /// Whoever comes second waits for the first.
    fn join(&self) {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        threads.drain(..).for_each(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
    }
}

impl Drop for Proof {
    fn drop(&mut self) {
        self.shared.dropped.store(true, Ordering::Relaxed);
        self.join();
    }
}
