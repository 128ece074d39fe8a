//! Composed models: `layer_types` names a registered mixer for each layer and `ffn_types`, where there is one, a registered
//! feed-forward. Each mixer reads the fields that its own row reads; where its tensors lie below a layer is told by the checkpoint.

use serde_json::Value;

use super::{ArchEntry, Source};
use crate::error::{Error, Result};
use crate::ffn::swiglu;
use crate::plan::{Layer, NormWeight, Plan};
use crate::rewrite::keep_embedding::KeepEmbedding;

/// The row.
pub const ENTRY: ArchEntry = ArchEntry {
    name: "composed",
    aliases: &["hybrid"],
    about: "any registered mixers, named layer by layer in `layer_types`",
    plan,
    gguf: None,
};

/// Folders below a layer that hold a feed-forward, or what several layers share.
const NOT_MIXERS: &[&str] = &["block_sparse_moe", "feed_forward", "ffn", "mlp", "shared_transformer"];

fn plan(source: &Source<'_>) -> Result<Plan> {
    let mixers = words(source, "layer_types")?.map_or_else(|| uniform(source), Ok)?;
    let ffns = words(source, "ffn_types")?;
    let rows = source.weights.shape(&source.names().spell("model.embed_tokens.weight", source.weights));
    let vocab = rows.and_then(|s| s.first().copied()).map_or(Value::Null, Value::from);
    let source = source.with_fields([("layer_types".to_owned(), Value::from(mixers.clone()))]);
    let source = source.with_defaults(&[("vocab_size", vocab)]);
    let mut plan = source.decoder(ENTRY.name, NormWeight::Plain, |i| {
        let row = source.registries.mixer(&mixers[i])?;
        let scope = sublayer(&source, i)?;
        let has = |leaf: &str| source.weights.contains(&format!("{}{leaf}", within(&source, i, &scope)));
        let normed = ("use_qk_norm".to_owned(), has("q_norm.weight").into());
        let mixer = (row.spec)(&source.with_fields([normed]).config, i)?;
        let ffn = match &ffns {
            Some(ffns) => (source.registries.ffn(&ffns[i])?.spec)(&source.config, i)?,
            None => (swiglu::ENTRY.spec)(&source.config, i)?,
        };
        source.pre_norm(NormWeight::Plain, (&scope, mixer), ffn)
    })?;
    if plan.mixers().any(|m| m.reads_embedding()) {
        plan.before = Some(Layer::of_rewrites("model", vec![Box::new(KeepEmbedding)]));
    }
    Ok(plan)
}

/// The words of a list with one entry a layer.
fn words(source: &Source<'_>, field: &str) -> Result<Option<Vec<String>>> {
    let Some(words) = source.config.optional_texts(field)? else { return Ok(None) };
    let wanted = source.config.usize("num_hidden_layers")?;
    if words.len() != wanted {
        let expected = format!("num_hidden_layers = {wanted}");
        return Err(Error::config(field, format!("{} entries", words.len()), expected));
    }
    Ok(Some(words.iter().map(|w| word(w)).collect()))
}

/// As rows spell it.
pub(crate) fn word(word: &str) -> String {
    word.trim().to_lowercase().replace(['-', '.'], "_")
}

/// Without a list, the model's type must be a mixer, which then every layer has.
fn uniform(source: &Source<'_>) -> Result<Vec<String>> {
    let kind = word(source.config.optional_text("model_type")?.unwrap_or_default());
    if kind == ENTRY.name || ENTRY.aliases.contains(&kind.as_str()) || source.registries.mixer(&kind).is_err() {
        return Err(Error::config(
            "layer_types",
            "nothing",
            "a registered mixer for each layer; `list mixers` has them",
        ));
    }
    // As many as the decoder will ask for; it refuses what cannot be.
    Ok(vec![kind; source.config.usize("num_hidden_layers")?.min(10_000)])
}

/// How the checkpoint spells what lies in `scope` of layer `i`.
fn within(source: &Source<'_>, i: usize, scope: &str) -> String {
    let layer = source.names().spell(&format!("model.layers.{i}."), source.weights);
    if scope.is_empty() { layer } else { format!("{layer}{scope}.") }
}

/// The one folder of layer `i` that holds projections and is no feed-forward; none where the mixer's tensors lie in the layer itself.
fn sublayer(source: &Source<'_>, i: usize) -> Result<String> {
    let prefix = within(source, i, "");
    let mut found: Vec<String> = Vec::new();
    for name in source.weights.names() {
        let parts: Vec<&str> = name.strip_prefix(&prefix).map(|rest| rest.split('.').collect()).unwrap_or_default();
        if let [folder, _, _, ..] = parts[..]
            && !NOT_MIXERS.contains(&folder)
            && !found.iter().any(|f| f == folder)
        {
            found.push(folder.to_owned());
        }
    }
    match found.as_slice() {
        [] => Ok(String::new()),
        [one] => Ok(one.clone()),
        several => Err(Error::config(
            format!("tensors of layer {i}"),
            several.join(", "),
            "one folder for the mixer beside the feed-forward's",
        )),
    }
}
