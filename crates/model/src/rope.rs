//! Rotary frequencies from a config, in both spellings: transformers 5 (`rope_parameters`) and the older hub form (`rope_theta`,
//! `rope_scaling`, `partial_rotary_factor`). Formulas as in transformers' modeling_rope_utils.

use std::f64::consts::PI;
use std::sync::Arc;

use reverie_files::ModelConfig;
use reverie_tensor::{Rope, RopeLayout};

use crate::error::{Error, Result};
use crate::mixer::full_attention::Growth;

/// The rotary embedding of heads of `head_dim`.
pub fn from_config(config: &ModelConfig, head_dim: usize) -> Result<Rope> {
    from_parameters(config, &parameters(config)?, head_dim)
}

/// `rope_parameters`, in either spelling.
fn parameters(config: &ModelConfig) -> Result<ModelConfig> {
    match config.section("rope_parameters")? {
        Some(p) => Ok(p),
        None => legacy(config),
    }
}

/// The same, where `rope_parameters` has one entry a layer kind, or the older form a base of its own for sliding layers, whose
/// frequencies are never scaled.
pub fn for_layer_kind(config: &ModelConfig, kind: &str, head_dim: usize) -> Result<Rope> {
    if let Some(all) = config.section("rope_parameters")? {
        return match all.section(kind)? {
            Some(own) => from_parameters(config, &own, head_dim),
            None => from_parameters(config, &all, head_dim),
        };
    }
    if kind == "sliding_attention" {
        let base = match config.optional_f64("rope_local_base_freq")? {
            Some(base) => base,
            None => config.optional_f64("rope_theta")?.unwrap_or(10_000.0),
        };
        return Ok(plain(positive_base(base)?, head_dim, 1.0));
    }
    from_parameters(config, &legacy(config)?, head_dim)
}

/// What YaRN multiplies q·k by where `mscale_all_dim` says so (DeepSeek): (0.1 · m · ln factor + 1)².
pub fn score_factor(config: &ModelConfig) -> Result<f32> {
    let p = parameters(config)?;
    let m = p.optional_f64("mscale_all_dim")?.unwrap_or(0.0);
    if p.optional_text("rope_type")?.unwrap_or("default") == "default" || m == 0.0 {
        return Ok(1.0);
    }
    let factor = positive(&p, "factor")?;
    let grown = if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
    Ok((grown * grown) as f32)
}

/// `rope_scaling` with the base put in, as transformers 5 spells it.
fn legacy(config: &ModelConfig) -> Result<ModelConfig> {
    let scaling = config.section("rope_scaling")?;
    let mut map = scaling.map(|s| s.fields().clone()).unwrap_or_default();
    if let Some(kind) = map.remove("type") {
        map.entry("rope_type").or_insert(kind);
    }
    for field in ["rope_theta", "partial_rotary_factor"] {
        if let Some(value) = config.get(field) {
            map.entry(field).or_insert(value.clone());
        }
    }
    Ok(ModelConfig::new(config.path(), map))
}

fn from_parameters(config: &ModelConfig, p: &ModelConfig, head_dim: usize) -> Result<Rope> {
    let base = match p.optional_f64("rope_theta")? {
        Some(base) => base,
        None => config.optional_f64("rope_theta")?.unwrap_or(10_000.0),
    };
    let partial = match p.optional_f64("partial_rotary_factor")? {
        Some(f) => f,
        None => match (config.optional_f64("partial_rotary_factor")?, config.optional_usize("rotary_dim")?) {
            (Some(factor), _) => factor,
            (None, Some(rotated)) => rotated as f64 / head_dim as f64,
            (None, None) => 1.0,
        },
    };
    let base = positive_base(base)?;
    if !(partial > 0.0 && partial <= 1.0) {
        return Err(Error::config("partial_rotary_factor", partial, "above 0 and at most 1"));
    }
    let rope = plain(base, head_dim, partial);
    match p.optional_text("rope_type")?.unwrap_or("default") {
        "default" | "mrope" => Ok(rope),
        "linear" => {
            let factor = positive(p, "factor")?;
            Ok(Rope { freqs: rope.freqs.iter().map(|f| (f64::from(*f) / factor) as f32).collect(), ..rope })
        }
        // How GGUF stores a scaling that was worked out before.
        "divisors" => divided("rope_freqs", p.optional_f64s("divisors")?, rope),
        "llama3" => llama3(p, config, rope),
        "longrope" | "su" => longrope(p, config, rope),
        "proportional" => Ok(proportional(p, base, head_dim, partial)?),
        "yarn" if p.has("short_factor") => longrope(p, config, rope),
        "yarn" => yarn(p, config, base, rope),
        other => {
            Err(Error::config("rope_type", other, "default, linear, llama3, longrope, mrope, proportional or yarn"))
        }
    }
}

