//! Interrupted at any step, by a disk that stops, tears, or fills up, and by SIGKILL: what was reported as written is whole, names
//! point at whole states, and fsck finds nothing but the write in flight.

use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::io;
#[cfg(unix)]
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use reverie_memory::disk::{Disk, RealDisk};
use reverie_memory::{Depth, Error, Expect, FindingKind, FsckRun, GcSpec, Hash, Manifest, Remote, Store};

use crate::stand::{grow, state, store, wake};

/// What happens at the step that fails.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// Nothing is done, then or later: the process is dead.
    Dead,
    /// A write is done by half and reported as done; dead from then on. A file that was not flushed before the power went.
    Torn,
    /// A write finds the disk full after half of it; so does every later one. All else works.
    Full,
}

/// The real disk, up to a step.
#[derive(Debug)]
struct FaultDisk {
    fault: Fault,
    at: u64,
    step: AtomicU64,
}

impl FaultDisk {
    fn new(fault: Fault, at: u64) -> Arc<FaultDisk> {
        Arc::new(FaultDisk { fault, at, step: AtomicU64::new(0) })
    }
    /// Runs a step that is no write.
    fn run(&self, f: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let step = self.step.fetch_add(1, Ordering::Relaxed);
        if self.fault == Fault::Full || step < self.at { f() } else { Err(io::Error::other("dead")) }
    }
    fn happened(&self) -> bool {
        self.step.load(Ordering::Relaxed) > self.at
    }
}

impl Disk for FaultDisk {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        self.run(|| RealDisk.create_folder(path))
    }
    fn write_new(&self, path: &Path, parts: &[&[u8]]) -> io::Result<File> {
        let step = self.step.fetch_add(1, Ordering::Relaxed);
        let half = parts.concat();
        let half = half.get(..half.len() / 2).unwrap_or_default();
        match self.fault {
            _ if step < self.at => RealDisk.write_new(path, parts),
            Fault::Torn if step == self.at => RealDisk.write_new(path, &[half]),
            Fault::Full => {
                RealDisk.write_new(path, &[half])?;
                Err(io::ErrorKind::StorageFull.into())
            }
            _ => Err(io::Error::other("dead")),
        }
    }
    fn flush(&self, file: &File) -> io::Result<()> {
        self.run(|| RealDisk.flush(file))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.run(|| RealDisk.rename(from, to))
    }
    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.run(|| RealDisk.sync_folder(path))
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.run(|| RealDisk.remove(path))
    }
}

/// Nothing but writes in flight, and every commit of every name wakes.
fn sound(store: &Store) {
    let report = store.fsck(FsckRun::Check, &mut |_, _| {}).expect("fsck runs");
    let bad: Vec<_> = report.findings.iter().filter(|f| f.kind != FindingKind::InFlight).collect();
    assert!(bad.is_empty(), "{bad:?}");
    for named in store.refs().expect("refs") {
        for commit in store.log(&named.name).expect("log") {
            wake(store, &commit.manifest);
        }
    }
}

/// One turn more for `name`.
fn next_turn(store: &Store, name: &str) -> Result<Hash, Error> {
    let parent = store.head(name)?;
    let n = match &parent {
        Some(head) => store.manifest(head)?.tokens.len() as u32,
        None => 0,
    };
    let writer = store.writer()?;
    let tokens: Vec<u32> = (0..n + 10).collect();
    let put: Result<Vec<_>, Error> = (0..tokens.len().div_ceil(crate::stand::PAGE))
        .map(|i| writer.put(&[&crate::stand::page(&tokens[..((i + 1) * crate::stand::PAGE).min(tokens.len())])]))
        .collect();
    let pages = put?.into_iter().map(|p| p.hash).collect();
    let manifest = Manifest { parent, tokens, pages, page_tokens: crate::stand::PAGE, ..Manifest::default() };
    writer.commit(name, parent.map_or(Expect::Absent, Expect::Head), &manifest)
}

