//! The byte budget: a forecast is what a run then takes, and what would not fit is refused before it starts.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use reverie::rooms::engine::EngineSpec;
use reverie::rooms::model::{Sequence, Want};
use reverie::rooms::tensor::Class;
use reverie::{Check, Go, Loader, Registries};

use crate::fixtures::{ids, load, name, oracles};

#[test]
fn the_forecast_is_what_the_run_takes() {
    oracles().iter().for_each(|path| forecast_holds(path, &Registries::builtin()));
}

/// A run of the forecast's length takes what the forecast says.
pub fn forecast_holds(path: &Path, registries: &Registries) {
    let registries = registries.clone();
    let loader = Loader { threads: Some(1), check: Check::Always, registries, ..Loader::default() };
    let loaded = load(&loader, path);
    let engine = loaded.engine();
    let context = 500.min(engine.context());
    let forecast = engine.forecast(context, 1).expect("forecast").expect("checked");
    let memory = engine.model().backend().memory();
    memory.reset_peak();
    let mut session = loaded.session();
    session.sync(&ids(context - 1, engine.model().plan().vocab, 5), &mut |_| Go::On).expect("sync");
    session.accept(1).expect("accept");
    let usage = memory.usage();
    assert_eq!(forecast.weights_bytes, usage.of(Class::Weights), "{}: weights", name(path));
    assert_eq!(forecast.peak_bytes, usage.peak, "{}: peak", name(path));
}

#[test]
fn a_budget_of_the_forecast_holds_and_one_byte_less_is_refused() {
    let path = crate::fixtures::root().join("qwen3");
    let free = load(&Loader { threads: Some(1), check: Check::Always, ..Loader::default() }, &path);
    let need = free.engine().forecast(300, 1).expect("forecast").expect("checked").peak_bytes;
    let with = |bytes: u64| {
        let engine = EngineSpec { memory: Some(bytes), ..EngineSpec::default() };
        load(&Loader { threads: Some(1), engine, ..Loader::default() }, &path)
    };
    let tokens = ids(300, 272, 6);
    let enough = with(need);
    let mut session = enough.session();
    session.sync(&tokens[..299], &mut |_| Go::On).expect("fits");
    session.accept(tokens[299]).expect("fits");
    let capacity = enough.engine().capacity().expect("capacity");
    assert!((300..400).contains(&capacity), "{capacity}");
    let short = with(need - 1);
    let refused = short.session().sync(&tokens, &mut |_| Go::On).expect_err("does not fit").to_string();
    assert!(refused.contains("300") && refused.contains("--memory"), "{refused}");
    assert_eq!(short.engine().model().backend().memory().usage().of(Class::State), 0, "refused before it started");
}

#[test]
fn recurrent_layers_hold_the_same_after_any_number_of_tokens() {
    let mut found = 0;
    for path in oracles() {
        let loaded = load(&Loader { threads: Some(1), ..Loader::default() }, &path);
        let model = loaded.engine().model();
        if model.state_specs().iter().any(|spec| spec.kv.is_some()) {
            continue;
        }
        found += 1;
        let mut state = model.new_state(loaded.engine().cache());
        let tokens = ids(400, model.plan().vocab, 9);
        let mut held = Vec::new();
        for part in [&tokens[..20], &tokens[20..21], &tokens[21..]] {
            model.forward(&mut [Sequence { tokens: part, state: &mut state, want: Want::Last }]).expect("forward");
            held.push((state.bytes() as u64, model.backend().memory().usage().of(Class::State)));
        }
        assert!(held[0].0 > 0 && held.iter().all(|h| *h == held[0]), "{}: {held:?}", name(&path));
    }
    assert!(found >= 15, "{found} models without keys and values");
}

/// What the process of the next test says that it holds.
static HELD: AtomicU64 = AtomicU64::new(0);

#[test]
fn what_no_meter_counts_takes_its_part_of_the_budget() {
    let path = crate::fixtures::root().join("qwen3");
    let free = load(&Loader { threads: Some(1), check: Check::Always, ..Loader::default() }, &path);
    let need = free.engine().forecast(300, 1).expect("forecast").expect("checked").peak_bytes;
    // Four of these are what a program is trusted to grow by.
    let (program, limit) = (3u64 << 20, need + (8 << 20) + 8192);
    let resident = Some((|| Some(HELD.load(Ordering::Relaxed))) as fn() -> Option<u64>);
    let engine = EngineSpec { memory: Some(limit), resident, ..EngineSpec::default() };
    let loaded = load(&Loader { threads: Some(1), engine, ..Loader::default() }, &path);
    let memory = loaded.engine().model().backend().memory();
    HELD.store(memory.usage().total + program, Ordering::Relaxed);
    loaded.engine().admit(300).expect("fits beside the program");
    let tight = EngineSpec { memory: Some(need + program + (1 << 20)), resident, ..EngineSpec::default() };
    let tight = load(&Loader { threads: Some(1), engine: tight, ..Loader::default() }, &path);
    tight.engine().admit(300).expect_err("a program grows while it answers");
    loaded.session().sync(&ids(200, 272, 6), &mut |_| Go::On).expect("fits");
    // The tree keeps the 200 tokens. A program that grows pushes them out, and then refuses.
    let kept = memory.usage().of(Class::State);
    assert!(kept > 0 && loaded.engine().kept().held_bytes > 0);
    HELD.store(memory.usage().total + (8 << 20), Ordering::Relaxed);
    loaded.session().sync(&ids(250, 272, 7), &mut |_| Go::On).expect("fits when the rest is given up");
    assert!(loaded.engine().kept().counters.evictions > 0);
    assert!(memory.usage().limit.expect("a limit") < limit - program);
    HELD.store(memory.usage().total + (9 << 20), Ordering::Relaxed);
    let refused = loaded.session().sync(&ids(300, 272, 8), &mut |_| Go::On).expect_err("too much").to_string();
    assert!(refused.contains("300") && refused.contains(&limit.to_string()), "{refused}");
}

#[test]
fn a_block_that_layers_share_is_packed_once() {
    let path = crate::fixtures::root().join("zamba2");
    let loaded = load(&Loader { threads: Some(1), ..Loader::default() }, &path);
    let packed = loaded.engine().model().backend().memory().usage().of(Class::Weights);
    let stored = std::fs::metadata(path.join("model.safetensors")).expect("file").len();
    // Rows are filled up to panels of sixteen, the adapters' most of all; a second copy of the block would add 40 %.
    assert!(packed < stored * 5 / 4, "{packed} bytes packed of {stored} stored");
}
