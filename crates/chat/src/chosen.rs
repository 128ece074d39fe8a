//! How answers were chosen, as the `sampler` of a manifest holds it: the parameters, and where the generator stands. It knows no session.

use reverie_engine::sample::{PARAMS, SamplerParams, SamplerState};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// The field that holds the generator: the bytes of [`SamplerState::to_bytes`] as hexadecimal digits. All others are parameters.
const GENERATOR: &str = "generator";

/// What the next answer goes on from.
pub fn chosen(params: &SamplerParams, state: &SamplerState) -> Result<Value> {
    let mut fields = Map::new();
    for param in PARAMS {
        fields.insert(param.name.to_owned(), params.get(param.name)?.into());
    }
    let digits: String = state.to_bytes().iter().map(|b| format!("{b:02x}")).collect();
    fields.insert(GENERATOR.to_owned(), digits.into());
    Ok(Value::Object(fields))
}

/// Where the generator stood; none if nothing was drawn yet.
pub fn generator(chosen: &Value) -> Result<Option<SamplerState>> {
    let Some(found) = chosen.get(GENERATOR) else { return Ok(None) };
    let refuse = || Error::Generator { found: found.to_string().chars().take(40).collect() };
    let digits = found.as_str().filter(|d| d.is_ascii()).ok_or_else(refuse)?;
    let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
    let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Option<Vec<u8>> = pairs.iter().map(byte).collect();
    let bytes = bytes.filter(|_| rest.is_empty()).ok_or_else(refuse)?;
    Ok(Some(SamplerState::from_bytes(&bytes)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use reverie_engine::sample::Sampler;

    #[test]
    fn what_is_noted_is_found_again() {
        let params = SamplerParams { seed: Some(5), mirostat: 2, ..SamplerParams::default() };
        let state = Sampler::new(params.clone()).unwrap().state();
        let value = chosen(&params, &state).unwrap();
        assert_eq!(generator(&value).unwrap(), Some(state));
        assert_eq!(value["seed"], "5");
        assert_eq!(generator(&Value::Null).unwrap(), None);
    }

    #[test]
    fn what_is_no_generator_is_refused() {
        for bad in ["", "5", "0g", "5253", "é0"] {
            assert!(generator(&serde_json::json!({ "generator": bad })).is_err(), "{bad}");
        }
        assert!(generator(&serde_json::json!({"generator": 7})).is_err());
    }
}
