//! The architectural state of one vCPU: everything an x86 program can see, and nothing of any engine.
//!
//! Every engine takes a `State` at an instruction boundary and gives it back at one. The layout is `repr(C)`:
//! generated code addresses fields by offset. Arithmetic flags are kept lazily in `res` and `aux` (see [`Flags`]);
//! `rflags` holds the other bits.
use crate::event::Event;
use serde::{Deserialize, Serialize};

/// Index of a general register in `State::gpr`; the encoding's own order.
pub mod gpr {
    #![allow(missing_docs)]
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RSP: usize = 4;
    pub const RBP: usize = 5;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
    pub const R8: usize = 8;
    pub const R11: usize = 11;
    /// A slot that always reads zero: the base or index of an address that has none.
    pub const ZERO: usize = 16;
    /// RIP: inside a block the address of the block's first instruction, at a boundary the architectural RIP.
    pub const RIP: usize = 17;
}

/// Index of a segment register in `State::seg`; the encoding's own order.
pub mod seg {
    #![allow(missing_docs)]
    pub const ES: usize = 0;
    pub const CS: usize = 1;
    pub const SS: usize = 2;
    pub const DS: usize = 3;
    pub const FS: usize = 4;
    pub const GS: usize = 5;
}

/// Bits of RFLAGS.
pub mod fl {
    #![allow(missing_docs)]
    pub const CF: u64 = 1 << 0;
    pub const PF: u64 = 1 << 2;
    pub const AF: u64 = 1 << 4;
    pub const ZF: u64 = 1 << 6;
    pub const SF: u64 = 1 << 7;
    pub const TF: u64 = 1 << 8;
    pub const IF: u64 = 1 << 9;
    pub const DF: u64 = 1 << 10;
    pub const OF: u64 = 1 << 11;
    pub const IOPL: u64 = 3 << 12;
    pub const NT: u64 = 1 << 14;
    pub const RF: u64 = 1 << 16;
    pub const VM: u64 = 1 << 17;
    pub const AC: u64 = 1 << 18;
    pub const VIF: u64 = 1 << 19;
    pub const VIP: u64 = 1 << 20;
    pub const ID: u64 = 1 << 21;
    /// The six arithmetic flags, kept in `State::res` and `State::aux`.
    pub const ARITH: u64 = CF | PF | AF | ZF | SF | OF;
}

/// Bits of CR0.
pub mod cr0 {
    #![allow(missing_docs)]
    pub const PE: u64 = 1 << 0;
    pub const MP: u64 = 1 << 1;
    pub const EM: u64 = 1 << 2;
    pub const TS: u64 = 1 << 3;
    pub const ET: u64 = 1 << 4;
    pub const NE: u64 = 1 << 5;
    pub const WP: u64 = 1 << 16;
    pub const AM: u64 = 1 << 18;
    pub const NW: u64 = 1 << 29;
    pub const CD: u64 = 1 << 30;
    pub const PG: u64 = 1 << 31;
}

/// Bits of CR4.
pub mod cr4 {
    #![allow(missing_docs)]
    pub const VME: u64 = 1 << 0;
    pub const PVI: u64 = 1 << 1;
    pub const TSD: u64 = 1 << 2;
    pub const DE: u64 = 1 << 3;
    pub const PSE: u64 = 1 << 4;
    pub const PAE: u64 = 1 << 5;
    pub const MCE: u64 = 1 << 6;
    pub const PGE: u64 = 1 << 7;
    pub const PCE: u64 = 1 << 8;
    pub const OSFXSR: u64 = 1 << 9;
    pub const OSXMMEXCPT: u64 = 1 << 10;
    pub const UMIP: u64 = 1 << 11;
    pub const LA57: u64 = 1 << 12;
    pub const FSGSBASE: u64 = 1 << 16;
    pub const PCIDE: u64 = 1 << 17;
    pub const OSXSAVE: u64 = 1 << 18;
    pub const SMEP: u64 = 1 << 20;
    pub const SMAP: u64 = 1 << 21;
    pub const PKE: u64 = 1 << 22;
}

