//! What templates expect of Python's own types and the `minijinja` crates lack or do otherwise: string methods, tests of
//! types, and numbers as Python reads and prints them. It refuses to change a value: as in `transformers`' sandbox, a template cannot append to a list.

use minijinja::value::{Kwargs, Tuple, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value};

use super::repr;

/// Adds the filters, tests and functions that behave as Jinja's own on Python.
pub(super) fn install(environment: &mut Environment<'static>) {
    environment.set_formatter(write);
    environment.set_unknown_method_callback(call_method);
    environment.add_filter("center", |text: &str, width: Option<usize>| pad(text, "center", width.unwrap_or(80), None));
    environment.add_filter("float", float);
    environment.add_filter("indent", indent);
    environment.add_filter("int", int);
    environment.add_filter("string", string);
    environment.add_filter("wordcount", |text: &str| {
        text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|w| !w.is_empty()).count()
    });
    environment.add_test("callable", |value: &Value| value.kind() == ValueKind::Plain);
    environment.add_test("iterable", is_iterable);
    environment.add_test("sequence", |value: &Value| is_iterable(value) && value.kind() != ValueKind::Iterable);
    environment.add_function("joiner", minijinja_contrib::globals::joiner);
}

fn is_iterable(value: &Value) -> bool {
    use ValueKind::{Iterable, Map, Seq, String, Undefined};
    matches!(value.kind(), Iterable | Map | Seq | String | Undefined)
}

/// `value | string`, as `str(value)`.
fn string(value: &Value) -> Result<Value, Error> {
    Ok(if value.kind() == ValueKind::String { value.clone() } else { Value::from(repr::of(value)?) })
}

/// `value | int(default=0)`: what is no number is the default, never an error.
fn int(value: &Value, default: Option<Value>) -> Value {
    let whole = |float: f64| float.is_finite().then(|| Value::from(float.trunc() as i128));
    let read = match value.kind() {
        ValueKind::Bool => Some(Value::from(i64::from(value.is_true()))),
        ValueKind::Number if value.is_integer() => Some(value.clone()),
        ValueKind::Number => f64::try_from(value.clone()).ok().and_then(whole),
        ValueKind::String => value.as_str().map(str::trim).and_then(|text| {
            let text = text.replace('_', "");
            text.parse::<i128>().ok().map(Value::from).or_else(|| text.parse().ok().and_then(whole))
        }),
        _ => None,
    };
    read.or(default).unwrap_or_else(|| Value::from(0))
}

/// `value | float(default=0.0)`: what is no number is the default, never an error.
fn float(value: &Value, default: Option<Value>) -> Value {
    let read = match value.kind() {
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        ValueKind::Number => f64::try_from(value.clone()).ok(),
        ValueKind::String => value.as_str().and_then(|text| text.trim().parse().ok()),
        _ => None,
    };
    read.map(Value::from).or(default).unwrap_or_else(|| Value::from(0.0))
}

/// `value | indent(width=4, first=false, blank=false)`; unlike `minijinja`'s own it keeps a trailing line break.
fn indent(
    text: &str,
    width: Option<Value>,
    first: Option<bool>,
    blank: Option<bool>,
    named: Kwargs,
) -> Result<String, Error> {
    const MAX_WIDTH: i64 = 256;
    let width = if width.is_some() { width } else { named.get::<Option<Value>>("width")? };
    let first = first.or(named.get::<Option<bool>>("first")?).unwrap_or(false);
    let blank = blank.or(named.get::<Option<bool>>("blank")?).unwrap_or(false);
    named.assert_all_used()?;
    let margin = match width {
        None => " ".repeat(4),
        Some(width) => match (width.as_str(), width.as_i64()) {
            (Some(margin), _) => margin.to_owned(),
            (None, Some(n @ ..=MAX_WIDTH)) => " ".repeat(usize::try_from(n).unwrap_or(0)),
            _ => {
                let message = format!("indent: width {width}; expected at most {MAX_WIDTH}");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        },
    };
    let mut out = String::new();
    for (index, line) in text.split('\n').enumerate() {
        if index > 0 {
            out.push('\n');
        }
        let wanted = if index == 0 { first } else { blank || !line.is_empty() };
        if wanted {
            out.push_str(&margin);
        }
        out.push_str(line);
    }
    Ok(out)
}

/// Prints a value where a template writes `{{ value }}`.
fn write(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Number | ValueKind::Seq | ValueKind::Map => out.write_str(&repr::of(value)?).map_err(Error::from),
        _ => minijinja::escape_formatter(out, state, value),
    }
}

