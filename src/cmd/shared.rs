//! Arguments that several verbs share: which model and how it is loaded, how tokens are chosen, and the progress bars.

use std::io::IsTerminal;
use std::ops::RangeInclusive;
use std::time::Duration;

use anyhow::Context;
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use reverie::rooms::cpu::Isa;
use reverie::rooms::engine::EngineSpec;
use reverie::rooms::model::Model;
use reverie::rooms::model::cache::{CACHES, DEFAULT_KV};
use reverie::{LoadEvent, LoadedModel, Loader, PARAMS, Residence, SamplerParams};
use serde_json::{Value, json};

use super::UsageError;

/// How a model is loaded.
#[derive(Args, Clone, Debug)]
pub struct LoadArgs {
    /// Threads; all physical cores by default
    #[arg(long, value_name = "N", value_parser = |text: &str| parse_count(text, 1..=1024))]
    pub threads: Option<usize>,
    /// Instruction set to compute with (`doctor` lists those of this machine); the best by default, and the same bits with any
    #[arg(long, value_name = "SET", value_parser = parse_isa)]
    pub isa: Option<Isa>,
    /// Byte budget for all that the process holds: weights, state, scratch and the program, such as 4GiB or 800MB
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub memory: Option<u64>,
    /// Most bytes of state that are kept for later while no conversation holds them; --memory comes first
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, default_value = "2GiB")]
    pub keep: u64,
    /// Where the experts of a mixture are: `resident`, all packed at load, or `lazy`, in the file until a token wants them, and then
    /// packed as long as --memory has room
    #[arg(long, value_name = "WHERE", value_parser = parse_residence, default_value = "resident")]
    pub experts: Residence,
    /// Positions that are wanted, where a model runs short and long contexts differently (LongRoPE); also those of a forecast
    #[arg(long, value_name = "TOKENS", value_parser = |text: &str| parse_count(text, 1..=usize::MAX))]
    pub context: Option<usize>,
    /// Compute in f32 throughout: activations where they meet integer weights, and keys and values unless --kv says otherwise
    #[arg(long)]
    pub exact: bool,
    /// Cache scheme for keys and values (`reverie list caches`) [default: f16, with --exact f32]
    #[arg(long, value_name = "SCHEME", value_parser = parse_kv)]
    kv: Option<String>,
    /// Tokens of a prefill step; any value gives the same answer
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = |text: &str| parse_count(text, 1..=usize::MAX))]
    pub chunk: usize,
    /// Chat template to use instead of the checkpoint's
    #[arg(long, value_name = "FILE")]
    pub template: Option<std::path::PathBuf>,
}

impl LoadArgs {
    /// The cache scheme for keys and values.
    pub fn kv(&self) -> String {
        let usual = if self.exact { "f32" } else { DEFAULT_KV };
        self.kv.as_deref().unwrap_or(usual).to_owned()
    }

    /// How the engine is set up.
    pub fn engine(&self) -> EngineSpec {
        EngineSpec {
            kv: self.kv(),
            chunk: self.chunk,
            memory: self.memory,
            resident: Some(super::process::resident),
            keep: self.keep,
        }
    }

    /// A loader with these choices.
    pub fn loader(&self) -> anyhow::Result<Loader> {
        let mut loader = Loader {
            threads: self.threads,
            isa: self.isa,
            exact: self.exact,
            engine: self.engine(),
            context: self.context,
            experts: self.experts,
            ..Loader::default()
        };
        if let Some(path) = &self.template {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read the template {}", path.display()))?;
            loader.template = Some(text);
        }
        Ok(loader)
    }

    /// Loads with bars on the terminal.
    pub fn load(&self, model: &str) -> anyhow::Result<LoadedModel> {
        let mut bars = LoadBars::default();
        let loaded = self.loader()?.load_with(model, &mut |event| bars.hear(event));
        bars.clear();
        Ok(loaded?)
    }
}

/// A whole number in `range`.
pub fn parse_count(text: &str, range: RangeInclusive<usize>) -> Result<usize, String> {
    text.parse().ok().filter(|n| range.contains(n)).ok_or_else(|| match *range.end() {
        usize::MAX => format!("found '{text}', expected a whole number of at least {}", range.start()),
        end => format!("found '{text}', expected a whole number from {} to {end}", range.start()),
    })
}

/// What one of these words stands for.
pub fn one_of<W: ToString, V>(text: &str, of: impl IntoIterator<Item = (W, V)>) -> Result<V, String> {
    let mut words = Vec::new();
    for (word, value) in of {
        let word = word.to_string();
        if word == text {
            return Ok(value);
        }
        words.push(word);
    }
    Err(format!("found '{text}', expected {}", words.join(" or ")))
}

fn parse_kv(text: &str) -> Result<String, String> {
    one_of(text, CACHES.iter().map(|c| (c.name, c.name.to_owned())))
}

fn parse_isa(text: &str) -> Result<Isa, String> {
    one_of(text, Isa::available().iter().map(|set| (set.name(), *set)))
}

fn parse_residence(text: &str) -> Result<Residence, String> {
    one_of(text, Residence::ALL.iter().copied())
}

