//! IRET, IRETD, IRETQ in all modes (SDM volume 2, IRET).
use super::descriptor::rpl;
use super::far::{Target, set_outer_stack};
use super::stack::Stack;
use crate::cpu::Cpu;
use crate::event::Stop;
use crate::op::{Helper, Op};
use crate::state::{Segment, cr4, fl, gpr, seg};
use iced_x86::{Code, Instruction};

/// Flags that IRET of any width takes from the stack whatever the privilege.
const ANY: u64 = fl::ARITH | fl::TF | fl::DF | fl::NT;

impl Cpu {
    /// Loads RFLAGS from the image that IRET popped, with the rights of `cpl` (that before the return).
    fn return_flags(&mut self, image: u64, width: u64, cpl: u8) {
        let mut mask = ANY;
        if width > 2 {
            mask |= fl::RF | fl::AC | fl::ID;
        }
        if cpl <= self.state.iopl() {
            mask |= fl::IF;
        }
        if cpl == 0 {
            mask |= fl::IOPL;
            if width > 2 {
                mask |= fl::VIF | fl::VIP;
            }
        }
        self.replace_flags(image, mask);
    }

    /// Takes the bits in `mask` from `image`, leaves the others.
    pub(crate) fn replace_flags(&mut self, image: u64, mask: u64) {
        let f = self.state.rflags() & !mask | image & mask;
        self.state.set_rflags(f);
    }
}

fn iret(cpu: &mut Cpu, width: u64) -> Result<(), Stop> {
    // NMIs are unblocked even if the instruction faults (SDM volume 3A, 6.7.1).
    if cpu.state.nmi_blocked {
        cpu.state.nmi_blocked = false;
        cpu.events.unblock_nmi();
        cpu.sync_events();
    }
    let r = if cpu.state.is_real() {
        iret_real(cpu, width)
    } else if cpu.state.is_v86() {
        iret_v86(cpu, width)
    } else {
        iret_protected(cpu, width)
    };
    r?;
    cpu.sync_mode();
    Ok(())
}

/// Pops IP, CS and FLAGS.
fn pop_frame(cpu: &mut Cpu, st: &mut Stack, width: u64) -> Result<(u64, u16, u64), Stop> {
    let ip = st.pop(cpu, width)?;
    let cs = st.pop(cpu, width)? as u16;
    Ok((ip, cs, st.pop(cpu, width)?))
}

fn iret_real(cpu: &mut Cpu, width: u64) -> Result<(), Stop> {
    let mut st = Stack::current(cpu);
    let (ip, cs, flags) = pop_frame(cpu, &mut st, width)?;
    let segment = cpu.real_segment(seg::CS, cs);
    if ip > u64::from(segment.limit) {
        return Err(cpu.gp(0));
    }
    st.commit(cpu);
    let mask = ANY | fl::IF | fl::IOPL | if width > 2 { fl::RF | fl::AC | fl::ID } else { 0 };
    cpu.replace_flags(flags, mask);
    cpu.enter_code(&Target { segment, ip, cpl: cpu.state.cpl });
    cpu.mode_changed();
    Ok(())
}

/// Virtual-8086 mode: IOPL 3, or (16 bits) VME with the virtual interrupt flag.
fn iret_v86(cpu: &mut Cpu, width: u64) -> Result<(), Stop> {
    let virtual_if = cpu.state.iopl() < 3;
    if virtual_if && (width != 2 || cpu.state.cr4 & cr4::VME == 0) {
        return Err(cpu.gp(0));
    }
    let mut st = Stack::current(cpu);
    let (ip, cs, flags) = pop_frame(cpu, &mut st, width)?;
    let segment = Segment::real(cs, 3);
    if ip > 0xffff {
        return Err(cpu.gp(0));
    }
    if virtual_if {
        let pending = cpu.state.rflags & fl::VIP != 0 && flags & fl::IF != 0;
        if pending || flags & fl::TF != 0 {
            return Err(cpu.gp(0));
        }
    }
    st.commit(cpu);
    if virtual_if {
        cpu.replace_flags(flags, ANY);
        cpu.set_vif(flags & fl::IF != 0);
    } else {
        let mask = ANY | fl::IF | if width > 2 { fl::RF | fl::AC | fl::ID } else { 0 };
        cpu.replace_flags(flags, mask);
    }
    cpu.enter_code(&Target { segment, ip, cpl: 3 });
    cpu.mode_changed();
    Ok(())
}

