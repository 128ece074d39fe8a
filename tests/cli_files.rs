//! Verbs that write files, where there is no room, no leave, or somebody in the way: nothing half-written stays, and nothing of the
//! user's goes.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use reverie::Loader;
use reverie::rooms::engine::EngineSpec;
use reverie::rooms::files::safetensors::SafeTensors;
use reverie::rooms::files::{Checkpoint, Place};
use reverie::rooms::model::{Sequence, Want};
use reverie::rooms::pack::{QuantizeSpec, quantize};
use reverie::rooms::tensor::quant::QUANTS;

use crate::fixtures::{self, root};

/// Everything below a folder, in order.
fn below(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(folder).expect("folder").filter_map(Result::ok) {
        found.push(entry.path());
        if entry.path().is_dir() {
            found.extend(below(&entry.path()));
        }
    }
    found.sort();
    found
}

/// Runs where files may have so many blocks of 512 bytes and no more.
fn with_room(blocks: usize, args: &[&str]) -> Output {
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
    Command::new("sh").args(["-c", &script, env!("CARGO_BIN_EXE_reverie")]).args(args).output().expect("runs")
}

fn failed(out: &Output, words: &[&str]) {
    let err = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{err}");
    words.iter().for_each(|word| assert!(err.contains(word), "does not say '{word}': {err}"));
}

