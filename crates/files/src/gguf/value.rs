//! GGUF metadata: typed values by key, and getters whose errors name the key. Integers widen to 64 bits and floats to f64
//! on reading, so a caller does not care which width a converter chose.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::read::Cursor;
use crate::error::{Error, Result, excerpt};

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// u8, u16, u32 or u64.
    Unsigned(u64),
    /// i8, i16, i32 or i64.
    Signed(i64),
    /// f32 or f64.
    Float(f64),
    /// Bool.
    Bool(bool),
    /// String.
    Text(String),
    /// Array.
    List(List),
}

/// An array of one type.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum List {
    Unsigned(Vec<u64>),
    Signed(Vec<i64>),
    Float(Vec<f64>),
    Bool(Vec<bool>),
    Text(Vec<String>),
    Lists(Vec<List>),
}

/// The key-value section of a file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    path: PathBuf,
    values: BTreeMap<String, Value>,
}

/// Bytes of the shortest pair: one-letter key, one-byte value.
const LEAST_PAIR_BYTES: u64 = 8 + 1 + 4 + 1;
/// Arrays within arrays.
const MOST_DEPTH: u32 = 4;

const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// Bytes of a value of that type in the file, at least.
fn least_bytes(kind: u32) -> u64 {
    match kind {
        0 | 1 | BOOL => 1,
        2 | 3 => 2,
        4..=6 => 4,
        ARRAY => 12,
        _ => 8,
    }
}

impl Value {
    /// The type's name, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::Unsigned(_) => "unsigned integer",
            Value::Signed(_) => "signed integer",
            Value::Float(_) => "float",
            Value::Bool(_) => "bool",
            Value::Text(_) => "string",
            Value::List(list) => list.kind(),
        }
    }

    fn read(cursor: &mut Cursor<'_>, key: &str, kind: u32, depth: u32) -> Result<Value> {
        Ok(match kind {
            0 => Value::Unsigned(u64::from(u8::from_le_bytes(cursor.array(key)?))),
            1 => Value::Signed(i64::from(i8::from_le_bytes(cursor.array(key)?))),
            2 => Value::Unsigned(u64::from(u16::from_le_bytes(cursor.array(key)?))),
            3 => Value::Signed(i64::from(i16::from_le_bytes(cursor.array(key)?))),
            4 => Value::Unsigned(u64::from(cursor.u32(key)?)),
            5 => Value::Signed(i64::from(i32::from_le_bytes(cursor.array(key)?))),
            6 => Value::Float(f64::from(f32::from_le_bytes(cursor.array(key)?))),
            BOOL => match cursor.array::<1>(key)? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => {
                    return Err(Error::format(cursor.path(), key, format!("the byte {other} as bool"), "0 or 1"));
                }
            },
            STRING => Value::Text(cursor.string(key)?),
            ARRAY => Value::List(List::read(cursor, key, depth + 1)?),
            10 => Value::Unsigned(cursor.u64(key)?),
            11 => Value::Signed(i64::from_le_bytes(cursor.array(key)?)),
            12 => Value::Float(f64::from_le_bytes(cursor.array(key)?)),
            _ => return Err(Error::format(cursor.path(), key, format!("value type {kind}"), "a type from 0 to 12")),
        })
    }
}

impl List {
    /// The type's name, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            List::Unsigned(_) => "array of unsigned integers",
            List::Signed(_) => "array of signed integers",
            List::Float(_) => "array of floats",
            List::Bool(_) => "array of bools",
            List::Text(_) => "array of strings",
            List::Lists(_) => "array of arrays",
        }
    }

    /// Elements.
    pub fn len(&self) -> usize {
        match self {
            List::Unsigned(v) => v.len(),
            List::Signed(v) => v.len(),
            List::Float(v) => v.len(),
            List::Bool(v) => v.len(),
            List::Text(v) => v.len(),
            List::Lists(v) => v.len(),
        }
    }

    /// True if it has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn read(cursor: &mut Cursor<'_>, key: &str, depth: u32) -> Result<List> {
        if depth > MOST_DEPTH {
            return Err(Error::format(
                cursor.path(),
                key,
                format!("arrays {depth} deep"),
                format!("at most {MOST_DEPTH}"),
            ));
        }
        let kind = cursor.u32(key)?;
        let count = cursor.count(key, least_bytes(kind))?;
        let mut list = match kind {
            0 | 2 | 4 | 10 => List::Unsigned(Vec::new()),
            1 | 3 | 5 | 11 => List::Signed(Vec::new()),
            6 | 12 => List::Float(Vec::new()),
            BOOL => List::Bool(Vec::new()),
            STRING => List::Text(Vec::new()),
            ARRAY => List::Lists(Vec::new()),
            _ => return Err(Error::format(cursor.path(), key, format!("element type {kind}"), "a type from 0 to 12")),
        };
        for _ in 0..count {
            cursor.spend(key, size_of::<u64>())?;
            match (&mut list, Value::read(cursor, key, kind, depth)?) {
                (List::Unsigned(v), Value::Unsigned(x)) => v.push(x),
                (List::Signed(v), Value::Signed(x)) => v.push(x),
                (List::Float(v), Value::Float(x)) => v.push(x),
                (List::Bool(v), Value::Bool(x)) => v.push(x),
                (List::Text(v), Value::Text(x)) => v.push(x),
                (List::Lists(v), Value::List(x)) => {
                    cursor.spend(key, size_of::<List>())?;
                    v.push(x);
                }
                // `kind` decides both sides.
                (_, other) => return Err(Error::format(cursor.path(), key, other.kind(), "elements of one type")),
            }
        }
        Ok(list)
    }
}

