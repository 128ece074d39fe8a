//! Layers with a window keep only their window: the bits are those of a state that keeps everything, whatever happens to it, and the
//! bytes do not grow.

use std::path::PathBuf;

use reverie::rooms::engine::memory::{Expect, FsckRun, Manifest, Store, Turn, Window};
use reverie::rooms::engine::{EngineSpec, Error, Note};
use reverie::rooms::model::{Sequence, State, Want};
use reverie::rooms::tensor::Class;
use reverie::rooms::tensor::backend::PAGE_TOKENS;
use reverie::{Check, Go, LoadedModel, Loader};

use crate::fixtures::{ids, load, logits, long_enough, name};

/// Crosses six page boundaries and many windows.
const TOKENS: usize = 400;

/// Around the edges of pages, of windows of 16 and of 40 tokens, and of what a state keeps beyond them.
const CUTS: &[usize] =
    &[1, 15, 16, 17, 63, 64, 65, 79, 80, 81, 127, 128, 129, 143, 144, 145, 191, 192, 193, 207, 208, 300, 399];

fn loader() -> Loader {
    Loader { threads: Some(2), ..Loader::default() }
}

/// Every fixture with a windowed layer, and one without.
fn subjects() -> Vec<(PathBuf, LoadedModel)> {
    let loaded = long_enough(TOKENS + 10).into_iter().map(|path| (path.clone(), load(&loader(), &path)));
    let found: Vec<_> =
        loaded.filter(|(p, l)| l.engine().model().standing().windowed() || p.ends_with("llama")).collect();
    assert!(found.len() >= 10, "only {} fixtures with a window", found.len());
    found
}

fn fresh(loaded: &LoadedModel) -> State {
    loaded.engine().model().new_state(loaded.engine().cache())
}

/// Logits of every token from one step: nothing is given back before all of it is read.
fn whole(loaded: &LoadedModel, tokens: &[u32]) -> Vec<Vec<u32>> {
    logits(loaded.engine().model(), &mut fresh(loaded), tokens, tokens.len())
}

fn bits(session: &reverie::Session) -> Vec<u32> {
    session.logits().expect("logits").iter().map(|v| v.to_bits()).collect()
}

#[test]
fn the_bits_are_those_of_a_state_that_keeps_everything() {
    for (path, loaded) in subjects() {
        let model = loaded.engine().model();
        let tokens = ids(TOKENS, model.plan().vocab, 31);
        let want = whole(&loaded, &tokens);
        for chunk in [1, 7, 63, 64, 65, 200] {
            let mut state = fresh(&loaded);
            assert_eq!(logits(model, &mut state, &tokens, chunk), want, "{} in chunks of {chunk}", name(&path));
            let most = PAGE_TOKENS * state.standing().held(TOKENS).len();
            for layer in state.layers().iter().filter_map(|l| l.kv.as_ref()) {
                let held: usize = layer.pages.iter().filter(|p| !p.is_hole()).count() * PAGE_TOKENS;
                let all = layer.reach == reverie::rooms::tensor::Reach::All;
                assert_eq!(held, if all { TOKENS.next_multiple_of(PAGE_TOKENS) } else { most }, "{}", name(&path));
                assert!(all || held <= TOKENS / 2, "{}: {held} tokens held", name(&path));
            }
        }
    }
}

#[test]
fn forks_and_rewinds_stand_where_a_checkpoint_was_taken_or_say_that_they_cannot() {
    for (path, loaded) in subjects() {
        let model = loaded.engine().model();
        let tokens = ids(TOKENS, model.plan().vocab, 32);
        let other = ids(100, model.plan().vocab, 33);
        let want = whole(&loaded, &tokens);
        for &cut in CUTS {
            let mut state = fresh(&loaded);
            logits(model, &mut state, &tokens[..cut], 50);
            let point = state.checkpoint();
            let mut child = state.fork();
            logits(model, &mut child, &other, 40);
            assert_eq!(logits(model, &mut state, &tokens[cut..], 70), want[cut..], "{} forked at {cut}", name(&path));
            // What was read last can be taken back; what lies far behind cannot, and then nothing changes.
            let (mut near, len) = (state.fork(), state.len());
            if !near.standing().recurrent() {
                assert!(near.rewind(len - 5, None), "{}: five tokens back", name(&path));
                assert_eq!(logits(model, &mut near, &tokens[len - 5..], 2), want[len - 5..], "{}", name(&path));
            }
            let far = state.rewind(cut, None);
            assert!(far || state.len() == len, "{}", name(&path));
            assert!(!far || cut > 200 || model.standing().anywhere(), "{}: at {cut} its window is gone", name(&path));
            for mut state in [state, child] {
                assert!(state.rewind(cut, Some(&point)), "{} back at {cut}", name(&path));
                assert_eq!(
                    logits(model, &mut state, &tokens[cut..], 33),
                    want[cut..],
                    "{} rewound to {cut}",
                    name(&path)
                );
            }
        }
    }
}

