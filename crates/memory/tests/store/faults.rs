//! A bucket that fails, cuts, loses, delays: a push that says it is done can be pulled, whole; one that fails can be repeated; what
//! was pushed before stays.

use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error as Refusal, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use reverie_memory::{FsckRun, Landing, Remote, Store};

use crate::stand::{grow, store, wake};

/// What goes wrong with one request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// Refused, nothing done.
    Fails,
    /// Done, and reported as failed.
    DoneButFails,
    /// Half is stored and reported as stored.
    Cuts,
    /// Half is stored and reported as failed.
    CutsAndFails,
    /// Nothing is stored, reported as stored.
    Loses,
    /// Reported as stored, stored when five more requests have come.
    Delays,
    /// One byte is stored otherwise.
    Spoils,
}

const FAULTS: [Fault; 7] =
    [Fault::Fails, Fault::DoneButFails, Fault::Cuts, Fault::CutsAndFails, Fault::Loses, Fault::Delays, Fault::Spoils];

type Late = (u64, Path, PutPayload);

/// A bucket in memory with one fault.
#[derive(Debug)]
struct Faulty {
    inner: Arc<InMemory>,
    fault: Fault,
    at: u64,
    requests: Mutex<u64>,
    late: Mutex<Vec<Late>>,
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a bucket with a fault")
    }
}

impl Faulty {
    fn over(inner: &Arc<InMemory>, fault: Fault, at: u64) -> Arc<Faulty> {
        Arc::new(Faulty { inner: inner.clone(), fault, at, requests: Mutex::new(0), late: Mutex::default() })
    }

    /// Counts a request; true for the one that is to go wrong.
    async fn step(&self) -> Result<bool> {
        let now = {
            let mut n = self.requests.lock().expect("lock");
            *n += 1;
            *n - 1
        };
        let due: Vec<Late> = {
            let mut late = self.late.lock().expect("lock");
            let (due, rest) = std::mem::take(&mut *late).into_iter().partition(|(at, ..)| *at <= now);
            *late = rest;
            due
        };
        for (_, path, payload) in due {
            self.inner.put_opts(&path, payload, PutOptions::default()).await?;
        }
        Ok(now == self.at)
    }

    fn happened(&self) -> bool {
        *self.requests.lock().expect("lock") > self.at
    }
}

fn broken() -> Refusal {
    Refusal::Generic { store: "a bucket with a fault", source: "out of order".into() }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        if !self.step().await? {
            return self.inner.put_opts(path, payload, options).await;
        }
        let bytes: Vec<u8> = payload.iter().flat_map(|b| b.to_vec()).collect();
        let half = PutPayload::from(bytes[..bytes.len() / 2].to_vec());
        let fine = PutResult { e_tag: None, version: None, extensions: Default::default() };
        match self.fault {
            Fault::Fails => Err(broken()),
            Fault::DoneButFails => self.inner.put_opts(path, payload, options).await.and(Err(broken())),
            Fault::Cuts => self.inner.put_opts(path, half, options).await,
            Fault::CutsAndFails => self.inner.put_opts(path, half, options).await.and(Err(broken())),
            Fault::Loses => Ok(fine),
            Fault::Delays => {
                self.late.lock().expect("lock").push((self.at + 5, path.clone(), payload));
                Ok(fine)
            }
            Fault::Spoils => {
                let mut bad = bytes;
                let middle = bad.len() / 2;
                bad.get_mut(middle).into_iter().for_each(|b| *b ^= 1);
                self.inner.put_opts(path, bad.into(), options).await
            }
        }
    }
    async fn put_multipart_opts(&self, path: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, options).await
    }
    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        match self.step().await? {
            true => Err(broken()),
            false => self.inner.get_opts(path, options).await,
        }
    }
    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(paths)
    }
    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }
    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }
    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

fn whole(store: &Store) {
    let report = store.fsck(FsckRun::Check, &mut |_, _| {}).expect("fsck runs");
    assert_eq!(report.findings, []);
    for named in store.refs().expect("refs") {
        store.log(&named.name).expect("log").iter().for_each(|c| wake(store, &c.manifest));
    }
}

#[test]
fn a_push_through_any_fault_is_reported_truly() {
    let (_folder, from) = store();
    let hashes = grow(&from, "trip", 3);
    from.fork(&hashes[0].to_string(), "early").unwrap();
    for fault in FAULTS {
        for at in 0.. {
            let bucket = Arc::new(InMemory::new());
            let good = Remote::over(bucket.clone(), "", "good").unwrap();
            from.push("early", &good, Some("trip"), &mut |_| {}).unwrap();
            let faulty = Faulty::over(&bucket, fault, at);
            let done = from.push("trip", &Remote::over(faulty.clone(), "", "faulty").unwrap(), None, &mut |_| {});
            assert!(faulty.happened() || done.is_ok());
            let (_other, to) = store();
            let pulled = to.pull("trip", &good, None, &mut |_| {});
            match (&done, &pulled) {
                (Ok(_), Ok(_)) => assert_eq!(to.head("trip").unwrap(), Some(hashes[2]), "{fault:?} at {at}"),
                // What arrives is proved: a spoilt byte is noticed by who reads it, before anything has a name.
                (Ok(_), Err(e)) => assert!(fault == Fault::Spoils && e.is_damage(), "{fault:?} at {at}: {e}"),
                (Err(_), Ok(_)) => assert!(hashes.contains(&to.head("trip").unwrap().unwrap()), "{fault:?} at {at}"),
                (Err(e), Err(p)) => panic!("{fault:?} at {at}: {e}; and then {p}"),
            }
            whole(&to);
            if done.is_err() {
                from.push("trip", &good, None, &mut |_| {}).unwrap_or_else(|e| panic!("{fault:?} at {at}: {e}"));
                to.pull("trip", &good, None, &mut |_| {}).unwrap();
                assert_eq!(to.head("trip").unwrap(), Some(hashes[2]));
                whole(&to);
            }
            if !faulty.happened() {
                assert!(at > 15, "only {at} requests");
                break;
            }
        }
    }
}

