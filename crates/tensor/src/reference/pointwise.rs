//! Formulas, one element after another.

use super::elementwise::{activate, sigmoid, softplus};
use super::scratch;
use crate::backend::{Backend, Operand};
use crate::error::{Error, Result};
use crate::formula::{Formula, Function, MOST_DEPTH, Operator, Term};
use crate::tensor::Tensor;

/// See `Backend::pointwise`.
pub fn run<B: Backend + ?Sized>(b: &B, shape: &[usize], inputs: &[Operand<'_>], formula: &Formula) -> Result<Tensor> {
    let (rows, width) = check(shape, inputs, formula)?;
    let values = inputs.iter().map(|i| b.read(i.tensor())).collect::<Result<Vec<_>>>()?;
    let mut out = Vec::with_capacity(rows * width);
    let mut stack = Vec::new();
    for i in 0..rows * width {
        for term in formula.terms() {
            match *term {
                Term::Input(n) => stack.push(values[n][inputs[n].index(i, rows, width)]),
                Term::Value(v) => stack.push(v),
                Term::Of(f) => {
                    let x = stack.pop().unwrap_or(f32::NAN);
                    stack.push(one(f, x));
                }
                Term::Join(op) => {
                    let (b, a) = (stack.pop().unwrap_or(f32::NAN), stack.pop().unwrap_or(f32::NAN));
                    stack.push(two(op, a, b));
                }
            }
        }
        out.push(stack.pop().unwrap_or(f32::NAN));
    }
    scratch(b, &out, shape)
}

fn one(function: Function, x: f32) -> f32 {
    match function {
        Function::Exp => x.exp(),
        Function::Sigmoid => sigmoid(x),
        Function::Tanh => x.tanh(),
        Function::Softplus => softplus(x),
        Function::Sqrt => x.sqrt(),
        Function::Abs => x.abs(),
        Function::Act(act) => activate(act, x),
    }
}

fn two(operator: Operator, a: f32, b: f32) -> f32 {
    match operator {
        Operator::Add => a + b,
        Operator::Sub => a - b,
        Operator::Mul => a * b,
        Operator::Div => a / b,
        // The second where either is NaN, as the lanes have it.
        Operator::Max => {
            if a > b {
                a
            } else {
                b
            }
        }
        Operator::Min => {
            if a < b {
                a
            } else {
                b
            }
        }
    }
}

/// Rows and their width, once every input is known to have what the formula will read.
pub fn check(shape: &[usize], inputs: &[Operand<'_>], formula: &Formula) -> Result<(usize, usize)> {
    let rows = shape.first().copied().unwrap_or(0);
    let width: usize = shape.iter().skip(1).product();
    if formula.inputs() > inputs.len() || formula.depth() > MOST_DEPTH {
        let found = (formula.inputs(), formula.depth());
        return Err(Error::shape("pointwise", found, format!("{} inputs, at most {MOST_DEPTH} deep", inputs.len())));
    }
    for input in inputs {
        let n = input.tensor().shape().elements();
        let fits = match input {
            Operand::Each(_) => n == rows * width,
            Operand::Columns(_, at) => rows == 0 || (n.is_multiple_of(rows) && at + width <= n / rows),
            Operand::Row(_) => n == width,
            Operand::Stretch(_) => rows == 0 || (n > 0 && n.is_multiple_of(rows) && width.is_multiple_of(n / rows)),
        };
        if !fits {
            return Err(Error::shape("pointwise", input.tensor().shape(), format!("{input:?} of a result {shape:?}")));
        }
    }
    Ok((rows, width))
}
