//! The one table of sampling parameters: name, type, default, range and help stand in one row each, from which the
//! typed [`SamplerParams`], its defaults, its validation, the command line's help and a server's fields are all made.
//! It refuses to know what a step does with its numbers.

use std::fmt;

use super::SampleError;

/// What a parameter may hold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// A finite number, bounds included.
    F32 {
        /// Lowest value.
        min: f32,
        /// Highest value.
        max: f32,
    },
    /// A whole number, bounds included.
    I32 {
        /// Lowest value.
        min: i32,
        /// Highest value.
        max: i32,
    },
    /// One of a few whole numbers.
    Choice(&'static [i32]),
    /// A seed: any 64-bit number, or a fresh one for each sampler.
    Seed,
    /// Pairs of token id and bias.
    Biases,
    /// Sequences of token ids.
    Sequences,
}

impl Kind {
    /// The type in one word: `f32`, `i32`, `u64` or `list`.
    pub fn word(&self) -> &'static str {
        match self {
            Self::F32 { .. } => "f32",
            Self::I32 { .. } | Self::Choice(_) => "i32",
            Self::Seed => "u64",
            Self::Biases | Self::Sequences => "list",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::F32 { min, max } => write!(f, "a number from {min} to {max}"),
            Self::I32 { min, max: i32::MAX } => write!(f, "a whole number of at least {min}"),
            Self::I32 { min, max } => write!(f, "a whole number from {min} to {max}"),
            Self::Choice(of) => {
                let words: Vec<String> = of.iter().map(i32::to_string).collect();
                write!(f, "one of {}", words.join(", "))
            }
            Self::Seed => write!(f, "a whole number from 0 to {}, or `random`", u64::MAX),
            Self::Biases => f.write_str("ID:BIAS,ID:BIAS with each id once and each bias finite or -inf"),
            Self::Sequences => f.write_str("token ids as ID,ID;ID with no sequence empty"),
        }
    }
}

/// A row of the table.
#[derive(Debug)]
pub struct Param {
    /// Name of the field, of the option (with `-` for `_`) and of the server's field.
    pub name: &'static str,
    /// Type and range.
    pub kind: Kind,
    /// One sentence for `--help`.
    pub help: &'static str,
    show: fn(&SamplerParams) -> String,
    check: fn(&SamplerParams, &Kind) -> bool,
    read: fn(&mut SamplerParams, &str) -> bool,
}

impl Param {
    /// The default in the form in which [`SamplerParams::set`] reads it; empty for an empty list.
    pub fn default(&self) -> String {
        (self.show)(&SamplerParams::default())
    }

    /// Lowest value, for the kinds that have one.
    pub fn min(&self) -> Option<f64> {
        match self.kind {
            Kind::F32 { min, .. } => Some(f64::from(min)),
            Kind::I32 { min, .. } => Some(f64::from(min)),
            Kind::Choice(of) => of.iter().min().map(|&v| f64::from(v)),
            Kind::Seed | Kind::Biases | Kind::Sequences => None,
        }
    }

    /// Highest value, for the kinds that have one.
    pub fn max(&self) -> Option<f64> {
        match self.kind {
            Kind::F32 { max, .. } => Some(f64::from(max)),
            Kind::I32 { max, .. } => Some(f64::from(max)),
            Kind::Choice(of) => of.iter().max().map(|&v| f64::from(v)),
            Kind::Seed | Kind::Biases | Kind::Sequences => None,
        }
    }

    fn refuse(&self, found: String) -> SampleError {
        SampleError::BadParam { name: self.name, found, expected: self.kind.to_string() }
    }
}

