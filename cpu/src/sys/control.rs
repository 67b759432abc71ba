//! Control registers: MOV CRn, CLTS, LMSW, SMSW, XGETBV, XSETBV, RDPKRU, WRPKRU (SDM volume 3A, 2.5, 4.1-4.3, 4.10;
//! volume 2).
use super::privilege::{ring0, umip};
use crate::cpu::Cpu;
use crate::event::Stop;
use crate::exec::Exec;
use crate::model::Feature as F;
use crate::op::{Helper, Op};
use crate::state::{Segment, cr0, cr4, efer, gpr, seg};
use crate::width::{W16, W64};
use iced_x86::{Code, Instruction};

/// The bits of CR0 that exist; the others of the low half read zero and ignore writes.
const CR0_BITS: u64 = cr0::PE
    | cr0::MP
    | cr0::EM
    | cr0::TS
    | cr0::ET
    | cr0::NE
    | cr0::WP
    | cr0::AM
    | cr0::NW
    | cr0::CD
    | cr0::PG;

/// The bits of CR4 that translations depend on.
const CR4_PAGING: u64 =
    cr4::PSE | cr4::PAE | cr4::PGE | cr4::LA57 | cr4::PCIDE | cr4::SMEP | cr4::SMAP | cr4::PKE;

impl Cpu {
    /// The four PDPTEs that `cr3` points to; #GP(0) if one has reserved bits set (SDM volume 3A, 4.4.1).
    pub(crate) fn read_pdptes(&mut self, cr3: u64) -> Result<[u64; 4], Stop> {
        match mynah_mmu::walk::load_pdptes(&self.mem, cr3 & self.a20_mask, self.model.phys_bits()) {
            Ok(p) => Ok(p),
            Err(()) => Err(self.gp(0)),
        }
    }

    /// Writes CR0 with all checks.
    pub(crate) fn write_cr0(&mut self, v: u64) -> Result<(), Stop> {
        let old = self.state.cr0;
        let on = |bit: u64| v & bit != 0;
        let invalid = v >> 32 != 0 || on(cr0::PG) && !on(cr0::PE) || on(cr0::NW) && !on(cr0::CD);
        if invalid {
            return Err(self.gp(0));
        }
        let new = v & CR0_BITS | cr0::ET;
        let mut e = self.state.msr.efer;
        let mut pdpte = None;
        if on(cr0::PG) {
            if old & cr0::PG == 0 && e & efer::LME != 0 {
                let tr16 = self.state.tr.attr & 8 == 0;
                let l = self.state.seg[seg::CS].attr & Segment::L != 0;
                if self.state.cr4 & cr4::PAE == 0 || l || tr16 {
                    return Err(self.gp(0));
                }
                e |= efer::LMA;
            }
            let reload = (old ^ new) & (cr0::PG | cr0::CD | cr0::NW) != 0;
            if self.state.cr4 & cr4::PAE != 0 && e & efer::LMA == 0 && reload {
                pdpte = Some(self.read_pdptes(self.state.cr3)?);
            }
        } else if old & cr0::PG != 0 {
            if self.state.is_long64() || self.state.cr4 & cr4::PCIDE != 0 {
                return Err(self.gp(0));
            }
            e &= !efer::LMA;
        }
        self.state.cr0 = new;
        self.state.msr.efer = e;
        if let Some(p) = pdpte {
            self.state.pdpte = p;
        }
        if (old ^ new) & cr0::PE != 0 {
            self.state.cpl = 0;
        }
        self.sync_paging();
        if (old ^ new) & (cr0::PG | cr0::WP | cr0::PE) != 0 {
            self.tlb.flush_all();
        }
        if (old ^ new) & cr0::PE != 0 {
            for i in 0..6 {
                self.sync_segment(i);
            }
        }
        self.sync_mode();
        self.track_alignment();
        Ok(())
    }

    /// Writes CR3 with all checks.
    pub(crate) fn write_cr3(&mut self, v: u64) -> Result<(), Stop> {
        let s = &self.state;
        let pcide = s.cr4 & cr4::PCIDE != 0;
        let keep = pcide && v >> 63 != 0;
        let new = if pcide { v & !(1 << 63) } else { v };
        if s.is_long() && new >> self.model.phys_bits() != 0 {
            return Err(self.gp(0));
        }
        if s.cr0 & cr0::PG != 0 && s.cr4 & cr4::PAE != 0 && !s.is_long() {
            self.state.pdpte = self.read_pdptes(new)?;
        }
        self.state.cr3 = new;
        self.sync_paging();
        self.tlb.switch_space(if pcide { (new & 0xfff) as u16 } else { 0 }, keep);
        self.sync_mode();
        Ok(())
    }