#[test]
fn a_pull_through_any_fault_arrives_whole_or_not() {
    let (_folder, from) = store();
    let hashes = grow(&from, "trip", 2);
    let bucket = Arc::new(InMemory::new());
    from.push("trip", &Remote::over(bucket.clone(), "", "good").unwrap(), None, &mut |_| {}).unwrap();
    for at in 0.. {
        let faulty = Faulty::over(&bucket, Fault::Fails, at);
        let remote = Remote::over(faulty.clone(), "", "faulty").unwrap();
        let (_other, to) = store();
        let done = to.pull("trip", &remote, None, &mut |_| {});
        assert_eq!(done.is_ok(), to.head("trip").unwrap() == Some(hashes[1]), "at {at}: {done:?}");
        whole(&to);
        let good = Remote::over(bucket.clone(), "", "good").unwrap();
        let again = to.pull("trip", &good, None, &mut |_| {}).unwrap();
        assert!(done.is_err() || again.landing == Landing::UpToDate);
        whole(&to);
        if !faulty.happened() {
            assert!(done.is_ok());
            return;
        }
    }
}

/// A bucket without conditional writes.
#[derive(Debug)]
struct Simple(Arc<InMemory>);

impl fmt::Display for Simple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a simple bucket")
    }
}

#[async_trait]
impl ObjectStore for Simple {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        match options.mode {
            PutMode::Overwrite => self.0.put_opts(path, payload, options).await,
            _ => Err(Refusal::NotImplemented { operation: "put".into(), implementer: "a simple bucket".into() }),
        }
    }
    async fn put_multipart_opts(&self, path: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.0.put_multipart_opts(path, options).await
    }
    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.0.get_opts(path, options).await
    }
    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.0.delete_stream(paths)
    }
    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.0.list(prefix)
    }
    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.0.list_with_delimiter(prefix).await
    }
    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.0.copy_opts(from, to, options).await
    }
}

#[test]
fn a_bucket_without_conditional_writes_is_refused() {
    let (_folder, from) = store();
    grow(&from, "trip", 1);
    let remote = Remote::over(Arc::new(Simple(Arc::new(InMemory::new()))), "", "simple").unwrap();
    let refusal = from.push("trip", &remote, None, &mut |_| {}).unwrap_err().to_string();
    assert!(refusal.contains("conditional write"), "{refusal}");
    assert_eq!(remote.names().unwrap(), Vec::<String>::new());
}

#[test]
fn two_who_push_at_once_lose_nothing() {
    let bucket = Arc::new(InMemory::new());
    let stores: Vec<_> = (0..2).map(|_| store()).collect();
    let done = std::thread::scope(|s| {
        let push = |i: usize| {
            let (store, bucket) = (&stores[i].1, bucket.clone());
            s.spawn(move || {
                let mut mine = Vec::new();
                for turn in 0..12u32 {
                    let name = format!("own{i}/{turn}");
                    let writer = store.writer().unwrap();
                    let parent = store.head("trip").unwrap();
                    let manifest = crate::stand::state(&writer, &[turn, i as u32, 7]);
                    let manifest = reverie_memory::Manifest { parent, ..manifest };
                    mine.push(writer.commit(&name, reverie_memory::Expect::Absent, &manifest).unwrap());
                    drop(writer);
                    let remote = Remote::over(bucket.clone(), "", "shared").unwrap();
                    // Who comes too late takes what is there and goes on from it.
                    while let Err(e) = store.push(&name, &remote, Some("trip"), &mut |_| {}) {
                        assert!(matches!(e, reverie_memory::Error::Moved { .. }), "{e}");
                        store.pull("trip", &remote, None, &mut |_| {}).unwrap();
                        store.remove(&name, reverie_memory::Expect::Any).unwrap();
                        let writer = store.writer().unwrap();
                        let parent = store.head("trip").unwrap();
                        let manifest = reverie_memory::Manifest { parent, ..manifest.clone() };
                        mine.pop();
                        mine.push(writer.commit(&name, reverie_memory::Expect::Absent, &manifest).unwrap());
                    }
                    store.pull("trip", &remote, None, &mut |_| {}).unwrap();
                }
                mine
            })
        };
        let both = [push(0), push(1)];
        both.into_iter().flat_map(|t| t.join().unwrap()).collect::<Vec<_>>()
    });
    let (_folder, to) = store();
    to.pull("trip", &Remote::over(bucket, "", "shared").unwrap(), None, &mut |_| {}).unwrap();
    let history: Vec<_> = to.log("trip").unwrap().into_iter().map(|c| c.hash).collect();
    assert_eq!(history.len(), 24);
    assert!(done.iter().all(|h| history.contains(h)));
    whole(&to);
}