fn iret_protected(cpu: &mut Cpu, width: u64) -> Result<(), Stop> {
    if cpu.state.rflags & fl::NT != 0 {
        if cpu.state.is_long() {
            return Err(cpu.gp(0));
        }
        let ip = cpu.next_ip;
        return cpu.return_task(ip);
    }
    let mut st = Stack::current(cpu);
    let (ip, cs, flags) = pop_frame(cpu, &mut st, width)?;
    let cpl = cpu.state.cpl;
    if flags & fl::VM != 0 && cpl == 0 && width == 4 && !cpu.state.is_long() {
        return to_v86(cpu, st, ip, cs, flags);
    }
    let mut d = cpu.return_code(cs)?;
    let new_cpl = rpl(cs);
    let mut t = cpu.check_target(d, cs, cpu.return_offset(d, ip), new_cpl)?;
    let long = cpu.state.is_long() && d.is_long();
    // 64-bit mode always pops SS:RSP.
    let stack = if new_cpl != cpl || cpu.state.is_long64() {
        let sp = st.pop(cpu, width)?;
        let sel = st.pop(cpu, width)? as u16;
        Some((cpu.return_stack(sel, new_cpl, long)?, sp))
    } else {
        None
    };
    cpu.set_accessed(cs, &mut d)?;
    t.segment.attr |= 1;
    match stack {
        Some((ss, sp)) => set_outer_stack(cpu, ss, sp, long, 0),
        None => st.commit(cpu),
    }
    cpu.return_flags(flags, width, cpl);
    cpu.enter_code(&t);
    cpu.mode_changed();
    if new_cpl > cpl {
        cpu.drop_inner_segments(new_cpl);
        cpu.sync_mode();
    }
    Ok(())
}

/// IRETD at CPL 0 with VM in the image.
fn to_v86(cpu: &mut Cpu, mut st: Stack, ip: u64, cs: u16, flags: u64) -> Result<(), Stop> {
    let sp = st.pop(cpu, 4)?;
    let mut sel = [0u16; 6];
    for i in [seg::SS, seg::ES, seg::DS, seg::FS, seg::GS] {
        sel[i] = st.pop(cpu, 4)? as u16;
    }
    sel[seg::CS] = cs;
    if ip > 0xffff {
        return Err(cpu.gp(0));
    }
    let mask = ANY | fl::IF | fl::IOPL | fl::RF | fl::VM | fl::AC | fl::VIF | fl::VIP | fl::ID;
    cpu.replace_flags(flags, mask);
    for (i, &s) in sel.iter().enumerate() {
        cpu.state.seg[i] = Segment::real(s, 3);
    }
    cpu.state.cpl = 3;
    cpu.state.gpr[gpr::RSP] = sp;
    cpu.next_ip = ip;
    for i in 0..6 {
        cpu.sync_segment(i);
    }
    cpu.mode_changed();
    Ok(())
}

fn iret_n<const N: u64>(cpu: &mut Cpu, _: &Op) -> Result<(), Stop> {
    super::cache::serialise();
    iret(cpu, N)
}

/// The helper for an instruction of this group.
pub(super) fn lookup(i: &Instruction) -> Option<Helper> {
    match i.code() {
        Code::Iretw => Helper::ends(iret_n::<2>),
        Code::Iretd => Helper::ends(iret_n::<4>),
        Code::Iretq => Helper::ends(iret_n::<8>),
        _ => None,
    }
}