    /// The bits of CR4 that the model has.
    pub(crate) fn cr4_mask(&self) -> u64 {
        let m = &self.model;
        let bits = [
            (F::VME, cr4::VME | cr4::PVI),
            (F::TSC, cr4::TSD),
            (F::DE, cr4::DE),
            (F::PSE, cr4::PSE),
            (F::PAE, cr4::PAE),
            (F::MCE, cr4::MCE),
            (F::PGE, cr4::PGE),
            (F::FPU, cr4::PCE),
            (F::FXSR, cr4::OSFXSR),
            (F::SSE, cr4::OSXMMEXCPT),
            (F::UMIP, cr4::UMIP),
            (F::LA57, cr4::LA57),
            (F::FSGSBASE, cr4::FSGSBASE),
            (F::PCID, cr4::PCIDE),
            (F::XSAVE, cr4::OSXSAVE),
            (F::SMEP, cr4::SMEP),
            (F::SMAP, cr4::SMAP),
            (F::PKU, cr4::PKE),
        ];
        bits.iter().filter(|(f, _)| m.has(*f)).map(|(_, b)| b).sum()
    }

    /// Writes CR4 with all checks.
    pub(crate) fn write_cr4(&mut self, v: u64) -> Result<(), Stop> {
        let s = &self.state;
        let old = s.cr4;
        let changed = old ^ v;
        let long = s.is_long();
        let lost = long && (v & cr4::PAE == 0 || changed & cr4::LA57 != 0);
        let pcid = changed & v & cr4::PCIDE != 0 && (!long || s.cr3 & 0xfff != 0);
        if v & !self.cr4_mask() != 0 || lost || pcid {
            return Err(self.gp(0));
        }
        let reload = changed & (cr4::PAE | cr4::PGE | cr4::PSE | cr4::SMEP) != 0;
        let s = &self.state;
        if s.cr0 & cr0::PG != 0 && v & cr4::PAE != 0 && !long && reload {
            self.state.pdpte = self.read_pdptes(self.state.cr3)?;
        }
        self.state.cr4 = v;
        self.sync_paging();
        if changed & CR4_PAGING != 0 {
            self.tlb.flush_all();
        }
        if changed & old & cr4::PCIDE != 0 {
            self.tlb.switch_space(0, false);
        }
        self.sync_mode();
        Ok(())
    }

    /// Sets PKRU; translations carry its rights.
    pub fn set_pkru(&mut self, v: u32) {
        if self.state.pkru != v {
            self.state.pkru = v;
            self.sync_paging();
            if self.state.cr4 & cr4::PKE != 0 {
                self.tlb.flush_all();
            }
        }
    }
}

fn reg(cpu: &Cpu, r: u8, long: bool) -> u64 {
    let v = cpu.state.gpr[usize::from(r & 31)];
    if long { v } else { v & 0xffff_ffff }
}

fn mov_to_cr(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    super::cache::serialise();
    let v = reg(cpu, op.src, op.is_long());
    if !matches!(op.dst, 0 | 2 | 3 | 4 | 8) {
        return Err(cpu.ud());
    }
    ring0(cpu)?;
    match op.dst {
        0 => cpu.write_cr0(v),
        2 => {
            cpu.state.cr2 = v;
            Ok(())
        }
        3 => cpu.write_cr3(v),
        4 => cpu.write_cr4(v),
        _ if v & !15 != 0 => Err(cpu.gp(0)),
        _ => {
            cpu.board.set_cr8(v as u8);
            Ok(())
        }
    }
}

fn mov_from_cr(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    if !matches!(op.src, 0 | 2 | 3 | 4 | 8) {
        return Err(cpu.ud());
    }
    ring0(cpu)?;
    let s = &cpu.state;
    let v = match op.src {
        0 => s.cr0,
        2 => s.cr2,
        3 => s.cr3,
        4 => s.cr4,
        _ => u64::from(cpu.board.cr8() & 15),
    };
    let v = if op.is_long() { v } else { v & 0xffff_ffff };
    cpu.set_reg::<W64>(op.dst, v);
    Ok(())
}

fn clts(cpu: &mut Cpu, _: &Op) -> Result<(), Stop> {
    ring0(cpu)?;
    cpu.state.cr0 &= !cr0::TS;
    cpu.sync_paging();
    cpu.sync_mode();
    Ok(())
}

