//! Model-specific registers: RDMSR, WRMSR (SDM volume 4; AMD APM volume 2, appendix A).
//!
//! What kernels touch on the models that we have. An MSR that the model has not raises #GP(0), as on hardware, and
//! leaves a line in the debug log. The local APIC's registers (APIC_BASE, x2APIC, TSC_DEADLINE) are the board's.
use super::privilege::ring0;
use crate::cpu::Cpu;
use crate::event::Stop;
use crate::model::{Feature as F, Vendor};
use crate::op::{Helper, Op};
use crate::state::{cr0, efer, gpr, seg};
use iced_x86::{Code, Instruction};

/// MSR numbers, by the names of SDM volume 4, tables 2-2 and following, and of the APM.
#[allow(missing_docs)]
pub mod index {
    pub const P5_MC_ADDR: u32 = 0x0;
    pub const P5_MC_TYPE: u32 = 0x1;
    pub const TSC: u32 = 0x10;
    pub const PLATFORM_ID: u32 = 0x17;
    pub const APIC_BASE: u32 = 0x1b;
    pub const EBL_CR_POWERON: u32 = 0x2a;
    pub const FEATURE_CONTROL: u32 = 0x3a;
    pub const TSC_ADJUST: u32 = 0x3b;
    pub const SPEC_CTRL: u32 = 0x48;
    pub const PRED_CMD: u32 = 0x49;
    pub const BIOS_UPDT_TRIG: u32 = 0x79;
    pub const BIOS_SIGN_ID: u32 = 0x8b;
    pub const MTRRCAP: u32 = 0xfe;
    pub const ARCH_CAPABILITIES: u32 = 0x10a;
    pub const FLUSH_CMD: u32 = 0x10b;
    pub const BBL_CR_CTL3: u32 = 0x11e;
    pub const SYSENTER_CS: u32 = 0x174;
    pub const SYSENTER_ESP: u32 = 0x175;
    pub const SYSENTER_EIP: u32 = 0x176;
    pub const MCG_CAP: u32 = 0x179;
    pub const MCG_STATUS: u32 = 0x17a;
    pub const MCG_CTL: u32 = 0x17b;
    pub const PERF_STATUS: u32 = 0x198;
    pub const MISC_ENABLE: u32 = 0x1a0;
    pub const DEBUGCTL: u32 = 0x1d9;
    pub const LAST_BRANCH_FROM: u32 = 0x1db;
    pub const LAST_INT_TO: u32 = 0x1de;
    pub const MTRR_PHYSBASE0: u32 = 0x200;
    pub const MTRR_PHYSMASK7: u32 = 0x20f;
    pub const MTRR_FIX64K: u32 = 0x250;
    pub const MTRR_FIX16K_80000: u32 = 0x258;
    pub const MTRR_FIX16K_A0000: u32 = 0x259;
    pub const MTRR_FIX4K_C0000: u32 = 0x268;
    pub const MTRR_FIX4K_F8000: u32 = 0x26f;
    pub const PAT: u32 = 0x277;
    pub const MTRR_DEF_TYPE: u32 = 0x2ff;
    pub const MC0_CTL: u32 = 0x400;
    pub const MC9_MISC: u32 = 0x427;
    pub const TSC_DEADLINE: u32 = 0x6e0;
    pub const X2APIC_FIRST: u32 = 0x800;
    pub const X2APIC_LAST: u32 = 0x8ff;
    pub const XSS: u32 = 0xda0;
    pub const EFER: u32 = 0xc000_0080;
    pub const STAR: u32 = 0xc000_0081;
    pub const LSTAR: u32 = 0xc000_0082;
    pub const CSTAR: u32 = 0xc000_0083;
    pub const FMASK: u32 = 0xc000_0084;
    pub const FS_BASE: u32 = 0xc000_0100;
    pub const GS_BASE: u32 = 0xc000_0101;
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    pub const TSC_AUX: u32 = 0xc000_0103;
    pub const PERF_LEGACY_CTL0: u32 = 0xc001_0000;
    pub const PERF_LEGACY_CTR3: u32 = 0xc001_0007;
    pub const SYSCFG: u32 = 0xc001_0010;
    pub const HWCR: u32 = 0xc001_0015;
    pub const IORR_BASE0: u32 = 0xc001_0016;
    pub const IORR_MASK1: u32 = 0xc001_0019;
    pub const TOP_MEM: u32 = 0xc001_001a;
    pub const TOP_MEM2: u32 = 0xc001_001d;
    pub const NB_CFG: u32 = 0xc001_001f;
    pub const PATCH_LOADER: u32 = 0xc001_0020;
    pub const MCE_REDIRECTION: u32 = 0xc001_0022;
    pub const MC0_CTL_MASK: u32 = 0xc001_0044;
    pub const MC5_CTL_MASK: u32 = 0xc001_0049;
    pub const INT_PENDING: u32 = 0xc001_0055;
    pub const VM_CR: u32 = 0xc001_0114;
    pub const VIRT_SPEC_CTRL: u32 = 0xc001_011f;
    pub const PERF_CTL0: u32 = 0xc001_0200;
    pub const PERF_CTR5: u32 = 0xc001_020b;
    pub const CPUID_FEATURES_7: u32 = 0xc001_1002;
    pub const CPUID_FEATURES: u32 = 0xc001_1004;
    pub const CPUID_EXT_FEATURES: u32 = 0xc001_1005;
    pub const LS_CFG: u32 = 0xc001_1020;
    pub const IC_CFG: u32 = 0xc001_1021;
    pub const DC_CFG: u32 = 0xc001_1022;
    pub const BU_CFG: u32 = 0xc001_1023;
    pub const DE_CFG: u32 = 0xc001_1029;
    pub const BU_CFG2: u32 = 0xc001_102a;
}
use index as m;