/// Bits of IA32_EFER.
pub mod efer {
    #![allow(missing_docs)]
    pub const SCE: u64 = 1 << 0;
    pub const LME: u64 = 1 << 8;
    pub const LMA: u64 = 1 << 10;
    pub const NXE: u64 = 1 << 11;
}

/// A segment register: the selector and the cached descriptor.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Base address.
    pub base: u64,
    /// Limit in bytes (granularity applied).
    pub limit: u32,
    /// Access rights as in bits 8-23 of a descriptor's high word shifted down by 8: type (0-3), S (4), DPL (5-6), P
    /// (7), AVL (12), L (13), D/B (14), G (15); and bit 16: unusable (a null selector was loaded).
    pub attr: u32,
    /// Selector.
    pub sel: u16,
}

impl Segment {
    /// Attribute bit: loaded with a null selector.
    pub const UNUSABLE: u32 = 1 << 16;
    /// Attribute bit: 64-bit code segment.
    pub const L: u32 = 1 << 13;
    /// Attribute bit: default size / big.
    pub const DB: u32 = 1 << 14;
    /// Attribute bit: present.
    pub const P: u32 = 1 << 7;
    /// Attribute bit: code or data (not system).
    pub const S: u32 = 1 << 4;

    /// The four type bits.
    pub fn kind(&self) -> u32 {
        self.attr & 15
    }
    /// Descriptor privilege level.
    pub fn dpl(&self) -> u8 {
        (self.attr >> 5 & 3) as u8
    }
    /// Whether a usable descriptor is cached.
    pub fn usable(&self) -> bool {
        self.attr & Self::UNUSABLE == 0
    }
    /// The segment that loading `sel` gives in real or virtual-8086 mode (attributes as after reset, DPL as given).
    pub fn real(sel: u16, dpl: u8) -> Self {
        Self { base: u64::from(sel) << 4, limit: 0xffff, attr: 0x93 | u32::from(dpl) << 5, sel }
    }
}

/// GDTR or IDTR.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u16,
}

/// A vector register with room for 512 bits; lane 0 is the lowest 64 bits.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vector(pub [u64; 8]);

impl Vector {
    /// The low 128 bits.
    #[inline(always)]
    pub fn x(&self) -> u128 {
        u128::from(self.0[0]) | u128::from(self.0[1]) << 64
    }
    /// Replaces the low 128 bits (legacy SSE: the rest stays).
    #[inline(always)]
    pub fn set_x(&mut self, v: u128) {
        self.0[0] = v as u64;
        self.0[1] = (v >> 64) as u64;
    }
    /// Bits 128-255: the upper half of a YMM register.
    #[inline(always)]
    pub fn y_high(&self) -> u128 {
        u128::from(self.0[2]) | u128::from(self.0[3]) << 64
    }
    /// Replaces bits 128-255.
    #[inline(always)]
    pub fn set_y_high(&mut self, v: u128) {
        self.0[2] = v as u64;
        self.0[3] = (v >> 64) as u64;
    }
}

/// An 80-bit extended real as the FPU holds it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct F80 {
    /// Significand with its explicit integer bit.
    pub mant: u64,
    /// Sign (bit 15) and biased exponent.
    pub exp: u16,
}

/// The x87 unit.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fpu {
    /// Physical registers R0-R7 (not ST order). MMX registers are their significands.
    pub r: [F80; 8],
    /// Control word.
    pub cw: u16,
    /// Status word without TOP (bits 11-13 are zero here).
    pub sw: u16,
    /// TOP of stack, 0-7.
    pub top: u8,
    /// One bit per physical register: 1 = empty.
    pub empty: u8,
    /// Last opcode (11 bits).
    pub fop: u16,
    /// Last instruction pointer.
    pub fip: u64,
    /// Last operand pointer.
    pub fdp: u64,
    /// Selector of the last instruction (FCS).
    pub fcs: u16,
    /// Selector of the last operand (FDS).
    pub fds: u16,
}

impl Default for Fpu {
    fn default() -> Self {
        Self {
            r: [F80::default(); 8],
            cw: 0x37f,
            sw: 0,
            top: 0,
            empty: 0xff,
            fop: 0,
            fip: 0,
            fdp: 0,
            fcs: 0,
            fds: 0,
        }
    }
}

