//! Logarithm, power and trigonometry. The functions are the host's own on x86-64, [`super::soft::elementary`]
//! elsewhere.
use super::arith::{Sets, binary_pop, pushing, unary};
use super::engine;
use crate::cpu::Cpu;
use crate::event::Stop;
use crate::op::Op;

type Done = Result<(), Stop>;

/// F2XM1.
pub fn f2xm1(cpu: &mut Cpu, op: &Op) -> Done {
    let compute = engine::of(cpu).f2xm1;
    unary(cpu, op, Sets::C1, |f, a| compute(f.cw, a))
}
/// FYL2X.
pub fn fyl2x(cpu: &mut Cpu, op: &Op) -> Done {
    let compute = engine::of(cpu).fyl2x;
    binary_pop(cpu, op, compute)
}
/// FYL2XP1.
pub fn fyl2xp1(cpu: &mut Cpu, op: &Op) -> Done {
    let compute = engine::of(cpu).fyl2xp1;
    binary_pop(cpu, op, compute)
}
/// FPATAN.
pub fn fpatan(cpu: &mut Cpu, op: &Op) -> Done {
    let compute = engine::of(cpu).fpatan;
    binary_pop(cpu, op, compute)
}
/// FSIN: C2 if the operand is out of range, and then nothing else.
pub fn fsin(cpu: &mut Cpu, op: &Op) -> Done {
    let compute = engine::of(cpu).fsin;
    unary(cpu, op, Sets::C2, |f, a| compute(f.cw, a))
}
/// FCOS.
pub fn fcos(cpu: &mut Cpu, op: &Op) -> Done {
    let compute = engine::of(cpu).fcos;
    unary(cpu, op, Sets::C2, |f, a| compute(f.cw, a))
}
/// FSINCOS.
pub fn fsincos(cpu: &mut Cpu, op: &Op) -> Done {
    let compute = engine::of(cpu).fsincos;
    pushing(cpu, op, Sets::C2, compute)
}
/// FPTAN.
pub fn fptan(cpu: &mut Cpu, op: &Op) -> Done {
    let compute = engine::of(cpu).fptan;
    pushing(cpu, op, Sets::C2, compute)
}
