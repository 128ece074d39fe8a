//! `list`: what every registry holds.

use reverie::rooms::{engine, tensor};
use reverie::{EMBEDDED, PARAMS, Registries};
use serde_json::{Value, json};

/// Arguments of `list`.
#[derive(clap::Args)]
pub struct Args {
    /// One registry only
    #[arg(value_parser = ["archs", "caches", "ffns", "mixers", "models", "quants", "samplers"])]
    registry: Option<String>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Prints the rows.
pub fn run(args: Args) -> anyhow::Result<()> {
    let r = Registries::builtin();
    let all: Vec<(&str, Vec<(String, String)>)> = vec![
        ("archs", r.archs().iter().map(|a| (a.name.into(), a.about.into())).collect()),
        ("caches", r.caches().iter().map(|c| (c.name.into(), c.about.into())).collect()),
        ("ffns", r.ffns().iter().map(|f| (f.name.into(), f.about.into())).collect()),
        ("mixers", r.mixers().iter().map(|m| (m.name.into(), m.about.into())).collect()),
        ("models", vec![(EMBEDDED.into(), "embedded in this binary".into())]),
        ("quants", tensor::quant::QUANTS.iter().map(|q| (q.name.into(), q.about.into())).collect()),
        ("samplers", engine::sample::SAMPLERS.iter().map(|s| (s.name.into(), s.about.into())).collect()),
    ];
    let wanted = |name: &str| args.registry.as_deref().is_none_or(|r| r == name);
    if args.json {
        let rows =
            |rows: &[(String, String)]| -> Value { rows.iter().map(|(n, a)| json!({"name": n, "about": a})).collect() };
        let map: serde_json::Map<String, Value> =
            all.iter().filter(|(n, _)| wanted(n)).map(|(n, r)| ((*n).to_owned(), rows(r))).collect();
        say!("{}", serde_json::to_string_pretty(&map)?)?;
        return Ok(());
    }
    for (name, rows) in all.iter().filter(|(n, _)| wanted(n)) {
        say!("{name}")?;
        for (row, about) in rows {
            say!("  {row:20} {about}")?;
        }
    }
    if wanted("samplers") {
        say!("sampling parameters: {}", PARAMS.iter().map(|p| p.name).collect::<Vec<_>>().join(", "))?;
    }
    Ok(())
}