/// Model-specific registers that the CPU itself owns (the local APIC's are the APIC's).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Msrs {
    /// IA32_EFER (C000_0080h).
    pub efer: u64,
    /// IA32_STAR (C000_0081h).
    pub star: u64,
    /// IA32_LSTAR (C000_0082h).
    pub lstar: u64,
    /// IA32_CSTAR (C000_0083h).
    pub cstar: u64,
    /// IA32_FMASK (C000_0084h).
    pub fmask: u64,
    /// IA32_KERNEL_GS_BASE (C000_0102h).
    pub kernel_gs_base: u64,
    /// IA32_TSC_AUX (C000_0103h).
    pub tsc_aux: u64,
    /// IA32_SYSENTER_CS (174h).
    pub sysenter_cs: u64,
    /// IA32_SYSENTER_ESP (175h).
    pub sysenter_esp: u64,
    /// IA32_SYSENTER_EIP (176h).
    pub sysenter_eip: u64,
    /// IA32_PAT (277h).
    pub pat: u64,
    /// IA32_MISC_ENABLE (1A0h).
    pub misc_enable: u64,
    /// IA32_TSC_ADJUST (3Bh).
    pub tsc_adjust: u64,
    /// What is added to the board's TSC.
    pub tsc_offset: u64,
    /// IA32_SPEC_CTRL (48h).
    pub spec_ctrl: u64,
    /// IA32_XSS (DA0h).
    pub xss: u64,
    /// IA32_MTRR_DEF_TYPE (2FFh).
    pub mtrr_def_type: u64,
    /// Fixed-range MTRRs: 250h, 258h, 259h, 268h-26Fh.
    pub mtrr_fixed: [u64; 11],
    /// Variable-range MTRRs: base and mask, 200h-20Fh.
    pub mtrr_var: [u64; 16],
    /// IA32_MCG_STATUS (17Ah).
    pub mcg_status: u64,
    /// IA32_MCG_CTL (17Bh).
    pub mcg_ctl: u64,
    /// MCi_CTL, STATUS, ADDR, MISC of 10 banks (400h...).
    pub mc: [[u64; 4]; 10],
    /// IA32_DEBUGCTL (1D9h).
    pub debugctl: u64,
    /// IA32_FEATURE_CONTROL (3Ah).
    pub feature_control: u64,
    /// AMD SYSCFG (C001_0010h).
    pub syscfg: u64,
    /// AMD HWCR (C001_0015h).
    pub hwcr: u64,
    /// AMD TOP_MEM (C001_001Ah).
    pub top_mem: u64,
    /// AMD TOP_MEM2 (C001_001Dh).
    pub top_mem2: u64,
    /// AMD NB_CFG (C001_001Fh).
    pub nb_cfg: u64,
    /// AMD DE_CFG (C001_1029h).
    pub de_cfg: u64,
    /// AMD VIRT_SPEC_CTRL (C001_011Fh).
    pub virt_spec_ctrl: u64,
}

/// What the CPU is doing.
#[repr(u8)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activity {
    /// Executing instructions.
    #[default]
    Running,
    /// HLT or MWAIT: waiting for an interrupt.
    Halted,
    /// After INIT: waiting for SIPI.
    WaitSipi,
    /// After a triple fault.
    Shutdown,
}

/// Interrupts that the last instruction holds off for one instruction.
#[repr(u8)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Shadow {
    /// None.
    #[default]
    None,
    /// After STI: maskable interrupts.
    Sti,
    /// After MOV SS / POP SS: maskable interrupts, NMI and debug traps.
    MovSs,
    /// The event in [`State::pending`] comes before the next instruction: maskable interrupts and NMI.
    Event,
}

