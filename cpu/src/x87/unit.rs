//! What x87 instructions have in common: what they check first, the pointers that they leave behind, and FERR#.
use super::word::ES;
use crate::cpu::Cpu;
use crate::event::{Stop, vector};
use crate::op::Op;
use crate::state::{cr0, seg};

/// What an instruction that waits checks first: #NM, then pending exceptions.
#[inline(always)]
pub fn check(cpu: &mut Cpu) -> Result<(), Stop> {
    if u16::from(cpu.x87_trap) | cpu.state.fpu.sw & ES != 0 {
        return blocked(cpu);
    }
    Ok(())
}

/// What an instruction that does not wait checks first: #NM.
#[inline(always)]
pub fn check_no_wait(cpu: &mut Cpu) -> Result<(), Stop> {
    if cpu.x87_trap != 0 {
        return Err(cpu.raise(vector::NM));
    }
    Ok(())
}

/// The beginning of a non-control instruction on registers: checks, and FIP, FCS, FOP.
#[inline(always)]
pub fn enter(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    check(cpu)?;
    let ip = cpu.ip(op);
    let s = &mut cpu.state;
    s.fpu.fip = ip;
    s.fpu.fcs = s.seg[seg::CS].sel;
    s.fpu.fop = op.imm as u16 & 0x7ff;
    Ok(())
}

/// FIP, FCS, FOP, FDP, FDS of an instruction with a memory operand, once nothing can fault any more.
#[inline(always)]
pub fn track(cpu: &mut Cpu, op: &Op) {
    let (ip, ea) = (cpu.ip(op), cpu.ea(op));
    let s = &mut cpu.state;
    s.fpu.fip = ip;
    s.fpu.fcs = s.seg[seg::CS].sel;
    s.fpu.fop = op.imm as u16 & 0x7ff;
    s.fpu.fdp = ea;
    s.fpu.fds = s.seg.get(usize::from(op.seg)).map_or(0, |s| s.sel);
}

#[cold]
#[inline(never)]
fn blocked(cpu: &mut Cpu) -> Result<(), Stop> {
    check_no_wait(cpu)?;
    pending(cpu)
}

/// Raises #MF, or asserts FERR#, if an unmasked exception is pending. What WAIT, x87 and MMX instructions do
/// after their #NM check.
pub fn pending(cpu: &mut Cpu) -> Result<(), Stop> {
    if cpu.state.fpu.sw & ES == 0 {
        return Ok(());
    }
    if cpu.state.cr0 & cr0::NE != 0 {
        return Err(cpu.raise(vector::MF));
    }
    if !cpu.ferr {
        cpu.ferr = true;
        cpu.board.ferr(true);
    }
    if cpu.board.ignne() { Ok(()) } else { Err(Stop::Again) }
}

/// Takes FERR# back if no exception is pending any more: call it after anything that clears or replaces the
/// status word.
pub fn settle(cpu: &mut Cpu) {
    if cpu.ferr && cpu.state.fpu.sw & ES == 0 {
        cpu.ferr = false;
        cpu.board.ferr(false);
    }
}
