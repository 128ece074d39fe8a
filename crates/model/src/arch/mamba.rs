//! Mamba and Falcon Mamba: layers that are one mixer each. Falcon Mamba normalises step, input and output of the scan, without
//! weights.

use super::{ArchEntry, Source, gguf};
use crate::error::Result;
use crate::mixer::mamba::{self, InnerNorms, Rates};
use crate::plan::{NormWeight, Plan};

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "mamba",
    aliases: &["falcon_mamba"],
    about: "Mamba, Falcon Mamba: selective scans (S6) alone",
    plan,
    gguf: Some(&gguf::Dialect {
        arch: "mamba",
        names: &[
            ("mixer.A_log", "ssm_a!"),
            ("mixer.D", "ssm_d!"),
            ("mixer.conv1d", "ssm_conv1d"),
            ("mixer.dt_proj", "ssm_dt"),
            ("mixer.in_proj", "ssm_in"),
            ("mixer.out_proj", "ssm_out"),
            ("mixer.x_proj", "ssm_x"),
            ("norm", "attn_norm"),
        ],
        interleaved_rows: false,
        adapt: gguf::mamba,
    }),
};

fn plan(source: &Source<'_>) -> Result<Plan> {
    let config = &source.config;
    let normed = config.optional_text("model_type")? == Some("falcon_mamba");
    let eps = config.optional_f64("mixer_rms_eps")?.unwrap_or(1e-6) as f32;
    source.decoder(ENTRY.name, NormWeight::Plain, |_| {
        let mut scan = mamba::Spec::from_config(config)?;
        scan.norms = if normed { InnerNorms::Plain(eps) } else { InnerNorms::Absent };
        scan.rates = if source.gguf.is_some() { Rates::Plain } else { Rates::Log };
        Ok(vec![source.lone("mixer", Box::new(scan))?])
    })
}