/// IA32_MCG_CAP: ten banks, MCG_CTL, software error recovery.
const MCG_CAP: u64 = 0x0100_010a;
/// IA32_MTRRCAP: eight variable ranges, fixed ranges, write-combining.
const MTRRCAP: u64 = 0x508;
/// IA32_ARCH_CAPABILITIES: RDCL_NO, IBRS_ALL, SKIP_L1DFL_VMENTRY, SSB_NO, MDS_NO, PSCHANGE_MC_NO, TAA_NO: an
/// interpreter does not speculate.
const ARCH_CAPABILITIES: u64 = 0x17b;

/// Reads of registers that hold nothing here.
struct Unknown;

/// What may be written to a register that there is.
fn want(ok: bool) -> Result<(), Unknown> {
    if ok { Ok(()) } else { Err(Unknown) }
}

impl Cpu {
    /// The time-stamp counter as RDTSC gives it.
    pub fn tsc(&self) -> u64 {
        self.board.tsc().wrapping_add(self.state.msr.tsc_offset)
    }

    /// Has the counter be so far ahead of the board's, without the guest's doing.
    pub fn set_tsc_offset(&mut self, offset: u64) {
        self.state.msr.tsc_offset = offset;
        self.board.tsc_moved(offset);
    }

    fn is_amd(&self) -> bool {
        self.model.vendor == Vendor::Amd
    }

    /// Which MTRR of the fixed range an index means.
    fn fixed_mtrr(index: u32) -> Option<usize> {
        match index {
            m::MTRR_FIX64K => Some(0),
            m::MTRR_FIX16K_80000 => Some(1),
            m::MTRR_FIX16K_A0000 => Some(2),
            m::MTRR_FIX4K_C0000..=m::MTRR_FIX4K_F8000 => Some((index - m::MTRR_FIX4K_C0000) as usize + 3),
            _ => None,
        }
    }

    /// Reads an MSR; an error is #GP(0).
    pub fn read_msr(&mut self, index: u32) -> Result<u64, Stop> {
        match self.msr(index) {
            Ok(v) => Ok(v),
            Err(Unknown) => {
                tracing::debug!("rdmsr {index:#x}: #GP(0) at {:#x}", self.state.gpr[gpr::RIP]);
                Err(self.gp(0))
            }
        }
    }

