//! JSON goes into a template as Python's own types would, members in the order of the text, and comes out by
//! `tojson` as `transformers` defines it: Python's `json.dumps` with `ensure_ascii=False`, byte for byte.
//! It refuses to know HTML, which Jinja's own `tojson` escapes for.

use std::fmt::Write;

use minijinja::value::{Kwargs, Rest, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use serde_json::Value as Json;

/// Deepest nesting that is printed.
const MAX_DEPTH: usize = 200;

/// A JSON value as a template sees it.
pub(super) fn to_value(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(truth) => Value::from(*truth),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(n), _) => Value::from(n),
            (None, Some(n)) => Value::from(n),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(members) => list(members),
        Json::Object(members) => {
            Value::from_pairs(members.iter().map(|(key, member)| (key.as_str(), to_value(member))))
        }
    }
}

/// A list of JSON values as a template sees it.
pub(super) fn list(members: &[Json]) -> Value {
    members.iter().map(to_value).collect()
}

/// `value | tojson(ensure_ascii=false, indent=none, separators=none, sort_keys=false)`
pub(super) fn tojson(state: &State<'_, '_>, value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    type Positional = Option<Value>;
    let args = args.into_values();
    let (ascii, indent, separators, sorted, named): (Positional, Positional, Positional, Positional, Kwargs) =
        from_args(&args)?;
    let option = |positional: Positional, name: &str| -> Result<Option<Value>, Error> {
        let found = if positional.is_some() { positional } else { named.get(name)? };
        Ok(found.filter(|v| !v.is_none() && !v.is_undefined()))
    };
    let ensure_ascii = option(ascii, "ensure_ascii")?.is_some_and(|v| v.is_true());
    let indent = option(indent, "indent")?.map(|width| indentation(&width)).transpose()?;
    let separators = option(separators, "separators")?;
    let sort_keys = option(sorted, "sort_keys")?.is_some_and(|v| v.is_true());
    named.assert_all_used()?;
    let (item, key) = match separators {
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
        Some(pair) => match pair.try_iter()?.map(|s| s.as_str().map(str::to_owned)).collect::<Vec<_>>().as_slice() {
            [Some(item), Some(key)] => (item.clone(), key.clone()),
            _ => {
                let message = format!("tojson: separators is {pair}; expected two strings");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        },
    };
    let characters = if ensure_ascii { Characters::Ascii } else { Characters::All };
    let order = if sort_keys { Order::Sorted } else { Order::Kept };
    let mut printer = Printer { out: String::new(), indent, item, key, characters, order };
    printer.value(value, 0)?;
    // Printing walks every member, which costs more than the bytes that the engine charges for.
    state.consume_fuel(printer.out.len() as u64 / 16)?;
    Ok(Value::from(printer.out))
}

fn indentation(width: &Value) -> Result<String, Error> {
    const MAX_INDENT: usize = 64;
    if let Some(text) = width.as_str().filter(|text| text.len() <= MAX_INDENT) {
        return Ok(text.to_owned());
    }
    match width.as_i64() {
        Some(n) if n <= MAX_INDENT as i64 => Ok(" ".repeat(usize::try_from(n).unwrap_or(0))),
        _ => Err(Error::new(
            ErrorKind::InvalidOperation,
            format!("tojson: indent {width}; expected at most {MAX_INDENT}"),
        )),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Characters {
    All,
    Ascii,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    Kept,
    Sorted,
}

struct Printer {
    out: String,
    indent: Option<String>,
    item: String,
    key: String,
    characters: Characters,
    order: Order,
}

impl Printer {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(Error::new(ErrorKind::InvalidOperation, format!("tojson: nested deeper than {MAX_DEPTH}")));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&number(value)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let members: Vec<Value> = value.try_iter()?.collect();
                self.members(['[', ']'], depth, &members, |this, member| this.value(member, depth + 1))?;
            }
            ValueKind::Map => {
                let mut entries = Vec::new();
                for key in value.try_iter()? {
                    let member = value.get_item(&key)?;
                    entries.push((key_name(&key)?, member));
                }
                if self.order == Order::Sorted {
                    entries.sort_by(|a, b| a.0.cmp(&b.0));
                }
                self.members(['{', '}'], depth, &entries, |this, (key, member)| {
                    this.string(key);
                    this.out.push_str(&this.key.clone());
                    this.value(member, depth + 1)
                })?;
            }
            other => {
                let message = format!("tojson: a value of type {other} is not JSON serialisable");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        }
        Ok(())
    }

    fn members<T>(
        &mut self,
        [open, close]: [char; 2],
        depth: usize,
        members: &[T],
        mut print: impl FnMut(&mut Self, &T) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        for (index, member) in members.iter().enumerate() {
            if index > 0 {
                self.out.push_str(&self.item.clone());
            }
            self.new_line(depth + 1);
            print(self, member)?;
        }
        if !members.is_empty() {
            self.new_line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            self.out.push_str(&indent.repeat(depth));
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                '\0'..='\u{1f}' => self.escape(c),
                // Under ensure_ascii Python prints only what is printable ASCII, which DEL is not.
                _ if self.characters == Characters::Ascii && !matches!(c, ' '..='~') => self.escape(c),
                _ => self.out.push(c),
            }
        }
        self.out.push('"');
    }

    fn escape(&mut self, c: char) {
        let mut units = [0_u16; 2];
        for unit in c.encode_utf16(&mut units) {
            // Writing to a string cannot fail.
            let _ = write!(self.out, "\\u{unit:04x}");
        }
    }
}

fn key_name(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or_default().to_owned()),
        ValueKind::None => Ok("null".into()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.into()),
        ValueKind::Number => Ok(number(key)),
        other => {
            let message = format!("tojson: a key of type {other}; expected str, int, float, bool or None");
            Err(Error::new(ErrorKind::InvalidOperation, message))
        }
    }
}

fn number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(float) if !value.is_integer() => match float {
            f if f.is_nan() => "NaN".into(),
            f if f.is_infinite() => if f > 0.0 { "Infinity" } else { "-Infinity" }.into(),
            f => float_repr(f),
        },
        _ => value.to_string(),
    }
}

/// A finite float as Python's `repr` prints it: the shortest digits that read back the same, with an exponent below 1e-4
/// and from 1e16 on.
pub(super) fn float_repr(value: f64) -> String {
    let scientific = format!("{value:e}");
    let Some((mantissa, exponent)) = scientific.split_once('e') else { return scientific };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = value.to_string();
        return if plain.contains('.') { plain } else { format!("{plain}.0") };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.abs())
}

#[cfg(test)]
mod tests {
    use super::float_repr;

    #[test]
    fn floats_print_as_python_prints_them() {
        // Right-hand sides are what Python 3.11 prints.
        let cases = [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1.0 / 3.0, "0.3333333333333333"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.2345678901234568e17, "1.2345678901234568e+17"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (1e100, "1e+100"),
            (5e-324, "5e-324"),
            (123456.789, "123456.789"),
            (9999999999999998.0, "9999999999999998.0"),
        ];
        for (value, text) in cases {
            assert_eq!(float_repr(value), text);
        }
    }
}
