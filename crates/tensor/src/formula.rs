//! Pointwise formulas as data: a few inputs, constants and functions in postfix order, so that a gate or a blend is one operation
//! on every backend and nobody writes a kernel for it. Knows no shape; `Backend::pointwise` says what an input's values meet.

use crate::backend::Act;

/// One step of a formula over a stack of values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Term {
    /// Pushes the value of an input.
    Input(usize),
    /// Pushes a constant.
    Value(f32),
    /// Replaces the top by a function of it.
    Of(Function),
    /// Replaces the two upper values by one, the top being the right operand.
    Join(Operator),
}

/// A function of one value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Function {
    /// e^x.
    Exp,
    /// 1 / (1 + e^-x).
    Sigmoid,
    /// tanh x.
    Tanh,
    /// ln(1 + e^x).
    Softplus,
    /// √x.
    Sqrt,
    /// |x|.
    Abs,
    /// An activation.
    Act(Act),
}

/// A function of two values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// a + b.
    Add,
    /// a - b.
    Sub,
    /// a · b.
    Mul,
    /// a / b.
    Div,
    /// The larger.
    Max,
    /// The smaller.
    Min,
}

/// A formula: what stands in its terms leaves one value. Made from `input` and numbers with `+ - * /` and the methods below.
#[derive(Clone, Debug, PartialEq)]
pub struct Formula(Vec<Term>);

/// Deepest stack that a formula may need.
pub const MOST_DEPTH: usize = 8;

/// The value of input `i`.
pub fn input(i: usize) -> Formula {
    Formula(vec![Term::Input(i)])
}

impl From<f32> for Formula {
    fn from(value: f32) -> Formula {
        Formula(vec![Term::Value(value)])
    }
}

impl Formula {
    /// The terms, in order.
    pub fn terms(&self) -> &[Term] {
        &self.0
    }

    /// Inputs that it reads: one more than the largest number.
    pub fn inputs(&self) -> usize {
        self.0.iter().map(|t| if let Term::Input(i) = t { i + 1 } else { 0 }).max().unwrap_or(0)
    }

    /// Values that lie on the stack at once.
    pub fn depth(&self) -> usize {
        let (mut now, mut most) = (0usize, 0);
        for term in &self.0 {
            match term {
                Term::Input(_) | Term::Value(_) => now += 1,
                Term::Of(_) => {}
                Term::Join(_) => now -= 1,
            }
            most = most.max(now);
        }
        most
    }

    fn of(mut self, function: Function) -> Formula {
        self.0.push(Term::Of(function));
        self
    }

    fn join(mut self, other: Formula, operator: Operator) -> Formula {
        self.0.extend(other.0);
        self.0.push(Term::Join(operator));
        self
    }

    /// e^x.
    pub fn exp(self) -> Formula {
        self.of(Function::Exp)
    }

    /// 1 / (1 + e^-x).
    pub fn sigmoid(self) -> Formula {
        self.of(Function::Sigmoid)
    }

    /// tanh x.
    pub fn tanh(self) -> Formula {
        self.of(Function::Tanh)
    }

    /// ln(1 + e^x).
    pub fn softplus(self) -> Formula {
        self.of(Function::Softplus)
    }

    /// ln σ(x) = -ln(1 + e^-x).
    pub fn log_sigmoid(self) -> Formula {
        -((-self).softplus())
    }

    /// √x.
    pub fn sqrt(self) -> Formula {
        self.of(Function::Sqrt)
    }

    /// |x|.
    pub fn abs(self) -> Formula {
        self.of(Function::Abs)
    }

    /// An activation.
    pub fn act(self, act: Act) -> Formula {
        self.of(Function::Act(act))
    }

    /// cap · tanh(x / cap).
    pub fn softcap(self, cap: f32) -> Formula {
        (self / cap).tanh() * cap
    }

    /// The larger.
    pub fn max(self, other: impl Into<Formula>) -> Formula {
        self.join(other.into(), Operator::Max)
    }

    /// The smaller.
    pub fn min(self, other: impl Into<Formula>) -> Formula {
        self.join(other.into(), Operator::Min)
    }
}

impl<T: Into<Formula>> std::ops::Add<T> for Formula {
    type Output = Formula;
    fn add(self, other: T) -> Formula {
        self.join(other.into(), Operator::Add)
    }
}

impl<T: Into<Formula>> std::ops::Sub<T> for Formula {
    type Output = Formula;
    fn sub(self, other: T) -> Formula {
        self.join(other.into(), Operator::Sub)
    }
}

impl<T: Into<Formula>> std::ops::Mul<T> for Formula {
    type Output = Formula;
    fn mul(self, other: T) -> Formula {
        self.join(other.into(), Operator::Mul)
    }
}

impl<T: Into<Formula>> std::ops::Div<T> for Formula {
    type Output = Formula;
    fn div(self, other: T) -> Formula {
        self.join(other.into(), Operator::Div)
    }
}

impl std::ops::Neg for Formula {
    type Output = Formula;
    fn neg(self) -> Formula {
        Formula::from(0.0) - self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn postfix_and_its_depth() {
        let f = (input(0) + input(1) * 2.0).sigmoid();
        assert_eq!((f.inputs(), f.depth(), f.terms().len()), (2, 3, 6));
        assert_eq!(input(0).log_sigmoid().depth(), 2 + 1);
    }
}