    fn msr(&self, index: u32) -> Result<u64, Unknown> {
        let s = &self.state.msr;
        let has = |f: F, v: u64| if self.model.has(f) { Ok(v) } else { Err(Unknown) };
        let amd = |v: u64| if self.is_amd() { Ok(v) } else { Err(Unknown) };
        let intel = |v: u64| if self.is_amd() { Err(Unknown) } else { Ok(v) };
        match index {
            m::P5_MC_ADDR | m::P5_MC_TYPE => has(F::MCE, 0),
            m::TSC => has(F::TSC, self.tsc()),
            m::APIC_BASE => self.board.apic_msr_read(index).map_err(|()| Unknown),
            m::TSC_DEADLINE if self.model.has(F::TSC_DEADLINE) => {
                self.board.apic_msr_read(index).map_err(|()| Unknown)
            }
            m::X2APIC_FIRST..=m::X2APIC_LAST if self.model.has(F::X2APIC) => {
                self.board.apic_msr_read(index).map_err(|()| Unknown)
            }
            m::PLATFORM_ID | m::EBL_CR_POWERON | m::BBL_CR_CTL3 => intel(0),
            m::FEATURE_CONTROL => intel(s.feature_control),
            m::TSC_ADJUST => has(F::TSC_ADJUST, s.tsc_adjust),
            m::SPEC_CTRL if self.spec_ctrl_mask() != 0 => Ok(s.spec_ctrl),
            m::BIOS_SIGN_ID if self.is_amd() => Ok(0x0100_0065),
            m::BIOS_SIGN_ID => Ok(1 << 32),
            m::MTRRCAP => has(F::MTRR, MTRRCAP),
            m::ARCH_CAPABILITIES => has(F::ARCH_CAPABILITIES, ARCH_CAPABILITIES),
            m::SYSENTER_CS => has(F::SEP, s.sysenter_cs),
            m::SYSENTER_ESP => has(F::SEP, s.sysenter_esp),
            m::SYSENTER_EIP => has(F::SEP, s.sysenter_eip),
            m::MCG_CAP => has(F::MCA, MCG_CAP),
            m::MCG_STATUS => has(F::MCA, s.mcg_status),
            m::MCG_CTL => has(F::MCA, s.mcg_ctl),
            m::PERF_STATUS => intel(1000 | 4 << 40),
            m::MISC_ENABLE => intel(s.misc_enable),
            m::DEBUGCTL => Ok(s.debugctl),
            m::LAST_BRANCH_FROM..=m::LAST_INT_TO => Ok(0),
            m::MTRR_PHYSBASE0..=m::MTRR_PHYSMASK7 => {
                has(F::MTRR, s.mtrr_var[(index - m::MTRR_PHYSBASE0) as usize & 15])
            }
            m::PAT => has(F::PAT, s.pat),
            m::MTRR_DEF_TYPE => has(F::MTRR, s.mtrr_def_type),
            m::MC0_CTL..=m::MC9_MISC => {
                let n = (index - m::MC0_CTL) as usize;
                has(F::MCA, s.mc[(n / 4).min(9)][n % 4])
            }
            m::XSS => has(F::XSAVES, s.xss),
            m::EFER if self.model.has(F::SYSCALL) || self.model.has(F::NX) || self.model.has(F::LM) => {
                Ok(s.efer)
            }
            m::STAR => has(F::SYSCALL, s.star),
            m::LSTAR => has(F::LM, s.lstar),
            m::CSTAR => has(F::LM, s.cstar),
            m::FMASK => has(F::LM, s.fmask),
            m::FS_BASE => has(F::LM, self.state.seg[seg::FS].base),
            m::GS_BASE => has(F::LM, self.state.seg[seg::GS].base),
            m::KERNEL_GS_BASE => has(F::LM, s.kernel_gs_base),
            m::TSC_AUX if self.model.has(F::RDTSCP) || self.model.has(F::RDPID) => Ok(s.tsc_aux),
            // Performance counters, which AMD's processors have without a word in CPUID: nothing is counted, so they
            // stay 0.
            m::PERF_LEGACY_CTL0..=m::PERF_LEGACY_CTR3 => amd(0),
            m::PERF_CTL0..=m::PERF_CTR5 if self.model.family >= 0x15 => amd(0),
            m::SYSCFG => amd(s.syscfg),
            m::HWCR => amd(s.hwcr),
            m::IORR_BASE0..=m::IORR_MASK1 => amd(0),
            m::TOP_MEM => amd(s.top_mem),
            m::TOP_MEM2 => amd(s.top_mem2),
            m::NB_CFG => amd(s.nb_cfg),
            m::MCE_REDIRECTION | m::MC0_CTL_MASK..=m::MC5_CTL_MASK | m::INT_PENDING => amd(0),
            // SVM is not there, and cannot be turned on: SVMDIS and LOCK.
            m::VM_CR => amd(0x18),
            m::VIRT_SPEC_CTRL => has(F::VIRT_SSBD, s.virt_spec_ctrl),
            // The words that CPUID shows; writing them changes nothing.
            m::CPUID_FEATURES_7 | m::CPUID_FEATURES | m::CPUID_EXT_FEATURES => amd(self.feature_msr(index)),
            m::LS_CFG | m::IC_CFG | m::DC_CFG | m::BU_CFG | m::BU_CFG2 => amd(0),
            m::DE_CFG => amd(s.de_cfg),
            _ => match Self::fixed_mtrr(index) {
                Some(n) => has(F::MTRR, s.mtrr_fixed[n.min(10)]),
                None => Err(Unknown),
            },
        }
    }

