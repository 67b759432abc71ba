//! Control: the words, the stack pointer, WAIT. None of these counts as "the last instruction" for FIP, FDP
//! and FOP.
use super::unit::{check, check_no_wait, pending, settle};
use super::word::*;
use crate::cpu::Cpu;
use crate::event::{Stop, vector};
use crate::op::Op;
use crate::state::{cr0, gpr};
use crate::width::W16;

type Done = Result<(), Stop>;

/// WAIT/FWAIT: #NM if CR0.MP and CR0.TS are both set; then pending exceptions.
pub fn wait(cpu: &mut Cpu, _op: &Op) -> Done {
    if cpu.state.cr0 & (cr0::MP | cr0::TS) == cr0::MP | cr0::TS {
        return Err(cpu.raise(vector::NM));
    }
    pending(cpu)
}
/// FNOP, and the 287's FENI, FDISI, FSETPM, FRSTPM in their waiting forms.
pub fn fnop(cpu: &mut Cpu, _op: &Op) -> Done {
    check(cpu)
}
/// FNENI, FNDISI, FNSETPM, FRSTPM: nothing since the 387.
pub fn ignored(cpu: &mut Cpu, _op: &Op) -> Done {
    check_no_wait(cpu)
}
/// FNINIT.
pub fn fninit(cpu: &mut Cpu, _op: &Op) -> Done {
    check_no_wait(cpu)?;
    cpu.state.fpu.init();
    settle(cpu);
    Ok(())
}
/// FINIT.
pub fn finit(cpu: &mut Cpu, op: &Op) -> Done {
    check(cpu)?;
    fninit(cpu, op)
}
/// FNCLEX. C0-C3 stay as they are (the manual leaves them undefined).
pub fn fnclex(cpu: &mut Cpu, _op: &Op) -> Done {
    check_no_wait(cpu)?;
    cpu.state.fpu.sw &= !(EXCEPTIONS | SF | ES | B);
    settle(cpu);
    Ok(())
}
/// FCLEX.
pub fn fclex(cpu: &mut Cpu, op: &Op) -> Done {
    check(cpu)?;
    fnclex(cpu, op)
}
/// FLDCW. An exception that it unmasks becomes pending.
pub fn fldcw(cpu: &mut Cpu, op: &Op) -> Done {
    check(cpu)?;
    let v = cpu.load_op::<W16>(op)?;
    cpu.state.fpu.set_control(v as u16);
    settle(cpu);
    Ok(())
}
/// FNSTCW.
pub fn fnstcw(cpu: &mut Cpu, op: &Op) -> Done {
    check_no_wait(cpu)?;
    let v = cpu.state.fpu.cw;
    cpu.store_op::<W16>(op, u64::from(v))
}
/// FSTCW.
pub fn fstcw(cpu: &mut Cpu, op: &Op) -> Done {
    check(cpu)?;
    fnstcw(cpu, op)
}
/// FNSTSW m16.
pub fn fnstsw(cpu: &mut Cpu, op: &Op) -> Done {
    check_no_wait(cpu)?;
    let v = cpu.state.fpu.status();
    cpu.store_op::<W16>(op, u64::from(v))
}
/// FSTSW m16.
pub fn fstsw(cpu: &mut Cpu, op: &Op) -> Done {
    check(cpu)?;
    fnstsw(cpu, op)
}
/// FNSTSW AX.
pub fn fnstsw_ax(cpu: &mut Cpu, _op: &Op) -> Done {
    check_no_wait(cpu)?;
    let v = cpu.state.fpu.status();
    let rax = &mut cpu.state.gpr[gpr::RAX];
    *rax = *rax & !0xffff | u64::from(v);
    Ok(())
}
/// FSTSW AX.
pub fn fstsw_ax(cpu: &mut Cpu, op: &Op) -> Done {
    check(cpu)?;
    fnstsw_ax(cpu, op)
}
/// FINCSTP. Tags stay with their registers.
pub fn fincstp(cpu: &mut Cpu, _op: &Op) -> Done {
    check(cpu)?;
    let f = &mut cpu.state.fpu;
    f.top = f.top.wrapping_add(1) & 7;
    f.sw &= !C1;
    Ok(())
}
/// FDECSTP.
pub fn fdecstp(cpu: &mut Cpu, _op: &Op) -> Done {
    check(cpu)?;
    let f = &mut cpu.state.fpu;
    f.top = f.top.wrapping_sub(1) & 7;
    f.sw &= !C1;
    Ok(())
}
/// FFREE, FFREEP. C1 is undefined in the manual; it becomes zero.
pub fn ffree<const POP: bool>(cpu: &mut Cpu, op: &Op) -> Done {
    check(cpu)?;
    let f = &mut cpu.state.fpu;
    f.empty |= 1 << f.phys(op.dst);
    f.sw &= !C1;
    if POP {
        f.pop();
    }
    Ok(())
}
