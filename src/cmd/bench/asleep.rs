//! What memory costs: reading, sleeping, sleeping again after one more turn, forking, waking; and a plain loop that reads and hashes
//! the same bytes on as many threads, in the same run.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::Context;
use reverie::rooms::engine::memory::{Expect, GcSpec, Hash, Store};
use reverie::rooms::engine::{Cellar, Engine, Note};
use reverie::rooms::tensor::Class;
use reverie::{Go, Session};
use serde_json::json;

use crate::cmd::shared::{bytes, progress_bar};

/// Tokens of the turn after which a state sleeps again.
const TURN_TOKENS: usize = 100;

/// A folder that goes when the benchmark ends.
pub struct Folder(PathBuf);

impl Folder {
    /// A new one.
    pub fn new() -> Folder {
        Folder(std::env::temp_dir().join(format!("reverie-bench-{}", std::process::id())))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Left behind, it would only take space; the system's own cleaning finds it.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs the benchmark over a state of `tokens` tokens and prints it.
pub fn run(engine: &Arc<Engine>, name: &str, tokens: usize, runs: usize, as_json: bool) -> anyhow::Result<()> {
    let folder = Folder::new();
    let store = Store::open(folder.path())?;
    let identity = [("weights".to_owned(), name.to_owned())].into();
    engine.attach(Cellar { store: store.clone(), identity });
    let vocab = engine.model().plan().vocab as u64;
    let text: Vec<u32> =
        (0..(tokens + TURN_TOKENS) as u64).map(|i| (i.wrapping_mul(2_654_435_761) % vocab) as u32).collect();
    let bar = progress_bar(tokens as u64, "reading [{bar:30}] {pos}/{len} tokens {eta}");
    let mut session = engine.session();
    let t = Instant::now();
    session.sync(&text[..tokens], &mut |p| {
        bar.set_position(p.done as u64);
        Go::On
    })?;
    let read_ms = ms(t);
    bar.finish_and_clear();
    let (mut sleep, mut again_runs) = (Vec::new(), Vec::new());
    let mut first = None;
    for _ in 0..runs.max(1) {
        if first.is_some() {
            take_away(&store, "state")?;
        }
        let t = Instant::now();
        first = Some(session.sleep("state", Expect::Absent, Note::default())?);
        sleep.push(ms(t));
    }
    let first = first.context("no run")?;
    let sleep_ms = median(&mut sleep);
    let memory = engine.model().backend().memory();
    let before = memory.usage().of(Class::State);
    let t = Instant::now();
    let forks: Vec<Session> = (0..100).map(|_| session.fork()).collect();
    let fork_ms = ms(t) / 100.0;
    let copied = memory.usage().of(Class::State) - before;
    drop(forks);
    session.sync(&text, &mut |_| Go::On)?;
    // The first one once more under another name, so that taking the second away leaves it.
    store.fork("state", "first")?;
    let mut again = None;
    for _ in 0..runs.max(1) {
        if again.is_some() {
            take_away(&store, "state")?;
            store.fork("first", "state")?;
        }
        let t = Instant::now();
        again = Some(session.sleep("state", Expect::Head(first.hash), Note::default())?);
        again_runs.push(ms(t));
    }
    let again = again.context("no run")?;
    let again_ms = median(&mut again_runs);
    let want = session.logits()?;
    drop(session);
    let manifest = store.resolve("state")?.state()?;
    let manifest_bytes = store.disk_bytes(&again.hash)?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let [mut wake, mut plain, mut proved, mut to_row, mut to_next] = [const { Vec::new() }; 5];
    for _ in 0..runs.max(1) {
        engine.forget();
        let files: Vec<PathBuf> = manifest.objects().map(|o| store.object_path(o)).collect();
        let t = Instant::now();
        read_and_hash(files, threads)?;
        plain.push(ms(t));
        let t = Instant::now();
        let woken = engine.wake(&manifest)?;
        wake.push(ms(t));
        let logits = woken.logits()?;
        to_row.push(ms(t));
        anyhow::ensure!(logits == want, "the woken state's logits differ from those that slept");
        drop(woken);
        engine.forget();
        let t = Instant::now();
        engine.wake(&manifest)?.proved()?;
        proved.push(ms(t));
        engine.forget();
        let t = Instant::now();
        engine.wake(&manifest)?.accept(text[0])?;
        to_next.push(ms(t));
    }
    let (wake_ms, proved_ms, plain_ms) = (median(&mut wake), median(&mut proved), median(&mut plain));
    let (logits_ms, decode_ms) = (median(&mut to_row), median(&mut to_next));
    let new_pages_bytes = again.new_pages as u64 * page_bytes(engine);
    let value = json!({
        "name": name, "tokens": tokens, "state_bytes": first.state_bytes, "disk_bytes": first.disk_bytes, "read_ms": read_ms,
        "sleep_ms": sleep_ms, "again_ms": again_ms, "again_disk_bytes": again.disk_bytes + manifest_bytes,
        "again_pages": again.new_pages, "again_pages_bytes": new_pages_bytes, "fork_ms": fork_ms, "fork_copied_bytes": copied,
        "wake_ms": wake_ms, "wake_logits_ms": logits_ms, "wake_proved_ms": proved_ms, "wake_decode_ms": decode_ms,
        "plain_ms": plain_ms, "read_over_proved": read_ms / proved_ms, "proved_over_plain": proved_ms / plain_ms,
        "again_over_sleep": again_ms / sleep_ms,
    });
    if as_json {
        say!("{}", serde_json::to_string_pretty(&value)?)?;
        return Ok(());
    }
    say!("{name}: {tokens} tokens, {} of state, {} on disk", bytes(first.state_bytes), bytes(first.disk_bytes))?;
    say!("read       {read_ms:10.1} ms")?;
    say!("sleep      {sleep_ms:10.1} ms")?;
    say!(
        "again      {again_ms:10.1} ms   {:.1} % of the first, after {TURN_TOKENS} more tokens; {} written for {} new pages of {}",
        again_ms / sleep_ms * 100.0,
        bytes(again.disk_bytes + manifest_bytes),
        again.new_pages,
        bytes(page_bytes(engine)),
    )?;
    say!("fork       {fork_ms:10.3} ms   {} copied", bytes(copied))?;
    say!("wake       {wake_ms:10.1} ms")?;
    say!("to logits  {logits_ms:10.1} ms   from its last row; {decode_ms:.1} ms with one more token read")?;
    say!("proved     {proved_ms:10.1} ms   every byte; {:.1} times as fast as reading", read_ms / proved_ms)?;
    say!("plain loop {plain_ms:10.1} ms   waking, every byte proved, takes {:.2} times as long", proved_ms / plain_ms)?;
    Ok(())
}

/// Removes a name and what only it reached, so that sleeping under it writes again.
fn take_away(store: &Store, name: &str) -> anyhow::Result<()> {
    store.remove(name, Expect::Any)?;
    store.gc(&GcSpec::default())?;
    Ok(())
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Bytes of one page of all layers.
fn page_bytes(engine: &Engine) -> u64 {
    let specs = engine.model().state_specs();
    specs.iter().filter_map(|s| s.kv).map(|kv| engine.cache().kv(kv).page_bytes() as u64).sum()
}

/// Reads every file into one buffer a thread and hashes it.
fn read_and_hash(files: Vec<PathBuf>, threads: usize) -> anyhow::Result<()> {
    let queue = Mutex::new(files.into_iter());
    let work = || -> anyhow::Result<()> {
        let mut buffer = Vec::new();
        loop {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(path) = next else { return Ok(()) };
            read(&path, &mut buffer).with_context(|| format!("cannot read {}", path.display()))?;
            std::hint::black_box(Hash::of(&buffer));
        }
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let own = work();
        others.into_iter().map(|t| t.join().unwrap_or_else(|p| std::panic::resume_unwind(p))).fold(own, Result::and)
    })
}

fn read(path: &Path, buffer: &mut Vec<u8>) -> std::io::Result<()> {
    let mut file = std::fs::File::open(path)?;
    let length = file.metadata()?.len() as usize;
    buffer.resize(length, 0);
    file.read_exact(buffer)
}
