//! The prefix tree: what was read is found again, by anyone, gives the same bits, and goes when the budget says so.

use reverie::rooms::engine::EngineSpec;
use reverie::rooms::tensor::Class;
use reverie::{Go, LoadedModel, Loader};

use crate::fixtures::{ids, load, logits, long_enough, name};

fn loader(engine: EngineSpec) -> Loader {
    Loader { threads: Some(2), engine, ..Loader::default() }
}

/// Logits after `tokens`, computed without any tree.
fn cold(loaded: &LoadedModel, tokens: &[u32]) -> Vec<u32> {
    let engine = loaded.engine();
    let mut state = engine.model().new_state(engine.cache());
    logits(engine.model(), &mut state, tokens, 512).pop().expect("a row a token")
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Texts that share beginnings of every length around pages, and go apart.
fn family(vocab: usize) -> Vec<Vec<u32>> {
    let trunk = ids(200, vocab, 21);
    let mut texts = Vec::new();
    for (i, cut) in [1usize, 63, 64, 65, 127, 128, 129, 190].into_iter().enumerate() {
        let mut text = trunk[..cut].to_vec();
        text.extend(ids(30 + 17 * i, vocab, 40 + i as u64).iter().map(|t| (t + 1) % 200));
        texts.push(text);
    }
    texts.push(trunk);
    texts
}

#[test]
fn what_is_found_gives_the_bits_of_a_cold_read() {
    for path in long_enough(350) {
        let loaded = load(&loader(EngineSpec::default()), &path);
        let texts = family(loaded.engine().model().plan().vocab);
        let want: Vec<_> = texts.iter().map(|t| cold(&loaded, t)).collect();
        let mut one = loaded.session();
        for round in 0..2 {
            for (text, want) in texts.iter().zip(&want) {
                // The same session goes from text to text; a fresh one finds what it left.
                one.sync(text, &mut |_| Go::On).expect("sync");
                assert_eq!(&bits(&one.logits().expect("logits")), want, "{} round {round}", name(&path));
                let mut other = loaded.session();
                let done = other.sync(text, &mut |_| Go::On).expect("sync");
                assert_eq!((done.reused, done.computed), (text.len(), 0), "{}", name(&path));
                assert_eq!(&bits(&other.logits().expect("logits")), want, "{} found", name(&path));
            }
        }
        let counters = loaded.engine().kept().counters;
        assert!(counters.hits >= 2 * texts.len() as u64 && counters.tokens_saved > 0, "{counters:?}");
    }
}

#[test]
fn a_divergence_is_told_with_what_stands_around_it() {
    let loaded = load(&loader(EngineSpec::default()), &crate::fixtures::root().join("qwen3"));
    let text = ids(150, 272, 3);
    let mut session = loaded.session();
    session.sync(&text, &mut |_| Go::On).expect("sync");
    let mut other = text.clone();
    other[100] = (other[100] + 1) % 200;
    let done = loaded.session().sync(&other, &mut |_| Go::On).expect("sync");
    let told = done.diverged.expect("told");
    assert_eq!((told.at, &told.known[..], &told.asked[..]), (100, &text[100..108], &other[100..108]));
    let longer = [&text[..], &[1, 2, 3]].concat();
    assert_eq!(session.sync(&longer, &mut |_| Go::On).expect("sync").diverged, None, "going on is no divergence");
}

#[test]
fn interleaved_conversations_compute_what_is_new() {
    for fixture in ["qwen3", "qwen3_5_text"] {
        let longer = serde_json::json!({"max_position_embeddings": 8192}).as_object().cloned().expect("fields");
        let copy = super::oracle::saying(&crate::fixtures::root().join(fixture), &longer);
        let loaded = load(&loader(EngineSpec::default()), copy.path());
        let vocab = loaded.engine().model().plan().vocab;
        let prefix = ids(4096, vocab, 5);
        loaded.session().sync(&prefix, &mut |_| Go::On).expect("sync");
        let mut texts: Vec<Vec<u32>> = vec![prefix.clone(); 5];
        let (mut computed, mut new) = (0, 0);
        for turn in 0..10u64 {
            for (c, text) in texts.iter_mut().enumerate() {
                let question = ids(23, vocab, 100 * turn + c as u64);
                text.extend(&question);
                let mut session = loaded.session();
                computed += session.sync(text, &mut |_| Go::On).expect("sync").computed;
                new += question.len();
                for i in 0..9 {
                    let id = (i * 31 + c as u32) % 200;
                    session.accept(id).expect("accept");
                    text.push(id);
                }
            }
        }
        let ratio = computed as f64 / new as f64;
        assert!(ratio <= 1.02, "{}: {computed} computed for {new} new tokens", fixture);
        let last = cold(&loaded, &texts[3]);
        let mut session = loaded.session();
        session.sync(&texts[3], &mut |_| Go::On).expect("sync");
        assert_eq!(bits(&session.logits().expect("logits")), last, "{}", fixture);
    }
}

#[test]
fn a_fork_copies_nothing() {
    for path in long_enough(350) {
        let loaded = load(&loader(EngineSpec::default()), &path);
        let memory = loaded.engine().model().backend().memory();
        let mut session = loaded.session();
        session.sync(&ids(200, loaded.engine().model().plan().vocab, 9), &mut |_| Go::On).expect("sync");
        let before = memory.usage().of(Class::State);
        let forks: Vec<_> = (0..10).map(|_| session.fork()).collect();
        assert_eq!(memory.usage().of(Class::State), before, "{}", name(&path));
        drop(forks);
    }
}

#[test]
fn eviction_frees_what_it_says_and_costs_no_bit() {
    for path in ["llama", "gemma3_text", "qwen3_5_text"].map(|n| crate::fixtures::root().join(n)) {
        let keep = 600 << 10;
        let loaded = load(&loader(EngineSpec { keep, ..EngineSpec::default() }), &path);
        let memory = loaded.engine().model().backend().memory();
        let vocab = loaded.engine().model().plan().vocab;
        let pinned = ids(100, vocab, 77);
        loaded.session().sync(&pinned, &mut |_| Go::On).expect("sync");
        loaded.engine().pin(&pinned);
        let texts: Vec<_> = (0..40).map(|s| ids(130, vocab, 500 + s)).collect();
        for text in texts.iter().chain(&texts[30..]).chain(&texts[..3]) {
            let mut session = loaded.session();
            session.sync(text, &mut |_| Go::On).expect("sync");
            assert_eq!(bits(&session.logits().expect("logits")), cold(&loaded, text), "{}", name(&path));
            session.mark();
            drop(session);
            let kept = loaded.engine().kept();
            let state = memory.usage().of(Class::State);
            // What only the tree holds is all the state there is, now that no session lives; the last rows of marks among it.
            assert!(kept.held_bytes >= state, "{}: {} held, {state} in use", name(&path), kept.held_bytes);
        }
        let kept = loaded.engine().kept();
        assert!(kept.counters.evictions > 0 && kept.counters.evicted_bytes > 0, "{}: {kept:?}", name(&path));
        assert_eq!(
            loaded.session().sync(&pinned, &mut |_| Go::On).expect("sync").computed,
            0,
            "{}: pinned",
            name(&path)
        );
        loaded.engine().forget();
        assert_eq!(memory.usage().of(Class::State), 0, "{}: nothing is left behind", name(&path));
    }
}

#[test]
fn a_budget_makes_room_by_forgetting() {
    let path = crate::fixtures::root().join("qwen3");
    let free = load(&Loader { check: reverie::Check::Always, ..loader(EngineSpec::default()) }, &path);
    let need = free.engine().forecast(300, 1).expect("forecast").expect("checked").peak_bytes;
    let loaded = load(&loader(EngineSpec { memory: Some(need), ..EngineSpec::default() }), &path);
    for seed in 0..20 {
        let text = ids(299, 272, seed);
        let mut session = loaded.session();
        session.sync(&text, &mut |_| Go::On).expect("room is made");
        assert!(loaded.engine().model().backend().memory().usage().peak <= need);
    }
    assert!(loaded.engine().kept().counters.evictions > 0);
}
