//! Loads, stores, exchanges, conditional moves, constants.
use super::soft::convert::{from_bcd, from_f32, from_f64, from_int, to_bcd, to_f32, to_f64, to_int};
use super::soft::{INDEFINITE, Kind, Out, exact, kind, nan1};
use super::unit::{check, enter, track};
use super::word::*;
use crate::cpu::Cpu;
use crate::event::Stop;
use crate::op::Op;
use crate::state::{F80, Fpu};
use crate::width::{W16, W32, W64};

type Done = Result<(), Stop>;

// ---- loads
// ---------------------------------------------------------------------------------------------------------

/// What loading a single or double that was widened exactly to `v` gives: SNaNs become quiet with IE,
/// denormals raise DE.
#[inline(always)]
fn loaded((v, denormal): (F80, bool)) -> Out {
    if denormal {
        Out { v, sw: DE }
    } else if v.exp & 0x7fff == 0x7fff && kind(v) == Kind::Signaling {
        nan1(v)
    } else {
        exact(v)
    }
}

/// Pushes a single or double. Under an unmasked DE AMD's chips push all the same, and so do Intel's of family 6 model
/// 207.
#[inline(always)]
fn push_loaded(cpu: &mut Cpu, o: Out) {
    if o.sw & DE != 0 && cpu.state.fpu.is_empty(7) {
        cpu.state.fpu.post(DE);
        cpu.state.fpu.push(o.v);
        return;
    }
    cpu.state.fpu.push_result(o);
}

/// FLD m32fp.
pub fn fld_m32(cpu: &mut Cpu, op: &Op) -> Done {
    check(cpu)?;
    let v = cpu.load_op::<W32>(op)?;
    track(cpu, op);
    push_loaded(cpu, loaded(from_f32(v as u32)));
    Ok(())
}
/// FLD m64fp.
pub fn fld_m64(cpu: &mut Cpu, op: &Op) -> Done {
    check(cpu)?;
    let v = cpu.load_op::<W64>(op)?;
    track(cpu, op);
    push_loaded(cpu, loaded(from_f64(v)));
    Ok(())
}
/// FLD m80fp: no conversion, so no exception but a stack fault.
pub fn fld_m80(cpu: &mut Cpu, op: &Op) -> Done {
    check(cpu)?;
    let b = load10(cpu, op)?;
    track(cpu, op);
    cpu.state.fpu.push_result(exact(f80_of(&b)));
    Ok(())
}
/// FILD m16int.
pub fn fild_m16(cpu: &mut Cpu, op: &Op) -> Done {
    check(cpu)?;
    let v = cpu.load_op::<W16>(op)?;
    track(cpu, op);
    cpu.state.fpu.push_result(exact(from_int(i64::from(v as i16))));
    Ok(())
}
/// FILD m32int.
pub fn fild_m32(cpu: &mut Cpu, op: &Op) -> Done {
    check(cpu)?;
    let v = cpu.load_op::<W32>(op)?;
    track(cpu, op);
    cpu.state.fpu.push_result(exact(from_int(i64::from(v as i32))));
    Ok(())
}
/// FILD m64int.
pub fn fild_m64(cpu: &mut Cpu, op: &Op) -> Done {
    check(cpu)?;
    let v = cpu.load_op::<W64>(op)?;
    track(cpu, op);
    cpu.state.fpu.push_result(exact(from_int(v as i64)));
    Ok(())
}
/// FBLD m80bcd.
pub fn fbld(cpu: &mut Cpu, op: &Op) -> Done {
    check(cpu)?;
    let b = load10(cpu, op)?;
    track(cpu, op);
    cpu.state.fpu.push_result(exact(from_bcd(&b)));
    Ok(())
}
/// FLD ST(i).
pub fn fld_sti(cpu: &mut Cpu, op: &Op) -> Done {
    enter(cpu, op)?;
    let f = &mut cpu.state.fpu;
    let absent = f.is_empty(op.dst);
    if !absent && f.is_empty(7) {
        let v = f.st(op.dst);
        f.sw &= !C1;
        f.push(v);
        return Ok(());
    }
    if if absent { f.underflow() } else { f.overflow() } {
        f.push(INDEFINITE);
    }
    Ok(())
}

fn load10(cpu: &mut Cpu, op: &Op) -> Result<[u8; 10], Stop> {
    let lin = cpu.operand(op, 10, false)?;
    let mut b = [0; 10];
    cpu.load_bytes(lin, &mut b, op.seg)?;
    Ok(b)
}

/// An extended number from its ten bytes in memory.
pub fn f80_of(b: &[u8; 10]) -> F80 {
    let [m0, m1, m2, m3, m4, m5, m6, m7, e0, e1] = *b;
    F80 { mant: u64::from_le_bytes([m0, m1, m2, m3, m4, m5, m6, m7]), exp: u16::from_le_bytes([e0, e1]) }
}

