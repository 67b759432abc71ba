//! Add, subtract, multiply, divide in all their forms; and what works on ST(0) or on ST(0) and ST(1) without
//! a table of polynomials.
use super::soft::convert::{from_f32, from_f64, from_int};
use super::soft::{Count, INDEFINITE, Out, Wide2, basic, is_number};
use super::unit::{check, enter, track};
use super::word::*;
use crate::cpu::Cpu;
use crate::event::Stop;
use crate::op::Op;
use crate::state::{F80, Fpu};
use crate::width::{W16, W32, W64};

type Done = Result<(), Stop>;

/// `a op b`; OP counts as the encoding does (ModR/M bits 3-5; 2 and 3 are the comparisons): 0 a + b, 1 a x b,
/// 4 a - b, 5 b - a, 6 a / b, 7 b / a.
#[inline(always)]
fn compute<const OP: u8>(cw: u16, a: F80, b: F80) -> Out {
    match OP {
        0 => basic::add(cw, a, b),
        1 => basic::mul(cw, a, b),
        4 => basic::sub(cw, a, b),
        5 => basic::sub(cw, b, a),
        6 => basic::div(cw, a, b),
        _ => basic::div(cw, b, a),
    }
}

/// ST(`d`) = ST(`d`) op ST(`s`).
#[inline(always)]
fn registers<const OP: u8>(f: &mut Fpu, d: u8, s: u8) -> bool {
    if f.is_empty(d) || f.is_empty(s) {
        return f.underflow() && {
            f.set_st(d, INDEFINITE);
            true
        };
    }
    let o = compute::<OP>(f.cw, f.st(d), f.st(s));
    f.post(o.sw) && {
        let p = f.phys(d);
        f.r[p] = o.v;
        true
    }
}

/// ST(0) = ST(0) op ST(i).
pub fn st0_sti<const OP: u8>(cpu: &mut Cpu, op: &Op) -> Done {
    enter(cpu, op)?;
    registers::<OP>(&mut cpu.state.fpu, 0, op.src);
    Ok(())
}
/// ST(i) = ST(i) op ST(0).
pub fn sti_st0<const OP: u8>(cpu: &mut Cpu, op: &Op) -> Done {
    enter(cpu, op)?;
    registers::<OP>(&mut cpu.state.fpu, op.dst, 0);
    Ok(())
}
/// ST(i) = ST(i) op ST(0), then pop.
pub fn sti_st0_pop<const OP: u8>(cpu: &mut Cpu, op: &Op) -> Done {
    enter(cpu, op)?;
    let f = &mut cpu.state.fpu;
    if registers::<OP>(f, op.dst, 0) {
        f.pop();
    }
    Ok(())
}

/// ST(0) = ST(0) op `b`, a widened operand from memory; `denormal` in its own format.
#[inline(always)]
fn memory<const OP: u8>(f: &mut Fpu, (b, denormal): (F80, bool)) {
    if f.is_empty(0) {
        if f.underflow() {
            f.set_st(0, INDEFINITE);
        }
        return;
    }
    let a = f.st(0);
    let mut o = compute::<OP>(f.cw, a, b);
    if denormal {
        o = with_denormal(f.cw, a, o);
    }
    if f.post(o.sw) {
        let p = f.phys(0);
        f.r[p] = o.v;
    }
}

/// Adds the DE that a denormal operand in memory raises and its widened value does not.
#[cold]
fn with_denormal(cw: u16, a: F80, o: Out) -> Out {
    if !is_number(a) || o.sw & (IE | ZE) != 0 {
        o
    } else if cw & DE == 0 {
        Out { v: o.v, sw: DE }
    } else {
        Out { v: o.v, sw: o.sw | DE }
    }
}

/// ST(0) = ST(0) op m32fp.
pub fn m32<const OP: u8>(cpu: &mut Cpu, op: &Op) -> Done {
    check(cpu)?;
    let v = cpu.load_op::<W32>(op)?;
    track(cpu, op);
    memory::<OP>(&mut cpu.state.fpu, from_f32(v as u32));
    Ok(())
}
/// ST(0) = ST(0) op m64fp.
pub fn m64<const OP: u8>(cpu: &mut Cpu, op: &Op) -> Done {
    check(cpu)?;
    let v = cpu.load_op::<W64>(op)?;
    track(cpu, op);
    memory::<OP>(&mut cpu.state.fpu, from_f64(v));
    Ok(())
}
/// ST(0) = ST(0) op m16int.
pub fn m16int<const OP: u8>(cpu: &mut Cpu, op: &Op) -> Done {
    check(cpu)?;
    let v = cpu.load_op::<W16>(op)?;
    track(cpu, op);
    memory::<OP>(&mut cpu.state.fpu, (from_int(i64::from(v as i16)), false));
    Ok(())
}
/// ST(0) = ST(0) op m32int.
pub fn m32int<const OP: u8>(cpu: &mut Cpu, op: &Op) -> Done {
    check(cpu)?;
    let v = cpu.load_op::<W32>(op)?;
    track(cpu, op);
    memory::<OP>(&mut cpu.state.fpu, (from_int(i64::from(v as i32)), false));
    Ok(())
}

// ---- operations on ST(0)
// -------------------------------------------------------------------------------------------

