//! Comparisons and classification: results in C3, C2, C0, or in ZF, PF, CF.
use super::soft::convert::{compare, from_f32, from_f64, from_int};
use super::soft::{Kind, kind};
use super::unit::{check, enter, track};
use super::word::*;
use crate::cpu::Cpu;
use crate::event::Stop;
use crate::op::Op;
use crate::state::{F80, Fpu, fl};
use crate::width::{W16, W32, W64};

type Done = Result<(), Stop>;

const UNORDERED: u16 = C0 | C2 | C3;

/// Compares ST(0), if it is not empty, with `b`; pops `pops` times unless an unmasked exception holds it off.
#[inline(always)]
fn ordered(f: &mut Fpu, b: Option<F80>, denormal: bool, quiet: bool, pops: u8) {
    let mut sw = match b {
        Some(b) if !f.is_empty(0) => compare(f.st(0), b, quiet),
        _ => UNORDERED | IE | SF,
    };
    if denormal && sw & UNORDERED != UNORDERED {
        sw |= DE;
    }
    if f.post_cc(sw, CC) {
        for _ in 0..pops {
            f.pop();
        }
    }
}

fn register(f: &Fpu, i: u8) -> Option<F80> {
    if f.is_empty(i) { None } else { Some(f.st(i)) }
}

/// FCOM, FCOMP, FUCOM, FUCOMP ST(i).
pub fn fcom_sti<const QUIET: bool, const POPS: u8>(cpu: &mut Cpu, op: &Op) -> Done {
    enter(cpu, op)?;
    let f = &mut cpu.state.fpu;
    ordered(f, register(f, op.src), false, QUIET, POPS);
    Ok(())
}
/// FCOMPP, FUCOMPP.
pub fn fcompp<const QUIET: bool>(cpu: &mut Cpu, op: &Op) -> Done {
    enter(cpu, op)?;
    let f = &mut cpu.state.fpu;
    ordered(f, register(f, 1), false, QUIET, 2);
    Ok(())
}
/// FCOM, FCOMP m32fp.
pub fn fcom_m32<const POPS: u8>(cpu: &mut Cpu, op: &Op) -> Done {
    check(cpu)?;
    let v = cpu.load_op::<W32>(op)?;
    track(cpu, op);
    let (b, denormal) = from_f32(v as u32);
    ordered(&mut cpu.state.fpu, Some(b), denormal, false, POPS);
    Ok(())
}
/// FCOM, FCOMP m64fp.
pub fn fcom_m64<const POPS: u8>(cpu: &mut Cpu, op: &Op) -> Done {
    check(cpu)?;
    let v = cpu.load_op::<W64>(op)?;
    track(cpu, op);
    let (b, denormal) = from_f64(v);
    ordered(&mut cpu.state.fpu, Some(b), denormal, false, POPS);
    Ok(())
}
/// FICOM, FICOMP m16int.
pub fn ficom_m16<const POPS: u8>(cpu: &mut Cpu, op: &Op) -> Done {
    check(cpu)?;
    let v = cpu.load_op::<W16>(op)?;
    track(cpu, op);
    ordered(&mut cpu.state.fpu, Some(from_int(i64::from(v as i16))), false, false, POPS);
    Ok(())
}
/// FICOM, FICOMP m32int.
pub fn ficom_m32<const POPS: u8>(cpu: &mut Cpu, op: &Op) -> Done {
    check(cpu)?;
    let v = cpu.load_op::<W32>(op)?;
    track(cpu, op);
    ordered(&mut cpu.state.fpu, Some(from_int(i64::from(v as i32))), false, false, POPS);
    Ok(())
}
/// FTST.
pub fn ftst(cpu: &mut Cpu, op: &Op) -> Done {
    enter(cpu, op)?;
    ordered(&mut cpu.state.fpu, Some(F80::default()), false, false, 0);
    Ok(())
}

/// FCOMI, FCOMIP, FUCOMI, FUCOMIP: to EFLAGS, where OF, SF and AF become zero. C1 stays as it is (but after a stack
/// fault), and EFLAGS are written under an unmasked exception too: so do AMD's chips, and Intel's of family 6 model
/// 207, whatever Intel's manual says (SDM volume 2, FCOMI).
pub fn fcomi<const QUIET: bool, const POP: bool>(cpu: &mut Cpu, op: &Op) -> Done {
    enter(cpu, op)?;
    let s = &mut cpu.state;
    let f = &mut s.fpu;
    let sw = match (register(f, 0), register(f, op.src)) {
        (Some(a), Some(b)) => compare(a, b, QUIET),
        _ => UNORDERED | IE | SF,
    };
    let goes_on = f.post_cc(sw & !CC, if sw & SF != 0 { C1 } else { 0 });
    let flags = if sw & C0 != 0 { fl::CF } else { 0 }
        | if sw & C2 != 0 { fl::PF } else { 0 }
        | if sw & C3 != 0 { fl::ZF } else { 0 };
    s.set_arith_flags(flags);
    if goes_on && POP {
        s.fpu.pop();
    }
    Ok(())
}

/// FXAM: the class of ST(0) in C3, C2, C0; its sign, even if it is empty, in C1.
pub fn fxam(cpu: &mut Cpu, op: &Op) -> Done {
    enter(cpu, op)?;
    let f = &mut cpu.state.fpu;
    let x = f.st(0);
    let class = if f.is_empty(0) {
        C3 | C0
    } else {
        match kind(x) {
            Kind::Unsupported => 0,
            Kind::Quiet | Kind::Signaling => C0,
            Kind::Finite if x.exp & 0x7fff == 0 => C3 | C2,
            Kind::Finite => C2,
            Kind::Inf => C2 | C0,
            Kind::Zero => C3,
        }
    };
    f.sw = f.sw & !CC | class | if x.exp & 0x8000 != 0 { C1 } else { 0 };
    Ok(())
}