/// Makes the struct, its defaults and [`PARAMS`] from the rows, so that no default is written twice.
macro_rules! table {
    ($($name:ident: $ty:ty = $default:expr, $kind:expr, $help:literal;)*) => {
        /// Every sampling parameter, typed. The fields are free to set; a sampler checks them all when it is made.
        #[derive(Debug, Clone, PartialEq)]
        pub struct SamplerParams {
            $(#[doc = $help] pub $name: $ty,)*
        }

        impl Default for SamplerParams {
            fn default() -> Self {
                Self { $($name: $default,)* }
            }
        }

        /// The table, alphabetical.
        pub static PARAMS: &[Param] = &[$(Param {
            name: stringify!($name),
            kind: $kind,
            help: $help,
            show: |p| p.$name.show(),
            check: |p, kind| p.$name.fits(kind),
            read: |p, text| Value::read(text).map(|v| p.$name = v).is_some(),
        },)*];
    };
}

table! {
    dry_allowed_length: i32 = 2, Kind::I32 { min: 1, max: 65_536 },
        "Longest repeat, in tokens, that DRY lets pass without a penalty.";
    dry_base: f32 = 1.75, Kind::F32 { min: 1.0, max: 100.0 },
        "Base of the power by which DRY's penalty grows with the length of the repeat.";
    dry_multiplier: f32 = 0.0, Kind::F32 { min: 0.0, max: 1000.0 },
        "Size of DRY's penalty for a repeat of just the allowed length; 0 turns DRY off.";
    dry_penalty_last_n: i32 = -1, Kind::I32 { min: -1, max: i32::MAX },
        "Tokens of history, prompt included, in which DRY looks for repeats; -1 is all, 0 turns DRY off.";
    dry_sequence_breakers: Vec<Vec<u32>> = Vec::new(), Kind::Sequences,
        "Token sequences across which DRY sees no repeat (a line break, a colon), as ID,ID;ID.";
    frequency_penalty: f32 = 0.0, Kind::F32 { min: -2.0, max: 2.0 },
        "Taken off a token's logit once for each time that it stands in the last repeat_last_n tokens; 0 is off.";
    logit_bias: Vec<(u32, f32)> = Vec::new(), Kind::Biases,
        "Added to the logits of single tokens, as ID:BIAS,ID:BIAS; -inf forbids a token.";
    min_p: f32 = 0.05, Kind::F32 { min: 0.0, max: 1.0 },
        "Drops tokens less probable than this share of the most probable one; 0 is off.";
    mirostat: i32 = 0, Kind::Choice(&[0, 2]),
        "2 draws by Mirostat 2.0 in place of top_k, top_p, min_p, typical_p, top_n_sigma and xtc; 0 is off.";
    mirostat_eta: f32 = 0.1, Kind::F32 { min: 0.0, max: 1.0 },
        "Mirostat's learning rate.";
    mirostat_tau: f32 = 5.0, Kind::F32 { min: 0.0, max: 100.0 },
        "Mirostat's target: the mean surprise of a token, in bits.";
    presence_penalty: f32 = 0.0, Kind::F32 { min: -2.0, max: 2.0 },
        "Taken once off the logit of every token that stands in the last repeat_last_n tokens; 0 is off.";
    repeat_last_n: i32 = 64, Kind::I32 { min: -1, max: i32::MAX },
        "Tokens of history, prompt included, that the three penalties look back on; -1 is all, 0 turns them off.";
    repetition_penalty: f32 = 1.0, Kind::F32 { min: 0.01, max: 100.0 },
        "Divides positive logits and multiplies negative ones of tokens in the last repeat_last_n; 1 is off.";
    seed: Option<u64> = None, Kind::Seed,
        "Seed of the draw; the same seed, parameters and logits give the same tokens.";
    temperature: f32 = 0.8, Kind::F32 { min: 0.0, max: 100.0 },
        "Divides the logits; 0 always takes the most probable token, whatever the steps after the penalties say.";
    top_k: i32 = 40, Kind::I32 { min: 0, max: i32::MAX },
        "Keeps this many of the most probable tokens; 0 is off.";
    top_n_sigma: f32 = 0.0, Kind::F32 { min: 0.0, max: 100.0 },
        "Keeps tokens whose logit is within this many standard deviations of the highest; 0 is off.";
    top_p: f32 = 0.95, Kind::F32 { min: 0.0, max: 1.0 },
        "Keeps the fewest most probable tokens that together reach this probability; 1 is off.";
    typical_p: f32 = 1.0, Kind::F32 { min: 0.0, max: 1.0 },
        "Keeps the tokens whose surprise is nearest to the expected one, up to this probability; 1 is off.";
    xtc_probability: f32 = 0.0, Kind::F32 { min: 0.0, max: 1.0 },
        "Chance, for each token, that XTC drops the most probable choices; 0 is off.";
    xtc_threshold: f32 = 0.1, Kind::F32 { min: 0.0, max: 1.0 },
        "Least probability of a choice for XTC; above 0.5 there can be no two, so XTC is off.";
}

impl SamplerParams {
    /// Always the most probable token: no draw, no truncation.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// Sets one parameter from text; `top-k` is read as `top_k`. An error leaves all as it was.
    pub fn set(&mut self, name: &str, text: &str) -> Result<(), SampleError> {
        let row = row(name)?;
        let mut next = self.clone();
        if !(row.read)(&mut next, text.trim()) || !(row.check)(&next, &row.kind) {
            return Err(row.refuse(text.to_owned()));
        }
        *self = next;
        Ok(())
    }

    /// One parameter as the text that [`SamplerParams::set`] reads.
    pub fn get(&self, name: &str) -> Result<String, SampleError> {
        Ok((row(name)?.show)(self))
    }

    /// Checks every field against its row.
    pub fn validate(&self) -> Result<(), SampleError> {
        match PARAMS.iter().find(|row| !(row.check)(self, &row.kind)) {
            Some(row) => Err(row.refuse((row.show)(self))),
            None => Ok(()),
        }
    }
}

fn row(name: &str) -> Result<&'static Param, SampleError> {
    let wanted = name.replace('-', "_");
    PARAMS.iter().find(|row| row.name == wanted).ok_or_else(|| {
        let names: Vec<&str> = PARAMS.iter().map(|row| row.name).collect();
        SampleError::UnknownParam { found: name.to_owned(), expected: names.join(", ") }
    })
}

