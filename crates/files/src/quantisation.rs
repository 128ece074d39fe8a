//! What a config says about quantised tensors in planes: one choice for all modules, and exceptions by module name.
//! Source of the layout: mlx-lm's `quantization` object in config.json.

use std::collections::BTreeMap;

use crate::config::ModelConfig;
use crate::error::{Error, Result, excerpt};

/// One choice of format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The format's row name.
    pub mode: String,
    /// Bits of a code.
    pub bits: u8,
    /// Weights that share a scale.
    pub group: usize,
}

impl std::fmt::Display for Choice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bits in groups of {} ({})", self.bits, self.group, self.mode)
    }
}

/// What holds for one module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule<'a> {
    /// Nothing is said about quantisation at all.
    Unsaid,
    /// This choice, for every module without an exception.
    General(&'a Choice),
    /// An exception with a choice of its own.
    Own(&'a Choice),
    /// An exception: the module is not quantised.
    Dense,
}

/// The config's rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quantisation {
    general: Option<Choice>,
    /// Exceptions; none for a module that is not quantised.
    modules: BTreeMap<String, Option<Choice>>,
}

/// Keys of the object that are settings, not modules.
const BITS: &str = "bits";
const GROUP: &str = "group_size";
const MODE: &str = "mode";
const GLOBAL_SCALE: &str = "global_scale";
/// What mlx means where no mode is written.
const DEFAULT_MODE: &str = "affine";
/// What mlx means where an exception leaves out bits and group, whatever the general choice is.
const DEFAULTS: &[(&str, u8, usize)] = &[("affine", 4, 64), ("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)];

impl Quantisation {
    /// Rules made by hand: one choice for all, and exceptions (none for a module that stays dense).
    pub fn new(general: Choice, modules: BTreeMap<String, Option<Choice>>) -> Quantisation {
        Quantisation { general: Some(general), modules }
    }

    /// Reads `quantization`, or else `quantization_config`. A method that is not mlx's is refused by name.
    pub fn read(config: &ModelConfig) -> Result<Quantisation> {
        let section = match config.section("quantization")? {
            Some(section) => section,
            None => match config.section("quantization_config")? {
                Some(section) => section,
                None => return Ok(Quantisation::default()),
            },
        };
        let method = section.optional_text("quant_method")?;
        if method == Some("mxfp4") {
            // Told tensor by tensor: `_blocks` and `_scales` beside plain weights.
            return Ok(Quantisation::default());
        }
        if let Some(method) = method.filter(|m| *m != "mlx" && !section.has(GROUP)) {
            let expected = "MLX affine weights, plain weights, or a GGUF file: use another conversion of this model";
            return Err(section.refuse("quant_method", format!("'{}'", excerpt(method)), expected));
        }
        let general = choice(&section, &[])?;
        let mut modules = BTreeMap::new();
        for (name, value) in section.fields() {
            if let Some(exception) = value.as_bool() {
                // `true` says no more than the general choice does.
                if !exception {
                    modules.insert(name.clone(), None);
                }
            } else if value.is_object()
                && let Some(section) = section.section(name)?
            {
                modules.insert(name.clone(), Some(choice(&section, DEFAULTS)?));
            }
        }
        Ok(Quantisation { general: Some(general), modules })
    }

    /// The general choice, if there is one.
    pub fn general(&self) -> Option<&Choice> {
        self.general.as_ref()
    }

    /// What holds for a module: a tensor's name without `.weight`.
    pub fn of(&self, module: &str) -> Rule<'_> {
        match (self.modules.get(module), &self.general) {
            (Some(Some(choice)), _) => Rule::Own(choice),
            (Some(None), _) => Rule::Dense,
            (None, Some(choice)) => Rule::General(choice),
            (None, None) => Rule::Unsaid,
        }
    }

    /// The `quantization` object that says the same.
    pub fn to_json(&self) -> serde_json::Value {
        let fields = |c: &Choice| {
            let mut map = serde_json::Map::new();
            map.insert(GROUP.into(), c.group.into());
            map.insert(BITS.into(), c.bits.into());
            map.insert(MODE.into(), c.mode.clone().into());
            map
        };
        let mut map = self.general.as_ref().map(fields).unwrap_or_default();
        for (name, choice) in &self.modules {
            map.insert(name.clone(), choice.as_ref().map_or(false.into(), |c| fields(c).into()));
        }
        map.into()
    }
}

/// Settings of one object; bits and group that it leaves out come from its mode's line of `defaults`.
fn choice(section: &ModelConfig, defaults: &[(&str, u8, usize)]) -> Result<Choice> {
    let missing = |field: &str| -> Error { section.refuse(field, "nothing", "a number") };
    if section.optional_bool(GLOBAL_SCALE)?.unwrap_or(false) {
        return Err(section.refuse(GLOBAL_SCALE, true, "false: a factor over a whole tensor is not read"));
    }
    let mode = section.optional_text(MODE)?.unwrap_or(DEFAULT_MODE);
    let default = defaults.iter().find(|(name, ..)| *name == mode);
    let bits = section.optional_usize(BITS)?.or(default.map(|d| usize::from(d.1))).ok_or_else(|| missing(BITS))?;
    let group = section.optional_usize(GROUP)?.or(default.map(|d| d.2)).ok_or_else(|| missing(GROUP))?;
    let bits = u8::try_from(bits).map_err(|_| section.refuse(BITS, bits, "a number of bits"))?;
    Ok(Choice { mode: mode.to_owned(), bits, group })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn read(text: &str) -> Result<Quantisation> {
        Quantisation::read(&ModelConfig::parse(Path::new("config.json"), text).unwrap())
    }

    #[test]
    fn exceptions_override_the_general_choice() {
        let q =
            read(r#"{"quantization": {"group_size": 64, "bits": 4, "a.b": {"bits": 8}, "a.c": false, "a.d": true}}"#)
                .unwrap();
        let choice = |bits| Choice { mode: "affine".into(), bits, group: 64 };
        assert_eq!(q.of("x"), Rule::General(&choice(4)));
        assert_eq!(q.of("a.b"), Rule::Own(&choice(8)));
        assert_eq!(q.of("a.c"), Rule::Dense);
        assert_eq!(q.of("a.d"), Rule::General(&choice(4)));
        let written = serde_json::json!({"quantization": q.to_json()}).to_string();
        assert_eq!(read(&written).unwrap(), q);
    }

    /// As mlx.nn's `to_quantized` takes them, which knows no general choice.
    #[test]
    fn exceptions_leave_out_what_their_mode_has() {
        let q = read(
            r#"{"quantization": {"group_size": 16, "bits": 4, "mode": "nvfp4", "a": {"bits": 8}, "b": {"mode": "mxfp8"},
                "c": {"mode": "mxfp4", "group_size": 32}}}"#,
        )
        .unwrap();
        for (module, mode, bits, group) in [("a", "affine", 8, 64), ("b", "mxfp8", 8, 32), ("c", "mxfp4", 4, 32)] {
            assert_eq!(q.of(module), Rule::Own(&Choice { mode: mode.into(), bits, group }));
        }
        let error = read(r#"{"quantization": {"group_size": 16, "bits": 4, "a": {"mode": "other"}}}"#).unwrap_err();
        assert!(error.to_string().contains("bits"), "{error}");
        let text = r#"{"quantization": {"group_size": 16, "bits": 4, "mode": "nvfp4", "a": {"global_scale": true}}}"#;
        let error = read(text).unwrap_err().to_string();
        assert!(error.contains("quantization.a.global_scale"), "{error}");
    }

    #[test]
    fn foreign_methods_and_odd_values_are_refused_by_name() {
        let error = read(r#"{"quantization_config": {"quant_method": "gptq", "bits": 4}}"#).unwrap_err().to_string();
        assert!(error.contains("gptq") && error.contains("quantization_config.quant_method"), "{error}");
        for text in [
            r#"{"quantization": {"bits": 4}}"#,
            r#"{"quantization": {"bits": 999, "group_size": 64}}"#,
            r#"{"quantization": {"bits": "4", "group_size": 64}}"#,
            r#"{"quantization": 4}"#,
        ] {
            assert!(read(text).is_err(), "{text}");
        }
        assert_eq!(read("{}").unwrap().of("x"), Rule::Unsaid);
    }
}
