//! Remembering as a person meets it: chats that come back, books that are read once, forks, refusals, and processes that die.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use reverie::{Conversation, GenerateSpec, Go, LoadedModel, Loader};
use serde_json::Value;

use crate::fixtures::{load, root};

fn command(home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_reverie"));
    command.args(args).env("REVERIE_HOME", home).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(home: &Path, args: &[&str], input: &str) -> Output {
    let mut child = command(home, args).spawn().expect("starts");
    child.stdin.take().expect("stdin").write_all(input.as_bytes()).expect("writes");
    child.wait_with_output().expect("ends")
}

fn said(home: &Path, args: &[&str], input: &str) -> String {
    let out = run(home, args, input);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("text")
}

fn json(home: &Path, args: &[&str]) -> Value {
    serde_json::from_str(&said(home, args, "")).expect("json")
}

#[test]
fn a_chat_comes_back_in_another_process_and_nothing_is_read_twice() {
    let home = tempfile::tempdir().expect("home");
    let home = home.path();
    let chat = |args: &[&str], input: &str| said(home, &[&["chat", "--temperature", "0"], args].concat(), input);
    chat(&["--state", "trip"], "The code for Zoe is 4711.\n");
    let second = chat(&["--state", "trip"], "What is the code for Zoe?\n/stats\n");
    assert!(second.contains("4711"), "{second}");
    let read: usize = second.split(" reused, ").nth(1).and_then(|s| s.split(' ').next()?.parse().ok()).expect("stats");
    assert!(read < 25, "only the question is new: {second}");
    let commits = || {
        let log = json(home, &["state", "log", "trip", "--json"]);
        log.as_array().or_else(|| log["commits"].as_array()).expect("commits").len()
    };
    assert_eq!(commits(), 2, "one commit an answer");
    // A fork of the first turn does not know the second, and leaves the state alone.
    let fork = chat(&["--from", "trip@1"], "What is the code for Zoe?\n/stats\n");
    assert!(fork.contains("4711"), "{fork}");
    chat(&["--from", "trip@1", "--state", "other"], "The code for Max is 1234.\n");
    assert_eq!(commits(), 2, "a fork leaves it alone");
    let refused = run(home, &["chat", "--from", "trip", "--state", "other"], "");
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("exists already"));
    assert!(chat(&["--state", "other"], "What is the code for Zoe?\n").contains("4711"));
}