/// An extended number as ten bytes in memory.
pub fn f80_bytes(v: F80) -> [u8; 10] {
    let mut b = [0; 10];
    b[..8].copy_from_slice(&v.mant.to_le_bytes());
    b[8..].copy_from_slice(&v.exp.to_le_bytes());
    b
}

/// A constant whose bits beyond the 64th are known: rounded as RC says (SDM volume 1, 8.3.4).
fn constant(cpu: &mut Cpu, op: &Op, exp: u16, nearest: u64, down: u64, up: u64) -> Done {
    enter(cpu, op)?;
    let f = &mut cpu.state.fpu;
    let mant = match f.cw & RC {
        RC_NEAREST => nearest,
        RC_UP => up,
        _ => down,
    };
    f.push_result(exact(F80 { mant, exp }));
    Ok(())
}
/// FLD1.
pub fn fld1(cpu: &mut Cpu, op: &Op) -> Done {
    constant(cpu, op, 0x3fff, 1 << 63, 1 << 63, 1 << 63)
}
/// FLDZ.
pub fn fldz(cpu: &mut Cpu, op: &Op) -> Done {
    constant(cpu, op, 0, 0, 0, 0)
}
/// FLDL2T: log2(10).
pub fn fldl2t(cpu: &mut Cpu, op: &Op) -> Done {
    constant(cpu, op, 0x4000, 0xd49a_784b_cd1b_8afe, 0xd49a_784b_cd1b_8afe, 0xd49a_784b_cd1b_8aff)
}
/// FLDL2E: log2(e).
pub fn fldl2e(cpu: &mut Cpu, op: &Op) -> Done {
    constant(cpu, op, 0x3fff, 0xb8aa_3b29_5c17_f0bc, 0xb8aa_3b29_5c17_f0bb, 0xb8aa_3b29_5c17_f0bc)
}
/// FLDPI.
pub fn fldpi(cpu: &mut Cpu, op: &Op) -> Done {
    constant(cpu, op, 0x4000, 0xc90f_daa2_2168_c235, 0xc90f_daa2_2168_c234, 0xc90f_daa2_2168_c235)
}
/// FLDLG2: log10(2).
pub fn fldlg2(cpu: &mut Cpu, op: &Op) -> Done {
    constant(cpu, op, 0x3ffd, 0x9a20_9a84_fbcf_f799, 0x9a20_9a84_fbcf_f798, 0x9a20_9a84_fbcf_f799)
}
/// FLDLN2: ln(2).
pub fn fldln2(cpu: &mut Cpu, op: &Op) -> Done {
    constant(cpu, op, 0x3ffe, 0xb172_17f7_d1cf_79ac, 0xb172_17f7_d1cf_79ab, 0xb172_17f7_d1cf_79ac)
}

// ---- stores
// --------------------------------------------------------------------------------------------------------

/// Stores ST(0) as `convert` makes it, with the status bits that go with it; `indefinite` if ST(0) is empty.
/// Nothing is stored or popped when an unmasked exception other than PE comes up (a destination in memory
/// gets no wrapped exponents). A page fault changes nothing.
#[inline(always)]
fn store<T>(
    cpu: &mut Cpu,
    op: &Op,
    pop: bool,
    indefinite: T,
    convert: impl FnOnce(u16, F80) -> (T, u16),
    put: impl FnOnce(&mut Cpu, &Op, T) -> Done,
) -> Done {
    check(cpu)?;
    let f = &cpu.state.fpu;
    let (v, sw) = if f.is_empty(0) { (indefinite, IE | SF) } else { convert(f.cw, f.st(0)) };
    let stored = sw & !f.cw & (EXCEPTIONS & !PE) == 0;
    if stored {
        put(cpu, op, v)?;
    } else {
        // The destination must be writable all the same.
        let len = u64::from(op.width);
        let lin = cpu.operand(op, len, true)?;
        cpu.probe_write(lin, len, op.seg)?;
    }
    track(cpu, op);
    let f = &mut cpu.state.fpu;
    f.post(sw);
    if pop && stored {
        f.pop();
    }
    Ok(())
}

const F32_INDEFINITE: u32 = 0xffc0_0000;
const F64_INDEFINITE: u64 = 0xfff8_0000_0000_0000;

