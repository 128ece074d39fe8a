//! How fast the store is, as ratios within one run: reading against a plain loop that reads and hashes the same bytes, finding,
//! committing. `cargo run --release -p reverie-memory --example speed [FOLDER]`; the folder's disk is what is measured.

use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use reverie_memory::{Expect, Hash, Identity, Manifest, Store};

/// An 8k-token state of a 0.6-billion-parameter model: pages of 64 tokens, 28 layers, 8 heads of 128, keys and values in f16.
const TOKENS: usize = 8192;
const PAGE: usize = 64;
const PAGE_BYTES: usize = 28 * 2 * 8 * 128 * 2 * PAGE;

fn noise(seed: u64, out: &mut [u8]) {
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(out);
}

/// The best of three.
fn best(mut f: impl FnMut()) -> Duration {
    let once = |_| {
        let start = Instant::now();
        f();
        start.elapsed()
    };
    (0..3).map(once).min().unwrap_or_default()
}

/// Runs `f(0..n)` on `threads`.
fn on_threads(threads: usize, n: usize, f: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|s| {
        for _ in 0..threads {
            s.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= n {
                        break;
                    }
                    f(i);
                }
            });
        }
    });
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args().nth(1).map_or_else(std::env::temp_dir, Into::into);
    let place = folder.join(format!("reverie-speed-{}", std::process::id()));
    let store = Store::open(&place)?;
    let writer = store.writer()?;
    let identity = Identity::from([("weights".into(), "w".into())]);
    let mut page = vec![0; PAGE_BYTES];
    let mut pages = Vec::new();
    let start = Instant::now();
    let mut making = Duration::ZERO;
    for i in 0..TOKENS / PAGE {
        let made = Instant::now();
        noise(i as u64, &mut page);
        making += made.elapsed();
        pages.push(writer.put(&[&page])?.hash);
    }
    let tokens: Vec<u32> = (0..TOKENS as u32).map(|t| t.wrapping_mul(2654435761) % 151_936).collect();
    let mut manifest =
        Manifest { identity: identity.clone(), tokens, pages, text: "word ".repeat(TOKENS), ..Manifest::default() };
    let mut head = writer.commit("s", Expect::Absent, &manifest)?;
    let bytes = (TOKENS / PAGE * PAGE_BYTES) as f64;
    let gib = |t: Duration| bytes / t.as_secs_f64() / (1u64 << 30) as f64;
    let first = start.elapsed() - making;
    println!("first sleep of {:.0} MiB: {first:.2?} (one thread, flushed; {:.2} GiB/s)", bytes / 1048576.0, gib(first));

    let start = Instant::now();
    for i in 0..2 {
        noise(1 << 32 | i, &mut page);
        manifest.pages.push(writer.put(&[&page])?.hash);
    }
    manifest.tokens.extend(0..2 * PAGE as u32);
    manifest.parent = Some(head);
    head = writer.commit("s", Expect::Head(head), &manifest)?;
    let next = start.elapsed();
    println!(
        "sleep after {} more tokens: {next:.2?}, {:.1} % of the first",
        2 * PAGE,
        100.0 * next.as_secs_f64() / first.as_secs_f64()
    );
    println!("manifest: {} bytes on the disk", store.header(&head)?.1);
    drop(writer);

    for threads in [1, 2, 4].into_iter().filter(|&t| t <= std::thread::available_parallelism().map_or(1, usize::from)) {
        let paths: Vec<_> = manifest
            .pages
            .iter()
            .map(|h| {
                let name = h.to_string();
                place.join("objects").join(&name[..2]).join(&name[2..])
            })
            .collect();
        // Fresh buffers on both sides, as a wake has.
        let plain = || {
            on_threads(threads, paths.len(), |i| {
                let mut file = std::fs::File::open(&paths[i]).expect("opens");
                let mut header = [0; 64];
                file.read_exact(&mut header).expect("reads");
                let mut buffer = vec![0; PAGE_BYTES];
                let mut hasher = blake3::Hasher::new();
                for piece in buffer.chunks_mut(256 << 10) {
                    file.read_exact(piece).expect("reads");
                    hasher.update(piece);
                }
                assert_eq!(Hash::from(hasher.finalize()), manifest.pages[i]);
            })
        };
        let ours = || {
            on_threads(threads, manifest.pages.len(), |i| {
                let mut buffer = vec![0; PAGE_BYTES];
                // One part a layer's keys and one a layer's values.
                let mut parts: Vec<&mut [u8]> = buffer.chunks_mut(PAGE_BYTES / 56).collect();
                store.read_into(&manifest.pages[i], &mut parts).expect("reads");
            })
        };
        let (a, b) = (best(plain), best(ours));
        println!(
            "read, {threads} threads: {:.2} GiB/s, plain loop {:.2} GiB/s, ratio {:.3}",
            gib(b),
            gib(a),
            b.as_secs_f64() / a.as_secs_f64()
        );
    }
    let find = best(|| drop(store.find(&identity, &manifest.tokens).expect("finds")));
    let miss = best(|| drop(store.find(&identity, &[9, 9, 9]).expect("misses")));
    let resolve = best(|| drop(store.resolve("s").expect("resolves")));
    println!("find {TOKENS} tokens: {find:.2?}; a miss: {miss:.2?}; resolve and parse a manifest: {resolve:.2?}");
    let fork = Instant::now();
    store.fork("s", "twin")?;
    println!("fork: {:.2?}", fork.elapsed());
    std::fs::remove_dir_all(&place)?;
    Ok(())
}
