//! Drafters: their guesses against transformers', the same bits in any company, and what they refuse.

use std::path::Path;

use reverie::rooms::files::safetensors::SafeTensors;
use reverie::rooms::files::{FileBytes, Quantisation, Weights};
use reverie::rooms::model::{Drafter, Guess, Sequence, State, Want};
use reverie::rooms::tensor::quant::QUANTS;
use reverie::rooms::tensor::{Class, DType, Tensor};
use reverie::{LoadedModel, Loader};
use serde_json::Value;

use super::oracle::{bound, distance};
use crate::fixtures::{drafters, ids, load, name, root};
use crate::twins;

/// A drafter beside its target.
struct Pair {
    own: LoadedModel,
    target: LoadedModel,
    drafter: Drafter,
}

fn pair(own: &Path, target: &Path, threads: usize) -> Pair {
    let engine = || reverie::rooms::engine::EngineSpec { kv: "f32".into(), ..Default::default() };
    let loader = |record| Loader { exact: true, record, threads: Some(threads), engine: engine(), ..Loader::default() };
    let (own, target) = (load(&loader(true), own), load(&loader(false), target));
    let drafter = Drafter::new(own.engine().model().clone(), target.engine().model().clone()).expect("a pair");
    Pair { own, target, drafter }
}

impl Pair {
    /// The target's state after `tokens`, in chunks, and its stream at the last of them.
    fn read(&self, tokens: &[u32], chunk: usize) -> (State, Tensor) {
        let (model, cache) = (self.target.engine().model(), self.target.engine().cache());
        let (mut state, mut last) = (model.new_state(cache), None);
        for piece in tokens.chunks(chunk) {
            let mut one = [Sequence { tokens: piece, state: &mut state, want: Want::Last }];
            last = model.forward_with_stream(&mut one).expect("forward").remove(0);
        }
        (state, last.expect("a last token").1)
    }

    fn values(&self, x: &Tensor) -> Vec<f32> {
        self.target.engine().model().backend().read(x).expect("read")
    }

    /// `n` guesses after `tokens` and `first`. Each goes on from the stream beside the guess before it, or from what `given` holds for
    /// that.
    fn draft(&self, (tokens, first): (&[u32], u32), chunk: usize, (n, given): (usize, &[Vec<f32>])) -> Drafted {
        let backend = self.own.engine().model().backend();
        let (mut state, mut stream) = self.read(tokens, chunk);
        let mut out = Drafted::default();
        let mut token = first;
        for i in 0..n {
            let mut one = [Guess { token, stream: &stream, state: &mut state }];
            let (guessed, next) = self.drafter.guess(&mut one).expect("guess");
            let row = self.values(&guessed);
            token = (0..row.len()).fold(0, |b, j| if row[j] > row[b] { j } else { b }) as u32;
            out.tokens.push(token);
            out.logits.extend(row);
            out.streams.extend(self.values(&next));
            stream = match given.get(i) {
                Some(given) => backend.upload(given, &[1, given.len()], DType::F32, Class::Scratch).expect("upload"),
                None => next,
            };
        }
        out
    }
}

/// Guesses: logits `[n, V]`, streams `[n, Dt]`.
#[derive(Default)]
struct Drafted {
    logits: Vec<f32>,
    streams: Vec<f32>,
    tokens: Vec<u32>,
}

#[test]
fn guesses_are_those_of_transformers() {
    for (folder, target) in drafters() {
        let json: Value =
            serde_json::from_slice(&std::fs::read(folder.join("reference.json")).expect("json")).expect("json");
        let list = |field: &str| -> Vec<u32> {
            json[field].as_array().expect(field).iter().map(|v| v.as_u64().expect("id") as u32).collect()
        };
        let path = folder.join("reference.safetensors");
        let file = SafeTensors::files(vec![FileBytes::map(&path).expect("map")]).expect("reference tensors");
        let reference = Weights::from_safetensors(&path, file, Quantisation::default(), QUANTS);
        let want = |tensor: &str| reference.tensor_f32(tensor).expect(tensor);
        let pair = pair(&folder, &target, 2);
        let (prompt, drafted) = (list("input_ids"), list("drafted"));
        let first = json["first_token"].as_u64().expect("first_token") as u32;
        let chain = pair.draft((&prompt, first), prompt.len(), (drafted.len(), &[]));
        assert_eq!(chain.tokens, drafted, "{}", name(&folder));
        // Sixteen guesses one from another multiply what the first is off by: transformers in f32 ends 7e-3 from itself in f64. So each
        // is held to the reference from the reference's stream on.
        let (shape, streams) = want("streams");
        let given: Vec<Vec<f32>> = streams.chunks(shape[1]).map(<[f32]>::to_vec).collect();
        pair.own.recorded();
        let got = pair.draft((&prompt, first), prompt.len(), (drafted.len(), &given));
        // [L + 1, guesses, D]; what is noted comes guess by guess, and ends before the final norm.
        let (shape, hidden) = want("hidden_states");
        let layers = shape[0] - 1;
        for (i, (note, width, values)) in pair.own.recorded().into_iter().enumerate() {
            let (guess, layer) = (i / layers, i % layers);
            assert_eq!((note, width), (format!("hidden.{layer}"), shape[2]));
            let at = (layer * shape[1] + guess) * width;
            let d = distance(&values, &hidden[at..at + width]);
            assert!(d <= bound(&folder), "{}: hidden state {layer} of guess {guess} differs by {d:e}", name(&folder));
        }
        for (what, got) in [("logits", got.logits), ("streams", got.streams)] {
            let d = distance(&got, &want(what).1);
            assert!(d <= bound(&folder), "{}: {what} differ by {d:e} of the largest", name(&folder));
            println!("{} {what} {d:.1e}", name(&folder));
        }
    }
}

