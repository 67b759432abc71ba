//! Hypervisor.framework of Intel Macs.
//!
//! ```text
//!   Cpu (state, events, board) <--load/save--> Vcpu (run, exits) ---- dyn Framework ---- ffi (macOS), a fake (tests)
//!                                              Map (hv_vm_map) ------ dyn GuestMap ----/
//! ```
//!
//! The framework gives a vCPU's VMCS nearly as it is: registers, fields, exits by VMX' reasons (SDM volume 3C, chapter
//! 28). A [`Vcpu`] loads the whole state, runs to an exit, and takes it back; what the exit asks for the interpreter
//! does, for that instruction: ports, MMIO, CPUID, MSRs, RDTSC. So all of them are as under the interpreter, and the
//! local APIC is the board's.
//!
//! What is here but for `ffi` knows nothing of macOS, and is tested on a fake framework. It has **not been run on
//! hardware**.
//!
//! * `vmcs`: numbers of fields. [`convert`]: state to registers and fields, and back. `map`: guest memory. `vcpu`: the
//!   run loop. [`Machine`]: all that a machine has of it.
pub mod convert;
#[cfg(all(target_os = "macos", target_arch = "x86_64"))]
pub mod ffi;
pub mod map;
#[cfg(test)]
mod tests;
pub mod vcpu;
pub mod vmcs;

pub use map::Map;
pub use vcpu::Vcpu;

use crate::{cpuid, xsave};
use map::GuestMap;
use mynah_cpu::board::Kicker;
use mynah_cpu::model::features::Feature;
use mynah_cpu::{Cpu, CpuModel};
use mynah_mmu::PhysMemory;
use std::sync::Arc;

/// What the framework answers when it refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Hypervisor.framework cannot {what} ({code:#x}{})", advice(.code))]
pub struct HvError {
    /// What was tried.
    pub what: &'static str,
    /// `hv_return_t`.
    pub code: u32,
}

/// What a user can do about it.
fn advice(code: &u32) -> &'static str {
    match *code {
        0xfae9_4002 => ": another program has the processor",
        0xfae9_4005 => ": it has no resources left",
        0xfae9_4007 => ": the program has to be signed with the entitlement com.apple.security.hypervisor",
        0xfae9_400f => ": this Mac's processor has no virtualization",
        _ => "",
    }
}

/// Registers by the framework's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
#[allow(missing_docs, reason = "they are the processor's names")]
pub enum Reg {
    Rip,
    Rflags,
    Rax,
    Rcx,
    Rdx,
    Rbx,
    Rsi,
    Rdi,
    Rsp,
    Rbp,
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15,
    Cr2 = 38,
    Dr0 = 41,
    Dr1,
    Dr2,
    Dr3,
    Dr6 = 47,
    Dr7,
    Xcr0 = 50,
}

/// One vCPU of the framework's. It is used by the thread that has made it.
pub trait Framework: Send {
    /// Runs it to its next exit, which the VMCS names.
    ///
    /// # Errors
    /// It cannot be entered.
    fn run(&mut self) -> Result<(), HvError>;
    /// Reads a register.
    ///
    /// # Errors
    /// The framework refuses, as in all below.
    fn reg(&self, reg: Reg) -> Result<u64, HvError>;
    /// Writes one.
    ///
    /// # Errors
    /// As above.
    fn set_reg(&mut self, reg: Reg, value: u64) -> Result<(), HvError>;
    /// Reads a field of the VMCS.
    ///
    /// # Errors
    /// As above.
    fn field(&self, field: u32) -> Result<u64, HvError>;
    /// Writes one.
    ///
    /// # Errors
    /// As above.
    fn set_field(&mut self, field: u32, value: u64) -> Result<(), HvError>;
    /// Reads an MSR that the processor has while the guest runs.
    ///
    /// # Errors
    /// As above.
    fn msr(&self, index: u32) -> Result<u64, HvError>;
    /// Writes one.
    ///
    /// # Errors
    /// As above.
    fn set_msr(&mut self, index: u32, value: u64) -> Result<(), HvError>;
    /// Reads the XSAVE area.
    ///
    /// # Errors
    /// As above.
    fn xsave(&self, area: &mut [u8; xsave::SIZE]) -> Result<(), HvError>;
    /// Writes it.
    ///
    /// # Errors
    /// As above.
    fn set_xsave(&mut self, area: &[u8; xsave::SIZE]) -> Result<(), HvError>;
    /// Has the framework forget translations: registers of paging were written.
    ///
    /// # Errors
    /// As above.
    fn forget_translations(&mut self) -> Result<(), HvError>;
    /// What the processor permits of a control (`hv_vmx_read_capability`): bits that have to be set below, that may be
    /// above.
    ///
    /// # Errors
    /// As above.
    fn permitted(&self, control: vmcs::Control) -> Result<u64, HvError>;
    /// What brings it out of the guest, from any thread.
    fn kicker(&self) -> Arc<dyn Kicker>;
}

/// The framework's virtual machine, of which a process has one.
pub trait Hypervisor: GuestMap {
    /// A vCPU, which belongs to the calling thread.
    ///
    /// # Errors
    /// The framework refuses.
    fn vcpu(self: Arc<Self>) -> Result<Box<dyn Framework>, HvError>;
}

/// A machine's share of the framework: its memory is mapped, and vCPUs can be had.
pub struct Machine<H> {
    vm: Arc<H>,
    /// Kept for what it follows.
    _map: Arc<Map>,
}

impl<H: Hypervisor + 'static> Machine<H> {
    /// Maps this memory.
    ///
    /// # Errors
    /// The framework refuses.
    pub fn new(vm: Arc<H>, memory: &Arc<PhysMemory>) -> Result<Self, HvError> {
        let map = Map::new(vm.clone(), memory)?;
        Ok(Self { vm, _map: map })
    }

    /// What runs this vCPU, from the thread that will.
    pub fn vcpu(&self, cpu: &Cpu) -> Vcpu {
        let vm = self.vm.clone();
        Vcpu::new(cpu, Box::new(move || vm.vcpu()))
    }
}

/// The features of `model` that vCPUs cannot have on a processor whose CPUID this is (leaf and index to EAX, EBX, ECX,
/// EDX): what it has not, and what the engine does not switch on.
pub fn missing(model: &CpuModel, host: impl Fn(u32, u32) -> [u32; 4]) -> Vec<(&'static str, Feature)> {
    let last = [0, 0x8000_0000].map(|leaf| host(leaf, 0)[0]);
    cpuid::missing(model, |leaf, index| {
        (leaf <= last[(leaf >> 31) as usize]).then(|| {
            let mut registers = host(leaf, index);
            if (leaf, index) == (0xd, 1) {
                registers[0] &= !Feature::XSAVES.mask();
            }
            registers
        })
    })
}