/// A type that a row can have.
trait Value: Sized {
    fn read(text: &str) -> Option<Self>;
    fn show(&self) -> String;
    fn fits(&self, kind: &Kind) -> bool;
}

impl Value for f32 {
    fn read(text: &str) -> Option<Self> {
        text.parse().ok()
    }
    fn show(&self) -> String {
        self.to_string()
    }
    fn fits(&self, kind: &Kind) -> bool {
        matches!(kind, Kind::F32 { min, max } if (*min..=*max).contains(self))
    }
}

impl Value for i32 {
    fn read(text: &str) -> Option<Self> {
        text.parse().ok()
    }
    fn show(&self) -> String {
        self.to_string()
    }
    fn fits(&self, kind: &Kind) -> bool {
        match kind {
            Kind::I32 { min, max } => (min..=max).contains(&self),
            Kind::Choice(of) => of.contains(self),
            _ => false,
        }
    }
}

impl Value for Option<u64> {
    fn read(text: &str) -> Option<Self> {
        if text == "random" { Some(None) } else { text.parse().ok().map(Some) }
    }
    fn show(&self) -> String {
        self.map_or_else(|| "random".to_owned(), |seed| seed.to_string())
    }
    fn fits(&self, _: &Kind) -> bool {
        true
    }
}

impl Value for Vec<(u32, f32)> {
    fn read(text: &str) -> Option<Self> {
        if text.is_empty() {
            return Some(Vec::new());
        }
        let pair = |part: &str| {
            let (id, bias) = part.split_once(':')?;
            Some((id.trim().parse().ok()?, bias.trim().parse().ok()?))
        };
        text.split(',').map(pair).collect()
    }
    fn show(&self) -> String {
        self.iter().map(|(id, bias)| format!("{id}:{bias}")).collect::<Vec<_>>().join(",")
    }
    fn fits(&self, _: &Kind) -> bool {
        let mut ids: Vec<u32> = self.iter().map(|&(id, _)| id).collect();
        ids.sort_unstable();
        self.iter().all(|(_, bias)| *bias < f32::INFINITY) && ids.windows(2).all(|pair| pair[0] != pair[1])
    }
}