/// FST/FSTP m32fp.
pub fn fst_m32<const POP: bool>(cpu: &mut Cpu, op: &Op) -> Done {
    store(cpu, op, POP, F32_INDEFINITE, to_f32, |c, o, v| c.store_op::<W32>(o, u64::from(v)))
}
/// FST/FSTP m64fp.
pub fn fst_m64<const POP: bool>(cpu: &mut Cpu, op: &Op) -> Done {
    store(cpu, op, POP, F64_INDEFINITE, to_f64, |c, o, v| c.store_op::<W64>(o, v))
}
/// FSTP m80fp.
pub fn fstp_m80(cpu: &mut Cpu, op: &Op) -> Done {
    store(cpu, op, true, INDEFINITE, |_, a| (a, 0), |c, o, v| store10(c, o, &f80_bytes(v)))
}
/// FIST/FISTP m16int.
pub fn fist_m16<const POP: bool>(cpu: &mut Cpu, op: &Op) -> Done {
    store(cpu, op, POP, 0x8000, |cw, a| to_int(cw, a, 16), |c, o, v| c.store_op::<W16>(o, v & 0xffff))
}
/// FIST/FISTP m32int.
pub fn fist_m32<const POP: bool>(cpu: &mut Cpu, op: &Op) -> Done {
    store(cpu, op, POP, 1 << 31, |cw, a| to_int(cw, a, 32), |c, o, v| c.store_op::<W32>(o, v & 0xffff_ffff))
}
/// FISTP m64int.
pub fn fistp_m64(cpu: &mut Cpu, op: &Op) -> Done {
    store(cpu, op, true, 1 << 63, |cw, a| to_int(cw, a, 64), |c, o, v| c.store_op::<W64>(o, v))
}
/// FISTTP m16int: truncates whatever RC says.
pub fn fisttp_m16(cpu: &mut Cpu, op: &Op) -> Done {
    store(cpu, op, true, 0x8000, |cw, a| to_int(cw | RC, a, 16), |c, o, v| c.store_op::<W16>(o, v & 0xffff))
}
/// FISTTP m32int.
pub fn fisttp_m32(cpu: &mut Cpu, op: &Op) -> Done {
    store(
        cpu,
        op,
        true,
        1 << 31,
        |cw, a| to_int(cw | RC, a, 32),
        |c, o, v| c.store_op::<W32>(o, v & 0xffff_ffff),
    )
}
/// FISTTP m64int.
pub fn fisttp_m64(cpu: &mut Cpu, op: &Op) -> Done {
    store(cpu, op, true, 1 << 63, |cw, a| to_int(cw | RC, a, 64), |c, o, v| c.store_op::<W64>(o, v))
}
/// FBSTP m80bcd.
pub fn fbstp(cpu: &mut Cpu, op: &Op) -> Done {
    const EMPTY: [u8; 10] = [0, 0, 0, 0, 0, 0, 0, 0xc0, 0xff, 0xff];
    store(cpu, op, true, EMPTY, to_bcd, |c, o, v| store10(c, o, &v))
}

fn store10(cpu: &mut Cpu, op: &Op, b: &[u8; 10]) -> Done {
    let lin = cpu.operand(op, 10, true)?;
    cpu.store_bytes(lin, b, op.seg)
}

/// FST/FSTP ST(i).
pub fn fst_sti<const POP: bool>(cpu: &mut Cpu, op: &Op) -> Done {
    enter(cpu, op)?;
    let f = &mut cpu.state.fpu;
    let v = if f.is_empty(0) {
        if !f.underflow() {
            return Ok(());
        }
        INDEFINITE
    } else {
        f.sw &= !C1;
        f.st(0)
    };
    f.set_st(op.dst, v);
    if POP {
        f.pop();
    }
    Ok(())
}

/// FSTPNCE ST(i) (D9 D8+i, undocumented): as FSTP, but an empty ST(0) is no stack fault and only popped.
pub fn fstpnce(cpu: &mut Cpu, op: &Op) -> Done {
    enter(cpu, op)?;
    let f = &mut cpu.state.fpu;
    f.sw &= !C1;
    if !f.is_empty(0) {
        let v = f.st(0);
        f.set_st(op.dst, v);
    }
    f.pop();
    Ok(())
}

// ---- moves between registers
// ---------------------------------------------------------------------------------------

/// FXCH.
pub fn fxch(cpu: &mut Cpu, op: &Op) -> Done {
    enter(cpu, op)?;
    let f = &mut cpu.state.fpu;
    let i = op.src;
    if f.is_empty(0) || f.is_empty(i) {
        if !f.underflow() {
            return Ok(());
        }
        for n in [0, i] {
            if f.is_empty(n) {
                f.set_st(n, INDEFINITE);
            }
        }
    } else {
        f.sw &= !C1;
    }
    let (a, b) = (f.phys(0), f.phys(i));
    f.r.swap(a, b);
    Ok(())
}

/// FCMOVcc: CC is 0 B, 1 E, 2 BE, 3 U; +4 negated.
pub fn fcmov<const CC: u8>(cpu: &mut Cpu, op: &Op) -> Done {
    enter(cpu, op)?;
    let s = &mut cpu.state;
    let holds = match CC & 3 {
        0 => s.cf(),
        1 => s.zf(),
        2 => s.cf() || s.zf(),
        _ => s.pf(),
    } != (CC & 4 != 0);
    let f: &mut Fpu = &mut s.fpu;
    if f.is_empty(0) || f.is_empty(op.src) {
        if f.underflow() {
            f.set_st(0, INDEFINITE);
        }
        return Ok(());
    }
    if holds {
        let v = f.st(op.src);
        f.set_st(0, v);
    }
    Ok(())
}
