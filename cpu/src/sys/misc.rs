//! HLT, PAUSE, MONITOR, MWAIT, BOUND (SDM volume 2). UD0, UD1, UD2, RSM outside SMM, VMCALL and VMMCALL have no
//! helper: they are invalid opcodes.
use super::privilege::ring0;
use crate::board::EV_INTR;
use crate::cpu::Cpu;
use crate::event::{Stop, vector};
use crate::exec::Exec;
use crate::op::{Helper, Op};
use crate::state::{Activity, gpr};
use crate::width::{W8, W16, W32, Width};
use iced_x86::{Code, Instruction, Mnemonic};
use std::time::Duration;

fn hlt(cpu: &mut Cpu, _: &Op) -> Result<(), Stop> {
    ring0(cpu)?;
    cpu.state.activity = Activity::Halted;
    Ok(())
}

/// PAUSEs of a vCPU that spins after which it lets others have its CPU. It costs little where nobody wants it.
const SPIN: u32 = 32;
/// PAUSEs of the only vCPU that spins after which it rests: some 0.1 ms, as a wait for less may want to be exact.
const LONG_SPIN: u32 = 1024;
/// Instructions between two PAUSEs of a vCPU that spins, at most.
const ROUND: u64 = 64;
/// How long it rests then.
const REST: Duration = Duration::from_micros(20);

/// PAUSE: a program waits for another vCPU, whose thread may not run because this one does: the host may have fewer
/// CPUs, or other work. Where there is no other it waits for a time or a device, and an interrupt ends its rest.
fn pause(cpu: &mut Cpu, _: &Op) -> Result<(), Stop> {
    std::hint::spin_loop();
    let goes_on = cpu.icount.wrapping_sub(std::mem::replace(&mut cpu.paused_at, cpu.icount)) <= ROUND;
    cpu.pauses = if goes_on || !cpu.sole { cpu.pauses.saturating_add(1) } else { 0 };
    if cpu.sole {
        if cpu.pauses >= LONG_SPIN && !cpu.is_tentative() {
            cpu.events.wait(cpu.event_mask, Some(REST));
        }
    } else if cpu.pauses % SPIN == SPIN - 1 {
        std::thread::yield_now();
    }
    Ok(())
}

fn monitor_allowed(cpu: &mut Cpu) -> Result<(), Stop> {
    if cpu.state.cpl != 0 {
        return Err(cpu.ud());
    }
    Ok(())
}

/// MONITOR: checked as the load of a byte.
fn monitor(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    monitor_allowed(cpu)?;
    if cpu.state.gpr[gpr::RCX] as u32 != 0 {
        return Err(cpu.gp(0));
    }
    let shift = op.ashift & 63;
    let off = cpu.state.gpr[gpr::RAX] << shift >> shift;
    let lin = cpu.linear(usize::from(op.seg), off, 1, false)?;
    cpu.load::<W8>(lin, op.seg)?;
    Ok(())
}

/// MWAIT may end for reasons of the processor's own. Stores of others to the monitored line are not seen, so it ends
/// soon in any case, after a short sleep.
fn mwait(cpu: &mut Cpu, _: &Op) -> Result<(), Stop> {
    monitor_allowed(cpu)?;
    let extensions = cpu.state.gpr[gpr::RCX] as u32;
    if extensions & !1 != 0 {
        return Err(cpu.gp(0));
    }
    // ECX bit 0: an interrupt ends the wait even if it is masked.
    let mask = cpu.event_mask | if extensions & 1 != 0 { EV_INTR } else { 0 };
    if cpu.events.pending() & mask == 0 {
        cpu.events.wait(mask, Some(Duration::from_micros(50)));
    }
    Ok(())
}

fn bound<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let lin = cpu.operand(op, W::BYTES, false)?;
    let low = W::sext(cpu.load::<W>(lin, op.seg)?) as i64;
    let lin = cpu.operand_at(op, W::BYTES, W::BYTES, false)?;
    let high = W::sext(cpu.load::<W>(lin, op.seg)?) as i64;
    let index = W::sext(cpu.reg::<W>(op.dst)) as i64;
    if index < low || index > high {
        return Err(cpu.raise(vector::BR));
    }
    Ok(())
}

/// The helper for an instruction of this group.
pub(super) fn lookup(i: &Instruction) -> Option<Helper> {
    match i.mnemonic() {
        Mnemonic::Hlt => Helper::ends(hlt),
        Mnemonic::Pause => Helper::straight(pause),
        Mnemonic::Monitor => Helper::straight(monitor),
        Mnemonic::Mwait => Helper::ends(mwait),
        Mnemonic::Bound if i.code() == Code::Bound_r16_m1616 => Helper::straight(bound::<W16>),
        Mnemonic::Bound => Helper::straight(bound::<W32>),
        _ => None,
    }
}
