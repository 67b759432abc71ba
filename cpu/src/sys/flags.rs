//! CLI, STI, PUSHF, POPF, CLAC, STAC (SDM volume 2).
use super::stack::Stack;
use crate::cpu::Cpu;
use crate::event::Stop;
use crate::op::{Helper, Op};
use crate::state::{Shadow, cr0, cr4, fl};
use iced_x86::{Code, Instruction};

impl Cpu {
    /// Call after a change of EFLAGS.AC, CR0.AM or CPL: user translations that were made while alignment was not
    /// checked allow fast accesses, so they go when the check comes on.
    pub(crate) fn track_alignment(&mut self) {
        let s = &self.state;
        if s.cpl != 3 {
            return;
        }
        let on = s.cr0 & cr0::AM != 0 && s.rflags & fl::AC != 0;
        if on != self.alignment_traced {
            self.alignment_traced = on;
            self.tlb.flush_all();
        }
    }
}

fn cli(cpu: &mut Cpu, _: &Op) -> Result<(), Stop> {
    if cpu.state.cpl <= cpu.state.iopl() {
        cpu.state.rflags &= !fl::IF;
    } else if cpu.uses_vif() {
        cpu.set_vif(false);
    } else {
        return Err(cpu.iopl_fault());
    }
    cpu.sync_events();
    Ok(())
}

fn sti(cpu: &mut Cpu, _: &Op) -> Result<(), Stop> {
    if cpu.state.cpl <= cpu.state.iopl() {
        if cpu.state.rflags & fl::IF == 0 {
            cpu.state.rflags |= fl::IF;
            cpu.state.shadow = Shadow::Sti;
        }
    } else if cpu.uses_vif() && cpu.state.rflags & fl::VIP == 0 {
        cpu.set_vif(true);
    } else {
        return Err(cpu.iopl_fault());
    }
    cpu.sync_events();
    Ok(())
}

/// STI in the midst of a block: no event is looked at before the instruction that follows is done, which is the
/// shadow.
pub(crate) fn sti_inside(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    sti(cpu, op)?;
    cpu.state.shadow = Shadow::None;
    cpu.sync_events();
    Ok(())
}

fn pushf<const N: u64>(cpu: &mut Cpu, _: &Op) -> Result<(), Stop> {
    let mut image = cpu.state.rflags();
    if cpu.state.is_v86() && cpu.state.iopl() < 3 {
        if N != 2 || cpu.state.cr4 & cr4::VME == 0 {
            return Err(cpu.iopl_fault());
        }
        image = cpu.v86_flags_image();
    }
    // VM and RF are never pushed.
    cpu.push_value(N, image & !(fl::VM | fl::RF))
}

fn popf<const N: u64>(cpu: &mut Cpu, _: &Op) -> Result<(), Stop> {
    let (cpl, iopl) = (cpu.state.cpl, cpu.state.iopl());
    let v86 = cpu.state.is_v86();
    let vme = v86 && iopl < 3;
    if vme && (N != 2 || cpu.state.cr4 & cr4::VME == 0) {
        return Err(cpu.iopl_fault());
    }
    let mut st = Stack::current(cpu);
    let image = st.pop(cpu, N)?;
    let mut mask = fl::ARITH | fl::TF | fl::DF | fl::NT;
    if N > 2 {
        mask |= fl::AC | fl::ID;
    }
    if vme {
        let pending = cpu.state.rflags & fl::VIP != 0 && image & fl::IF != 0;
        if pending || image & fl::TF != 0 {
            return Err(cpu.iopl_fault());
        }
        st.commit(cpu);
        cpu.set_vif(image & fl::IF != 0);
    } else {
        st.commit(cpu);
        if cpl <= iopl {
            mask |= fl::IF;
        }
        if cpl == 0 {
            mask |= fl::IOPL;
        }
    }
    cpu.replace_flags(image, mask);
    cpu.state.rflags &= !fl::RF;
    cpu.sync_mode();
    cpu.track_alignment();
    Ok(())
}

fn set_ac<const ON: bool>(cpu: &mut Cpu, _: &Op) -> Result<(), Stop> {
    if cpu.state.cpl != 0 {
        return Err(cpu.ud());
    }
    if ON {
        cpu.state.rflags |= fl::AC;
    } else {
        cpu.state.rflags &= !fl::AC;
    }
    let mode = cpu.access_mode();
    cpu.tlb.select(mode);
    Ok(())
}

/// The helper for an instruction of this group.
pub(super) fn lookup(i: &Instruction) -> Option<Helper> {
    match i.code() {
        Code::Cli => Helper::straight(cli),
        Code::Sti => Helper::ends(sti),
        Code::Pushfw => Helper::straight(pushf::<2>),
        Code::Pushfd => Helper::straight(pushf::<4>),
        Code::Pushfq => Helper::straight(pushf::<8>),
        Code::Popfw => Helper::ends(popf::<2>),
        Code::Popfd => Helper::ends(popf::<4>),
        Code::Popfq => Helper::ends(popf::<8>),
        Code::Clac => Helper::straight(set_ac::<false>),
        Code::Stac => Helper::straight(set_ac::<true>),
        _ => None,
    }
}