#[test]
fn a_page_that_was_given_back_is_refused_by_name() {
    for (path, loaded) in subjects() {
        let model = loaded.engine().model();
        if model.standing().anywhere() {
            continue;
        }
        let tokens = ids(200, model.plan().vocab, 34);
        let mut state = fresh(&loaded);
        logits(model, &mut state, &tokens, 64);
        let pages: Vec<_> = (0..200usize.div_ceil(PAGE_TOKENS)).map(|p| state.page(p)).collect();
        let point = state.checkpoint();
        assert!(state.at(200, pages.iter(), Some(&point)).is_some(), "{}", name(&path));
        // The same pages do not serve a shorter text whose window begins before them.
        assert!(state.at(64, pages[..1].iter(), Some(&point)).is_none(), "{}", name(&path));
        let _ =
            model.forward(&mut [Sequence { tokens: &[1], state: &mut state, want: Want::Nothing }]).expect("goes on");
    }
}

#[test]
fn sessions_find_each_other_and_their_own_past() {
    for (path, loaded) in subjects() {
        let engine = loaded.engine();
        let tokens = ids(TOKENS, engine.model().plan().vocab, 35);
        let want = whole(&loaded, &tokens);
        let mut session = loaded.session();
        for &cut in CUTS {
            session.sync(&tokens[..cut], &mut |_| Go::On).expect("sync");
            assert_eq!(bits(&session), want[cut - 1], "{} at {cut}", name(&path));
        }
        session.sync(&tokens, &mut |_| Go::On).expect("sync");
        for round in 0..3 {
            for &cut in CUTS.iter().rev() {
                // A turn's end is found whole; one token before it costs at most what lies after the turn before.
                let mut other = loaded.session();
                let done = other.sync(&tokens[..cut], &mut |_| Go::On).expect("sync");
                assert_eq!(bits(&other), want[cut - 1], "{} found at {cut}", name(&path));
                assert!(round > 0 || done.computed == 0, "{}: {done:?} at {cut}", name(&path));
                session.sync(&tokens, &mut |_| Go::On).expect("sync");
                session.rewind(cut).expect("rewind");
                assert_eq!(session.tokens(), &tokens[..cut]);
                for &id in &tokens[cut..TOKENS.min(cut + 3)] {
                    session.accept(id).expect("accept");
                }
                let at = TOKENS.min(cut + 3);
                if at > cut {
                    assert_eq!(bits(&session), want[at - 1], "{} rewound to {cut}", name(&path));
                }
            }
            // Half of it goes, and everything still stands somewhere.
            let held = engine.kept().held_bytes;
            engine.trim_to(held / 2);
            assert!(engine.kept().held_bytes <= held, "{}", name(&path));
        }
        drop(session);
        engine.forget();
        let left = engine.model().backend().memory().usage().of(Class::State);
        assert_eq!(left, 0, "{}: nothing is left behind", name(&path));
    }
}

#[test]
fn a_page_that_is_there_in_part_serves_that_part() {
    for (path, loaded) in subjects() {
        let engine = loaded.engine();
        let vocab = engine.model().plan().vocab;
        let tokens = ids(TOKENS, vocab, 39);
        let mut session = loaded.session();
        session.sync(&tokens[..70], &mut |_| Go::On).expect("sync");
        session.sync(&tokens, &mut |_| Go::On).expect("sync");
        // The tree now has all of the second page's tokens, and of its windowed layers what was there after six of them.
        let mut other = tokens[..100].to_vec();
        other.extend(ids(30, vocab, 40));
        let done = loaded.session().sync(&other, &mut |_| Go::On).expect("sync");
        let deepest = if engine.model().standing().anywhere() { done.reused } else { 70 };
        assert_eq!(done.reused, deepest, "{}", name(&path));
        let mut found = loaded.session();
        found.sync(&other, &mut |_| Go::On).expect("sync");
        assert_eq!(bits(&found), whole(&loaded, &other)[129], "{}", name(&path));
        let mut ends_inside = loaded.session();
        ends_inside.sync(&tokens[..90], &mut |_| Go::On).expect("sync");
        assert_eq!(bits(&ends_inside), whole(&loaded, &tokens[..90])[89], "{}", name(&path));
    }
}

