//! The same-bits rule: the logits of a token depend on the tokens before it and on nothing else.

use std::path::{Path, PathBuf};

use reverie::rooms::cpu::Isa;
use reverie::rooms::model::{Model, Sequence, State, Want};
use reverie::{Loader, Registries};

use crate::fixtures::{ggufs, ids, load, logits, long_enough, name, rows};

/// Crosses two page boundaries (64 tokens) and several windows.
const TOKENS: usize = 150;

fn all() -> Vec<PathBuf> {
    long_enough(TOKENS + 20).into_iter().chain(ggufs()).collect()
}

/// A checkpoint that obeys, one way of computing, and the rows that it is loaded with.
pub struct Subject {
    /// Folder or file.
    pub path: PathBuf,
    /// f32 activations throughout.
    pub exact: bool,
    /// Built in, or with more.
    pub registries: Registries,
}

impl Subject {
    fn loader(&self, threads: usize) -> Loader {
        let registries = self.registries.clone();
        Loader { threads: Some(threads), exact: self.exact, registries, ..Loader::default() }
    }

    fn load(&self, threads: usize) -> reverie::LoadedModel {
        load(&self.loader(threads), &self.path)
    }
}

/// Every checkpoint among the fixtures, in every way.
fn subjects() -> impl Iterator<Item = Subject> {
    let ways = |path: PathBuf| ways(&path).iter().map(|&exact| (path.clone(), exact)).collect::<Vec<_>>();
    all().into_iter().flat_map(ways).map(|(path, exact)| Subject { path, exact, registries: Registries::builtin() })
}

/// All laws of this file.
pub fn every_law(subject: &Subject) {
    whatever_the_chunks_threads_and_sets(subject);
    whoever_the_neighbours(subject);
    however_often_rewound(subject);
    as_a_session(subject);
    as_sessions_together(subject);
}

fn fresh(loaded: &reverie::LoadedModel) -> (std::sync::Arc<Model>, State) {
    let engine = loaded.engine();
    (engine.model().clone(), engine.model().new_state(engine.cache()))
}

/// Both ways of computing: f32 activations, and int8 where weights are integers.
fn ways(path: &Path) -> &'static [bool] {
    // Dense weights have one way only.
    if path.extension().is_some() || path.ends_with("qwen3_mlx") { &[true, false] } else { &[false] }
}

#[test]
fn chunks_threads_and_instruction_sets() {
    subjects().for_each(|s| whatever_the_chunks_threads_and_sets(&s));
}

fn whatever_the_chunks_threads_and_sets(subject: &Subject) {
    let path = &subject.path;
    let first = subject.load(1);
    let (model, mut state) = fresh(&first);
    let tokens = ids(TOKENS, model.plan().vocab, 1);
    let want = logits(&model, &mut state, &tokens, TOKENS);
    let finite = want.iter().flatten().all(|bits| f32::from_bits(*bits).is_finite());
    assert!(finite, "{}: numbers", name(path));
    for chunk in [1, 7, 64, 512] {
        let (model, mut state) = fresh(&first);
        assert_eq!(logits(&model, &mut state, &tokens, chunk), want, "{} in chunks of {chunk}", name(path));
    }
    for threads in 2..=4 {
        let (model, mut state) = fresh(&subject.load(threads));
        assert_eq!(logits(&model, &mut state, &tokens, 64), want, "{} on {threads} threads", name(path));
    }
    for isa in Isa::available() {
        let forced = Loader { isa: Some(isa), ..subject.loader(2) };
        let (model, mut state) = fresh(&load(&forced, path));
        assert_eq!(logits(&model, &mut state, &tokens, 37), want, "{} with {}", name(path), isa.name());
    }
}

#[test]
fn alone_and_among_ragged_neighbours() {
    subjects().for_each(|s| whoever_the_neighbours(&s));
}

fn whoever_the_neighbours(subject: &Subject) {
    let path = &subject.path;
    let loaded = subject.load(2);
    let (model, _) = fresh(&loaded);
    let vocab = model.plan().vocab;
    let texts: Vec<Vec<u32>> = [5usize, 70, 33, 1, 129].iter().zip(2..).map(|(&n, s)| ids(n, vocab, s)).collect();
    let alone: Vec<_> = texts.iter().map(|t| logits(&model, &mut fresh(&loaded).1, t, t.len())).collect();
    // First step: half of each; second step: the rest, one token at least.
    let mut states: Vec<State> = texts.iter().map(|_| fresh(&loaded).1).collect();
    let mut together: Vec<Vec<Vec<u32>>> = vec![Vec::new(); texts.len()];
    for half in 0..2 {
        let part = |t: &[u32]| {
            let cut = t.len() / 2;
            if half == 0 { t[..cut].to_vec() } else { t[cut..].to_vec() }
        };
        let parts: Vec<Vec<u32>> = texts.iter().map(|t| part(t)).collect();
        let mut batch: Vec<Sequence<'_>> = parts
            .iter()
            .zip(&mut states)
            .filter(|(p, _)| !p.is_empty())
            .map(|(p, state)| Sequence { tokens: p, state, want: Want::All })
            .collect();
        let got = model.forward(&mut batch).expect("forward");
        let present = (0..texts.len()).filter(|&i| !parts[i].is_empty());
        for (i, tensor) in present.zip(got) {
            together[i].extend(rows(&model, &tensor.expect("logits")));
        }
    }
    assert_eq!(together, alone, "{}", name(path));
}