    fn feature_msr(&self, index: u32) -> u64 {
        let d = self.cpuid_input();
        let pair = |r: [u32; 4]| u64::from(r[2]) << 32 | u64::from(r[3]);
        match index {
            m::CPUID_FEATURES => pair(self.model.cpuid(&d, 1, 0)),
            m::CPUID_EXT_FEATURES => pair(self.model.cpuid(&d, 0x8000_0001, 0)),
            _ => {
                let r = self.model.cpuid(&d, 7, 0);
                u64::from(r[0]) << 32 | u64::from(r[1])
            }
        }
    }

    /// The bits of IA32_SPEC_CTRL that the model has: IBRS, STIBP, SSBD.
    fn spec_ctrl_mask(&self) -> u64 {
        let any = |list: &[F]| list.iter().any(|f| self.model.has(*f));
        u64::from(any(&[F::SPEC_CTRL, F::IBRS]))
            | u64::from(any(&[F::STIBP, F::AMD_STIBP])) << 1
            | u64::from(any(&[F::SSBD, F::AMD_SSBD])) << 2
    }

    /// Writes an MSR; an error is #GP(0).
    pub fn write_msr(&mut self, index: u32, v: u64) -> Result<(), Stop> {
        match self.set_msr(index, v) {
            Ok(()) => Ok(()),
            Err(Unknown) => {
                tracing::debug!("wrmsr {index:#x} = {v:#x}: #GP(0) at {:#x}", self.state.gpr[gpr::RIP]);
                Err(self.gp(0))
            }
        }
    }

    fn set_msr(&mut self, index: u32, v: u64) -> Result<(), Unknown> {
        // What cannot be read cannot be written; what can be written alone comes first.
        if let Some(done) = self.command(index, v) {
            return done;
        }
        self.msr(index)?;
        let s = &mut self.state.msr;
        match index {
            m::TSC | m::TSC_ADJUST | m::TSC_DEADLINE | m::APIC_BASE => return self.set_time(index, v),
            m::SYSENTER_CS..=m::SYSENTER_EIP
            | m::STAR..=m::FMASK
            | m::FS_BASE
            | m::GS_BASE
            | m::KERNEL_GS_BASE => return self.set_entry(index, v),
            m::MTRR_PHYSBASE0..=m::MTRR_PHYSMASK7 | m::PAT | m::MTRR_DEF_TYPE => {
                return self.set_memory_type(index, v);
            }
            m::MCG_STATUS | m::MCG_CTL | m::MC0_CTL..=m::MC9_MISC => return self.set_machine_check(index, v),
            m::EFER => return self.set_efer(v),
            m::FEATURE_CONTROL => {
                want(s.feature_control & 1 == 0)?;
                s.feature_control = v;
            }
            m::SPEC_CTRL => {
                want(v & !self.spec_ctrl_mask() == 0)?;
                self.state.msr.spec_ctrl = v;
            }
            m::MISC_ENABLE => s.misc_enable = v,
            // LBR, BTF; the AMD ones have performance-monitoring pins in bits 2-5.
            m::DEBUGCTL => {
                want(v & !0x3f == 0)?;
                s.debugctl = v & 0x3f;
            }
            m::XSS => {
                want(v & !self.model.xss_mask() == 0)?;
                s.xss = v;
            }
            m::TSC_AUX => {
                want(v >> 32 == 0)?;
                s.tsc_aux = v;
            }
            m::SYSCFG => s.syscfg = v,
            m::HWCR => s.hwcr = v,
            m::TOP_MEM => s.top_mem = v & !(!0 << self.model.phys_bits()) & !0x7f_ffff,
            m::TOP_MEM2 => s.top_mem2 = v & !(!0 << self.model.phys_bits()) & !0x7f_ffff,
            m::NB_CFG => s.nb_cfg = v,
            m::VIRT_SPEC_CTRL => {
                want(v & !4 == 0)?;
                s.virt_spec_ctrl = v;
            }
            m::DE_CFG => s.de_cfg = v,
            m::P5_MC_ADDR
            | m::P5_MC_TYPE
            | m::LAST_BRANCH_FROM..=m::LAST_INT_TO
            | m::IORR_BASE0..=m::IORR_MASK1
            | m::PERF_LEGACY_CTL0..=m::PERF_LEGACY_CTR3
            | m::PERF_CTL0..=m::PERF_CTR5
            | m::MCE_REDIRECTION
            | m::MC0_CTL_MASK..=m::MC5_CTL_MASK
            | m::INT_PENDING
            | m::VM_CR
            | m::CPUID_FEATURES_7
            | m::CPUID_FEATURES
            | m::CPUID_EXT_FEATURES
            | m::LS_CFG
            | m::IC_CFG
            | m::DC_CFG
            | m::BU_CFG
            | m::BU_CFG2
            | m::BIOS_SIGN_ID
            | m::EBL_CR_POWERON
            | m::BBL_CR_CTL3 => {}
            _ => match Self::fixed_mtrr(index) {
                Some(n) => {
                    want(v.to_le_bytes().iter().all(|&t| mtrr_type(u64::from(t))))?;
                    s.mtrr_fixed[n.min(10)] = v;
                }
                // Read-only: PLATFORM_ID, MTRRCAP, MCG_CAP, ARCH_CAPABILITIES, PERF_STATUS.
                None => return Err(Unknown),
            },
        }
        Ok(())
    }