fn attached(path: &std::path::Path, place: &std::path::Path) -> (LoadedModel, Store) {
    let loaded = load(&loader(), path);
    let store = loaded.open_store(Some(place), &mut |_, _, _| {}).expect("store");
    (loaded, store)
}

#[test]
fn what_slept_wakes_at_every_place_where_it_stood() {
    for (path, loaded) in subjects() {
        let folder = tempfile::tempdir().expect("folder");
        let tokens = ids(TOKENS, loaded.engine().model().plan().vocab, 36);
        let want = whole(&loaded, &tokens);
        let turns = [30, 64, 130, 200, 201, 390];
        let (first, store) = attached(&path, folder.path());
        let mut session = first.session();
        for (i, &turn) in turns.iter().enumerate() {
            session.sync(&tokens[..turn], &mut |_| Go::On).expect("sync");
            let end = |&tokens: &usize| Turn { role: "user".into(), text_end: 0, tokens };
            let note = Note { turns: turns[..=i].iter().map(end).collect(), ..Note::default() };
            session.sleep("s", Expect::Any, note).expect("sleep");
            if i == 2 {
                // Another process goes on with it, and knows of the turns before only what slept.
                let (next, _) = attached(&path, folder.path());
                let manifest = store.resolve("s").expect("resolve").state().expect("state");
                session = next.engine().wake(&manifest).expect("wake");
            }
        }
        let manifest = store.resolve("s").expect("resolve").state().expect("state");
        let report = store.fsck(FsckRun::Check, &mut |_, _| {}).expect("fsck");
        assert_eq!(report.findings, [], "{}", name(&path));
        // A page of a window that is missing, or holds less than it must, is no place to stand.
        if let Some(last) = manifest.windows.last().copied() {
            let (fresh, _) = attached(&path, folder.path());
            for windows in [vec![Window { tokens: 1, ..last }], Vec::new()] {
                let kept = manifest.windows.iter().filter(|w| w.page != last.page).copied();
                let torn = Manifest { windows: kept.chain(windows).collect(), ..manifest.clone() };
                let refused = fresh.engine().wake(&torn).err().expect("refused");
                assert!(matches!(refused, Error::CannotStand { at: 390, .. }), "{}: {refused}", name(&path));
            }
        }
        for &turn in &turns {
            let (fresh, _) = attached(&path, folder.path());
            let cut = manifest.cut(turn).unwrap_or_else(|| panic!("{}: a turn's end at {turn}", name(&path)));
            let mut woken = fresh.engine().wake(&cut).expect("wake");
            woken.accept(tokens[turn]).expect("accept");
            assert_eq!(bits(&woken), want[turn], "{} woken at {turn}", name(&path));
            let end = TOKENS.min(turn + 60);
            for &id in &tokens[turn + 1..end] {
                woken.accept(id).expect("accept");
            }
            assert_eq!(bits(&woken), want[end - 1], "{} gone on from {turn}", name(&path));
        }
    }
}

#[test]
fn a_long_read_sleeps_with_its_window_alone() {
    for (path, loaded) in subjects() {
        let standing = loaded.engine().model().standing().clone();
        if standing.anywhere() {
            continue;
        }
        let folder = tempfile::tempdir().expect("folder");
        let engine = EngineSpec { chunk: 64, ..EngineSpec::default() };
        let loaded = load(&Loader { engine, ..loader() }, &path);
        let store = loaded.open_store(Some(folder.path()), &mut |_, _, _| {}).expect("store");
        let mut session = loaded.session();
        session.sync(&ids(TOKENS, loaded.engine().model().plan().vocab, 37), &mut |_| Go::On).expect("sync");
        session.sleep("s", Expect::Absent, Note::default()).expect("sleep");
        let manifest = store.resolve("s").expect("resolve").state().expect("state");
        let pages: Vec<usize> = manifest.windows.iter().map(|w| w.page).collect();
        assert_eq!(pages, standing.needed(TOKENS).collect::<Vec<_>>(), "{}", name(&path));
        assert!(manifest.cut(64).is_none(), "{}: its window is gone", name(&path));
    }
}

