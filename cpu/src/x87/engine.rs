//! Which arithmetic executes: the host's x87 on x86-64, portable code elsewhere. One signature for both.
use super::soft::{self, Out, Wide2};
use crate::state::F80;

/// Binary operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binary {
    /// a + b.
    Add,
    /// a - b.
    Sub,
    /// b - a.
    SubR,
    /// a x b.
    Mul,
    /// a / b.
    Div,
    /// b / a.
    DivR,
}

/// `a op b` under the control word `cw`; `sw` is the status word before.
#[inline(always)]
pub fn binary(op: Binary, cw: u16, sw: u16, a: F80, b: F80) -> Out {
    #[cfg(target_arch = "x86_64")]
    {
        use super::host;
        match op {
            Binary::Add => host::add(cw, sw, &a, &b),
            Binary::Sub => host::sub(cw, sw, &a, &b),
            Binary::SubR => host::sub(cw, sw, &b, &a),
            Binary::Mul => host::mul(cw, sw, &a, &b),
            Binary::Div => host::div(cw, sw, &a, &b),
            Binary::DivR => host::div(cw, sw, &b, &a),
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = sw;
        binary_soft(op, cw, a, b)
    }
}

/// `a op b` in portable code.
#[inline(always)]
pub fn binary_soft(op: Binary, cw: u16, a: F80, b: F80) -> Out {
    use soft::basic::{add, div, mul, sub};
    match op {
        Binary::Add => add(cw, a, b),
        Binary::Sub => sub(cw, a, b),
        Binary::SubR => sub(cw, b, a),
        Binary::Mul => mul(cw, a, b),
        Binary::Div => div(cw, a, b),
        Binary::DivR => div(cw, b, a),
    }
}

/// The square root.
#[inline(always)]
pub fn sqrt(cw: u16, sw: u16, a: F80) -> Out {
    #[cfg(target_arch = "x86_64")]
    {
        super::host::sqrt(cw, sw, &a)
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = sw;
        soft::basic::sqrt(cw, a)
    }
}

#[cfg(target_arch = "x86_64")]
pub use super::host::{f2xm1, fcos, fpatan, fptan, fsin, fsincos, fyl2x, fyl2xp1};
#[cfg(not(target_arch = "x86_64"))]
pub use soft::elementary::{f2xm1, fcos, fpatan, fptan, fsin, fsincos, fyl2x, fyl2xp1};

/// The type of an elementary function of one operand that may push a second result.
pub type Pushing = fn(u16, F80) -> Wide2;
