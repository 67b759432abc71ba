//! The loads and stores of MXCSR.
use super::exec::VecExec;
use super::mxcsr::set_mxcsr;
use crate::cpu::Cpu;
use crate::event::Stop;
use crate::op::{Helper, Op};
use crate::width::W32;
use iced_x86::{Instruction, Mnemonic};

/// Helpers of this module.
pub(super) fn lookup(i: &Instruction) -> Option<Helper> {
    match i.mnemonic() {
        Mnemonic::Ldmxcsr => Helper::straight(ldmxcsr),
        Mnemonic::Stmxcsr => Helper::straight(stmxcsr),
        Mnemonic::Vldmxcsr => Helper::straight(vldmxcsr),
        Mnemonic::Vstmxcsr => Helper::straight(vstmxcsr),
        _ => None,
    }
}

fn ldmxcsr(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.sse_check()?;
    load(cpu, op)
}

fn vldmxcsr(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.avx_check()?;
    load(cpu, op)
}

fn load(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let v = cpu.load_op::<W32>(op)? as u32;
    set_mxcsr(cpu, v)
}

fn stmxcsr(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.sse_check()?;
    cpu.store_op::<W32>(op, u64::from(cpu.state.mxcsr))
}

fn vstmxcsr(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.avx_check()?;
    cpu.store_op::<W32>(op, u64::from(cpu.state.mxcsr))
}
