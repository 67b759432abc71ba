//! MXCSR: its bits, and how a floating-point operation's exceptions end up in it or in #XM (SDM
//! volume 1, 10.2.3 and 11.5).
use crate::cpu::Cpu;
use crate::event::{Stop, vector};
use crate::state::cr4;

/// Writable bits of MXCSR (what FXSAVE reports as MXCSR_MASK): all flags, DAZ, masks, rounding control, FTZ.
pub const MXCSR_MASK: u32 = 0xffff;
/// Invalid operation.
pub const IE: u32 = 1 << 0;
/// Denormal operand.
pub const DE: u32 = 1 << 1;
/// Division by zero.
pub const ZE: u32 = 1 << 2;
/// Overflow.
pub const OE: u32 = 1 << 3;
/// Underflow.
pub const UE: u32 = 1 << 4;
/// Precision: the result is inexact.
pub const PE: u32 = 1 << 5;
/// The six sticky exception flags.
pub const FLAGS: u32 = 0x3f;
/// Denormals are zeros.
pub const DAZ: u32 = 1 << 6;
/// All exception masks.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub const MASKS: u32 = 0x3f << 7;
/// Overflow mask.
pub const OM: u32 = 1 << 10;
/// Underflow mask.
pub const UM: u32 = 1 << 11;
/// Rounding control: 0 nearest, 1 down, 2 up, 3 towards zero.
pub const RC: u32 = 3 << 13;
/// Position of the rounding control.
pub const RC_SHIFT: u32 = 13;
/// Flush to zero.
pub const FTZ: u32 = 1 << 15;
/// Value after reset: all masked, round to nearest.
pub const DEFAULT: u32 = 0x1f80;
/// MXCSR values of one frame around an instruction of the host (see `super::host`).
#[cfg(target_arch = "x86_64")]
#[repr(C)]
#[derive(Default)]
pub struct Csr {
    /// Quick: as found. Full: to be loaded.
    pub first: u32,
    /// After the operation.
    pub last: u32,
    /// Full: to be loaded in the end.
    pub rest: u32,
}

/// Exceptions found before computing: if one of these is unmasked there is no result and no other exception.
const PRE: u32 = IE | DE | ZE;

/// Replaces MXCSR: #GP(0) if a reserved bit is set.
pub fn set_mxcsr(cpu: &mut Cpu, v: u32) -> Result<(), Stop> {
    if v & !MXCSR_MASK != 0 {
        return Err(cpu.gp(0));
    }
    cpu.state.mxcsr = v;
    Ok(())
}

/// Records the exceptions that an operation found: sticky flags; #XM, or #UD without CR4.OSXMMEXCPT, if one
/// is unmasked.
#[inline(always)]
pub(super) fn finish(cpu: &mut Cpu, found: u32) -> Result<(), Stop> {
    cpu.state.mxcsr |= found >> 8 & FLAGS;
    let found = found & FLAGS;
    let unmasked = found & !(cpu.state.mxcsr >> 7) & FLAGS;
    if unmasked != 0 {
        return Err(unmasked_exception(cpu, found, unmasked));
    }
    cpu.state.mxcsr |= found;
    Ok(())
}

#[cold]
fn unmasked_exception(cpu: &mut Cpu, found: u32, unmasked: u32) -> Stop {
    cpu.state.mxcsr |= if unmasked & PRE != 0 { found & PRE } else { found };
    if cpu.state.cr4 & cr4::OSXMMEXCPT != 0 { cpu.raise(vector::XM) } else { cpu.ud() }
}
