//! `doctor`: what this machine offers and what is in use.

/// Arguments of `doctor`.
#[derive(clap::Args)]
pub struct Args {
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Prints the report.
pub fn run(args: Args) -> anyhow::Result<()> {
    let mut rows = vec![("reverie".to_owned(), env!("CARGO_PKG_VERSION").to_owned())];
    rows.extend(reverie::backends::report());
    rows.push(("hardware threads".into(), std::thread::available_parallelism().map_or(1, usize::from).to_string()));
    if let Some((total, available)) = memory() {
        rows.push(("memory".into(), super::shared::bytes(total)));
        rows.push(("memory available".into(), super::shared::bytes(available)));
    }
    for name in ["HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE"] {
        if let Ok(value) = std::env::var(name) {
            rows.push((name.into(), value));
        }
    }
    if args.json {
        let map: serde_json::Map<String, serde_json::Value> = rows.into_iter().map(|(k, v)| (k, v.into())).collect();
        say!("{}", serde_json::to_string_pretty(&map)?)?;
    } else {
        for (name, value) in rows {
            say!("{name:28} {value}")?;
        }
    }
    Ok(())
}

/// Total and available bytes, where the system says.
fn memory() -> Option<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib = |name: &str| {
        let line = text.lines().find(|l| l.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    Some((kib("MemTotal:")? * 1024, kib("MemAvailable:")? * 1024))
}