/// base^(-2i/d) over the rotated part of a head.
fn plain(base: f64, head_dim: usize, partial: f64) -> Rope {
    let rotated = (head_dim as f64 * partial) as usize / 2 * 2;
    let freqs: Arc<[f32]> = (0..rotated / 2).map(|i| base.powf(-2.0 * i as f64 / rotated as f64) as f32).collect();
    Rope { freqs, magnitude: 1.0, layout: RopeLayout::Halves }
}

fn positive(p: &ModelConfig, field: &str) -> Result<f64> {
    match p.optional_f64(field)? {
        Some(v) if v.is_finite() && v > 0.0 => Ok(v),
        Some(v) => Err(Error::config(format!("rope_parameters.{field}"), v, "a positive number")),
        None => {
            Err(Error::config(format!("rope_parameters.{field}"), "nothing", "a positive number for this rope_type"))
        }
    }
}

fn original_context(p: &ModelConfig, config: &ModelConfig) -> Result<f64> {
    const FIELD: &str = "original_max_position_embeddings";
    match (p.optional_usize(FIELD)?, config.optional_usize(FIELD)?) {
        (Some(0), _) | (None, Some(0)) => Err(Error::config(FIELD, 0, "a positive number")),
        (Some(n), _) | (None, Some(n)) => Ok(n as f64),
        (None, None) => Ok(config.usize("max_position_embeddings")? as f64),
    }
}

fn positive_base(base: f64) -> Result<f64> {
    if base.is_finite() && base > 0.0 {
        return Ok(base);
    }
    Err(Error::config("rope_theta", base, "a positive number"))
}

/// The config's field for the positions that whoever loads the model wants; no checkpoint has it.
pub const WANTED: &str = "wanted_context";

/// How far a model runs whose config promises `promised` positions, and has been asked for some. LongRoPE has one set of factors for
/// contexts up to the original length and another for longer ones. Changing from one to the other in the middle of a text would turn keys
/// that are written already, so the set is chosen when the model is loaded: the first unless more than the original length is asked for,
/// and the context then ends where that set does. (llama.cpp and vLLM choose by the context that they are started with, too.)
pub fn usable_context(config: &ModelConfig, promised: usize) -> Result<usize> {
    let wanted = config.optional_usize(WANTED)?.unwrap_or(0);
    if wanted > promised {
        return Err(Error::config("max_position_embeddings", promised, format!("at least the {wanted} asked for")));
    }
    let parameters = parameters(config)?;
    if !parameters.has("short_factor") || is_long(&parameters, config)? {
        return Ok(promised);
    }
    Ok(promised.min(original_context(&parameters, config)? as usize))
}

/// True if LongRoPE's second set of factors counts.
fn is_long(p: &ModelConfig, config: &ModelConfig) -> Result<bool> {
    Ok(config.optional_usize(WANTED)?.unwrap_or(0) as f64 > original_context(p, config)?)
}

/// Llama 4's growth of the queries, where the config asks for it.
pub fn growth(config: &ModelConfig) -> Result<Option<Growth>> {
    let p = parameters(config)?;
    let Some(beta) = p.optional_f64("llama_4_scaling_beta")? else { return Ok(None) };
    if !beta.is_finite() {
        return Err(Error::config("rope_parameters.llama_4_scaling_beta", beta, "a finite number"));
    }
    Ok(Some(Growth { beta: beta as f32, period: original_context(&p, config)? as usize, from: 0 }))
}

/// A head whose first pairs turn and whose others stand still; frequencies go by the whole head's width, unlike those of a partial
/// rotation (Gemma 4).
fn proportional(p: &ModelConfig, base: f64, head_dim: usize, partial: f64) -> Result<Rope> {
    let factor = if p.has("factor") { positive(p, "factor")? } else { 1.0 };
    let turning = (partial * head_dim as f64 / 2.0) as usize;
    let whole = plain(base, head_dim, 1.0);
    let freq = |(i, &f): (usize, &f32)| if i < turning { (f64::from(f) / factor) as f32 } else { 0.0 };
    Ok(Rope { freqs: whole.freqs.iter().enumerate().map(freq).collect(), ..whole })
}

