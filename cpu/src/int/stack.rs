//! PUSH, POP, PUSHA, POPA, ENTER, LEAVE.
use super::operand::{Dst, Imm, Kind, Mem, Source, by_width, kind, sem};
use crate::cpu::Cpu;
use crate::event::Stop;
use crate::exec::Exec;
use crate::op::{Helper, Op};
use crate::state::{gpr, seg};
use crate::width::{W16, W32, W64, Width};
use iced_x86::{Code, Instruction, Mnemonic};

sem!(
    /// PUSH r, m, imm.
    Push[W: Width, S: Source][] |e, op| {
        let v = S::get::<E, W>(e, op)?;
        e.push::<W>(op, v)?;
        Ok(e.next(op))
    }
);
sem!(
    /// POP r: the register is written after the stack pointer moved, so POP SP takes the popped value.
    Pop[W: Width][] |e, op| {
        let v = e.peek::<W>(op)?;
        e.drop_stack(op, W::BYTES);
        e.set_reg::<W>(op.dst, v);
        Ok(e.next(op))
    }
);

/// POP m: the address is computed with the stack pointer already moved.
fn pop_mem<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let old = cpu.state.gpr[gpr::RSP];
    let v = cpu.peek::<W>(op)?;
    cpu.drop_stack(op, W::BYTES);
    cpu.store_op::<W>(op, v).inspect_err(|_| cpu.state.gpr[gpr::RSP] = old)
}

fn pusha<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let sp = cpu.state.gpr[gpr::RSP];
    // All eight must be writable before the first is written; one of them may lie across the limit where the stack
    // pointer wraps.
    let mut at = [0; 8];
    for (n, at) in (1..).zip(&mut at) {
        *at = cpu.stack_linear(op, sp.wrapping_sub(n * W::BYTES), W::BYTES, true)?;
    }
    for lin in [at[0], at[7]] {
        cpu.align_check(lin, W::BYTES)?;
        cpu.probe_write(lin, W::BYTES, seg::SS as u8)?;
    }
    for (n, lin) in (0..8u8).zip(at) {
        let v = cpu.reg::<W>(n);
        let v = if usize::from(n) == gpr::RSP { sp & W::MASK } else { v };
        cpu.store::<W>(lin, v, seg::SS as u8)?;
    }
    cpu.set_sp(op, sp.wrapping_sub(8 * W::BYTES));
    Ok(())
}

fn popa<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let sp = cpu.state.gpr[gpr::RSP];
    let mut v = [0; 8];
    for (n, slot) in v.iter_mut().enumerate() {
        let lin = cpu.stack_linear(op, sp.wrapping_add(n as u64 * W::BYTES), W::BYTES, false)?;
        *slot = cpu.load::<W>(lin, seg::SS as u8)?;
    }
    for (n, &v) in v.iter().enumerate() {
        let r = 7 - n;
        if r != gpr::RSP {
            cpu.set_reg::<W>(r as u8, v);
        }
    }
    cpu.set_sp(op, sp.wrapping_add(8 * W::BYTES));
    Ok(())
}

fn leave<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let bp = cpu.state.gpr[gpr::RBP];
    let lin = cpu.stack_linear(op, bp, W::BYTES, false)?;
    let v = cpu.load::<W>(lin, seg::SS as u8)?;
    cpu.set_sp(op, bp.wrapping_add(W::BYTES));
    cpu.set_reg::<W>(gpr::RBP as u8, v);
    Ok(())
}

/// ENTER: SDM volume 2, ENTER; at most 31 levels of frame pointers are copied.
fn enter<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let size = op.imm & 0xffff;
    let level = (op.imm >> 32) & 31;
    let old_sp = cpu.state.gpr[gpr::RSP];
    let old_bp = cpu.state.gpr[gpr::RBP];
    let mut sp = old_sp;
    // The stack pointer wraps in the stack's width, also where EBP takes all 32 bits of it.
    let below = |sp: u64, n: u64| match op.stack {
        2 => sp & !0xffff | sp.wrapping_sub(n) & 0xffff,
        _ => sp.wrapping_sub(n),
    };
    let mut run = |cpu: &mut Cpu| -> Result<(), Stop> {
        let push = |cpu: &mut Cpu, sp: &mut u64, v: u64| -> Result<(), Stop> {
            let at = below(*sp, W::BYTES);
            let lin = cpu.stack_linear(op, at, W::BYTES, true)?;
            cpu.store::<W>(lin, v, seg::SS as u8)?;
            *sp = at;
            Ok(())
        };
        push(cpu, &mut sp, old_bp & W::MASK)?;
        let frame = sp;
        if level > 0 {
            let mut bp = old_bp;
            for _ in 1..level {
                bp = bp.wrapping_sub(W::BYTES);
                let lin = cpu.stack_linear(op, bp, W::BYTES, false)?;
                let v = cpu.load::<W>(lin, seg::SS as u8)?;
                push(cpu, &mut sp, v)?;
            }
            push(cpu, &mut sp, frame & W::MASK)?;
        }
        sp = below(sp, size);
        // The new top of the stack must be writable.
        let lin = cpu.stack_linear(op, sp, W::BYTES, true)?;
        cpu.align_check(lin, W::BYTES)?;
        cpu.probe_write(lin, W::BYTES, seg::SS as u8)?;
        cpu.set_sp(op, sp);
        cpu.set_reg::<W>(gpr::RBP as u8, frame & W::MASK);
        Ok(())
    };
    run(cpu)
}

pub(crate) fn select<E: Exec>(i: &Instruction, op: &Op) -> Option<E::Handler> {
    match i.mnemonic() {
        Mnemonic::Push => match kind(i, 0) {
            Kind::Reg if i.op0_register().is_gpr() => {
                by_width!(op.width, W => Some(E::handler::<Push<W, Dst>>()))
            }
            Kind::Mem => by_width!(op.width, W => Some(E::handler::<Push<W, Mem>>())),
            Kind::Imm => by_width!(op.width, W => Some(E::handler::<Push<W, Imm>>())),
            _ => None,
        },
        Mnemonic::Pop if kind(i, 0) == Kind::Reg && i.op0_register().is_gpr() => {
            by_width!(op.width, W => Some(E::handler::<Pop<W>>()))
        }
        _ => None,
    }
}

pub(crate) fn lookup(i: &Instruction) -> Option<Helper> {
    match i.code() {
        Code::Pop_rm16 if kind(i, 0) == Kind::Mem => Helper::straight(pop_mem::<W16>),
        Code::Pop_rm32 if kind(i, 0) == Kind::Mem => Helper::straight(pop_mem::<W32>),
        Code::Pop_rm64 if kind(i, 0) == Kind::Mem => Helper::straight(pop_mem::<W64>),
        Code::Pushaw => Helper::straight(pusha::<W16>),
        Code::Pushad => Helper::straight(pusha::<W32>),
        Code::Popaw => Helper::straight(popa::<W16>),
        Code::Popad => Helper::straight(popa::<W32>),
        Code::Leavew => Helper::straight(leave::<W16>),
        Code::Leaved => Helper::straight(leave::<W32>),
        Code::Leaveq => Helper::straight(leave::<W64>),
        Code::Enterw_imm16_imm8 => Helper::straight(enter::<W16>),
        Code::Enterd_imm16_imm8 => Helper::straight(enter::<W32>),
        Code::Enterq_imm16_imm8 => Helper::straight(enter::<W64>),
        _ => None,
    }
}