/// The whole architectural state of a vCPU.
#[repr(C)]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// General registers 0-15, then [`gpr::ZERO`] and [`gpr::RIP`]; 32 slots so that a masked index is always in
    /// bounds.
    pub gpr: [u64; 32],
    /// Last arithmetic result, sign-extended to 64 bits: gives ZF, SF and (with `aux`) PF.
    pub res: u64,
    /// Carry bits and corrections: see [`crate::flags`].
    pub aux: u64,
    /// RFLAGS without the arithmetic flags (those bits are zero here); bit 1 is set.
    pub rflags: u64,
    /// ES, CS, SS, DS, FS, GS.
    pub seg: [Segment; 6],
    /// LDTR.
    pub ldtr: Segment,
    /// Task register.
    pub tr: Segment,
    /// GDTR.
    pub gdtr: Table,
    /// IDTR.
    pub idtr: Table,
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// XCR0.
    pub xcr0: u64,
    /// DR0-DR3, (4, 5 unused), DR6, DR7.
    pub dr: [u64; 8],
    /// PDPTEs of PAE paging.
    pub pdpte: [u64; 4],
    /// Model-specific registers.
    pub msr: Msrs,
    /// Vector registers; 16 are reachable without EVEX.
    pub xmm: [Vector; 32],
    /// MXCSR.
    pub mxcsr: u32,
    /// PKRU.
    pub pkru: u32,
    /// The x87 unit.
    pub fpu: Fpu,
    /// Current privilege level.
    pub cpl: u8,
    /// What the CPU is doing.
    pub activity: Activity,
    /// Interrupt shadow.
    pub shadow: Shadow,
    /// NMIs are blocked until IRET.
    pub nmi_blocked: bool,
    /// What is delivered before the next instruction, while the shadow is [`Shadow::Event`]: the debug trap of a task
    /// switch, or an exception that was raised while another event was being delivered.
    pub pending: Option<Event>,
}

impl Default for State {
    /// The state after power-up or RESET (SDM volume 3A, table 10-1).
    fn default() -> Self {
        let data = Segment { base: 0, limit: 0xffff, attr: 0x93, sel: 0 };
        let mut s = Self {
            gpr: [0; 32],
            res: 1,
            aux: 0,
            rflags: 2,
            seg: [data; 6],
            ldtr: Segment { attr: 0x82, limit: 0xffff, ..Segment::default() },
            tr: Segment { attr: 0x8b, limit: 0xffff, ..Segment::default() },
            gdtr: Table { base: 0, limit: 0xffff },
            idtr: Table { base: 0, limit: 0xffff },
            cr0: cr0::ET | cr0::NW | cr0::CD,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            xcr0: 1,
            dr: [0, 0, 0, 0, 0, 0, 0xffff_0ff0, 0x400],
            pdpte: [0; 4],
            msr: Msrs { pat: 0x0007_0406_0007_0406, misc_enable: 1, ..Msrs::default() },
            xmm: [Vector::default(); 32],
            mxcsr: 0x1f80,
            pkru: 0,
            fpu: Fpu { cw: 0x40, sw: 0, empty: 0, ..Fpu::default() },
            cpl: 0,
            activity: Activity::Running,
            shadow: Shadow::None,
            nmi_blocked: false,
            pending: None,
        };
        s.seg[seg::CS] = Segment { base: 0xffff_0000, limit: 0xffff, attr: 0x9b, sel: 0xf000 };
        s.gpr[gpr::RIP] = 0xfff0;
        s
    }
}

impl State {
    /// Executing in 64-bit mode (EFER.LMA and CS.L).
    #[inline(always)]
    pub fn is_long64(&self) -> bool {
        self.msr.efer & efer::LMA != 0 && self.seg[seg::CS].attr & Segment::L != 0
    }
    /// EFER.LMA: 64-bit or compatibility mode.
    #[inline(always)]
    pub fn is_long(&self) -> bool {
        self.msr.efer & efer::LMA != 0
    }
    /// CR0.PE and not virtual-8086 mode.
    #[inline(always)]
    pub fn is_protected(&self) -> bool {
        self.cr0 & cr0::PE != 0 && self.rflags & fl::VM == 0
    }
    /// Virtual-8086 mode.
    #[inline(always)]
    pub fn is_v86(&self) -> bool {
        self.rflags & fl::VM != 0
    }
    /// Real-address mode.
    #[inline(always)]
    pub fn is_real(&self) -> bool {
        self.cr0 & cr0::PE == 0
    }
    /// IOPL.
    #[inline(always)]
    pub fn iopl(&self) -> u8 {
        (self.rflags >> 12 & 3) as u8
    }
}