impl Value for Vec<Vec<u32>> {
    fn read(text: &str) -> Option<Self> {
        if text.is_empty() {
            return Some(Vec::new());
        }
        text.split(';').map(|part| part.split(',').map(|id| id.trim().parse().ok()).collect()).collect()
    }
    fn show(&self) -> String {
        let sequence = |ids: &Vec<u32>| ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        self.iter().map(sequence).collect::<Vec<_>>().join(";")
    }
    fn fits(&self, _: &Kind) -> bool {
        self.iter().all(|ids| !ids.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_alphabetical_and_explains_itself() {
        assert!(PARAMS.windows(2).all(|pair| pair[0].name < pair[1].name));
        assert!(PARAMS.iter().all(|row| row.help.ends_with('.') && row.help.len() < 120));
        assert_eq!(row("top_k").unwrap().default(), "40");
        assert_eq!((row("top_p").unwrap().min(), row("top_p").unwrap().max()), (Some(0.0), Some(1.0)));
        assert_eq!(row("mirostat").unwrap().max(), Some(2.0));
        assert_eq!(row("seed").unwrap().kind.word(), "u64");
        assert_eq!(row("logit_bias").unwrap().min(), None);
    }

    #[test]
    fn defaults_are_valid_and_survive_being_written_and_read() {
        let defaults = SamplerParams::default();
        defaults.validate().unwrap();
        let mut read = SamplerParams { temperature: 3.0, seed: Some(1), top_k: 1, ..defaults.clone() };
        for row in PARAMS {
            read.set(row.name, &row.default()).unwrap();
        }
        assert_eq!(read, defaults);
    }

    #[test]
    fn values_are_read_typed() {
        let mut p = SamplerParams::default();
        for (name, text) in [
            ("top-k", "7"),
            ("temperature", " 0.25 "),
            ("seed", "18446744073709551615"),
            ("logit_bias", "5:-inf, 9 : 1.5"),
            ("dry_sequence_breakers", "13;4,5"),
            ("mirostat", "2"),
        ] {
            p.set(name, text).unwrap();
        }
        assert_eq!((p.top_k, p.temperature, p.seed, p.mirostat), (7, 0.25, Some(u64::MAX), 2));
        assert_eq!(p.logit_bias, [(5, f32::NEG_INFINITY), (9, 1.5)]);
        assert_eq!(p.dry_sequence_breakers, [vec![13], vec![4, 5]]);
        assert_eq!(p.get("logit-bias").unwrap(), "5:-inf,9:1.5");
        assert_eq!(p.get("dry_sequence_breakers").unwrap(), "13;4,5");
        p.set("seed", "random").unwrap();
        assert_eq!(p.seed, None);
    }

    #[test]
    fn refusals_name_the_field_the_value_and_the_range() {
        let mut p = SamplerParams::default();
        for (name, text) in [
            ("temperature", "-0.1"),
            ("temperature", "NaN"),
            ("temperature", "inf"),
            ("top_k", "1.5"),
            ("top_k", "-1"),
            ("top_p", "1.01"),
            ("mirostat", "1"),
            ("seed", "-3"),
            ("logit_bias", "5"),
            ("logit_bias", "5:inf"),
            ("logit_bias", "5:NaN"),
            ("logit_bias", "5:1,5:2"),
            ("logit_bias", "5:1,6:1,5:2"),
            ("logit_bias", "-5:1"),
            ("dry_sequence_breakers", "1;;2"),
            ("dry_allowed_length", "0"),
        ] {
            let error = p.set(name, text).unwrap_err();
            let SampleError::BadParam { name: field, ref found, ref expected } = error else { panic!("{error}") };
            assert_eq!((field, found.as_str()), (name, text));
            assert!(!expected.is_empty());
        }
        assert_eq!(p, SamplerParams::default());
        assert_eq!(
            p.set("temperature", "-0.1").unwrap_err().to_string(),
            "sampling parameter `temperature`: found `-0.1`, expected a number from 0 to 100"
        );
        let unknown = p.set("topk", "1").unwrap_err().to_string();
        assert!(unknown.contains("`topk`") && unknown.contains("top_k"), "{unknown}");
    }

    #[test]
    fn typed_fields_are_checked_too() {
        let p = SamplerParams { min_p: f32::NAN, ..SamplerParams::default() };
        let SampleError::BadParam { name, found, .. } = p.validate().unwrap_err() else { panic!() };
        assert_eq!((name, found.as_str()), ("min_p", "NaN"));
    }
}