    /// Registers that are written alone, and x2APIC's, which the board has. `None` if it is none of these.
    fn command(&self, index: u32, v: u64) -> Option<Result<(), Unknown>> {
        let model = &self.model;
        match index {
            m::PRED_CMD if model.has(F::SPEC_CTRL) || model.has(F::IBPB) => Some(want(v & !1 == 0)),
            m::FLUSH_CMD if model.has(F::ARCH_CAPABILITIES) => Some(want(v & !1 == 0)),
            m::BIOS_UPDT_TRIG if !self.is_amd() => Some(Ok(())),
            m::PATCH_LOADER if self.is_amd() => Some(Ok(())),
            m::X2APIC_FIRST..=m::X2APIC_LAST if model.has(F::X2APIC) => {
                Some(self.board.apic_msr_write(index, v).map_err(|()| Unknown))
            }
            _ => None,
        }
    }

    /// The time-stamp counter and the local APIC.
    fn set_time(&mut self, index: u32, v: u64) -> Result<(), Unknown> {
        let s = &mut self.state.msr;
        match index {
            m::TSC => {
                let delta = v.wrapping_sub(self.board.tsc().wrapping_add(s.tsc_offset));
                s.tsc_adjust = s.tsc_adjust.wrapping_add(delta);
                let offset = s.tsc_offset.wrapping_add(delta);
                self.set_tsc_offset(offset);
            }
            m::TSC_ADJUST => {
                let offset = s.tsc_offset.wrapping_add(v.wrapping_sub(s.tsc_adjust));
                s.tsc_adjust = v;
                self.set_tsc_offset(offset);
            }
            m::APIC_BASE => {
                let x2 = if self.model.has(F::X2APIC) { 0 } else { 1 << 10 };
                want(v & (!0 << self.model.phys_bits() | 0x2ff | x2) == 0)?;
                self.board.apic_msr_write(index, v).map_err(|()| Unknown)?;
                self.sync_apic();
            }
            m::TSC_DEADLINE => self.board.apic_msr_write(index, v).map_err(|()| Unknown)?,
            _ => return Err(Unknown),
        }
        Ok(())
    }

    /// Where SYSENTER and SYSCALL lead, and the bases of FS and GS.
    fn set_entry(&mut self, index: u32, v: u64) -> Result<(), Unknown> {
        let canonical = self.is_canonical_base(v);
        // AMD's processors have no SYSENTER in long mode, and 32 bits of its addresses.
        let narrow = self.is_amd();
        let s = &mut self.state.msr;
        match index {
            m::SYSENTER_CS => s.sysenter_cs = v & 0xffff_ffff,
            m::SYSENTER_ESP if narrow => s.sysenter_esp = v & 0xffff_ffff,
            m::SYSENTER_EIP if narrow => s.sysenter_eip = v & 0xffff_ffff,
            m::STAR => s.star = v,
            m::FMASK => s.fmask = v & 0xffff_ffff,
            _ => {
                want(canonical)?;
                match index {
                    m::SYSENTER_ESP => s.sysenter_esp = v,
                    m::SYSENTER_EIP => s.sysenter_eip = v,
                    m::LSTAR => s.lstar = v,
                    m::CSTAR => s.cstar = v,
                    m::KERNEL_GS_BASE => s.kernel_gs_base = v,
                    m::FS_BASE | m::GS_BASE => {
                        let i = if index == m::FS_BASE { seg::FS } else { seg::GS };
                        self.state.seg[i].base = v;
                        self.sync_segment(i);
                    }
                    _ => return Err(Unknown),
                }
            }
        }
        Ok(())
    }

