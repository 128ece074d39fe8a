//! Row views: a matrix that is a selection of another's rows, or several matrices one below another.
//! Slices of fused projections, experts of a stacked tensor and rope permutations are all of this kind.

use std::ops::Range;
use std::sync::OnceLock;

use super::floats;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::form::{Form, WeightSource};

/// Some rows of another matrix, in any order.
pub struct Rows<'a> {
    source: Box<dyn WeightSource + 'a>,
    pick: Pick,
}

enum Pick {
    Range(Range<usize>),
    List(Vec<usize>),
}

impl<'a> Rows<'a> {
    /// Rows `range` of `source`.
    pub fn range(source: Box<dyn WeightSource + 'a>, range: Range<usize>) -> Result<Self> {
        let (n, k) = source.shape();
        if range.start > range.end || range.end > n {
            return Err(Error::value(
                format!("rows of a matrix [{n}, {k}]"),
                format!("{range:?}"),
                format!("a range in 0..{n}"),
            ));
        }
        Ok(Rows { source, pick: Pick::Range(range) })
    }

    /// Row i of the view is row `list[i]` of `source`: a selection, a permutation, or both.
    pub fn pick(source: Box<dyn WeightSource + 'a>, list: Vec<usize>) -> Result<Self> {
        let (n, k) = source.shape();
        if let Some(row) = list.iter().find(|&&row| row >= n) {
            return Err(Error::value(format!("row of a matrix [{n}, {k}]"), row, format!("a row below {n}")));
        }
        Ok(Rows { source, pick: Pick::List(list) })
    }

    fn at(&self, row: usize) -> usize {
        match &self.pick {
            Pick::Range(range) => {
                debug_assert!(row < range.len());
                range.start + row
            }
            Pick::List(list) => list[row],
        }
    }
}

impl WeightSource for Rows<'_> {
    fn shape(&self) -> (usize, usize) {
        let n = match &self.pick {
            Pick::Range(range) => range.len(),
            Pick::List(list) => list.len(),
        };
        (n, self.source.shape().1)
    }
    fn form(&self) -> Form {
        self.source.form()
    }
    fn row_f32(&self, row: usize, out: &mut [f32]) {
        self.source.row_f32(self.at(row), out);
    }
    fn row_codes(&self, row: usize, out: &mut [u8]) {
        self.source.row_codes(self.at(row), out);
    }
    fn row_scales(&self, row: usize, out: &mut [u8]) {
        self.source.row_scales(self.at(row), out);
    }
    fn row_dense(&self, row: usize, out: &mut [u8]) {
        self.source.row_dense(self.at(row), out);
    }
    fn done(&self) {
        self.source.done();
    }
}

/// Some rows of a dense matrix turned: row i of the view is their column i. Holds a copy of them from the first row that is read.
pub struct Turned<'a> {
    source: Box<dyn WeightSource + 'a>,
    range: Range<usize>,
    dtype: DType,
    turned: OnceLock<Vec<u8>>,
}

impl<'a> Turned<'a> {
    /// Rows `range` of `source`; refused where its form is not dense.
    pub fn new(source: Box<dyn WeightSource + 'a>, range: Range<usize>) -> Result<Self> {
        let (rows, _) = source.shape();
        let Form::Dense(dtype) = source.form() else {
            return Err(Error::value("matrix to turn", format!("{:?}", source.form()), "plain floats"));
        };
        if range.start > range.end || range.end > rows {
            return Err(Error::value("rows to turn", format!("{range:?}"), format!("a range in 0..{rows}")));
        }
        Ok(Turned { source, range, dtype, turned: OnceLock::new() })
    }

    fn row(&self, row: usize) -> &[u8] {
        let (n, k) = self.shape();
        let size = self.dtype.size();
        let turned = self.turned.get_or_init(|| {
            let (mut bytes, mut row) = (vec![0; n * k * size], vec![0; n * size]);
            for (c, r) in self.range.clone().enumerate() {
                self.source.row_dense(r, &mut row);
                for (i, value) in row.chunks_exact(size).enumerate() {
                    bytes[(i * k + c) * size..][..size].copy_from_slice(value);
                }
            }
            bytes
        });
        &turned[row * k * size..][..k * size]
    }
}

