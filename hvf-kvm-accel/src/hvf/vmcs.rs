//! Numbers of VMCS fields, and of what is in them. Source: SDM volume 3D, appendix B and C; volume 3C, chapter 25.

/// Controls whose permitted bits the processor tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Control {
    /// Pin-based.
    Pin,
    /// Processor-based.
    Cpu,
    /// The secondary ones of these.
    Cpu2,
    /// At entry.
    Entry,
    /// At exit.
    Exit,
}

impl Control {
    /// Its field.
    pub fn field(self) -> u32 {
        match self {
            Self::Pin => 0x4000,
            Self::Cpu => 0x4002,
            Self::Cpu2 => 0x401e,
            Self::Entry => 0x4012,
            Self::Exit => 0x400c,
        }
    }
}

/// Selector, base, limit and access rights of segment register `n`, in the VMCS' order: ES, CS, SS, DS, FS, GS, LDTR,
/// TR.
pub const fn segment(n: u32) -> (u32, u32, u32, u32) {
    (0x800 + 2 * n, 0x6806 + 2 * n, 0x4800 + 2 * n, 0x4814 + 2 * n)
}

/// Segment registers behind those of the state.
pub const LDTR: u32 = 6;
#[allow(missing_docs, reason = "it is the processor's name")]
pub const TR: u32 = 7;
/// Base and limit.
pub const GDTR: (u32, u32) = (0x6816, 0x4810);
/// The same.
pub const IDTR: (u32, u32) = (0x6818, 0x4812);

/// Fields of the guest's state.
pub mod guest {
    #![allow(missing_docs, reason = "they are the manual's names")]
    pub const DEBUGCTL: u32 = 0x2802;
    pub const PAT: u32 = 0x2804;
    pub const EFER: u32 = 0x2806;
    pub const PDPTE0: u32 = 0x280a;
    pub const INTERRUPTIBILITY: u32 = 0x4824;
    pub const ACTIVITY: u32 = 0x4826;
    pub const SYSENTER_CS: u32 = 0x482a;
    pub const CR0: u32 = 0x6800;
    pub const CR3: u32 = 0x6802;
    pub const CR4: u32 = 0x6804;
    pub const DR7: u32 = 0x681a;
    pub const PENDING_DEBUG: u32 = 0x6822;
    pub const SYSENTER_ESP: u32 = 0x6824;
    pub const SYSENTER_EIP: u32 = 0x6826;
}

/// Bits of CR0 and CR4 that the guest does not have to itself, and what it reads there.
pub mod shadow {
    #![allow(missing_docs, reason = "they are the manual's names")]
    pub const CR0_MASK: u32 = 0x6000;
    pub const CR4_MASK: u32 = 0x6002;
    pub const CR0: u32 = 0x6004;
    pub const CR4: u32 = 0x6006;
}

/// An event that is delivered at entry, or was about to be at exit.
pub mod event {
    #![allow(missing_docs, reason = "they are the manual's names")]
    pub const ENTRY: u32 = 0x4016;
    pub const ENTRY_ERROR: u32 = 0x4018;
    pub const VECTORING: u32 = 0x4408;
    pub const VECTORING_ERROR: u32 = 0x440a;
    pub const VALID: u64 = 1 << 31;
    pub const HAS_ERROR: u64 = 1 << 11;
    pub const EXTERNAL: u64 = 0;
    pub const NMI: u64 = 2;
    pub const EXCEPTION: u64 = 3;
}

/// Which exceptions exit.
pub const EXCEPTIONS: u32 = 0x4004;

/// Bits of the interruptibility state.
pub mod blocking {
    #![allow(missing_docs, reason = "they are the manual's names")]
    pub const STI: u64 = 1;
    pub const MOV_SS: u64 = 2;
    pub const NMI: u64 = 8;
}

/// Bits of controls.
pub mod control {
    #![allow(missing_docs, reason = "they are the manual's names")]
    pub const PIN_EXTERNAL: u32 = 1;
    pub const PIN_NMI: u32 = 1 << 3;
    pub const PIN_VIRTUAL_NMI: u32 = 1 << 5;
    pub const CPU_INTERRUPT_WINDOW: u32 = 1 << 2;
    pub const CPU_HLT: u32 = 1 << 7;
    pub const CPU_MWAIT: u32 = 1 << 10;
    pub const CPU_RDPMC: u32 = 1 << 11;
    pub const CPU_RDTSC: u32 = 1 << 12;
    pub const CPU_CR8_LOAD: u32 = 1 << 19;
    pub const CPU_CR8_STORE: u32 = 1 << 20;
    pub const CPU_NMI_WINDOW: u32 = 1 << 22;
    pub const CPU_IO: u32 = 1 << 24;
    pub const CPU_MSR_BITMAPS: u32 = 1 << 28;
    pub const CPU_MONITOR: u32 = 1 << 29;
    pub const CPU_SECONDARY: u32 = 1 << 31;
    pub const CPU2_EPT: u32 = 1 << 1;
    pub const CPU2_RDTSCP: u32 = 1 << 3;
    pub const CPU2_UNRESTRICTED: u32 = 1 << 7;
    pub const CPU2_INVPCID: u32 = 1 << 12;
    pub const ENTRY_LONG: u32 = 1 << 9;
    pub const ENTRY_PAT: u32 = 1 << 14;
    pub const ENTRY_EFER: u32 = 1 << 15;
    pub const EXIT_HOST_LONG: u32 = 1 << 9;
    pub const EXIT_SAVE_PAT: u32 = 1 << 18;
    pub const EXIT_LOAD_PAT: u32 = 1 << 19;
    pub const EXIT_SAVE_EFER: u32 = 1 << 20;
    pub const EXIT_LOAD_EFER: u32 = 1 << 21;
}

/// Why it has exited.
pub const REASON: u32 = 0x4402;
/// In it: the entry has failed.
pub const ENTRY_FAILED: u64 = 1 << 31;

/// Basic exit reasons.
pub mod reason {
    #![allow(missing_docs, reason = "they are the manual's names")]
    pub const EXCEPTION_OR_NMI: u16 = 0;
    pub const EXTERNAL_INTERRUPT: u16 = 1;
    pub const TRIPLE_FAULT: u16 = 2;
    pub const INTERRUPT_WINDOW: u16 = 7;
    pub const NMI_WINDOW: u16 = 8;
    pub const TASK_SWITCH: u16 = 9;
    pub const CPUID: u16 = 10;
    pub const HLT: u16 = 12;
    pub const INVD: u16 = 13;
    pub const RDPMC: u16 = 15;
    pub const RDTSC: u16 = 16;
    pub const VMCALL: u16 = 18;
    pub const VMX_LAST: u16 = 27;
    pub const CR_ACCESS: u16 = 28;
    pub const DR_ACCESS: u16 = 29;
    pub const IO: u16 = 30;
    pub const RDMSR: u16 = 31;
    pub const WRMSR: u16 = 32;
    pub const MWAIT: u16 = 36;
    pub const MONITOR: u16 = 39;
    pub const EPT_VIOLATION: u16 = 48;
    pub const RDTSCP: u16 = 51;
    pub const PREEMPTION_TIMER: u16 = 52;
    pub const WBINVD: u16 = 54;
    pub const XSETBV: u16 = 55;
    pub const INVPCID: u16 = 58;
    pub const XSAVES: u16 = 63;
    pub const XRSTORS: u16 = 64;
}
