//! A checkpoint becomes a plan, whichever kind it is.

use reverie_files::Checkpoint;
use reverie_files::checkpoint::Origin;
use reverie_model::arch::{Source, gguf};
use reverie_model::{Plan, Registries};

use crate::error::Result;

/// The plan of a folder's config.json or of a GGUF file's metadata.
pub fn plan(checkpoint: &Checkpoint, registries: &Registries, context: Option<usize>) -> Result<Plan> {
    let weights = checkpoint.weights.as_ref();
    match &checkpoint.origin {
        Origin::Folder { config, .. } => {
            let arch = registries.arch(config.text("model_type")?)?;
            Ok((arch.plan)(&Source::hugging_face(config, weights, registries)?.wanting(context))?)
        }
        Origin::Gguf { metadata } => {
            let arch = registries.arch_of_gguf(metadata.text("general.architecture")?)?;
            let Some(dialect) = arch.gguf else { unreachable!("found by its dialect") };
            let config = gguf::config(metadata, weights, dialect)?;
            let source = Source { whole: config.clone(), config, weights, gguf: Some(dialect), registries };
            Ok((arch.plan)(&source.wanting(context))?)
        }
    }
}