fn word(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn quantise_writes_all_or_nothing() {
    let (home, llama) = (tempfile::tempdir().expect("tempdir"), root().join("llama"));
    let (new, there) = (home.path().join("a/b/new"), home.path().join("there"));
    std::fs::create_dir(&there).expect("there");
    let run =
        |blocks: usize, target: &Path| with_room(blocks, &["quantize", word(&llama), word(target), "--group", "32"]);
    let before = below(home.path());
    for target in [&new, &there] {
        // Not even the header; in the midst of the weights; the weights, and not the tokenizer beside them.
        for blocks in [1, 60, 64] {
            failed(&run(blocks, target), &["cannot"]);
            assert_eq!(below(home.path()), before, "{blocks} blocks");
        }
        assert!(run(1 << 20, target).status.success());
        assert!(Checkpoint::open(target, QUANTS).is_ok());
        assert!(below(target).iter().all(|path| !word(path).contains("partial")));
        // What is there now is the user's.
        let whole = below(home.path());
        failed(&run(1 << 20, target), &["a folder with files in it", "empty"]);
        assert_eq!(below(home.path()), whole);
        std::fs::remove_dir_all(if *target == new { home.path().join("a") } else { there.clone() }).expect("removed");
        std::fs::create_dir_all(&there).expect("there");
    }
}

#[test]
fn quantise_goes_where_it_may() {
    let home = tempfile::tempdir().expect("tempdir");
    let source = home.path().join("source");
    std::fs::create_dir(&source).expect("source");
    for file in below(&root().join("llama")) {
        std::fs::copy(&file, source.join(file.file_name().expect("name"))).expect("copy");
    }
    let run = |target: &Path| with_room(1 << 20, &["quantize", word(&source), word(target), "--group", "32"]);
    let own = below(&source);

    failed(&run(&source), &["a folder with files in it"]);
    failed(&run(&source.join("config.json")), &["found a file"]);
    failed(&run(&source.join("config.json/x")), &["config.json"]);
    failed(&run(Path::new("/proc/no/such")), &["/proc/no"]);
    assert_eq!(below(&source), own);

    // Inside the source: beside its files, which stay as they are.
    let inside = source.join("q4");
    assert!(run(&inside).status.success());
    assert!(Checkpoint::open(&inside, QUANTS).is_ok() && Checkpoint::open(&source, QUANTS).is_ok());
    assert_eq!(below(&source).len(), own.len() + 1 + below(&inside).len());

    // What a killed run left is told, and is not ours to remove.
    let left = home.path().join(".late.partial");
    std::fs::create_dir(&left).expect("left");
    failed(&run(&home.path().join("late")), &[".late.partial", "killed", "remove it"]);
    assert!(left.is_dir() && !home.path().join("late").exists());
}

#[test]
fn quantise_stops_without_a_trace() {
    let home = tempfile::tempdir().expect("tempdir");
    let source = Checkpoint::open(&root().join("llama"), QUANTS).expect("open");
    let spec = QuantizeSpec { bits: 4, group: 32, overrides: Vec::new(), shard_bytes: 20_000 };
    let stopped_at = |most: usize| {
        let mut steps = 0;
        let done = quantize(&source, &[], &home.path().join("q"), &spec, &mut |step| {
            assert!(step.done_bytes <= step.total_bytes);
            steps += 1;
            if steps == most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        (steps, done)
    };
    for most in [1, 5, 20] {
        let (steps, done) = stopped_at(most);
        assert_eq!((steps, done.expect_err("stopped").to_string().contains("nothing was written")), (most, true));
        assert_eq!(below(home.path()), Vec::<PathBuf>::new());
    }
    stopped_at(usize::MAX).1.expect("whole");
}

/// `logits` of a fixture with some ids and other arguments, into `out`.
fn logits(blocks: usize, out: &Path, more: &[&str]) -> Output {
    let llama = root().join("llama");
    with_room(blocks, &[&["logits", word(&llama), "--out", word(out), "--ids", IDS], more].concat())
}

const IDS: &str = "5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30";

#[test]
fn logits_are_written_as_they_are_made() {
    let home = tempfile::tempdir().expect("tempdir");
    let out = home.path().join("out.safetensors");
    let written = |more: &[&str]| {
        let run = logits(1 << 20, &out, more);
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        std::fs::read(&out).expect("written")
    };
    let whole = written(&["--exact", "--hidden"]);
    for chunk in ["1", "7"] {
        assert!(written(&["--exact", "--hidden", "--chunk", chunk]) == whole, "chunks of {chunk}");
    }
    // What the model says of all tokens at once.
    let engine = EngineSpec { kv: "f32".into(), ..EngineSpec::default() };
    let loaded = fixtures::load(&Loader { exact: true, engine, ..Loader::default() }, &root().join("llama"));
    let model = loaded.engine().model();
    let mut state = model.new_state(loaded.engine().cache());
    let tokens: Vec<u32> = (5..31).collect();
    let mut batch = [Sequence { tokens: &tokens, state: &mut state, want: Want::All }];
    let want = model.forward(&mut batch).expect("forward").remove(0).expect("logits");
    let place =
        Place::Embedded("logits", Box::leak(Box::new([("model.safetensors", &*Box::leak(whole.into_boxed_slice()))])));
    let got = SafeTensors::open(&place).expect("open");
    assert!(got.bytes("logits") == Some(&model.backend().read_bytes(&want).expect("read")));
    assert_eq!(got.tensors.len(), 2 + model.plan().layers.len());

    // A run that fails leaves what was there.
    let before = (below(home.path()), std::fs::read(&out).expect("there"));
    for blocks in [0, 8, 40] {
        failed(&logits(blocks, &out, &["--hidden"]), &["cannot write", "out.safetensors"]);
        assert_eq!((below(home.path()), std::fs::read(&out).expect("there")), before, "{blocks} blocks");
    }
}

/// Closer and closer to the least budget that does: none that is let in may fail half-way, and none that is refused begins.
#[test]
fn logits_that_fit_no_budget_are_refused_before_they_start() {
    let home = tempfile::tempdir().expect("tempdir");
    let out = home.path().join("out.safetensors");
    let (mut refused, mut fits) = (1_000_000u64, 256_000_000u64);
    while fits - refused > 20_000 {
        let budget = fits.midpoint(refused);
        let run = logits(1 << 20, &out, &["--hidden", "--memory", &budget.to_string()]);
        if run.status.success() {
            fits = budget;
            std::fs::remove_file(&out).expect("written");
        } else {
            failed(&run, &["tokens of context would take"]);
            refused = budget;
        }
        assert_eq!(below(home.path()), Vec::<PathBuf>::new());
    }
}