/// Runs `act` on a store made by `prepare`, failing at step 0, 1, 2 … until no step is left; `after` judges the store and whether it
/// was reported as done. Gives the number of steps.
fn at_every_step(
    fault: Fault,
    prepare: &dyn Fn(&Store),
    act: &dyn Fn(&Store) -> Result<(), Error>,
    after: &dyn Fn(&Store, Result<(), Error>),
) -> u64 {
    for at in 0.. {
        let (_folder, store) = store();
        prepare(&store);
        let disk = FaultDisk::new(fault, at);
        let done = act(&Store::open_on(store.place(), disk.clone()).expect("opens"));
        let happened = disk.happened();
        assert!(happened || done.is_ok(), "{done:?}");
        sound(&store);
        after(&store, done);
        // Whatever was left behind is swept, and then nothing is found.
        store.fsck(FsckRun::Repair, &mut |_, _| {}).expect("repairs");
        store.gc(&GcSpec::default()).expect("collects");
        let report = store.fsck(FsckRun::Check, &mut |_, _| {}).expect("fsck runs");
        assert_eq!(report.findings, []);
        if !happened {
            return at;
        }
    }
    unreachable!()
}

#[test]
fn a_commit_stopped_at_any_step_is_done_or_undone() {
    for fault in [Fault::Dead, Fault::Full] {
        let steps = at_every_step(
            fault,
            &|store| drop(grow(store, "trip", 1)),
            &|store| next_turn(store, "trip").map(drop),
            &|store, done| {
                let turns = store.log("trip").expect("log").len();
                // Stopped after the name had moved: done, but not reported.
                assert!(turns == 2 || (turns == 1 && done.is_err()), "{turns} {done:?}");
                if let Err(e) = &done
                    && fault == Fault::Full
                {
                    let said = e.to_string();
                    assert!(matches!(e, Error::Full { .. }) && said.contains("nothing that was stored"), "{said}");
                }
                next_turn(store, "trip").expect("works again");
            },
        );
        assert!(steps > 12, "{steps}");
    }
}

#[test]
fn a_torn_write_that_was_reported_as_flushed_is_noticed() {
    // Disks that lie: no promise holds, but nothing is read that was not written.
    at_torn_steps(&|store| next_turn(store, "trip").map(drop));
}

fn at_torn_steps(act: &dyn Fn(&Store) -> Result<(), Error>) {
    for at in 0..40 {
        let (_folder, store) = store();
        grow(&store, "trip", 1);
        let disk = FaultDisk::new(Fault::Torn, at);
        let _ = act(&Store::open_on(store.place(), disk.clone()).expect("opens"));
        for commit in store.log("trip").into_iter().flatten() {
            for object in commit.manifest.objects() {
                let _ = store.get(object).map(|bytes| assert_eq!(Hash::of(&bytes), *object));
            }
        }
        if !disk.happened() {
            return;
        }
    }
    panic!("more steps than expected");
}

#[test]
fn gc_stopped_at_any_step_loses_nothing() {
    at_every_step(
        Fault::Dead,
        &|store| {
            grow(store, "trip", 4);
            grow(store, "other", 2);
            let writer = store.writer().expect("writer");
            writer.commit("gone", Expect::Absent, &state(&writer, &[9; 20])).expect("commits");
            drop(writer);
            store.remove("gone", Expect::Any).expect("removes");
        },
        &|store| {
            let age = store.resolve("trip~1")?.manifest.created_ms;
            store.gc(&GcSpec { before_ms: Some(age), ..GcSpec::default() }).map(drop)
        },
        &|store, _| {
            assert!(store.log("trip").expect("log").len() >= 2);
            assert!(!store.log("other").expect("log").is_empty());
        },
    );
}

#[test]
fn names_changed_at_any_step_are_old_or_new() {
    at_every_step(
        Fault::Dead,
        &|store| drop(grow(store, "trip", 2)),
        &|store| {
            store.rename("trip", "deep/er")?;
            store.fork("deep/er@1", "fork")?;
            store.tag("deep/er", "label").map(drop)
        },
        &|store, _| assert!(store.head("trip").expect("head").or(store.head("deep/er").expect("head")).is_some()),
    );
}