    /// Memory types: MTRRs but for the fixed ones, PAT.
    fn set_memory_type(&mut self, index: u32, v: u64) -> Result<(), Unknown> {
        let s = &mut self.state.msr;
        match index {
            m::MTRR_PHYSBASE0..=m::MTRR_PHYSMASK7 => {
                let base = index & 1 == 0;
                let reserved = !0 << self.model.phys_bits() | if base { 0xf00 } else { 0x7ff };
                want(v & reserved == 0 && (!base || mtrr_type(v & 0xff)))?;
                s.mtrr_var[(index - m::MTRR_PHYSBASE0) as usize & 15] = v;
            }
            m::PAT => {
                want(v.to_le_bytes().iter().all(|&t| mtrr_type(u64::from(t)) || t == 7))?;
                s.pat = v;
            }
            m::MTRR_DEF_TYPE => {
                want(v & !0xcff == 0 && mtrr_type(v & 0xff))?;
                s.mtrr_def_type = v;
            }
            _ => return Err(Unknown),
        }
        Ok(())
    }

    /// Machine checks, which never happen: their registers.
    fn set_machine_check(&mut self, index: u32, v: u64) -> Result<(), Unknown> {
        let s = &mut self.state.msr;
        match index {
            m::MCG_STATUS => s.mcg_status = v & 7,
            m::MCG_CTL => {
                want(v == 0 || v == !0)?;
                s.mcg_ctl = v;
            }
            m::MC0_CTL..=m::MC9_MISC => {
                let n = (index - m::MC0_CTL) as usize;
                // STATUS, ADDR and MISC can only be cleared (AMD: unless HWCR.McStatusWrEn); CTL enables all or
                // nothing.
                let free = n.is_multiple_of(4) || s.hwcr >> 18 & 1 != 0;
                want(v == 0 || free)?;
                s.mc[(n / 4).min(9)][n % 4] = v;
            }
            _ => return Err(Unknown),
        }
        Ok(())
    }

    fn set_efer(&mut self, v: u64) -> Result<(), Unknown> {
        let model = &self.model;
        let bit = |f: F, b: u64| if model.has(f) { b } else { 0 };
        let mask = bit(F::SYSCALL, efer::SCE) | bit(F::LM, efer::LME) | bit(F::NX, efer::NXE);
        let old = self.state.msr.efer;
        let paging = self.state.cr0 & cr0::PG != 0;
        // LMA is the processor's: what is written there does not count.
        if v & !(mask | efer::LMA) != 0 || paging && (old ^ v) & efer::LME != 0 {
            return Err(Unknown);
        }
        self.state.msr.efer = v & mask | old & efer::LMA;
        self.sync_paging();
        if (old ^ v) & efer::NXE != 0 {
            self.tlb.flush_all();
        }
        self.sync_mode();
        Ok(())
    }
}

/// UC, WC, WT, WP, WB.
fn mtrr_type(t: u64) -> bool {
    matches!(t, 0 | 1 | 4 | 5 | 6)
}

fn rdmsr(cpu: &mut Cpu, _: &Op) -> Result<(), Stop> {
    ring0(cpu)?;
    let v = cpu.read_msr(cpu.state.gpr[gpr::RCX] as u32)?;
    cpu.state.gpr[gpr::RAX] = v & 0xffff_ffff;
    cpu.state.gpr[gpr::RDX] = v >> 32;
    Ok(())
}

fn wrmsr(cpu: &mut Cpu, _: &Op) -> Result<(), Stop> {
    super::cache::serialise();
    ring0(cpu)?;
    let g = &cpu.state.gpr;
    let v = g[gpr::RDX] << 32 | g[gpr::RAX] & 0xffff_ffff;
    cpu.write_msr(g[gpr::RCX] as u32, v)
}

/// The helper for an instruction of this group.
pub(super) fn lookup(i: &Instruction) -> Option<Helper> {
    match i.code() {
        Code::Rdmsr => Helper::straight(rdmsr),
        Code::Wrmsr => Helper::ends(wrmsr),
        _ => None,
    }
}