#[test]
fn a_name_that_another_process_moved_says_what_to_do() {
    let home = tempfile::tempdir().expect("home");
    let home = home.path();
    let args = ["chat", "--state", "trip", "--temperature", "0", "-n", "4"];
    said(home, &args, "Zoe has 4711.\n");
    // What the other process has said when the first goes on, and what becomes of that.
    for (more, code) in [("Is it so?\n", 1), ("/state trip2\nIs it so?\n/state\n", 0)] {
        let mut first = command(home, &args).spawn().expect("starts");
        let mut input = first.stdin.take().expect("stdin");
        let commits = || json(home, &["state", "log", "trip", "--json"]).as_array().expect("commits").len();
        let before = commits();
        input.write_all(b"And Max?\n").expect("writes");
        let begun = Instant::now();
        while commits() == before {
            assert!(begun.elapsed() < Duration::from_secs(240), "no answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        said(home, &args, "I am another.\n");
        input.write_all(more.as_bytes()).expect("writes");
        drop(input);
        let out = first.wait_with_output().expect("ends");
        let [says, err] = [&out.stdout, &out.stderr].map(|b| String::from_utf8_lossy(b).into_owned());
        assert_eq!(out.status.code(), Some(code), "{err}");
        match code {
            0 => assert!(says.contains("'trip2', 3 exchanges") || says.contains("'trip2', 5 exchanges"), "{says}"),
            _ => assert!(err.contains("another process") && err.contains("--state trip "), "{err}"),
        }
    }
    let log = json(home, &["state", "log", "trip2", "--json"]);
    assert_eq!(log.as_array().expect("commits").len(), 2, "the fork, and one answer: {log}");
    // A name that somebody has is not taken.
    let taken = run(home, &["chat", "--state", "trip2"], "/state trip\n/state\n");
    assert!(
        taken.status.code() == Some(1) && String::from_utf8_lossy(&taken.stderr).contains("'trip' exists already"),
        "{taken:?}"
    );
}

#[test]
fn another_number_format_is_refused_and_read_again_on_request() {
    let home = tempfile::tempdir().expect("home");
    let home = home.path();
    said(home, &["chat", "--temperature", "0", "--state", "s"], "The code for Zoe is 4711.\n");
    let refused = run(home, &["chat", "--temperature", "0", "--state", "s", "--kv", "f32"], "Hello\n");
    let err = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{err}");
    assert!(err.contains("cache") && err.contains("f16") && err.contains("f32") && err.contains("--re-read"), "{err}");
    let again = run(
        home,
        &["chat", "--temperature", "0", "--state", "s", "--kv", "f32", "--re-read"],
        "What is the code for Zoe?\n",
    );
    assert!(String::from_utf8_lossy(&again.stderr).contains("again"), "it says so");
    assert!(String::from_utf8_lossy(&again.stdout).contains("4711"));
}

#[test]
fn plain_text_goes_on_where_it_slept() {
    let home = tempfile::tempdir().expect("home");
    let home = home.path();
    let go_on = |prompt: &str| {
        let args =
            ["generate", "pocket-hybrid", "-p", prompt, "--state", "s", "-n", "6", "--temperature", "0", "--json"];
        json(home, &args)
    };
    let first = go_on("The code for Max is 1234. The code for Ann is 777.");
    let second = go_on(" The code for Max");
    let count = |v: &Value, field: &str| v[field].as_u64().expect("count");
    let slept = count(&first, "prompt_tokens") + count(&first, "answer_tokens");
    assert_eq!(count(&second, "reused_tokens"), slept, "everything that slept");
    // The same tokens in one go, never asleep.
    let model = load(&Loader::default(), Path::new("pocket-hybrid"));
    let voice = model.voice();
    let mut ids = voice.encode_text("The code for Max is 1234. The code for Ann is 777.").expect("encode");
    let of = |v: &Value| -> Vec<u32> {
        v["tokens"].as_array().expect("tokens").iter().map(|t| t["id"].as_u64().expect("id") as u32).collect()
    };
    ids.extend(of(&first));
    ids.extend(voice.encode_rendered(" The code for Max").expect("encode"));
    let mut spec = GenerateSpec { max_tokens: Some(6), ..GenerateSpec::default() };
    spec.sampler.temperature = 0.0;
    let mut session = model.session();
    let generation = model.generate_ids(&mut session, (&ids, ""), spec, &mut |_| Go::On).expect("reads");
    let want: Vec<u32> = generation.filter_map(|d| d.expect("delta").token).collect();
    assert_eq!(of(&second), want);
}

#[test]
fn a_sampled_conversation_goes_on_after_sleep_with_the_same_draws() {
    let folder = tempfile::tempdir().expect("folder");
    let path = trained("pocket");
    let questions = ["Tell me a story.", "And then?", "How does it end?"];
    for mirostat in [0, 2] {
        let mut spec = GenerateSpec { max_tokens: Some(24), ..GenerateSpec::default() };
        (spec.sampler.temperature, spec.sampler.seed, spec.sampler.mirostat) = (1.3, Some(7), mirostat);
        spec.sampler.repetition_penalty = 1.1;
        let loaded = load(&Loader::default(), &path);
        let say = |c: &mut Conversation, model: &LoadedModel, question: &str| {
            let mut said = String::new();
            let mut hear = |d: &reverie::Delta| said.push_str(&d.text);
            c.ask(model.voice(), question, spec.clone(), &mut |_| Go::On, &mut hear).expect("answer");
            said
        };
        let mut awake = loaded.conversation();
        let want: Vec<String> = questions.iter().map(|q| say(&mut awake, &loaded, q)).collect();
        assert_ne!(want[1], want[2]);
        // Each answer in an engine of its own, out of the store.
        let name = format!("m-{mirostat}");
        for (turn, (question, want)) in questions.iter().zip(&want).enumerate() {
            let model = load(&Loader::default(), &path);
            let store = model.open_store(Some(folder.path()), &mut |_, _, _| {}).expect("store");
            let head = store.head(&name).expect("head");
            let mut woken = match head {
                None => model.conversation(),
                Some(head) => {
                    let manifest = store.manifest(&head).expect("manifest");
                    let session = model.engine().wake(&manifest).expect("wakes");
                    Conversation::of_manifest(session, &manifest).expect("a conversation")
                }
            };
            woken.call(reverie::Bed { name: name.clone(), head, forked_from: None });
            assert_eq!(&say(&mut woken, &model, question), want, "mirostat {mirostat}, turn {turn}");
            woken.sleep().expect("sleeps");
        }
    }
}

#[test]
fn a_killed_read_goes_on_from_its_last_sleep() {
    let home = tempfile::tempdir().expect("home");
    let home = home.path();
    let book = home.join("book.txt");
    let text: String = (0..170).map(|i| format!("The code for person number {i} is {}.\n", 1000 + 37 * i)).collect();
    std::fs::write(&book, &text).expect("write");
    let book = book.display().to_string();
    let args = ["read", "pocket-hybrid", &book, "--state", "book", "--json"];
    let mut child = command(home, &args).spawn().expect("starts");
    let (asleep, began) = (home.join("store/refs/book"), Instant::now());
    while !asleep.exists() && began.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().expect("kill");
    child.wait().expect("ends");
    let done = json(home, &args);
    assert!(done["reused_tokens"].as_u64().expect("count") >= 1000, "{done}");
    assert!(done["tokens"].as_u64().expect("count") > 2000, "{done}");
    let fsck = run(home, &["state", "fsck"], "");
    assert!(fsck.status.success(), "{}", String::from_utf8_lossy(&fsck.stdout));
    // Many short runs ask it; none changes it.
    let head = std::fs::read(&asleep).expect("ref");
    for question in ["What is the code for person number 3?", "Who are you?"] {
        let args =
            ["generate", "pocket-hybrid", "--from", "book", "-p", question, "-n", "12", "--temperature", "0", "--json"];
        let answer = json(home, &args);
        assert!(answer["reused_tokens"].as_u64() >= done["tokens"].as_u64().map(|t| t - 64), "{answer}");
    }
    assert_eq!(std::fs::read(&asleep).expect("ref"), head);
}

#[test]
fn a_fold_goes_on_from_a_summary_and_keeps_what_was_said() {
    let home = tempfile::tempdir().expect("home");
    let home = home.path();
    let input = "The code for Zoe is 4711.\nThe code for Max is 1234.\n/fold\nWhat is the code for Max?\n";
    let out = said(home, &["chat", "--temperature", "0", "--state", "s"], input);
    assert!(out.contains("folded"), "{out}");
    // The child's parent is the state before the fold: it wakes as it was.
    let before = said(home, &["chat", "--temperature", "0", "--from", "s~1"], "What is the code for Zoe?\n");
    assert!(before.contains("4711"), "{before}");
}

/// Tells facts in sleeping states and asks for them in new processes, in a scrambled order; the never-slept run answers first.
fn facts(model: &str, states: usize, each: usize) {
    let home = tempfile::tempdir().expect("home");
    let home = home.path();
    let names = ["Zoe", "Max", "Ann", "Bob", "Eva", "Tom", "Lea", "Ben", "Mia", "Sam"];
    let code = |s: usize, f: usize| 1000 + (s * 977 + f * 131) % 9000;
    let mut asked: Vec<(usize, usize)> = (0..states).flat_map(|s| (0..each).map(move |f| (s, f))).collect();
    asked.sort_by_key(|(s, f)| (s * 7919 + f * 104_729) % 1009);
    let told = |s: usize| -> String {
        (0..each).map(|f| format!("The code for {} is {}.\n", names[f % names.len()], code(s, f))).collect()
    };
    let question = |f: usize| format!("What is the code for {}?", names[f % names.len()]);
    for s in 0..states {
        said(home, &["chat", model, "--temperature", "0", "--state", &format!("facts-{s}")], &told(s));
    }
    let loaded = load(&Loader::default(), Path::new(model));
    let mut spec = GenerateSpec { max_tokens: Some(24), ..GenerateSpec::default() };
    spec.sampler.temperature = 0.0;
    let mut recalled = 0;
    for (s, f) in asked {
        let mut awake = loaded.conversation();
        let mut answer = String::new();
        for line in told(s).lines().map(str::to_owned).chain([question(f)]) {
            answer.clear();
            let mut full = spec.clone();
            full.max_tokens = if line == question(f) { Some(24) } else { None };
            awake.ask(loaded.voice(), &line, full, &mut |_| Go::On, &mut |d| answer.push_str(&d.text)).expect("answer");
        }
        let from = format!("facts-{s}");
        let args = ["generate", model, "--from", &from, "-p", &question(f), "-n", "24", "--temperature", "0"];
        let woken = said(home, &args, "");
        assert_eq!(woken.trim_end_matches('\n'), answer, "{model}: state {s}, fact {f}");
        recalled += usize::from(answer.contains(&code(s, f).to_string()));
    }
    println!("{model}: {recalled} of {} recalled, each answer as in the run that never slept", states * each);
}

fn trained(model: &str) -> PathBuf {
    root().join("pocket").join(model)
}

#[test]
fn told_facts_survive_sleep() {
    for model in ["pocket", "pocket-hybrid"] {
        facts(&trained(model).display().to_string(), 3, 4);
    }
}

#[test]
#[ignore = "minutes: 200 facts in 20 states, woken in 200 processes, for both trained models"]
fn two_hundred_facts_survive_sleep() {
    for model in ["pocket", "pocket-hybrid"] {
        facts(&trained(model).display().to_string(), 20, 10);
    }
}

#[test]
fn a_fold_that_is_stopped_leaves_the_conversation_as_it_was() {
    let model = Loader::default().load(reverie::EMBEDDED).expect("embedded");
    let mut conversation = model.conversation();
    let greedy = GenerateSpec {
        sampler: reverie::SamplerParams { temperature: 0.0, ..Default::default() },
        ..GenerateSpec::default()
    };
    conversation
        .ask(model.voice(), "The code for Zoe is 4711.", greedy.clone(), &mut |_| Go::On, &mut |_| {})
        .expect("answers");
    let said = conversation.messages().to_vec();
    let stopped = GenerateSpec { max_tokens: Some(16), ..greedy.clone() };
    stopped.cancel.store(true, std::sync::atomic::Ordering::Relaxed);
    let refused = conversation.fold(model.voice(), "In short?", 1, stopped, &mut |_| Go::On).expect_err("no summary");
    assert!(refused.to_string().contains("stopped"), "{refused}");
    assert_eq!(conversation.messages(), said);
    greedy.cancel.store(false, std::sync::atomic::Ordering::Relaxed);
    conversation.fold(model.voice(), "In short?", 1, greedy, &mut |_| Go::On).expect("a summary");
    assert_eq!(conversation.messages()[0]["role"], "system");
}

#[test]
fn a_second_read_of_the_same_text_finds_it_whole_and_too_long_a_text_leaves_nothing() {
    let home = tempfile::tempdir().expect("home");
    let home = home.path();
    let book = home.join("book.txt");
    let lines: Vec<String> = (0..140).map(|i| format!("The code for item {i} is {}.", 1000 + i)).collect();
    std::fs::write(&book, lines.join("\n")).expect("write");
    let (shown, pocket) = (book.display().to_string(), reverie::EMBEDDED);
    let read = || json(home, &["read", pocket, &shown, "--state", "book", "--json"]);
    let commits = || json(home, &["state", "log", "book", "--json"]).as_array().expect("commits").len();
    let (first, before) = (read(), commits());
    assert!(first["tokens"].as_u64() > Some(1024) && first["reused_tokens"] == 0, "{first}");
    assert_eq!(first["computed_tokens"], first["tokens"]);
    let again = read();
    assert_eq!((&again["reused_tokens"], &again["computed_tokens"]), (&first["tokens"], &Value::from(0)));
    assert_eq!(commits(), before + 1, "no shorter state is written on the way");
    std::fs::write(&book, "word ".repeat(5000)).expect("write");
    let long = run(home, &["read", pocket, &shown, "--state", "long"], "");
    let err = String::from_utf8_lossy(&long.stderr).into_owned();
    assert!(long.status.code() == Some(1) && err.contains("4096"), "{err}");
    let left = json(home, &["state", "ls", "--json"]);
    assert_eq!(left["states"].as_array().map(Vec::len), Some(1), "{left}");
}

#[test]
fn a_damaged_state_says_no_word() {
    let home = tempfile::tempdir().expect("home");
    let home = home.path();
    let model = trained("pocket").display().to_string();
    // Pages that are mapped when they wake, and so are proved behind it.
    let go_on = |verb: &str, more: &[&str]| -> Output {
        run(home, &[&[verb, &model, "--kv", "f32", "--temperature", "0", "--state", "s"], more].concat(), "Hello\n")
    };
    let book: String = (0..30).map(|n| format!("The code for Zoe is {}. ", 1000 + n)).collect();
    let first = go_on("generate", &["-p", &book, "-n", "2"]);
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    let store = reverie::rooms::engine::memory::Store::open(&home.join("store")).expect("opens");
    let manifest = store.resolve("s").expect("resolves").manifest;
    assert!(manifest.pages.len() > 2, "{} pages", manifest.pages.len());
    assert!(store.disk_bytes(&manifest.pages[0]).expect("is there") > 64 << 10, "large enough to be mapped");
    for object in manifest.objects() {
        let file = store.object_path(object);
        let sound = std::fs::read(&file).expect("reads");
        let mut torn = sound.clone();
        torn[sound.len() - 1] ^= 1;
        std::fs::remove_file(&file).expect("removes");
        std::fs::write(&file, torn).expect("writes");
        for (verb, more) in [("generate", &["-p", " Hello", "-n", "2"][..]), ("chat", &[])] {
            let out = go_on(verb, more);
            let err = String::from_utf8_lossy(&out.stderr);
            assert_eq!(out.status.code(), Some(1), "{verb}: {err}");
            assert!(err.contains(&object.to_string()) && err.contains("damaged"), "{verb}: {err}");
            assert_eq!(String::from_utf8_lossy(&out.stdout), "", "{verb}");
        }
        std::fs::write(&file, sound).expect("writes");
    }
    assert!(go_on("generate", &["-p", " Hello", "-n", "2"]).status.success(), "whole again");
}
