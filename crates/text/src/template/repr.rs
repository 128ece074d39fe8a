//! Values as Python's `repr` prints them, which is how `str` prints what lies inside a list or a dict: some templates write tools
//! that way. It refuses to know the objects of the template engine; those print themselves.

use std::fmt::Write;

use minijinja::value::{Tuple, ValueKind};
use minijinja::{Error, ErrorKind, Value};

use super::json::float_repr;

/// Deepest nesting that is printed; Python gives up there as well.
const MAX_DEPTH: usize = 900;

/// `repr(value)`.
pub(super) fn of(value: &Value) -> Result<String, Error> {
    let mut out = String::new();
    print(&mut out, value, 0)?;
    Ok(out)
}

fn print(out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        let message = format!("a value nested deeper than {MAX_DEPTH} cannot be printed");
        return Err(Error::new(ErrorKind::InvalidOperation, message));
    }
    match value.kind() {
        ValueKind::String => string(out, value.as_str().unwrap_or_default()),
        ValueKind::Number if !value.is_integer() => out.push_str(&match f64::try_from(value.clone()) {
            Ok(float) if float.is_finite() => float_repr(float),
            Ok(float) => float.to_string().to_lowercase(),
            Err(_) => value.to_string(),
        }),
        ValueKind::Seq => {
            let tuple = value.downcast_object_ref::<Tuple>().is_some();
            out.push(if tuple { '(' } else { '[' });
            let mut n = 0;
            for member in value.try_iter()? {
                separate(out, n);
                print(out, &member, depth + 1)?;
                n += 1;
            }
            out.push_str(match (tuple, n) {
                (true, 1) => ",)",
                (true, _) => ")",
                (false, _) => "]",
            });
        }
        ValueKind::Map => {
            out.push('{');
            for (n, key) in value.try_iter()?.enumerate() {
                separate(out, n);
                print(out, &key, depth + 1)?;
                out.push_str(": ");
                print(out, &value.get_item(&key)?, depth + 1)?;
            }
            out.push('}');
        }
        ValueKind::Undefined => out.push_str("Undefined"),
        _ => out.push_str(&value.to_string()),
    }
    Ok(())
}

fn separate(out: &mut String, n: usize) {
    if n > 0 {
        out.push_str(", ");
    }
}

/// Single quotes, unless only those occur inside.
fn string(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        // Writing to a string cannot fail.
        let _ = match c {
            '\n' => out.write_str("\\n"),
            '\r' => out.write_str("\\r"),
            '\t' => out.write_str("\\t"),
            '\\' => out.write_str("\\\\"),
            c if c == quote => write!(out, "\\{c}"),
            c if is_printable(c) => out.write_char(c),
            c @ ..='\u{ff}' => write!(out, "\\x{:02x}", u32::from(c)),
            c @ ..='\u{ffff}' => write!(out, "\\u{:04x}", u32::from(c)),
            c => write!(out, "\\U{:08x}", u32::from(c)),
        };
    }
    out.push(quote);
}

/// What `str.isprintable` says: the same categories as Rust's own for what it escapes inside a text.
fn is_printable(c: char) -> bool {
    matches!(c, ' '..='~') || !c.is_ascii() && String::from_iter(['a', c]).escape_debug().nth(1) == Some(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_print_as_python_prints_them() {
        // Right-hand sides are what Python 3.11 prints.
        let cases = [
            ("it's", r#""it's""#),
            ("say \"x\"", r#"'say "x"'"#),
            ("both ' \"", r#"'both \' "'"#),
            ("nl\n\t\r\\", r"'nl\n\t\r\\'"),
            ("\0\x1f\x7f\u{80}\u{a0}\u{ad}", r"'\x00\x1f\x7f\x80\xa0\xad'"),
            ("é e\u{301} \u{1f600}", "'é e\u{301} \u{1f600}'"),
            ("\u{200b}\u{2028}\u{3000}\u{feff}\u{e000}", r"'\u200b\u2028\u3000\ufeff\ue000'"),
            ("\u{10ffff}", r"'\U0010ffff'"),
        ];
        for (text, want) in cases {
            assert_eq!(of(&Value::from(text)).unwrap(), want);
        }
    }

    #[test]
    fn containers_print_as_python_prints_them() {
        let list = Value::from(vec![Value::from(1e20), Value::from(1e-5), Value::from(true), Value::from(())]);
        assert_eq!(of(&list).unwrap(), "[1e+20, 1e-05, True, None]");
        assert_eq!(of(&Value::from(Tuple::from([Value::from(1)]))).unwrap(), "(1,)");
        assert_eq!(of(&Value::from_pairs([("a", list)])).unwrap(), "{'a': [1e+20, 1e-05, True, None]}");
        let deep = (0..2 * MAX_DEPTH).fold(Value::from(1), |inner, _| Value::from(vec![inner]));
        assert!(of(&deep).is_err());
    }
}
