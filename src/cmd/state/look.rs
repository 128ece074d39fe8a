//! `state ls`, `log`, `show`, `stats`: looking without touching.

use std::time::{SystemTime, UNIX_EPOCH};

use reverie::rooms::memory::{Hash, Manifest, Store};
use serde_json::{Value, json};

use super::Out;
use crate::cmd::shared::bytes;

/// Names, then tags.
pub(super) fn ls(store: &Store, out: Out) -> anyhow::Result<()> {
    let mut names = Vec::new();
    for named in store.refs()? {
        let state = store.manifest(&named.head);
        names.push((named, state));
    }
    let tags = store.tags()?;
    let listed: Vec<Value> = names
        .iter()
        .map(|(named, state)| match state {
            Ok(m) => brief(&named.name, &named.head, m),
            Err(e) => json!({"name": named.name, "head": named.head, "error": e.to_string()}),
        })
        .collect();
    let tagged = tags.iter().map(|t| json!({"label": t.label, "manifest": t.manifest, "tokens": t.tokens}));
    let report = json!({"place": store.place(), "states": listed, "tags": tagged.collect::<Vec<_>>()});
    out.say(report, || {
        if names.is_empty() && tags.is_empty() {
            say!("nothing sleeps in {}", store.place().display())?;
        }
        for (named, state) in &names {
            match state {
                Ok(m) => say!("{:24} {} {}", named.name, named.head.short(), summary(m))?,
                Err(e) => say!("{:24} {} {e}", named.name, named.head.short())?,
            }
        }
        for tag in &tags {
            say!("{:24} {} tag at token {}", tag.label, tag.manifest.short(), tag.tokens)?;
        }
        Ok(())
    })
}

/// Commits, newest first.
pub(super) fn log(store: &Store, name: &str, out: Out) -> anyhow::Result<()> {
    let head = store.resolve(name)?.hash;
    let mut commits = Vec::new();
    for step in store.history(head) {
        let (hash, manifest) = step?;
        if out.json {
            commits.push(brief(name, &hash, &manifest));
        } else {
            let from = manifest.forked_from.map_or(String::new(), |f| format!(", forked from {}", f.short()));
            say!("{} {}{from}", hash.short(), summary(&manifest))?;
        }
    }
    out.say(json!(commits), || Ok(()))
}

/// All of a state but its payload.
pub(super) fn show(store: &Store, name: &str, out: Out) -> anyhow::Result<()> {
    let commit = store.resolve(name)?;
    let state = commit.state()?;
    let (mut disk, mut raw) = (0, 0);
    for object in state.objects() {
        let (header, file_bytes) = store.header(object)?;
        disk += file_bytes;
        raw += header.raw_bytes;
    }
    let mut report = serde_json::to_value(&state)?;
    if let Some(report) = report.as_object_mut() {
        report.insert("hash".into(), json!(commit.hash));
        report.insert("disk_bytes".into(), json!(disk));
        report.insert("raw_bytes".into(), json!(raw));
    }
    out.say(report, || {
        say!("{} {}", commit.hash, summary(&state))?;
        let link = |what: &str, hash: Option<Hash>| hash.into_iter().try_for_each(|h| say!("{what:12} {h}"));
        link("parent", state.parent)?;
        link("forked from", state.forked_from)?;
        for (field, value) in &state.identity {
            say!("{field:12} {value}")?;
        }
        let pages = state.pages.len();
        say!(
            "{:12} {pages} of {} tokens, {} of windowed layers, {} snapshots",
            "pages",
            state.page_tokens,
            state.windows.len(),
            state.snapshots.len()
        )?;
        say!("{:12} {} on disk, {} raw, shared with whatever else has them", "objects", bytes(disk), bytes(raw))?;
        for (i, turn) in state.turns.iter().enumerate() {
            let start = if i == 0 { 0 } else { state.turns.get(i - 1).map_or(0, |t| t.text_end) };
            let said = state.text.get(start..turn.text_end).unwrap_or_default();
            say!("{:>4} {:10} to token {:>6}  {}", i + 1, turn.role, turn.tokens, excerpt(said))?;
        }
        if state.turns.is_empty() {
            say!("{:12} {}", "text", excerpt(&state.text))?;
        }
        Ok(())
    })
}

/// Counts.
pub(super) fn stats(store: &Store, out: Out) -> anyhow::Result<()> {
    let s = store.stats()?;
    let report = json!({
        "place": store.place(),
        "names": s.names,
        "tags": s.tags,
        "commits": s.commits,
        "objects": s.objects,
        "unreachable": s.unreachable,
        "disk_bytes": s.disk_bytes,
        "raw_bytes": s.raw_bytes,
        "logical_bytes": s.logical_bytes,
        "dedup": s.dedup(),
    });
    out.say(report, || {
        say!("{}: {} names, {} tags, {} commits", store.place().display(), s.names, s.tags, s.commits)?;
        say!("{} objects, {} unreachable; {} on disk", s.objects, s.unreachable, bytes(s.disk_bytes))?;
        say!("{} unshared, {} shared: {:.2} times", bytes(s.logical_bytes), bytes(s.raw_bytes), s.dedup())?;
        Ok(())
    })
}

fn brief(name: &str, hash: &Hash, m: &Manifest) -> Value {
    json!({
        "name": name,
        "head": hash,
        "tokens": m.tokens.len(),
        "turns": m.turns.len(),
        "created_ms": m.created_ms,
        "parent": m.parent,
        "forked_from": m.forked_from,
    })
}

fn summary(m: &Manifest) -> String {
    format!("{:>7} tokens, {:>3} turns, {}", m.tokens.len(), m.turns.len(), age(m.created_ms))
}

/// "3 h ago".
fn age(created_ms: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
    match now.saturating_sub(created_ms) / 1000 {
        s @ 0..60 => format!("{s} s ago"),
        s @ 60..3600 => format!("{} min ago", s / 60),
        s @ 3600..172_800 => format!("{} h ago", s / 3600),
        s => format!("{} days ago", s / 86_400),
    }
}

/// The first line or so, safe for a terminal.
fn excerpt(text: &str) -> String {
    let flat: String = text.trim().chars().take(72).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.trim().chars().nth(72).is_some() { flat + "…" } else { flat }
}
