//! Memory over a long life: conversations that go on, fork, sleep and wake for many turns, and what the process holds meanwhile.

use std::path::Path;
use std::sync::Arc;

use reverie::rooms::engine::memory::{Expect, Store};
use reverie::rooms::engine::{Cellar, Engine, Note};
use reverie::{Go, Session};
use serde_json::json;

use super::asleep::Folder;
use crate::cmd::process;
use crate::cmd::shared::{bytes, progress_bar};

/// Conversations that take turns.
const CONVERSATIONS: usize = 8;

/// New tokens of a turn: a question, and an answer token by token.
const QUESTION_TOKENS: usize = 20;
const ANSWER_TOKENS: usize = 5;

/// Most tokens of a conversation before it begins anew.
const MOST_TOKENS: usize = 600;

/// One look at the process.
struct Look {
    turn: usize,
    metered: u64,
    resident: u64,
}

/// Runs `turns` turns and prints the curve's ends; `plot` draws it.
pub fn run(engine: &Arc<Engine>, name: &str, turns: usize, plot: Option<&Path>, as_json: bool) -> anyhow::Result<()> {
    let folder = Folder::new();
    let store = Store::open(folder.path())?;
    engine.attach(Cellar { store: store.clone(), identity: [("weights".to_owned(), name.to_owned())].into() });
    let vocab = engine.model().plan().vocab as u64;
    let most = MOST_TOKENS.min(engine.context());
    let mut random = 88_172_645_463_325_252u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let mut awake: Vec<Session> = (0..CONVERSATIONS).map(|_| engine.session()).collect();
    let mut looks = Vec::new();
    let bar = progress_bar(turns as u64, "turns [{bar:30}] {pos}/{len} {eta}");
    for turn in 0..turns {
        let who = (next() % CONVERSATIONS as u64) as usize;
        let bed = format!("c-{who}");
        match next() % 8 {
            0 => awake[who] = awake[(next() % CONVERSATIONS as u64) as usize].fork(),
            1 | 2 => {
                if let Some(head) = store.head(&bed)? {
                    awake[who] = engine.wake(&store.manifest(&head)?)?;
                }
            }
            _ => {}
        }
        let session = &mut awake[who];
        if session.tokens().len() + QUESTION_TOKENS + ANSWER_TOKENS > most {
            session.reset();
        }
        let mut text = session.tokens().to_vec();
        text.extend((0..QUESTION_TOKENS).map(|_| (next() % vocab) as u32));
        session.sync(&text, &mut |_| Go::On)?;
        for _ in 0..ANSWER_TOKENS {
            session.accept((next() % vocab) as u32)?;
        }
        session.sleep(&bed, Expect::Any, Note::default())?;
        if turn % (turns / 400).max(1) == 0 {
            let metered = engine.model().backend().memory().usage().total;
            looks.push(Look { turn, metered, resident: process::resident().unwrap_or(0) });
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let settled = &looks[looks.len() / 4..];
    let range = |of: fn(&Look) -> u64| {
        let values = settled.iter().map(of);
        (values.clone().min().unwrap_or(0), values.max().unwrap_or(0))
    };
    let (metered, resident) = (range(|l| l.metered), range(|l| l.resident));
    let limit = engine.memory_limit();
    let kept = engine.kept().counters;
    if let Some(path) = plot {
        draw(&looks, name, limit, path)?;
    }
    if as_json {
        let value = json!({
            "name": name, "turns": turns, "limit_bytes": limit, "metered_bytes": [metered.0, metered.1],
            "resident_bytes": [resident.0, resident.1], "tokens_saved": kept.tokens_saved, "evictions": kept.evictions,
        });
        say!("{}", serde_json::to_string_pretty(&value)?)?;
        return Ok(());
    }
    say!("{name}: {turns} turns in {CONVERSATIONS} conversations that go on, fork, sleep and wake")?;
    say!(
        "metered  {} to {} in the last three quarters; budget {}",
        bytes(metered.0),
        bytes(metered.1),
        limit.map_or("none".into(), bytes)
    )?;
    say!("resident {} to {}", bytes(resident.0), bytes(resident.1))?;
    say!("{} tokens not computed again, {} pages and marks given up", kept.tokens_saved, kept.evictions)?;
    Ok(())
}

fn draw(looks: &[Look], name: &str, limit: Option<u64>, path: &Path) -> anyhow::Result<()> {
    use plotters::prelude::*;
    let mib = |b: u64| b as f64 / (1 << 20) as f64;
    let top = looks.iter().map(|l| l.resident.max(l.metered)).chain(limit).max().unwrap_or(1);
    let last = looks.last().map_or(1, |l| l.turn.max(1));
    let root = SVGBackend::new(path, (800, 480)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(format!("{name}: memory over turns"), ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(60)
        .build_cartesian_2d(0..last, 0.0..mib(top) * 1.1)?;
    chart.configure_mesh().x_desc("turns").y_desc("MiB").draw()?;
    type Of = fn(&Look) -> u64;
    let lines: [(&str, Of, &RGBColor); 2] = [("metered", |l| l.metered, &BLUE), ("resident", |l| l.resident, &RED)];
    for (label, of, colour) in lines {
        chart
            .draw_series(LineSeries::new(looks.iter().map(|l| (l.turn, mib(of(l)))), colour))?
            .label(label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour));
    }
    if let Some(limit) = limit {
        chart
            .draw_series(LineSeries::new([(0, mib(limit)), (last, mib(limit))], BLACK))?
            .label("budget")
            .legend(|(x, y)| PathElement::new([(x, y), (x + 16, y)], BLACK));
    }
    chart.configure_series_labels().background_style(WHITE).border_style(BLACK).draw()?;
    root.present()?;
    Ok(())
}
