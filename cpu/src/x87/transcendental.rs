//! Logarithm, power and trigonometry. The functions are the host's own on x86-64, [`super::soft::elementary`]
//! elsewhere.
use super::arith::{Sets, binary_pop, pushing, unary};
use super::engine;
use crate::cpu::{Cpu, Stop};
use crate::op::Op;

type Done = Result<(), Stop>;

/// F2XM1.
pub fn f2xm1(cpu: &mut Cpu, op: &Op) -> Done {
    unary(cpu, op, Sets::C1, |f, a| engine::f2xm1(f.cw, a))
}
/// FYL2X.
pub fn fyl2x(cpu: &mut Cpu, op: &Op) -> Done {
    binary_pop(cpu, op, engine::fyl2x)
}
/// FYL2XP1.
pub fn fyl2xp1(cpu: &mut Cpu, op: &Op) -> Done {
    binary_pop(cpu, op, engine::fyl2xp1)
}
/// FPATAN.
pub fn fpatan(cpu: &mut Cpu, op: &Op) -> Done {
    binary_pop(cpu, op, engine::fpatan)
}
/// FSIN: C2 if the operand is out of range, and then nothing else.
pub fn fsin(cpu: &mut Cpu, op: &Op) -> Done {
    unary(cpu, op, Sets::C2, |f, a| engine::fsin(f.cw, a))
}
/// FCOS.
pub fn fcos(cpu: &mut Cpu, op: &Op) -> Done {
    unary(cpu, op, Sets::C2, |f, a| engine::fcos(f.cw, a))
}
/// FSINCOS.
pub fn fsincos(cpu: &mut Cpu, op: &Op) -> Done {
    pushing(cpu, op, Sets::C2, engine::fsincos)
}
/// FPTAN.
pub fn fptan(cpu: &mut Cpu, op: &Op) -> Done {
    pushing(cpu, op, Sets::C2, engine::fptan)
}