/// LMSW: PE, MP, EM and TS; PE cannot be cleared.
fn lmsw(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    super::cache::serialise();
    ring0(cpu)?;
    let v = if op.is_mem() { cpu.load_op::<W16>(op)? } else { reg(cpu, op.dst, true) };
    let bits = cr0::PE | cr0::MP | cr0::EM | cr0::TS;
    let pe = cpu.state.cr0 & cr0::PE;
    cpu.write_cr0(cpu.state.cr0 & !bits | v & bits | pe)
}

/// SMSW: to a 32- or 64-bit register all of CR0.
fn smsw(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    umip(cpu)?;
    let v = cpu.state.cr0;
    if op.is_mem() {
        return cpu.store_op::<W16>(op, v & 0xffff);
    }
    match op.width {
        2 => cpu.set_reg::<W16>(op.dst, v & 0xffff),
        _ => cpu.set_reg::<W64>(op.dst, v),
    }
    Ok(())
}

fn osxsave(cpu: &mut Cpu) -> Result<(), Stop> {
    if cpu.state.cr4 & cr4::OSXSAVE == 0 {
        return Err(cpu.ud());
    }
    Ok(())
}

fn set_edx_eax(cpu: &mut Cpu, v: u64) {
    cpu.state.gpr[gpr::RAX] = v & 0xffff_ffff;
    cpu.state.gpr[gpr::RDX] = v >> 32;
}

fn xgetbv(cpu: &mut Cpu, _: &Op) -> Result<(), Stop> {
    osxsave(cpu)?;
    let v = match cpu.state.gpr[gpr::RCX] as u32 {
        0 => cpu.state.xcr0,
        1 if cpu.model.has(F::XGETBV1) => cpu.state.xcr0 & cpu.components_in_use_with_mxcsr(),
        _ => return Err(cpu.gp(0)),
    };
    set_edx_eax(cpu, v);
    Ok(())
}

fn xsetbv(cpu: &mut Cpu, _: &Op) -> Result<(), Stop> {
    osxsave(cpu)?;
    ring0(cpu)?;
    let g = &cpu.state.gpr;
    let v = g[gpr::RDX] << 32 | g[gpr::RAX] & 0xffff_ffff;
    let avx_alone = v & 4 != 0 && v & 2 == 0;
    if g[gpr::RCX] as u32 != 0 || v & 1 == 0 || avx_alone || v & !cpu.model.xcr0_mask() != 0 {
        return Err(cpu.gp(0));
    }
    cpu.state.xcr0 = v;
    cpu.sync_mode();
    Ok(())
}

fn pke(cpu: &mut Cpu) -> Result<(), Stop> {
    if cpu.state.cr4 & cr4::PKE == 0 {
        return Err(cpu.ud());
    }
    Ok(())
}

fn rdpkru(cpu: &mut Cpu, _: &Op) -> Result<(), Stop> {
    pke(cpu)?;
    if cpu.state.gpr[gpr::RCX] as u32 != 0 {
        return Err(cpu.gp(0));
    }
    let v = u64::from(cpu.state.pkru);
    set_edx_eax(cpu, v);
    Ok(())
}

fn wrpkru(cpu: &mut Cpu, _: &Op) -> Result<(), Stop> {
    pke(cpu)?;
    let g = &cpu.state.gpr;
    if (g[gpr::RCX] | g[gpr::RDX]) as u32 != 0 {
        return Err(cpu.gp(0));
    }
    let v = g[gpr::RAX] as u32;
    cpu.set_pkru(v);
    Ok(())
}

/// The helper for an instruction of this group.
pub(super) fn lookup(i: &Instruction) -> Option<Helper> {
    match i.code() {
        Code::Mov_cr_r32 | Code::Mov_cr_r64 => Helper::ends(mov_to_cr),
        Code::Mov_r32_cr | Code::Mov_r64_cr => Helper::straight(mov_from_cr),
        Code::Clts => Helper::ends(clts),
        Code::Lmsw_rm16 | Code::Lmsw_r32m16 | Code::Lmsw_r64m16 => Helper::ends(lmsw),
        Code::Smsw_rm16 | Code::Smsw_r32m16 | Code::Smsw_r64m16 => Helper::straight(smsw),
        Code::Xgetbv => Helper::straight(xgetbv),
        Code::Xsetbv => Helper::ends(xsetbv),
        Code::Rdpkru => Helper::straight(rdpkru),
        Code::Wrpkru => Helper::ends(wrpkru),
        _ => None,
    }
}