#[test]
fn the_forecast_of_a_long_text_grows_by_the_layers_that_keep_everything() {
    for (path, _) in subjects() {
        let loaded = load(&Loader { check: Check::Always, ..loader() }, &path);
        let (engine, cache) = (loaded.engine(), loaded.engine().cache());
        let state = |tokens| engine.forecast(tokens, 1).expect("forecast").expect("checked").state_bytes;
        let of = |need| cache.kv(need).page_bytes() as u64;
        let specs = engine.model().state_specs();
        let kept = specs.iter().filter_map(|s| s.kv).filter(|kv| kv.reach == reverie::rooms::tensor::Reach::All);
        let page: u64 = kept.map(of).sum();
        // Both end at the same place in a page and in a chunk of 16, so that windows take the same.
        assert_eq!(state(400) - state(272), 2 * page, "{}", name(&path));
    }
}

/// gemma3_text with room for `context` tokens.
fn long(context: usize) -> (tempfile::TempDir, LoadedModel) {
    let (from, folder) = (crate::fixtures::root().join("gemma3_text"), tempfile::tempdir().expect("folder"));
    for entry in std::fs::read_dir(&from).expect("folder").filter_map(Result::ok) {
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).expect("copy");
    }
    let file = folder.path().join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).expect("read")).expect("json");
    config["max_position_embeddings"] = context.into();
    std::fs::write(&file, config.to_string()).expect("write");
    let engine = EngineSpec { chunk: 128, ..EngineSpec::default() };
    let loaded = load(&Loader { engine, check: Check::Always, ..loader() }, folder.path());
    (folder, loaded)
}

#[test]
fn a_long_read_leaves_places_to_come_back_to_and_little_else() {
    let (_folder, loaded) = long(16_384);
    let engine = loaded.engine();
    let (standing, cache) = (engine.model().standing(), engine.cache());
    let interval = 16 * standing.window_tokens();
    let tokens = ids(11 * interval, engine.model().plan().vocab, 38);
    let forecast = engine.forecast(tokens.len() + 1, 1).expect("forecast").expect("checked");
    let memory = engine.model().backend().memory();
    memory.reset_peak();
    let mut session = loaded.session();
    session.sync(&tokens, &mut |_| Go::On).expect("sync");
    session.accept(1).expect("accept");
    let usage = memory.usage();
    assert_eq!((forecast.peak_bytes, forecast.state_bytes), (usage.peak, usage.of(Class::State)), "marks and all");
    // More than eight marks were thinned out: four of nine stayed, and the end; the others went with their windows.
    let specs = engine.model().state_specs().iter().filter_map(|s| s.kv);
    let (whole, windowed): (Vec<_>, Vec<_>) = specs.partition(|kv| kv.reach == reverie::rooms::tensor::Reach::All);
    let page = |of: &[_]| of.iter().map(|&kv| cache.kv(kv).page_bytes() as u64).sum::<u64>();
    let windows = (standing.window_tokens() / PAGE_TOKENS + 2) as u64;
    let most = page(&whole) * tokens.len().div_ceil(PAGE_TOKENS) as u64 + page(&windowed) * windows * 6;
    let logits = 11 * 4 * engine.model().plan().vocab as u64;
    let held = usage.of(Class::State);
    assert!(held <= most + logits, "{held} bytes held, at most {most} and {logits}");
    // A place in the middle is reached from the mark before it, with the bits of a cold read.
    let to = 9 * interval - 100;
    let mut other = loaded.session();
    let done = other.sync(&tokens[..to], &mut |_| Go::On).expect("sync");
    assert!(done.reused > 0 && done.computed < 4 * interval, "{done:?}");
    let found = bits(&other);
    drop((session, other));
    engine.forget();
    let mut cold = loaded.session();
    assert_eq!(cold.sync(&tokens[..to], &mut |_| Go::On).expect("sync").reused, 0);
    assert_eq!(bits(&cold), found);
}