impl WeightSource for Turned<'_> {
    fn shape(&self) -> (usize, usize) {
        (self.source.shape().1, self.range.len())
    }
    fn form(&self) -> Form {
        Form::Dense(self.dtype)
    }
    fn row_f32(&self, row: usize, out: &mut [f32]) {
        floats(self.dtype, self.row(row), out);
    }
    fn row_codes(&self, _row: usize, _out: &mut [u8]) {
        unreachable!("the form says so: dense weights have no codes");
    }
    fn row_scales(&self, _row: usize, _out: &mut [u8]) {
        unreachable!("the form says so: dense weights have no scales");
    }
    fn row_dense(&self, row: usize, out: &mut [u8]) {
        out.copy_from_slice(self.row(row));
    }
    fn done(&self) {
        self.source.done();
    }
}

/// A matrix of any form shown as plain f32: for small ones whose products must be exact.
pub struct Plain<'a>(pub Box<dyn WeightSource + 'a>);

impl WeightSource for Plain<'_> {
    fn shape(&self) -> (usize, usize) {
        self.0.shape()
    }
    fn form(&self) -> Form {
        Form::Dense(DType::F32)
    }
    fn row_f32(&self, row: usize, out: &mut [f32]) {
        self.0.row_f32(row, out);
    }
    fn row_codes(&self, _row: usize, _out: &mut [u8]) {
        unreachable!("the form says so: dense weights have no codes");
    }
    fn row_scales(&self, _row: usize, _out: &mut [u8]) {
        unreachable!("the form says so: dense weights have no scales");
    }
    fn row_dense(&self, row: usize, out: &mut [u8]) {
        let mut values = vec![0.0; self.shape().1];
        self.row_f32(row, &mut values);
        out.chunks_exact_mut(4).zip(values).for_each(|(o, v)| o.copy_from_slice(&v.to_le_bytes()));
    }
    fn done(&self) {
        self.0.done();
    }
}

/// Several matrices of one form and row length, one below another.
pub struct Joined<'a> {
    parts: Vec<Box<dyn WeightSource + 'a>>,
    /// First row after each part.
    ends: Vec<usize>,
    k: usize,
    form: Form,
}

impl<'a> Joined<'a> {
    /// Refused where forms or row lengths differ, or where there is no part.
    pub fn new(parts: Vec<Box<dyn WeightSource + 'a>>) -> Result<Self> {
        let first = parts.first().ok_or_else(|| Error::value("matrices to join", 0, "at least one"))?;
        let (form, k) = (first.form(), first.shape().1);
        for part in &parts {
            if part.shape().1 != k {
                return Err(Error::shape("join rows", part.shape(), ("N", k)));
            }
            if part.form() != form {
                let (found, expected) = (format!("{:?}", part.form()), format!("{form:?}, as the first part has"));
                return Err(Error::value("form of a matrix to join", found, expected));
            }
        }
        let ends = parts.iter().scan(0, |end, part| {
            *end += part.shape().0;
            Some(*end)
        });
        let ends = ends.collect();
        Ok(Joined { parts, ends, k, form })
    }

    fn at(&self, row: usize) -> (&dyn WeightSource, usize) {
        let part = self.ends.partition_point(|&end| end <= row);
        let start = if part == 0 { 0 } else { self.ends[part - 1] };
        (self.parts[part].as_ref(), row - start)
    }
}

impl WeightSource for Joined<'_> {
    fn shape(&self) -> (usize, usize) {
        (self.ends.last().copied().unwrap_or(0), self.k)
    }
    fn form(&self) -> Form {
        self.form.clone()
    }
    fn row_f32(&self, row: usize, out: &mut [f32]) {
        let (part, row) = self.at(row);
        part.row_f32(row, out);
    }
    fn row_codes(&self, row: usize, out: &mut [u8]) {
        let (part, row) = self.at(row);
        part.row_codes(row, out);
    }
    fn row_scales(&self, row: usize, out: &mut [u8]) {
        let (part, row) = self.at(row);
        part.row_scales(row, out);
    }
    fn row_dense(&self, row: usize, out: &mut [u8]) {
        let (part, row) = self.at(row);
        part.row_dense(row, out);
    }
    fn done(&self) {
        self.parts.iter().for_each(|part| part.done());
    }
}
