//! SYSCALL, SYSRET, SYSENTER, SYSEXIT (SDM volume 2; AMD APM volume 3).
//!
//! AMD's processors have SYSCALL in legacy and compatibility mode and no SYSENTER in long mode; Intel's the other way
//! round. SYSRET loads SS as Intel's does (AMD's keep what SS had cached, a difference that no correct program can
//! rely on).
use crate::cpu::Cpu;
use crate::event::Stop;
use crate::model::{Feature, Vendor};
use crate::op::{Helper, Op};
use crate::state::{Segment, efer, fl, gpr, seg};
use iced_x86::{Code, Instruction};

/// Execute/read, accessed, S, present, granular, and D or L as below.
const CODE: u32 = 0x809b;
/// Read/write, accessed, S, present, granular, big.
const DATA: u32 = 0xc093;

fn dpl(n: u32) -> u32 {
    n << 5
}

impl Cpu {
    fn load_flat(&mut self, cs: u16, code: u32, ss: u16, data: u32, cpl: u8, ip: u64) {
        self.state.seg[seg::CS] = Self::flat_segment(cs, code);
        self.state.seg[seg::SS] = Self::flat_segment(ss, data);
        self.state.cpl = cpl;
        self.next_ip = ip;
    }
}

fn syscall(cpu: &mut Cpu, _: &Op) -> Result<(), Stop> {
    let s = &cpu.state;
    let intel = cpu.model.vendor == Vendor::Intel;
    if s.msr.efer & efer::SCE == 0 || !s.is_protected() || intel && !s.is_long64() {
        return Err(cpu.ud());
    }
    let m = s.msr;
    let cs = (m.star >> 32) as u16 & !3;
    let ss = cs.wrapping_add(8);
    let next = cpu.next_ip;
    if cpu.state.is_long() {
        let target = if cpu.state.is_long64() { m.lstar } else { m.cstar };
        let flags = cpu.state.rflags() & !fl::RF;
        cpu.state.gpr[gpr::RCX] = next;
        cpu.state.gpr[gpr::R11] = flags;
        cpu.state.set_rflags(flags & !m.fmask);
        cpu.load_flat(cs, CODE | Segment::L, ss, DATA, 0, target);
    } else {
        cpu.state.gpr[gpr::RCX] = next & 0xffff_ffff;
        cpu.state.rflags &= !(fl::VM | fl::IF | fl::RF);
        cpu.load_flat(cs, CODE | Segment::DB, ss, DATA, 0, m.star & 0xffff_ffff);
    }
    cpu.mode_changed();
    Ok(())
}

fn sysret<const N: u64>(cpu: &mut Cpu, _: &Op) -> Result<(), Stop> {
    let s = &cpu.state;
    let intel = cpu.model.vendor == Vendor::Intel;
    if s.msr.efer & efer::SCE == 0 || !s.is_protected() || intel && !s.is_long64() {
        return Err(cpu.ud());
    }
    if s.cpl != 0 {
        return Err(cpu.gp(0));
    }
    let (star, rcx, r11) = ((s.msr.star >> 48) as u16, s.gpr[gpr::RCX], s.gpr[gpr::R11]);
    // AMD's processors fault on the fetch at CPL 3 instead.
    if N == 8 && intel && !cpu.is_canonical(rcx) {
        return Err(cpu.gp(0));
    }
    let ss = star.wrapping_add(8) | 3;
    if cpu.state.is_long64() {
        cpu.state.set_rflags(r11 & 0x003c_7fd7);
    } else {
        cpu.state.rflags |= fl::IF;
    }
    if N == 8 {
        let cs = star.wrapping_add(16) | 3;
        cpu.load_flat(cs, CODE | Segment::L | dpl(3), ss, DATA | dpl(3), 3, rcx);
    } else {
        cpu.load_flat(star | 3, CODE | Segment::DB | dpl(3), ss, DATA | dpl(3), 3, rcx & 0xffff_ffff);
    }
    cpu.mode_changed();
    Ok(())
}

/// #UD where the vendor's processors do not have SYSENTER.
fn sysenter_exists(cpu: &mut Cpu) -> Result<(), Stop> {
    if cpu.model.vendor == Vendor::Amd && cpu.state.is_long() || !cpu.model.has(Feature::SEP) {
        return Err(cpu.ud());
    }
    Ok(())
}

fn sysenter(cpu: &mut Cpu, _: &Op) -> Result<(), Stop> {
    sysenter_exists(cpu)?;
    let m = cpu.state.msr;
    if cpu.state.is_real() || m.sysenter_cs & 0xfffc == 0 {
        return Err(cpu.gp(0));
    }
    let cs = m.sysenter_cs as u16 & !3;
    let long = cpu.state.is_long();
    cpu.state.rflags &= !(fl::VM | fl::IF | fl::RF);
    let code = CODE | if long { Segment::L } else { Segment::DB };
    let mask = if long { u64::MAX } else { 0xffff_ffff };
    cpu.load_flat(cs, code, cs.wrapping_add(8), DATA, 0, m.sysenter_eip & mask);
    cpu.state.gpr[gpr::RSP] = m.sysenter_esp & mask;
    cpu.mode_changed();
    Ok(())
}

fn sysexit<const N: u64>(cpu: &mut Cpu, _: &Op) -> Result<(), Stop> {
    // The privilege is looked at before the mode in which the vendor does not have it.
    if cpu.state.cpl != 0 && cpu.model.has(Feature::SEP) {
        return Err(cpu.gp(0));
    }
    sysenter_exists(cpu)?;
    let s = &cpu.state;
    let base = s.msr.sysenter_cs as u16;
    if !s.is_protected() || s.cpl != 0 || base & !3 == 0 {
        return Err(cpu.gp(0));
    }
    let (sp, ip) = (s.gpr[gpr::RCX], s.gpr[gpr::RDX]);
    if N == 8 {
        if !cpu.is_canonical(sp) || !cpu.is_canonical(ip) {
            return Err(cpu.gp(0));
        }
        let (cs, ss) = (base.wrapping_add(32) | 3, base.wrapping_add(40) | 3);
        cpu.load_flat(cs, CODE | Segment::L | dpl(3), ss, DATA | dpl(3), 3, ip);
        cpu.state.gpr[gpr::RSP] = sp;
    } else {
        let (cs, ss) = (base.wrapping_add(16) | 3, base.wrapping_add(24) | 3);
        cpu.load_flat(cs, CODE | Segment::DB | dpl(3), ss, DATA | dpl(3), 3, ip & 0xffff_ffff);
        cpu.state.gpr[gpr::RSP] = sp & 0xffff_ffff;
    }
    cpu.mode_changed();
    Ok(())
}

/// The helper for an instruction of this group.
pub(super) fn lookup(i: &Instruction) -> Option<Helper> {
    match i.code() {
        Code::Syscall => Helper::ends(syscall),
        Code::Sysretd => Helper::ends(sysret::<4>),
        Code::Sysretq => Helper::ends(sysret::<8>),
        Code::Sysenter => Helper::ends(sysenter),
        Code::Sysexitd => Helper::ends(sysexit::<4>),
        Code::Sysexitq => Helper::ends(sysexit::<8>),
        _ => None,
    }
}
