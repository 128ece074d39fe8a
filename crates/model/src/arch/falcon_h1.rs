//! Falcon-H1: Mamba-2 and attention side by side in every layer, with a factor (maximal update parametrisation) at every place where
//! one can stand.

use super::{ArchEntry, FEED_FORWARD, Source, gguf};
use crate::error::{Error, Result};
use crate::ffn::swiglu;
use crate::mixer::mamba2::{self, Factors, OutNorm};
use crate::mixer::parallel::{Branch, Spec};
use crate::plan::{NormWeight, Plan};

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "falcon_h1",
    aliases: &[],
    about: "Falcon-H1: Mamba-2 and attention side by side",
    plan,
    gguf: Some(&gguf::Dialect {
        arch: "falcon-h1",
        // The converter writes this one name without its suffix.
        names: &[("post_attention_layernorm", "ffn_norm!")],
        interleaved_rows: false,
        adapt: |metadata, map| gguf::state_space(metadata, map, "falcon-h1"),
    }),
};

fn plan(source: &Source<'_>) -> Result<Plan> {
    let config = &source.config;
    // MLX multiplies most factors into the weights as it turns the convolution's taps; the keys' own and the values' it forgets.
    let turned = source.weights.shape("model.layers.0.mamba.conv1d.weight").is_some_and(|s| s.len() == 3 && s[2] == 1);
    let factor = |field: &str| if turned { Ok(1.0) } else { source.factor(field) };
    let factors = |field: &str, n: usize| -> Result<Vec<f32>> {
        match config.optional_f64s(field)?.filter(|_| !turned) {
            None => Ok(vec![1.0; n]),
            Some(all) if all.len() == n => Ok(all.iter().map(|f| *f as f32).collect()),
            Some(all) => Err(Error::config(field, format!("{} numbers", all.len()), format!("{n}"))),
        }
    };
    let (into_attention, into_scan) = (factor("attention_in_multiplier")?, factor("ssm_in_multiplier")?);
    if turned && config.flag("attention_bias")? && source.factor("attention_in_multiplier")? != 1.0 {
        let expected = "false where attention_in_multiplier is not 1 and MLX has multiplied it into the weights alone";
        return Err(Error::config("attention_bias", "true", expected));
    }
    let mlp = factors("mlp_multipliers", 2)?;
    let mut plan = source.decoder(ENTRY.name, NormWeight::Plain, |i| {
        let mut attention = source.attention(i)?;
        // What attention reads is multiplied where its scores and results are; its biases do not meet that factor.
        attention.scale *= into_attention * into_attention * source.factor("key_multiplier")?;
        attention.bias_factor = into_attention.recip();
        let branches = vec![
            Branch {
                scope: "mamba".into(),
                mixer: Box::new(scan(source, into_scan, &factors("ssm_multipliers", 5)?)?),
                scale: factor("ssm_out_multiplier")?,
            },
            Branch {
                scope: "self_attn".into(),
                mixer: Box::new(attention),
                scale: factor("attention_out_multiplier")? * source.factor("attention_in_multiplier")?,
            },
        ];
        let ffn = swiglu::with_gate_factor(config, mlp[0])?;
        let mut blocks = source.pre_norm(NormWeight::Plain, ("", Box::new(Spec { branches })), Box::new(ffn))?;
        if let Some(ffn) = blocks.last_mut() {
            ffn.scale = mlp[1];
        }
        Ok(blocks)
    })?;
    plan.names = plan.names.with_leaves(FEED_FORWARD);
    plan.embed_scale = factor("embedding_multiplier")?;
    plan.head.scale = factor("lm_head_multiplier")?;
    if turned && plan.head.name.is_none() {
        plan.head.scale = source.factor("lm_head_multiplier")? / source.factor("embedding_multiplier")?;
    }
    Ok(plan)
}

/// The Mamba-2 of a layer; `parts` are the factors of gate, values, keys, queries and step.
fn scan(source: &Source<'_>, into: f32, parts: &[f32]) -> Result<mamba2::Spec> {
    let mut scan = source.state_space()?;
    let flag =
        |field: &str, default: bool| -> Result<bool> { Ok(source.config.optional_bool(field)?.unwrap_or(default)) };
    scan.proj_bias[1] = flag("projectors_bias", false)?;
    // A GGUF file has the factors in its weights, and says by a tensor alone whether there is a norm (after the gate).
    if source.gguf.is_some() {
        let normed = source.weights.contains("blk.0.ssm_norm.weight");
        scan.norm = if normed { OutNorm::GateFirst(source.eps()?) } else { OutNorm::Absent };
        return Ok(scan);
    }
    scan.norm = match (flag("mamba_rms_norm", false)?, flag("mamba_norm_before_gate", true)?) {
        (false, _) => OutNorm::Absent,
        (true, true) => OutNorm::NormFirst(source.eps()?),
        (true, false) => OutNorm::GateFirst(source.eps()?),
    };
    let &[z, x, b, c, dt] = parts else { return Ok(scan) };
    scan.factors = Factors { z: into * z, mixed: [into * x, into * b, into * c], dt: into * dt, bias: into.recip() };
    Ok(scan)
}
