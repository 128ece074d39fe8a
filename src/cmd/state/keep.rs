//! `state gc` and `fsck`: letting go, and proving that the rest is whole.

use std::time::{SystemTime, UNIX_EPOCH};

use reverie::rooms::memory::{FsckRun, GcRun, GcSpec, Store};
use serde_json::json;

use super::Out;
use crate::cmd::shared::{bytes, parse_bytes, progress_bar};

/// Arguments of `gc`.
#[derive(clap::Args)]
pub(super) struct GcArgs {
    /// Let commits go that are older, such as 30d, 12h or 45min; never a head or a tag
    #[arg(long, value_name = "AGE", value_parser = parse_age)]
    older_than: Option<u64>,
    /// Let history go, oldest first, until everything takes at most this much, such as 20GiB
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    budget: Option<u64>,
    /// Only say what would go
    #[arg(long)]
    dry_run: bool,
}

/// Arguments of `fsck`.
#[derive(clap::Args)]
pub(super) struct FsckArgs {
    /// Remove leftovers, set damage aside, rebuild the index
    #[arg(long)]
    repair: bool,
}

/// Milliseconds from "30d", "12h", "45min", "10s".
fn parse_age(text: &str) -> Result<u64, String> {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let seconds: u64 = match unit {
        "d" => 86_400,
        "h" => 3600,
        "min" => 60,
        "s" => 1,
        other => return Err(format!("found the unit '{other}', expected d, h, min or s")),
    };
    let ms = number.parse::<u64>().ok().and_then(|n| n.checked_mul(seconds * 1000));
    ms.ok_or_else(|| format!("found '{number}', expected a whole number, such as 30d"))
}

pub(super) fn gc(store: &Store, args: &GcArgs, out: Out) -> anyhow::Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as u64;
    let run = if args.dry_run { GcRun::Pretend } else { GcRun::Sweep };
    let before_ms = args.older_than.map(|age| now.saturating_sub(age));
    let r = store.gc(&GcSpec { before_ms, budget_bytes: args.budget, run })?;
    let report = json!({
        "dry_run": args.dry_run,
        "commits_dropped": r.commits_dropped,
        "objects_swept": r.objects_swept,
        "bytes_freed": r.bytes_freed,
        "leftovers": r.leftovers,
        "objects_kept": r.objects_kept,
        "bytes_kept": r.bytes_kept,
        "over_budget": r.over_budget,
    });
    out.say(report, || {
        let would = if args.dry_run { "would sweep" } else { "swept" };
        say!("{would} {} objects ({}), {} unfinished writes", r.objects_swept, bytes(r.bytes_freed), r.leftovers)?;
        say!("{} commits let go; {} objects stay ({})", r.commits_dropped, r.objects_kept, bytes(r.bytes_kept))?;
        if r.over_budget > 0 {
            say!("heads and tags alone exceed the budget by {}: `state rm` what is not needed", bytes(r.over_budget))?;
        }
        Ok(())
    })
}

pub(super) fn fsck(store: &Store, args: &FsckArgs, out: Out) -> anyhow::Result<()> {
    let bar = progress_bar(0, "[{bar:30}] {bytes}/{total_bytes} {eta}");
    let run = if args.repair { FsckRun::Repair } else { FsckRun::Check };
    let report = store.fsck(run, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let r = report?;
    let findings: Vec<_> = r
        .findings
        .iter()
        .map(|f| json!({"kind": f.kind.word(), "what": f.what, "detail": f.detail, "done": f.done}))
        .collect();
    let said = json!({
        "whole": r.is_whole(),
        "objects": r.objects,
        "bytes": r.bytes,
        "names": r.names,
        "commits": r.commits,
        "findings": findings,
    });
    out.say(said, || {
        for f in &r.findings {
            let done = f.done.map_or(String::new(), |d| format!(" [{d}]"));
            say!("{:9} {}: {}{done}", f.kind.word(), f.what, f.detail)?;
        }
        say!("{} names, {} commits, {} objects ({}) read", r.names, r.commits, r.objects, bytes(r.bytes))?;
        Ok(())
    })?;
    match r.is_whole() {
        true => Ok(()),
        false if args.repair => anyhow::bail!("some of it was lost; `reverie state fsck` says what still is missing"),
        false => anyhow::bail!(
            "the store is not whole; --repair sets damage aside, so that the same content can be written anew"
        ),
    }
}
