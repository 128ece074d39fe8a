//! `doctor`: what this machine offers and what is in use.

use std::collections::BTreeMap;

use serde_json::json;

use super::shared::bytes;

/// Variables that change where models are looked for and states are kept.
const ENVIRONMENT: [&str; 5] = ["HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "REVERIE_HOME"];

/// Arguments of `doctor`.
#[derive(clap::Args)]
pub struct Args {
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Prints the report.
pub fn run(args: Args) -> anyhow::Result<()> {
    let devices = reverie::backends::report();
    let hardware_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = memory();
    let environment: Vec<(&str, String)> =
        ENVIRONMENT.iter().filter_map(|name| Some((*name, std::env::var(name).ok()?))).collect();
    if args.json {
        let report = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "devices": devices.devices,
            "instruction_set": devices.isa,
            "instruction_sets": devices.isas,
            "threads": devices.physical_cores,
            "physical_cores": devices.physical_cores,
            "hardware_threads": hardware_threads,
            "memory_bytes": memory.map(|m| m.0),
            "memory_available_bytes": memory.map(|m| m.1),
            "environment": environment.into_iter().collect::<BTreeMap<_, _>>(),
        });
        say!("{}", serde_json::to_string_pretty(&report)?)?;
        return Ok(());
    }
    let mut rows = vec![
        ("reverie", env!("CARGO_PKG_VERSION").to_owned()),
        ("devices", devices.devices.join(", ")),
        ("cpu instruction set", devices.isa.to_owned()),
        ("instruction sets available", devices.isas.join(", ")),
        ("threads (physical cores)", devices.physical_cores.to_string()),
        ("hardware threads", hardware_threads.to_string()),
    ];
    if let Some((total, available)) = memory {
        rows.push(("memory", bytes(total)));
        rows.push(("memory available", bytes(available)));
    }
    rows.extend(environment);
    for (name, value) in rows {
        say!("{name:28} {value}")?;
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
