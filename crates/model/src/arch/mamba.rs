//! Mamba and Falcon Mamba: layers that are one mixer each. Falcon Mamba normalises step, input and output of the scan, without
//! weights.

use reverie_files::gguf::Metadata;
use serde_json::{Map, Value};

use super::{ArchEntry, Source, gguf};
use crate::error::Result;
use crate::mixer::mamba::{self, InnerNorms};
use crate::plan::{NormWeight, Part, Plan};

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "mamba",
    aliases: &["falcon_mamba"],
    about: "Mamba, Falcon Mamba: selective scans (S6) alone",
    plan,
    gguf: Some(&gguf::Dialect { arch: "mamba", names: &[], interleaved_rows: false, adapt }),
};

fn adapt(metadata: &Metadata, map: &mut Map<String, Value>) -> Result<()> {
    let sizes = [
        ("ssm.conv_kernel", "conv_kernel"),
        ("ssm.inner_size", "mamba_d_ssm"),
        ("ssm.state_size", "state_size"),
        ("ssm.time_step_rank", "time_step_rank"),
    ];
    if metadata.optional_bool("mamba.ssm.dt_b_c_rms")?.unwrap_or(false) {
        map.insert("model_type".into(), "falcon_mamba".into());
    }
    gguf::counts(metadata, map, "mamba", &sizes)
}

fn plan(source: &Source<'_>) -> Result<Plan> {
    let config = &source.config;
    let normed = config.optional_text("model_type")? == Some("falcon_mamba");
    let eps = config.optional_f64("mixer_rms_eps")?.unwrap_or(1e-6) as f32;
    source.decoder(ENTRY.name, NormWeight::Plain, |_| {
        let mut scan = mamba::Spec::from_config(config)?;
        scan.norms = if normed { InnerNorms::Plain(eps) } else { InnerNorms::Absent };
        scan.rates = source.rates();
        Ok(vec![source.lone("mixer", Part::Mixer(Box::new(scan)))?])
    })
}