/// FCHS and FABS: the sign bit of whatever is in ST(0).
#[inline(always)]
fn sign(cpu: &mut Cpu, op: &Op, change: impl FnOnce(u16) -> u16) -> Done {
    enter(cpu, op)?;
    let f = &mut cpu.state.fpu;
    if f.is_empty(0) {
        if f.underflow() {
            f.set_st(0, INDEFINITE);
        }
        return Ok(());
    }
    f.sw &= !C1;
    let p = f.phys(0);
    f.r[p].exp = change(f.r[p].exp);
    Ok(())
}
/// FCHS.
pub fn fchs(cpu: &mut Cpu, op: &Op) -> Done {
    sign(cpu, op, |e| e ^ 0x8000)
}
/// FABS.
pub fn fabs(cpu: &mut Cpu, op: &Op) -> Done {
    sign(cpu, op, |e| e & 0x7fff)
}

/// What a function sets of the condition code besides C1.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sets {
    /// Nothing.
    C1,
    /// C2: the operand is out of range.
    C2,
}

impl Sets {
    fn bits(self) -> u16 {
        match self {
            Self::C1 => C1,
            Self::C2 => C1 | C2,
        }
    }
    /// Raises the stack fault for an empty operand.
    fn underflow(self, f: &mut Fpu) -> bool {
        match self {
            Self::C1 => f.underflow(),
            Self::C2 => f.underflow_c2(),
        }
    }
}

/// ST(0) = f(ST(0)).
#[inline(always)]
pub(super) fn unary(cpu: &mut Cpu, op: &Op, sets: Sets, compute: impl FnOnce(&Fpu, F80) -> Out) -> Done {
    enter(cpu, op)?;
    let f = &mut cpu.state.fpu;
    if f.is_empty(0) {
        if sets.underflow(f) {
            f.set_st(0, INDEFINITE);
        }
        return Ok(());
    }
    let o = compute(f, f.st(0));
    if f.post_cc(o.sw, sets.bits()) {
        f.set_st(0, o.v);
    }
    Ok(())
}
/// ST(1) = f(ST(0), ST(1)), then pop.
pub(super) fn binary_pop(cpu: &mut Cpu, op: &Op, compute: fn(u16, F80, F80) -> Out) -> Done {
    enter(cpu, op)?;
    let f = &mut cpu.state.fpu;
    let (v, stored) = if f.is_empty(0) || f.is_empty(1) {
        (INDEFINITE, f.underflow())
    } else {
        let o = compute(f.cw, f.st(0), f.st(1));
        (o.v, f.post(o.sw))
    };
    if stored {
        f.set_st(1, v);
        f.pop();
    }
    Ok(())
}
/// Replaces ST(0) and pushes (FXTRACT, FPTAN, FSINCOS).
pub(super) fn pushing(cpu: &mut Cpu, op: &Op, sets: Sets, compute: fn(u16, F80) -> Wide2) -> Done {
    enter(cpu, op)?;
    let f = &mut cpu.state.fpu;
    let w = if f.is_empty(0) || !f.is_empty(7) {
        let stored = if f.is_empty(0) { sets.underflow(f) } else { f.post_cc(IE | SF | C1, sets.bits()) };
        if !stored {
            return Ok(());
        }
        Wide2 { a: INDEFINITE, b: INDEFINITE, count: Count::Two, sw: 0 }
    } else {
        let w = compute(f.cw, f.st(0));
        if !f.post_cc(w.sw, sets.bits()) {
            return Ok(());
        }
        w
    };
    f.set_st(0, w.a);
    if w.count == Count::Two {
        f.push(w.b);
    }
    Ok(())
}

/// FSQRT.
pub fn fsqrt(cpu: &mut Cpu, op: &Op) -> Done {
    unary(cpu, op, Sets::C1, |f, a| basic::sqrt(f.cw, a))
}
/// FRNDINT.
pub fn frndint(cpu: &mut Cpu, op: &Op) -> Done {
    unary(cpu, op, Sets::C1, |f, a| basic::rint(f.cw, a))
}
/// FXTRACT.
pub fn fxtract(cpu: &mut Cpu, op: &Op) -> Done {
    pushing(cpu, op, Sets::C1, basic::extract)
}
/// FSCALE.
pub fn fscale(cpu: &mut Cpu, op: &Op) -> Done {
    enter(cpu, op)?;
    let f = &mut cpu.state.fpu;
    let stored = if f.is_empty(0) || f.is_empty(1) {
        f.underflow().then_some(INDEFINITE)
    } else {
        let o = basic::scale(f.cw, f.st(0), f.st(1));
        f.post(o.sw).then_some(o.v)
    };
    if let Some(v) = stored {
        f.set_st(0, v);
    }
    Ok(())
}
/// FPREM (`NEAREST` false), FPREM1. C0 and C3 stay as they are where nothing is reduced: NaNs, unmasked
/// exceptions.
pub fn fprem<const NEAREST: bool>(cpu: &mut Cpu, op: &Op) -> Done {
    enter(cpu, op)?;
    let f = &mut cpu.state.fpu;
    let stored = if f.is_empty(0) || f.is_empty(1) {
        f.underflow_c2().then_some(INDEFINITE)
    } else {
        let (a, b) = (f.st(0), f.st(1));
        let o = basic::rem(f.cw, a, b, NEAREST);
        let reduced = is_number(a) && is_number(b) && o.sw & FAULTS & (IE | !f.cw) == 0;
        f.post_cc(o.sw, if reduced { CC } else { C1 | C2 }).then_some(o.v)
    };
    if let Some(v) = stored {
        f.set_st(0, v);
    }
    Ok(())
}