#[test]
fn what_arrives_and_is_stopped_at_any_step_arrives_whole_or_not() {
    let (folder, from) = store();
    grow(&from, "trip", 2);
    let file = folder.path().join("f");
    from.export("trip", &file, Depth::History, &mut |_| {}).expect("exports");
    let place = from.place().display().to_string();
    let whole = |store: &Store, done: Result<(), Error>| {
        let arrived = store.head("trip").expect("head").is_some();
        assert!(arrived || done.is_err());
        if arrived {
            assert_eq!(store.log("trip").expect("log").len(), 2);
        }
    };
    for fault in [Fault::Dead, Fault::Full] {
        at_every_step(fault, &|_| {}, &|store| store.import(&file, None, &mut |_| {}).map(drop), &whole);
    }
    let pull = |store: &Store| store.pull("trip", &Remote::open(&place)?, None, &mut |_| {}).map(drop);
    at_every_step(Fault::Dead, &|_| {}, &pull, &whole);
}

/// The real disk, with a ledger of what a power cut could still take.
#[cfg(unix)]
#[derive(Debug, Default)]
struct Ledger {
    /// Files that are not flushed, by inode.
    unflushed: Mutex<HashSet<u64>>,
    /// Folders with names that are not durable.
    unsynced: Mutex<BTreeSet<PathBuf>>,
    names: AtomicU64,
}

#[cfg(unix)]
impl Disk for Ledger {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        self.unsynced.lock().unwrap().extend(path.parent().map(Path::to_owned));
        RealDisk.create_folder(path)
    }
    fn write_new(&self, path: &Path, parts: &[&[u8]]) -> io::Result<File> {
        let file = RealDisk.write_new(path, parts)?;
        self.unflushed.lock().unwrap().insert(file.metadata()?.ino());
        Ok(file)
    }
    fn flush(&self, file: &File) -> io::Result<()> {
        RealDisk.flush(file)?;
        self.unflushed.lock().unwrap().remove(&file.metadata()?.ino());
        Ok(())
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let inode = from.metadata()?.ino();
        assert!(!self.unflushed.lock().unwrap().contains(&inode), "{} got its name before its bytes", to.display());
        let mut unsynced = self.unsynced.lock().unwrap();
        if to.components().any(|c| c.as_os_str() == "refs") {
            assert!(unsynced.is_empty(), "{} moved before {unsynced:?}", to.display());
            self.names.fetch_add(1, Ordering::Relaxed);
        }
        unsynced.extend(to.parent().map(Path::to_owned));
        RealDisk.rename(from, to)
    }
    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        RealDisk.sync_folder(path)?;
        self.unsynced.lock().unwrap().remove(path);
        Ok(())
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove(path)
    }
}

#[cfg(unix)]
#[test]
fn a_name_moves_when_all_below_it_is_durable() {
    let (folder, from) = store();
    grow(&from, "far", 3);
    let file = folder.path().join("f");
    from.export("far", &file, Depth::History, &mut |_| {}).expect("exports");
    let (_other, store) = store();
    let ledger = Arc::new(Ledger::default());
    let ledgered = Store::open_on(store.place(), ledger.clone()).expect("opens");
    for turn in 0..5 {
        next_turn(&ledgered, "trip").expect("commits");
        assert_eq!(ledger.unsynced.lock().unwrap().len(), 0, "reported before it was durable, turn {turn}");
    }
    // Many puts from several threads at once.
    let writer = ledgered.writer().expect("writer");
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let writer = &writer;
            scope.spawn(move || (0..20).for_each(|i| drop(writer.put(&[&crate::stand::noise(thread * 20 + i, 3000)]))));
        }
    });
    let big = state(&writer, &[3; 40]);
    writer.commit("many", Expect::Absent, &big).expect("commits");
    drop(writer);
    // One who finds what another one has put and not reported.
    let (one, two) = (ledgered.writer().expect("writer"), ledgered.writer().expect("writer"));
    let pages: Vec<Hash> =
        (0..30).map(|i| one.put(&[&crate::stand::noise(1 << 30 | i, 600)]).expect("put").hash).collect();
    assert!(two.has(&pages[0]), "moved in, since too many wait");
    let tokens = (0..crate::stand::PAGE as u32).collect();
    let borrowed =
        Manifest { tokens, pages: pages[..1].to_vec(), page_tokens: crate::stand::PAGE, ..Manifest::default() };
    two.commit("borrowed", Expect::Absent, &borrowed).expect("commits");
    drop(one);
    two.store().remove("borrowed", Expect::Any).expect("removes");
    drop(two);
    ledgered.fork("trip@1", "fork").or_else(|_| ledgered.fork("trip~1", "fork")).expect("forks");
    ledgered.import(&file, None, &mut |_| {}).expect("imports");
    ledgered
        .pull("far", &Remote::open(&from.place().display().to_string()).unwrap(), Some("near"), &mut |_| {})
        .unwrap();
    assert_eq!(ledger.unsynced.lock().unwrap().len(), 0);
    assert!(ledger.unflushed.lock().unwrap().is_empty());
    assert_eq!(ledger.names.load(Ordering::Relaxed), 10);
    sound(&ledgered);
}