#[test]
fn a_gguf_twin_guesses_the_same_bits() {
    let mut seen = 0;
    for (folder, target) in drafters() {
        let (Some(own), Some(read)) = (twins::of(&folder), twins::of(&target)) else { continue };
        let text = ids(72, 255, 3);
        let want = pair(&folder, &target, 2).draft((&text, 7), text.len(), (8, &[]));
        let got = pair(&own.path, &read.path, 2).draft((&text, 7), text.len(), (8, &[]));
        assert_eq!(got.logits, want.logits, "{}", name(&folder));
        assert_eq!(got.streams, want.streams, "{}", name(&folder));
        seen += 1;
    }
    assert!(seen > 0, "no drafter has a twin");
}

#[test]
fn guesses_have_the_same_bits_in_any_company() {
    for (folder, target) in drafters() {
        let alone = pair(&folder, &target, 1);
        let texts: Vec<Vec<u32>> = [1, 64, 65, 150].iter().zip(1..).map(|(&n, s)| ids(n, 255, s)).collect();
        let want: Vec<_> = texts.iter().map(|t| alone.draft((t, 7), t.len(), (3, &[])).logits).collect();
        let other = pair(&folder, &target, 3);
        for (text, want) in texts.iter().zip(&want) {
            assert_eq!(
                &other.draft((text, 7), 13, (3, &[])).logits,
                want,
                "{}: {} tokens in chunks",
                name(&folder),
                text.len()
            );
        }
        let mut read: Vec<_> = texts.iter().map(|t| other.read(t, 64)).collect();
        let mut together: Vec<_> = read.iter_mut().map(|(state, stream)| Guess { token: 7, stream, state }).collect();
        let rows = other.values(&other.drafter.guess(&mut together).expect("together").0);
        let vocab = rows.len() / texts.len();
        for (i, row) in rows.chunks(vocab).enumerate() {
            assert_eq!(row, &want[i][..vocab], "{}: {} tokens among others", name(&folder), texts[i].len());
        }
    }
}

#[test]
fn a_drafter_does_not_run_alone_nor_beside_a_stranger() {
    for (folder, target) in drafters() {
        let pair = pair(&folder, &target, 1);
        let said = pair.own.session().sync(&[1, 2], &mut |_| reverie::Go::On).expect_err("alone").to_string();
        assert!(said.contains("cannot run alone"), "{said}");
        let model = |path: &Path| load(&Loader::default(), path).engine().model().clone();
        let refused = |own: &Path, target: &Path| match Drafter::new(model(own), model(target)) {
            Ok(_) => panic!("{} drafts for {}", name(own), name(target)),
            Err(e) => e.to_string(),
        };
        let said = refused(&folder, &root().join("qwen3"));
        assert!(said.contains("width of the drafter's target"), "{said}");
        let said = refused(&folder, &root().join("gemma3n_text"));
        assert!(said.contains("reads"), "{said}");
        let said = refused(&target, &target);
        assert!(said.contains("runs alone"), "{said}");
        let (mut state, stream) = pair.read(&[5, 6], 2);
        let mut fresh = pair.target.engine().model().new_state(pair.target.engine().cache());
        assert!(pair.drafter.guess(&mut [Guess { token: 1, stream: &stream, state: &mut fresh }]).is_err());
        assert!(pair.drafter.guess(&mut [Guess { token: u32::MAX, stream: &stream, state: &mut state }]).is_err());
        assert!(pair.drafter.guess(&mut []).is_err());
    }
}
