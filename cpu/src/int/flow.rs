//! Near control transfers: JMP, CALL, RET, Jcc, LOOP, JCXZ.
use super::mov::{by_condition, condition};
use super::operand::{Dst, Kind, Mem, Source, by_width, kind, sem};
use crate::cpu::Cpu;
use crate::event::Stop;
use crate::exec::Exec;
use crate::op::{CHECKED, Helper, Op};
use crate::state::gpr;
use crate::width::{W16, W32, W64, Width};
use iced_x86::{Code, Instruction, Mnemonic};

sem!(
    /// JMP rel.
    Jmp[][] |e, op| { Ok(e.jump(op)) }
);
sem!(
    /// JMP r/m.
    JmpTo[W: Width, S: Source][] |e, op| {
        let t = S::get::<E, W>(e, op)?;
        e.jump_to(op, t)
    }
);
sem!(
    /// CALL rel.
    Call[W: Width][] |e, op| {
        e.check_relative(op)?;
        let back = e.return_address(op);
        let back = e.trunc::<W64, W>(back);
        e.push::<W>(op, back)?;
        Ok(e.jump(op))
    }
);
sem!(
    /// CALL r/m.
    CallTo[W: Width, S: Source][] |e, op| {
        let t = S::get::<E, W>(e, op)?;
        e.check_target(t)?;
        let back = e.return_address(op);
        let back = e.trunc::<W64, W>(back);
        e.push::<W>(op, back)?;
        e.jump_to(op, t)
    }
);
sem!(
    /// RET, RET imm16.
    Ret[W: Width][const POP: bool] |e, op| {
        let t = e.peek::<W>(op)?;
        e.check_target(t)?;
        let extra = if POP { op.imm & 0xffff } else { 0 };
        e.drop_stack(op, W::BYTES + extra);
        e.jump_to(op, t)
    }
);
sem!(
    /// Jcc.
    Jcc[][const CC: u8] |e, op| {
        let c = e.cond(CC);
        Ok(e.branch(op, c))
    }
);
sem!(
    /// LOOP (`KIND` 0), LOOPE (1), LOOPNE (2); `W` is the address size.
    Loop[W: Width][const KIND: u8] |e, op| {
        let n = e.reg::<W>(1);
        let one = e.imm::<W>(1);
        let n = e.sub::<W>(n, one);
        e.set_reg::<W>(1, n);
        let zero = e.imm::<W>(0);
        let done = e.eq::<W>(n, zero);
        let z = e.eq::<W>(zero, zero);
        let more = e.differ(done, z);
        let taken = match KIND {
            0 => more,
            1 => {
                let c = e.cond(crate::exec::cc::E);
                e.both(more, c)
            }
            _ => {
                let c = e.cond(crate::exec::cc::NE);
                e.both(more, c)
            }
        };
        Ok(e.branch(op, taken))
    }
);
sem!(
    /// JCXZ, JECXZ, JRCXZ.
    Jcxz[W: Width][] |e, op| {
        let n = e.reg::<W>(1);
        let zero = e.imm::<W>(0);
        let c = e.eq::<W>(n, zero);
        Ok(e.branch(op, c))
    }
);

/// LOOP where the target must be within a limit: RCX is only written if it is.
fn loop_checked<const KIND: u8>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let mask = u64::MAX >> op.ashift;
    let old = cpu.state.gpr[gpr::RCX];
    let n = old.wrapping_sub(1) & mask;
    let wanted = match KIND {
        0 => true,
        1 => cpu.state.zf(),
        _ => !cpu.state.zf(),
    };
    if n != 0 && wanted {
        let width = if op.width == 2 { 0xffff } else { 0xffff_ffff };
        let target = cpu.state.gpr[gpr::RIP].wrapping_add(op.imm) & width;
        Exec::check_target(cpu, target)?;
        cpu.set_next_ip(target);
    }
    cpu.state.gpr[gpr::RCX] = if op.ashift == 32 { n } else { old & !mask | n };
    Ok(())
}

/// The forms of LOOP whose target must be checked.
pub(crate) fn lookup(i: &Instruction) -> Option<Helper> {
    match i.mnemonic() {
        Mnemonic::Loop => Helper::ends(loop_checked::<0>),
        Mnemonic::Loope => Helper::ends(loop_checked::<1>),
        Mnemonic::Loopne => Helper::ends(loop_checked::<2>),
        _ => None,
    }
}

fn address_width(op: &Op) -> u8 {
    match op.ashift {
        0 => 8,
        32 => 4,
        _ => 2,
    }
}

/// Far transfers are helpers.
fn is_far(i: &Instruction) -> bool {
    i.is_jmp_far() || i.is_call_far() || i.is_jmp_far_indirect() || i.is_call_far_indirect()
}

pub(crate) fn select<E: Exec>(i: &Instruction, op: &Op) -> Option<E::Handler> {
    match i.mnemonic() {
        Mnemonic::Jmp if is_far(i) => None,
        Mnemonic::Call if is_far(i) => None,
        Mnemonic::Jmp => match kind(i, 0) {
            Kind::Reg => by_width!(op.width, W => Some(E::handler::<JmpTo<W, Dst>>())),
            Kind::Mem => by_width!(op.width, W => Some(E::handler::<JmpTo<W, Mem>>())),
            _ => Some(E::handler::<Jmp>()),
        },
        Mnemonic::Call => match kind(i, 0) {
            Kind::Reg => by_width!(op.width, W => Some(E::handler::<CallTo<W, Dst>>())),
            Kind::Mem => by_width!(op.width, W => Some(E::handler::<CallTo<W, Mem>>())),
            _ => by_width!(op.width, W => Some(E::handler::<Call<W>>())),
        },
        Mnemonic::Loop | Mnemonic::Loope | Mnemonic::Loopne if op.flags & CHECKED != 0 => None,
        Mnemonic::Loop => by_width!(address_width(op), W => Some(E::handler::<Loop<W, 0>>())),
        Mnemonic::Loope => by_width!(address_width(op), W => Some(E::handler::<Loop<W, 1>>())),
        Mnemonic::Loopne => by_width!(address_width(op), W => Some(E::handler::<Loop<W, 2>>())),
        Mnemonic::Jcxz => Some(E::handler::<Jcxz<W16>>()),
        Mnemonic::Jecxz => Some(E::handler::<Jcxz<W32>>()),
        Mnemonic::Jrcxz => Some(E::handler::<Jcxz<W64>>()),
        _ => match i.code() {
            Code::Retnw => Some(E::handler::<Ret<W16, false>>()),
            Code::Retnd => Some(E::handler::<Ret<W32, false>>()),
            Code::Retnq => Some(E::handler::<Ret<W64, false>>()),
            Code::Retnw_imm16 => Some(E::handler::<Ret<W16, true>>()),
            Code::Retnd_imm16 => Some(E::handler::<Ret<W32, true>>()),
            Code::Retnq_imm16 => Some(E::handler::<Ret<W64, true>>()),
            _ if i.is_jcc_short_or_near() => {
                let n = condition(i)?;
                by_condition!(n, CC => Some(E::handler::<Jcc<CC>>()))
            }
            _ => None,
        },
    }
}