/// The real disk, but for what is done before a file is flushed.
struct AtFlush<F>(F);

impl<F: Fn() -> io::Result<()> + Send + Sync> AtFlush<F> {
    fn new(before: F) -> Arc<AtFlush<F>> {
        Arc::new(AtFlush(before))
    }
}

impl<F> std::fmt::Debug for AtFlush<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AtFlush")
    }
}

impl<F: Fn() -> io::Result<()> + Send + Sync> Disk for AtFlush<F> {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        RealDisk.create_folder(path)
    }
    fn write_new(&self, path: &Path, parts: &[&[u8]]) -> io::Result<File> {
        RealDisk.write_new(path, parts)
    }
    fn flush(&self, file: &File) -> io::Result<()> {
        (self.0)()?;
        RealDisk.flush(file)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealDisk.rename(from, to)
    }
    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        RealDisk.sync_folder(path)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove(path)
    }
}

#[test]
fn who_shares_a_writer_reports_only_what_is_in_its_place() {
    let (_folder, store) = store();
    let slow = Store::open_on(
        store.place(),
        AtFlush::new(|| {
            std::thread::sleep(std::time::Duration::from_millis(3));
            Ok(())
        }),
    )
    .expect("opens");
    let writer = slow.writer().expect("writer");
    std::thread::scope(|scope| {
        for thread in 0..6u64 {
            let (writer, store) = (&writer, &store);
            scope.spawn(move || {
                for i in 0..6 {
                    let noise = |n| crate::stand::noise(thread << 20 | i << 10 | n, crate::stand::PAGE_BYTES);
                    let pages: Vec<Hash> = (0..5).map(|n| writer.put(&[&noise(n)]).expect("put").hash).collect();
                    let tokens = (0..pages.len() as u32 * 8).collect();
                    let page_tokens = crate::stand::PAGE;
                    let manifest = Manifest { tokens, pages, page_tokens, ..Manifest::default() };
                    writer.commit(&format!("{thread}-{i}"), Expect::Absent, &manifest).expect("commits");
                    manifest.objects().for_each(|object| drop(store.get(object).expect("was reported")));
                }
            });
        }
    });
    drop(writer);
    assert_eq!(store.fsck(FsckRun::Check, &mut |_, _| {}).expect("fsck runs").findings, []);
}

#[test]
fn what_could_not_be_flushed_is_named_by_nobody() {
    for at in 0..5 {
        let (_folder, store) = store();
        grow(&store, "trip", 1);
        let left = AtomicU64::new(at);
        let disk = AtFlush::new(move || match left.fetch_sub(1, Ordering::Relaxed) {
            0 => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        });
        let failing = Store::open_on(store.place(), disk).expect("opens");
        let writer = failing.writer().expect("writer");
        let next = state(&writer, &(0..30).collect::<Vec<_>>());
        let first = writer.commit("other", Expect::Absent, &next);
        let Err(e) = first else { panic!("flush {at} failed and the commit did not") };
        assert!(matches!(e, Error::Full { .. }), "{e}");
        assert_eq!(store.head("other").expect("head"), None);
        // The same writer knows that what failed is not there.
        assert!(matches!(writer.commit("other", Expect::Absent, &next), Err(Error::Missing { .. })), "flush {at}");
        drop(writer);
        sound(&store);
        next_turn(&failing, "other").expect("works again");
        sound(&store);
    }
}
