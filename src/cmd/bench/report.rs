//! What a benchmark prints: a table, JSON, or a picture.

use std::path::Path;
use std::time::Instant;

use reverie::rooms::model::Model;
use serde_json::{Value, json};

use crate::cmd::shared::bytes;

/// Several runs of one measurement.
#[derive(Default)]
pub struct Runs {
    /// Tokens per second.
    speeds: Vec<f64>,
    /// Experts that came out of the checkpoint, and all that were wanted, where they are not packed for good.
    missed: u64,
    wanted: u64,
}

impl Runs {
    /// One more run, of `tokens` tokens.
    pub fn time(
        &mut self,
        model: &Model,
        tokens: usize,
        run: impl FnOnce() -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let counters = || model.shelf().map(|s| s.counters()).unwrap_or_default();
        let (before, began) = (counters(), Instant::now());
        run()?;
        self.speeds.push(tokens as f64 / began.elapsed().as_secs_f64());
        let after = counters();
        let missed = after.misses - before.misses;
        (self.missed, self.wanted) = (self.missed + missed, self.wanted + missed + after.hits - before.hits);
        Ok(())
    }
}

/// One measurement.
pub struct Row {
    what: String,
    depth: usize,
    kind: &'static str,
    median: f64,
    least: f64,
    most: f64,
    bytes_per_token: Option<u64>,
    share: Option<f64>,
    /// Experts missed of those wanted.
    missed: Option<f64>,
}

impl Row {
    /// From the speeds of several runs, tokens per second; none if there were no runs.
    pub fn of(
        kind: &'static str,
        n: usize,
        depth: usize,
        runs: &Runs,
        read: Option<u64>,
        bandwidth: f64,
    ) -> Option<Row> {
        let mut sorted = runs.speeds.clone();
        sorted.sort_by(f64::total_cmp);
        let median = *sorted.get(sorted.len() / 2)?;
        Some(Row {
            what: format!("{kind}{n}"),
            depth,
            kind,
            median,
            least: *sorted.first()?,
            most: *sorted.last()?,
            bytes_per_token: read,
            share: read.map(|b| b as f64 * median / bandwidth),
            missed: (runs.wanted > 0).then(|| runs.missed as f64 / runs.wanted as f64),
        })
    }
}

/// All of it.
pub struct Report {
    /// The model.
    pub name: String,
    /// Threads used.
    pub threads: usize,
    /// Instruction set.
    pub isa: String,
    /// Time to load.
    pub load_ms: f64,
    /// Time of the first token after loading.
    pub first_ms: f64,
    /// Probed read bandwidth, bytes per second.
    pub bandwidth: f64,
    /// Packed weights.
    pub weights_bytes: u64,
    /// Peak that the meter saw.
    pub peak_bytes: u64,
    /// Peak that the system saw.
    pub resident_bytes: Option<u64>,
    /// What lazy experts did over the whole run, for people and for programs.
    pub experts: (Option<String>, Value),
    /// The measurements.
    pub rows: Vec<Row>,
}

impl Report {
    /// For programs.
    pub fn json(&self) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|r| {
                json!({
                    "test": r.what, "depth": r.depth, "tokens_per_s": r.median, "least": r.least, "most": r.most,
                    "bytes_per_token": r.bytes_per_token, "bandwidth_share": r.share, "experts_missed": r.missed,
                })
            })
            .collect();
        json!({
            "model": self.name, "threads": self.threads, "isa": self.isa, "load_ms": self.load_ms,
            "first_token_ms": self.first_ms, "probed_bandwidth_bytes_per_s": self.bandwidth,
            "weights_bytes": self.weights_bytes, "peak_bytes": self.peak_bytes,
            "peak_resident_bytes": self.resident_bytes, "experts": self.experts.1, "rows": rows,
        })
    }

    /// For people.
    pub fn print(&self) -> std::io::Result<()> {
        say!(
            "{} · {} threads · {} · read bandwidth {:.1} GB/s",
            self.name,
            self.threads,
            self.isa,
            self.bandwidth / 1e9
        )?;
        say!(
            "load {:.0} ms, first token {:.1} ms, weights {}, peak {}{}",
            self.load_ms,
            self.first_ms,
            bytes(self.weights_bytes),
            bytes(self.peak_bytes),
            self.resident_bytes.map_or(String::new(), |b| format!(" (resident {})", bytes(b)))
        )?;
        if let Some(line) = &self.experts.0 {
            say!("{line}")?;
        }
        say!(
            "{:8} {:>7} {:>10} {:>19} {:>14} {:>10} {:>7}",
            "test",
            "depth",
            "tokens/s",
            "spread",
            "bytes/token",
            "bandwidth",
            "missed"
        )?;
        for r in &self.rows {
            say!(
                "{:8} {:>7} {:>10.1} {:>9.1}-{:<9.1} {:>14} {:>10} {:>7}",
                r.what,
                r.depth,
                r.median,
                r.least,
                r.most,
                r.bytes_per_token.map_or("-".into(), bytes),
                r.share.map_or("-".into(), |s| format!("{:.0} %", s * 100.0)),
                r.missed.map_or("-".into(), |m| format!("{:.0} %", m * 100.0))
            )?;
        }
        Ok(())
    }

    /// Speeds over depth.
    pub fn plot(&self, path: &Path) -> anyhow::Result<()> {
        use plotters::prelude::*;
        let most = self.rows.iter().map(|r| r.most).fold(1.0, f64::max);
        let deepest = self.rows.iter().map(|r| r.depth).max().unwrap_or(0).max(1);
        let root = SVGBackend::new(path, (800, 480)).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(format!("{}, {} threads", self.name, self.threads), ("sans-serif", 20))
            .margin(12)
            .x_label_area_size(36)
            .y_label_area_size(60)
            .build_cartesian_2d(0..deepest, (1.0..most * 1.2).log_scale())?;
        chart.configure_mesh().x_desc("tokens before").y_desc("tokens/s").draw()?;
        for (kind, colour) in [("pp", &BLUE), ("tg", &RED)] {
            let points: Vec<(usize, f64)> =
                self.rows.iter().filter(|r| r.kind == kind).map(|r| (r.depth, r.median)).collect();
            let name = if kind == "pp" { "prefill" } else { "decode" };
            chart
                .draw_series(LineSeries::new(points.iter().copied(), colour))?
                .label(name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour));
            chart.draw_series(points.iter().map(|&p| Circle::new(p, 3, colour.filled())))?;
        }
        chart.configure_series_labels().background_style(WHITE).border_style(BLACK).draw()?;
        root.present()?;
        Ok(())
    }
}
