//! What system instructions ask of the privilege level before all else.
use crate::cpu::Cpu;
use crate::event::Stop;
use crate::state::cr4;

pub(super) fn ring0(cpu: &mut Cpu) -> Result<(), Stop> {
    if cpu.state.cpl != 0 {
        return Err(cpu.gp(0));
    }
    Ok(())
}

/// UMIP: SGDT, SIDT, SLDT, STR and SMSW fault outside CPL 0.
pub(super) fn umip(cpu: &mut Cpu) -> Result<(), Stop> {
    if cpu.state.cr4 & cr4::UMIP != 0 && cpu.state.cpl > 0 {
        return Err(cpu.gp(0));
    }
    Ok(())
}