/// LongRoPE (arXiv 2402.13753) with the factors for the context that is wanted; see `usable_context`.
fn longrope(p: &ModelConfig, config: &ModelConfig, rope: Rope) -> Result<Rope> {
    let field = if is_long(p, config)? { "long_factor" } else { "short_factor" };
    let rope = divided(&format!("rope_parameters.{field}"), p.optional_f64s(field)?, rope)?;
    let context = original_context(p, config)?;
    let factor = match p.optional_f64("factor")? {
        Some(_) => positive(p, "factor")?,
        None => config.usize("max_position_embeddings")? as f64 / context,
    };
    let magnitude = match p.optional_f64("attention_factor")? {
        Some(given) => given,
        None if factor <= 1.0 => 1.0,
        None => (1.0 + factor.ln() / context.ln()).sqrt(),
    };
    Ok(Rope { magnitude: magnitude as f32, ..rope })
}

/// Each frequency divided by its own number of `field`.
fn divided(field: &str, divisors: Option<Vec<f64>>, rope: Rope) -> Result<Rope> {
    let divisors = divisors.unwrap_or_default();
    if divisors.len() != rope.freqs.len() || divisors.iter().any(|d| !(d.is_finite() && *d > 0.0)) {
        let expected = format!("{} positive numbers", rope.freqs.len());
        return Err(Error::config(field, format!("{} numbers", divisors.len()), expected));
    }
    Ok(Rope { freqs: rope.freqs.iter().zip(divisors).map(|(f, d)| (f64::from(*f) / d) as f32).collect(), ..rope })
}

/// Llama 3.1: long wavelengths divided by the factor, short ones kept, a smooth ramp between.
fn llama3(p: &ModelConfig, config: &ModelConfig, rope: Rope) -> Result<Rope> {
    let (factor, low, high) =
        (positive(p, "factor")?, positive(p, "low_freq_factor")?, positive(p, "high_freq_factor")?);
    if high <= low {
        return Err(Error::config("rope_parameters.high_freq_factor", high, format!("above low_freq_factor = {low}")));
    }
    let context = original_context(p, config)?;
    let freqs = rope.freqs.iter().map(|&f| {
        let f = f64::from(f);
        let turns = context * f / (2.0 * PI);
        let smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0);
        ((1.0 - smooth) * f / factor + smooth * f) as f32
    });
    Ok(Rope { freqs: freqs.collect(), ..rope })
}

/// YaRN (arXiv 2309.00071): interpolated and plain frequencies mixed by a ramp over the dimensions, and an attention factor.
fn yarn(p: &ModelConfig, config: &ModelConfig, base: f64, rope: Rope) -> Result<Rope> {
    let context = original_context(p, config)?;
    let factor = match p.optional_f64("factor")? {
        Some(_) => positive(p, "factor")?,
        None => config.usize("max_position_embeddings")? as f64 / context,
    };
    let half = rope.freqs.len();
    let dim = 2.0 * half as f64;
    let at = |rotations: f64| dim * (context / (rotations * 2.0 * PI)).ln() / (2.0 * base.ln());
    let (fast, slow) = (p.optional_f64("beta_fast")?.unwrap_or(32.0), p.optional_f64("beta_slow")?.unwrap_or(1.0));
    let (mut low, mut high) = (at(fast), at(slow));
    if p.optional_bool("truncate")?.unwrap_or(true) {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.0), high.min(dim - 1.0));
    if (high - low).abs() < f64::EPSILON {
        high += 0.001;
    }
    let freqs = rope.freqs.iter().enumerate().map(|(i, &f)| {
        let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
        (f64::from(f) / factor * ramp + f64::from(f) * (1.0 - ramp)) as f32
    });
    let mscale = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
    let (one, all) = (p.optional_f64("mscale")?, p.optional_f64("mscale_all_dim")?);
    let magnitude = match (p.optional_f64("attention_factor")?, one, all) {
        (Some(given), _, _) => given,
        (None, Some(one), Some(all)) if one != 0.0 && all != 0.0 => mscale(one) / mscale(all),
        _ => mscale(1.0),
    };
    Ok(Rope { freqs: freqs.collect(), magnitude: magnitude as f32, ..rope })
}