/// Methods of Python's `str`, `dict` and `list`.
fn call_method(state: &mut State<'_, '_>, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str()
        && let Some(result) = string_method(text, method, args)?
    {
        return Ok(result);
    }
    let mutating = match value.kind() {
        ValueKind::Map => matches!(method, "clear" | "pop" | "popitem" | "setdefault" | "update"),
        ValueKind::Seq => {
            matches!(method, "append" | "clear" | "extend" | "insert" | "pop" | "remove" | "reverse" | "sort")
        }
        _ => false,
    };
    if mutating {
        let message = format!("{method} would change a value, which templates may not do");
        return Err(Error::new(ErrorKind::InvalidOperation, message));
    }
    match (value.kind(), method) {
        (ValueKind::Map | ValueKind::Seq, "copy") => {
            let () = from_args(args)?;
            Ok(value.clone())
        }
        (ValueKind::Seq, "index") => {
            let (wanted,): (&Value,) = from_args(args)?;
            match value.try_iter()?.position(|member| member == *wanted) {
                Some(at) => Ok(Value::from(at)),
                None => Err(Error::new(ErrorKind::InvalidOperation, format!("{wanted} is not in list"))),
            }
        }
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args),
    }
}

/// The methods of `str` that are not in `minijinja-contrib`, or differ there from Python.
fn string_method(text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let result = match method {
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "partition" => {
            let (separator,): (&str,) = from_args(args)?;
            let (before, after) =
                separated(text.split_once(non_empty(separator)?), separator).unwrap_or(((text, ""), ""));
            tuple([before.0, before.1, after])
        }
        "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            let (before, after) =
                separated(text.rsplit_once(non_empty(separator)?), separator).unwrap_or((("", ""), text));
            tuple([before.0, before.1, after])
        }
        "split" | "rsplit" => {
            let (separator, limit, named): (Option<Value>, Option<i64>, Kwargs) = from_args(args)?;
            let separator = match separator {
                Some(separator) => Some(separator),
                None => named.get::<Option<Value>>("sep")?,
            };
            let limit = match limit {
                Some(limit) => Some(limit),
                None => named.get::<Option<i64>>("maxsplit")?,
            };
            named.assert_all_used()?;
            let limit = limit.and_then(|n| usize::try_from(n).ok()).map_or(usize::MAX, |n| n.saturating_add(1));
            let separator = separator.filter(|v| !v.is_none() && !v.is_undefined());
            let parts = match (separator.as_ref().map(|v| v.as_str()), method) {
                (None, "split") => split_white_space(text, limit),
                (None, _) => rsplit_white_space(text, limit),
                (Some(Some(separator)), "split") => text.splitn(limit, non_empty(separator)?).collect(),
                (Some(Some(separator)), _) => {
                    let mut parts: Vec<&str> = text.rsplitn(limit, non_empty(separator)?).collect();
                    parts.reverse();
                    parts
                }
                (Some(None), _) => {
                    return Err(Error::new(ErrorKind::InvalidOperation, "split: the separator must be a string"));
                }
            };
            parts.into_iter().map(Value::from).collect()
        }
        "splitlines" => {
            let (keep, named): (Option<bool>, Kwargs) = from_args(args)?;
            let keep = keep.or(named.get::<Option<bool>>("keepends")?).unwrap_or(false);
            named.assert_all_used()?;
            split_lines(text)
                .into_iter()
                .map(|(line, end)| if keep { format!("{line}{end}") } else { line.into() })
                .collect()
        }
        "index" | "rindex" => {
            let (wanted,): (&str,) = from_args(args)?;
            let found = if method == "index" { text.find(wanted) } else { text.rfind(wanted) };
            match found {
                Some(at) => Value::from(text.get(..at).map_or(0, |head| head.chars().count())),
                None => return Err(Error::new(ErrorKind::InvalidOperation, "substring not found")),
            }
        }
        "center" | "ljust" | "rjust" | "zfill" => {
            let (width, fill): (usize, Option<char>) = from_args(args)?;
            Value::from(pad(text, method, width, fill)?)
        }
        "istitle" => {
            let () = from_args(args)?;
            Value::from(is_title(text))
        }
        "title" => {
            let () = from_args(args)?;
            Value::from(title(text))
        }
        "isdecimal" => {
            let () = from_args(args)?;
            Value::from(!text.is_empty() && text.chars().all(|c| c.is_ascii_digit()))
        }
        "casefold" => {
            let () = from_args(args)?;
            Value::from(text.to_lowercase())
        }
        "swapcase" => {
            let () = from_args(args)?;
            let swap =
                |c: char| if c.is_uppercase() { c.to_lowercase().to_string() } else { c.to_uppercase().to_string() };
            Value::from(text.chars().map(swap).collect::<String>())
        }
        _ => return Ok(None),
    };
    Ok(Some(result))
}