/// What a mixture's experts did so far, for people; none where they are packed for good.
pub fn experts_line(model: &Model) -> Option<String> {
    let shelf = model.shelf()?;
    let (c, all) = (shelf.counters(), model.expert_bytes().all);
    Some(format!(
        "experts: {} of {} packed, {} hits, {} misses ({:.1} %, {} packed), {} given back",
        bytes(shelf.held_bytes()),
        bytes(all),
        c.hits,
        c.misses,
        100.0 * c.misses as f64 / (c.hits + c.misses).max(1) as f64,
        bytes(c.packed_bytes),
        c.given_back
    ))
}

/// The same for programs.
pub fn experts_json(model: &Model) -> Value {
    let Some(shelf) = model.shelf() else { return Value::Null };
    let c = shelf.counters();
    json!({
        "all_bytes": model.expert_bytes().all, "held_bytes": shelf.held_bytes(), "hits": c.hits, "misses": c.misses,
        "packed_bytes": c.packed_bytes, "given_back": c.given_back,
    })
}

/// "4GiB", "800MB", "1.5G", "123456".
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let scale = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "kib" => 1024.0,
        "m" | "mb" => 1e6,
        "mib" => 1024.0 * 1024.0,
        "g" | "gb" => 1e9,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        other => return Err(format!("found the unit '{other}', expected B, KB, KiB, MB, MiB, GB or GiB")),
    };
    match number.parse::<f64>() {
        Ok(n) if n > 0.0 && n * scale < 1e18 => Ok((n * scale) as u64),
        _ => Err(format!("found '{number}', expected a positive number of bytes, such as 4GiB")),
    }
}

/// Bytes for people.
pub fn bytes(n: u64) -> String {
    indicatif::BinaryBytes(n).to_string()
}

/// The sampling flags, made from the table of parameters.
#[derive(Clone, Debug, Default)]
pub struct SamplerArgs {
    set: Vec<(&'static str, String)>,
}

impl SamplerArgs {
    /// `defaults` with what the command line says.
    pub fn over(&self, defaults: SamplerParams) -> anyhow::Result<SamplerParams> {
        let mut params = defaults;
        for (name, value) in &self.set {
            params.set(name, value).map_err(|e| UsageError(e.to_string()))?;
        }
        params.validate().map_err(|e| UsageError(e.to_string()))?;
        Ok(params)
    }
}

impl Args for SamplerArgs {
    fn augment_args(mut command: Command) -> Command {
        for p in PARAMS {
            let flag = p.name.replace('_', "-");
            let help =
                format!("{} [default: {}]", p.help, if p.default().is_empty() { "none".into() } else { p.default() });
            command = command.arg(
                Arg::new(p.name)
                    .long(flag)
                    .value_name("X")
                    .allow_hyphen_values(true)
                    .help(help)
                    .help_heading("Sampling (the checkpoint's recommendations come before these defaults)"),
            );
        }
        command
    }
    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for SamplerArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |p: &'static reverie::rooms::engine::sample::Param| {
            matches.get_one::<String>(p.name).map(|v| (p.name, v.clone()))
        };
        Ok(SamplerArgs { set: PARAMS.iter().filter_map(given).collect() })
    }
    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Shows downloads and loading on stderr, if that is a terminal and it takes long enough to be worth showing.
#[derive(Default)]
pub struct LoadBars {
    bar: Option<(&'static str, ProgressBar)>,
}

impl LoadBars {
    /// Follows one event.
    pub fn hear(&mut self, event: LoadEvent<'_>) {
        match event {
            LoadEvent::Notice(text) => {
                self.clear();
                eprintln!("{text}");
            }
            LoadEvent::Download { file, done_bytes, total_bytes } => {
                let bar = self.bar("download", "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}");
                bar.set_length(total_bytes);
                bar.set_position(done_bytes);
                bar.set_message(file.to_owned());
            }
            LoadEvent::Layers { done, total } => {
                let bar = self.bar("layers", "loading [{bar:30}] {pos}/{len} layers");
                bar.set_length(total as u64);
                bar.set_position(done as u64);
            }
        }
    }

    fn bar(&mut self, kind: &'static str, template: &str) -> &ProgressBar {
        if self.bar.as_ref().is_none_or(|(k, _)| *k != kind) {
            self.clear();
            self.bar = Some((kind, progress_bar(0, template)));
        }
        match &self.bar {
            Some((_, bar)) => bar,
            None => unreachable!("set above"),
        }
    }

    /// Removes what is shown.
    pub fn clear(&mut self) {
        if let Some((_, bar)) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// What takes less time than this is done before a bar about it could be read.
const WORTH_SHOWING: Duration = Duration::from_millis(400);

/// A bar on stderr, once it is worth showing; never where stderr is no terminal.
pub fn progress_bar(len: u64, template: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(len), ProgressDrawTarget::hidden());
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    let later = bar.downgrade();
    std::thread::spawn(move || {
        std::thread::sleep(WORTH_SHOWING);
        if let Some(bar) = later.upgrade().filter(|bar| !bar.is_finished()) {
            bar.set_draw_target(ProgressDrawTarget::stderr());
            bar.enable_steady_tick(Duration::from_millis(200));
        }
    });
    bar
}

/// Bytes that a person handed over, as text; `what` names them in the refusal.
pub fn utf8(bytes: Vec<u8>, what: &str) -> anyhow::Result<String> {
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let found = e.as_bytes()[at];
        anyhow::anyhow!(
            "{what}: found the byte 0x{found:02x} at {at}, expected UTF-8; convert it first (iconv -t UTF-8)"
        )
    })
}