#[test]
fn after_rewind_and_fork() {
    subjects().for_each(|s| however_often_rewound(&s));
}

fn however_often_rewound(subject: &Subject) {
    let path = &subject.path;
    let loaded = subject.load(2);
    let (model, mut state) = fresh(&loaded);
    let tokens = ids(TOKENS, model.plan().vocab, 7);
    let other = ids(40, model.plan().vocab, 8);
    let want = logits(&model, &mut state, &tokens, 512);
    for cut in [1, 63, 64, 65, 100, 128] {
        let (_, mut parent) = fresh(&loaded);
        logits(&model, &mut parent, &tokens[..cut], 512);
        let point = parent.checkpoint();
        let mut child = parent.fork();
        // The child goes elsewhere; the parent must not notice.
        logits(&model, &mut child, &other, 512);
        assert_eq!(logits(&model, &mut parent, &tokens[cut..], 512), want[cut..], "{} forked at {cut}", name(path));
        assert!(parent.rewind(cut, Some(&point)), "{} rewinds to {cut}", name(path));
        logits(&model, &mut parent, &other, 9);
        assert!(parent.rewind(cut, Some(&point)));
        assert_eq!(logits(&model, &mut parent, &tokens[cut..], 512), want[cut..], "{} rewound to {cut}", name(path));
        assert!(child.rewind(cut, Some(&point)));
        assert_eq!(logits(&model, &mut child, &tokens[cut..], 13), want[cut..], "{} child back at {cut}", name(path));
    }
}

#[test]
fn a_session_reuses_what_it_can_and_gives_the_same_logits() {
    subjects().for_each(|s| as_a_session(&s));
}

fn as_a_session(subject: &Subject) {
    let path = &subject.path;
    let loaded = subject.load(2);
    let tokens = ids(TOKENS, loaded.engine().model().plan().vocab, 11);
    let mut go = |_| reverie::Go::On;
    let mut cold = loaded.session();
    cold.sync(&tokens, &mut go).expect("sync");
    let want = cold.logits().expect("logits");
    let mut turns = loaded.session();
    for end in [20, 90, 91, TOKENS] {
        let done = turns.sync(&tokens[..end], &mut go).expect("sync");
        assert_eq!(done.reused + done.computed, end);
    }
    assert_eq!(turns.logits().expect("logits"), want, "{} turn by turn", name(path));
    // Another ending, then back: the session goes to where both agree.
    let mut changed = tokens.clone();
    changed[120] = (changed[120] + 1) % 200;
    turns.sync(&changed, &mut go).expect("sync");
    let back = turns.sync(&tokens, &mut go).expect("sync");
    assert_eq!(turns.logits().expect("logits"), want, "{} after a changed ending", name(path));
    assert!(back.reused >= 91, "{}: only {} of 120 common tokens reused", name(path), back.reused);
    let again = turns.sync(&tokens, &mut go).expect("sync");
    assert_eq!(again.computed, 0, "{}: the same tokens again cost nothing", name(path));
    let mut fork = turns.fork();
    fork.accept(3).expect("accept");
    turns.sync(&tokens, &mut go).expect("sync");
    assert_eq!(turns.logits().expect("logits"), want, "{}: the parent of a fork", name(path));
}

#[test]
fn sessions_decode_together_as_alone_and_survive_a_refused_step() {
    subjects().for_each(|s| as_sessions_together(&s));
}

fn as_sessions_together(subject: &Subject) {
    let path = &subject.path;
    let loaded = subject.load(2);
    let vocab = loaded.engine().model().plan().vocab;
    let mut go = |_| reverie::Go::On;
    let mut start = |n: usize| {
        let mut session = loaded.session();
        session.sync(&ids(n, vocab, n as u64), &mut go).expect("sync");
        session
    };
    let (mut a, mut b) = (start(70), start(9));
    let (mut a2, mut b2) = (a.fork(), b.fork());
    reverie::Session::accept_all(&mut [(&mut a, 5), (&mut b, 6)]).expect("together");
    // A token id outside the vocabulary is refused for all, and nothing is lost.
    reverie::Session::accept_all(&mut [(&mut a, 7), (&mut b, u32::MAX)]).expect_err("no such id");
    reverie::Session::accept_all(&mut [(&mut a, 7), (&mut b, 8)]).expect("again");
    for (session, ids) in [(&mut a2, [5, 7]), (&mut b2, [6, 8])] {
        ids.into_iter().for_each(|id| session.accept(id).expect("alone"));
    }
    assert_eq!(a.logits().expect("logits"), a2.logits().expect("logits"), "{}", name(path));
    assert_eq!(b.logits().expect("logits"), b2.logits().expect("logits"), "{}", name(path));
}
