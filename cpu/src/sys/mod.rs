//! System instructions and event delivery: what is long, rare or stateful, called by every engine through
//! [`crate::op::Helper`].
//!
//! ```text
//!   block decoder --lookup(&Instruction)--> Helper --run(&mut Cpu, &Op)--> Ok, or Err and the exception in Cpu::fault
//!   run loop --Cpu::deliver(Event)--> the handler's first instruction (or a double fault, or shutdown)
//! ```
//!
//! * [`descriptor`], [`stack`]: descriptors and stacks as far transfers see them. [`segments`]: segment registers and
//!   tables.
//! * [`far`]: JMP, CALL, RET far. [`iret`]: IRET. [`interrupt`]: the IDT and event delivery. [`task`]: task switches.
//!   [`v86`]: virtual-8086 mode with VME. [`fastcall`]: SYSCALL, SYSENTER and their returns.
//! * [`control`]: CR0-CR8. [`debug`]: DR0-DR7, breakpoints. [`msr`]: model-specific registers. [`cpuid`]: CPUID and
//!   counters.
//! * [`flags`]: CLI, STI, PUSHF, POPF, CLAC. [`io`]: IN, OUT, the I/O permission bitmap. [`xsave`]: FXSAVE and the
//!   XSAVE family. [`cache`]: cache and TLB maintenance, fences. [`misc`]: HLT, MWAIT, BOUND, UD and what is left.
//!
//! Everything follows the Intel SDM, volumes 2 and 3 (document 325462); where AMD's processors differ and the model is
//! one of AMD's, the APM (24593, 24594). An instruction that fails leaves the architectural state as it was, but for
//! what the manual says.

pub mod cache;
pub mod control;
pub mod cpuid;
pub mod debug;
pub mod descriptor;
pub mod far;
pub mod fastcall;
pub mod flags;
pub mod interrupt;
pub mod io;
pub mod iret;
pub mod misc;
pub mod msr;
mod privilege;
pub mod segments;
pub mod stack;
pub mod tables;
pub mod task;
pub mod v86;
pub mod xsave;

#[cfg(test)]
mod tests;

use crate::op::Helper;
pub use io::check_io;

/// The helper for an instruction of this group.
pub fn lookup(i: &iced_x86::Instruction) -> Option<Helper> {
    segments::lookup(i)
        .or_else(|| tables::lookup(i))
        .or_else(|| far::lookup(i))
        .or_else(|| iret::lookup(i))
        .or_else(|| interrupt::lookup(i))
        .or_else(|| fastcall::lookup(i))
        .or_else(|| control::lookup(i))
        .or_else(|| debug::lookup(i))
        .or_else(|| msr::lookup(i))
        .or_else(|| cpuid::lookup(i))
        .or_else(|| flags::lookup(i))
        .or_else(|| io::lookup(i))
        .or_else(|| xsave::lookup(i))
        .or_else(|| cache::lookup(i))
        .or_else(|| misc::lookup(i))
}