type Parted<'t> = ((&'t str, &'t str), &'t str);

fn separated<'t>(parts: Option<(&'t str, &'t str)>, separator: &'t str) -> Option<Parted<'t>> {
    parts.map(|(before, after)| ((before, separator), after))
}

fn tuple(parts: [&str; 3]) -> Value {
    Value::from(Tuple::from(parts.map(Value::from)))
}

/// Python calls every run of letters a word: `it's` becomes `It'S`.
fn title(text: &str) -> String {
    let mut after_letter = false;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if after_letter {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
        after_letter = c.is_alphabetic();
    }
    out
}

fn is_title(text: &str) -> bool {
    text.chars().any(char::is_alphabetic) && title(text) == text
}

fn pad(text: &str, method: &str, width: usize, fill: Option<char>) -> Result<String, Error> {
    const MAX_WIDTH: usize = 4096;
    if width > MAX_WIDTH {
        let message = format!("{method}: width {width}; expected at most {MAX_WIDTH}");
        return Err(Error::new(ErrorKind::InvalidOperation, message));
    }
    let missing = width.saturating_sub(text.chars().count());
    let fill_with = |n: usize| String::from_iter(std::iter::repeat_n(fill.unwrap_or(' '), n));
    Ok(match method {
        "ljust" => format!("{text}{}", fill_with(missing)),
        "rjust" => format!("{}{text}", fill_with(missing)),
        "zfill" => {
            let digits = text.trim_start_matches(['+', '-']);
            let sign = text.len() - digits.len();
            let (sign, digits) = if sign == 1 { text.split_at(1) } else { ("", text) };
            format!("{sign}{}{digits}", "0".repeat(missing))
        }
        _ => {
            // CPython puts the odd space on the left when the width is odd.
            let left = missing / 2 + (missing & width & 1);
            format!("{}{text}{}", fill_with(left), fill_with(missing - left))
        }
    })
}

fn non_empty(separator: &str) -> Result<&str, Error> {
    if separator.is_empty() {
        return Err(Error::new(ErrorKind::InvalidOperation, "empty separator"));
    }
    Ok(separator)
}

/// At most `limit` words; the last takes the rest, its trailing white space included, as in Python.
fn split_white_space(text: &str, limit: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        if parts.len() + 1 >= limit {
            parts.push(rest);
            break;
        }
        let (word, after) = rest.split_at(rest.find(char::is_whitespace).unwrap_or(rest.len()));
        parts.push(word);
        rest = after.trim_start();
    }
    parts
}

fn rsplit_white_space(text: &str, limit: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text.trim_end();
    while !rest.is_empty() {
        if parts.len() + 1 >= limit {
            parts.push(rest);
            break;
        }
        let start = rest.char_indices().rev().find(|(_, c)| c.is_whitespace()).map_or(0, |(at, c)| at + c.len_utf8());
        let (before, word) = rest.split_at(start);
        parts.push(word);
        rest = before.trim_end();
    }
    parts.reverse();
    parts
}

/// Lines and their ends, cut where Python's `str.splitlines` cuts.
fn split_lines(text: &str) -> Vec<(&str, &str)> {
    let is_end = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}' | '\u{1d}' | '\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(is_end) {
        let (line, after) = rest.split_at(at);
        let width = if after.starts_with("\r\n") { 2 } else { after.chars().next().map_or(0, char::len_utf8) };
        let (end, after) = after.split_at(width);
        lines.push((line, end));
        rest = after;
    }
    if !rest.is_empty() {
        lines.push((rest, ""));
    }
    lines
}