impl Metadata {
    pub(super) fn read(cursor: &mut Cursor<'_>) -> Result<Metadata> {
        let count = cursor.count("metadata count", LEAST_PAIR_BYTES)?;
        let mut values = BTreeMap::new();
        for _ in 0..count {
            let key = cursor.string("metadata key")?;
            let what = format!("key '{}'", excerpt(&key));
            let kind = cursor.u32(&what)?;
            let value = Value::read(cursor, &what, kind, 0)?;
            if values.insert(key, value).is_some() {
                return Err(Error::format(cursor.path(), what, "two values", "one"));
            }
        }
        Ok(Metadata { path: cursor.path().to_owned(), values })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keys and values, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.values.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    fn wrong(&self, key: &str, value: &Value, expected: &str) -> Error {
        Error::format(&self.path, format!("key '{key}'"), value.kind(), expected)
    }

    fn need<T>(&self, key: &str, value: Option<T>, expected: &str) -> Result<T> {
        value.ok_or_else(|| Error::format(&self.path, format!("key '{key}'"), "nothing", expected))
    }

    /// A non-negative integer of any width; none if the key is absent.
    pub fn optional_u64(&self, key: &str) -> Result<Option<u64>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Unsigned(x)) => Ok(Some(*x)),
            Some(Value::Signed(x)) if *x >= 0 => Ok(Some(*x as u64)),
            Some(other) => Err(self.wrong(key, other, "a non-negative integer")),
        }
    }

    /// A non-negative integer of any width.
    pub fn u64(&self, key: &str) -> Result<u64> {
        self.need(key, self.optional_u64(key)?, "a non-negative integer")
    }

    /// A count or size; none if the key is absent.
    pub fn optional_usize(&self, key: &str) -> Result<Option<usize>> {
        let value = self.optional_u64(key)?.map(usize::try_from).transpose();
        value.map_err(|_| Error::format(&self.path, format!("key '{key}'"), "a number beyond this machine", "a size"))
    }

    /// A count or size.
    pub fn usize(&self, key: &str) -> Result<usize> {
        self.need(key, self.optional_usize(key)?, "a non-negative integer")
    }

    /// A number; none if the key is absent.
    pub fn optional_f64(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Float(x)) => Ok(Some(*x)),
            Some(Value::Unsigned(x)) => Ok(Some(*x as f64)),
            Some(Value::Signed(x)) => Ok(Some(*x as f64)),
            Some(other) => Err(self.wrong(key, other, "a number")),
        }
    }

    /// A number.
    pub fn f64(&self, key: &str) -> Result<f64> {
        self.need(key, self.optional_f64(key)?, "a number")
    }

    /// A bool; none if the key is absent.
    pub fn optional_bool(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(x)) => Ok(Some(*x)),
            Some(other) => Err(self.wrong(key, other, "a bool")),
        }
    }

    /// A string; none if the key is absent.
    pub fn optional_text(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Text(x)) => Ok(Some(x)),
            Some(other) => Err(self.wrong(key, other, "a string")),
        }
    }

    /// A string.
    pub fn text(&self, key: &str) -> Result<&str> {
        self.need(key, self.optional_text(key)?, "a string")
    }

    /// An array of strings; none if the key is absent.
    pub fn optional_texts(&self, key: &str) -> Result<Option<&[String]>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::List(List::Text(x))) => Ok(Some(x)),
            Some(other) => Err(self.wrong(key, other, "an array of strings")),
        }
    }

    /// An array of numbers; none if the key is absent.
    pub fn optional_f64s(&self, key: &str) -> Result<Option<Vec<f64>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::List(List::Float(x))) => Ok(Some(x.clone())),
            Some(Value::List(List::Unsigned(x))) => Ok(Some(x.iter().map(|&x| x as f64).collect())),
            Some(Value::List(List::Signed(x))) => Ok(Some(x.iter().map(|&x| x as f64).collect())),
            Some(other) => Err(self.wrong(key, other, "an array of numbers")),
        }
    }

    /// An array of integers; none if the key is absent.
    pub fn optional_i64s(&self, key: &str) -> Result<Option<Vec<i64>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::List(List::Signed(x))) => Ok(Some(x.clone())),
            Some(value @ Value::List(List::Unsigned(x))) => {
                let signed = x.iter().map(|&x| i64::try_from(x)).collect::<Result<_, _>>();
                signed.map(Some).map_err(|_| self.wrong(key, value, "integers below 2^63"))
            }
            Some(other) => Err(self.wrong(key, other, "an array of integers")),
        }
    }

    /// An array of bools; none if the key is absent.
    pub fn optional_bools(&self, key: &str) -> Result<Option<&[bool]>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::List(List::Bool(x))) => Ok(Some(x)),
            Some(other) => Err(self.wrong(key, other, "an array of bools")),
        }
    }
}
