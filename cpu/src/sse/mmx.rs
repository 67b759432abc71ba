//! What is particular to MMX registers: moves, sign masks, element access, transfers to and from XMM
//! registers, EMMS, and the masked stores MASKMOVQ and MASKMOVDQU. Arithmetic on MMX registers stands with
//! its XMM twin in [`super::int_lanes`] and [`super::shuffle`].
//!
//! MMX register n is the significand of the x87 unit's physical register n (SDM volume 1, 9.2; volume 3A,
//! 13.1).
use super::exec::{VecExec, VecToInt};
use super::forms::{Gpr, IntSource, Mem, Mm, form, source_in_memory, target_in_memory};
use super::int_lanes::Pmovmskb;
use crate::cpu::Cpu;
use crate::event::Stop;
use crate::exec::Sem;
use crate::op::{CHECKED, Helper, Op};
use crate::state::gpr;
use crate::width::{W16, W32, W64, Width};
use iced_x86::{Code, Instruction, Mnemonic, OpKind};
use std::marker::PhantomData;

form! {
    /// mm = an integer, zero-extended.
    MmLoad<S: IntSource> |e, op| {
        e.mmx_check()?;
        let x = S::get(e, op)?;
        e.enter_mmx();
        e.set_mm(op.dst, x);
    }
}
form! {
    /// Memory of width W = mm.
    MmStore<W: Width> |e, op| {
        e.mmx_check()?;
        let x = e.mm(op.src);
        let x = e.trunc::<W64, W>(x);
        e.store::<W>(op, x)?;
        e.enter_mmx();
    }
}
form! {
    /// Register of width W = mm.
    MmToReg<W: Width> |e, op| {
        e.mmx_check()?;
        e.enter_mmx();
        let x = e.mm(op.src);
        let x = e.trunc::<W64, W>(x);
        e.set_reg::<W>(op.dst, x);
    }
}
form! {
    /// r32 = O(mm).
    MmToInt<O: VecToInt> |e, op| {
        e.mmx_check()?;
        e.enter_mmx();
        let x = e.mm(op.src);
        let v = e.vec_of::<W64>(x);
        let r = e.vec_int::<O>(v);
        e.set_reg::<W32>(op.dst, r);
    }
}
form! {
    /// r32 = word imm8 of mm.
    MmExtract<W: Width> |e, op| {
        e.mmx_check()?;
        e.enter_mmx();
        let x = e.mm(op.src);
        let v = e.vec_of::<W64>(x);
        let r = e.lane::<W>(v, op.imm as u8 & 3);
        e.set_reg::<W32>(op.dst, r);
    }
}
form! {
    /// Word imm8 of mm = an integer.
    MmInsert<W: Width, S: IntSource> |e, op| {
        e.mmx_check()?;
        let x = S::get(e, op)?;
        e.enter_mmx();
        let old = e.mm(op.dst);
        let v = e.vec_of::<W64>(old);
        let v = e.with_lane::<W>(v, op.imm as u8 & 3, x);
        let r = e.lane::<W64>(v, 0);
        e.set_mm(op.dst, r);
    }
}
form! {
    /// MOVQ2DQ: xmm = mm, zero-extended.
    MmToXmm<W: Width> |e, op| {
        e.sse_check()?;
        e.x87_check()?;
        e.enter_mmx();
        let x = e.mm(op.src);
        let v = e.vec_of::<W>(x);
        e.set_xmm(op.dst, v);
    }
}
form! {
    /// MOVDQ2Q: mm = the low half of xmm.
    XmmToMm<W: Width> |e, op| {
        e.sse_check()?;
        e.x87_check()?;
        e.enter_mmx();
        let v = e.xmm(op.src);
        let x = e.lane::<W>(v, 0);
        e.set_mm(op.dst, x);
    }
}

/// Handlers of this module's instructions.
pub(super) fn select<E: VecExec>(i: &Instruction) -> Option<E::Handler> {
    let (to, from) = (target_in_memory(i), source_in_memory(i));
    Some(match i.code() {
        Code::Movd_mm_rm32 if from => E::handler::<MmLoad<Mem<W32>>>(),
        Code::Movd_mm_rm32 => E::handler::<MmLoad<Gpr<W32>>>(),
        Code::Movq_mm_rm64 | Code::Movq_mm_mmm64 if from => E::handler::<MmLoad<Mem<W64>>>(),
        Code::Movq_mm_rm64 => E::handler::<MmLoad<Gpr<W64>>>(),
        Code::Movq_mm_mmm64 => E::handler::<MmLoad<Mm>>(),
        Code::Movd_rm32_mm if to => E::handler::<MmStore<W32>>(),
        Code::Movd_rm32_mm => E::handler::<MmToReg<W32>>(),
        Code::Movq_rm64_mm | Code::Movq_mmm64_mm | Code::Movntq_m64_mm if to => E::handler::<MmStore<W64>>(),
        Code::Movq_rm64_mm => E::handler::<MmToReg<W64>>(),
        Code::Movq_mmm64_mm => E::handler::<MmLoad<Mm>>(),
        Code::Pmovmskb_r32_mm | Code::Pmovmskb_r64_mm => E::handler::<MmToInt<Pmovmskb>>(),
        Code::Pextrw_r32_mm_imm8 | Code::Pextrw_r64_mm_imm8 => E::handler::<MmExtract<W16>>(),
        Code::Pinsrw_mm_r32m16_imm8 | Code::Pinsrw_mm_r64m16_imm8 if from => {
            E::handler::<MmInsert<W16, Mem<W16>>>()
        }
        Code::Pinsrw_mm_r32m16_imm8 | Code::Pinsrw_mm_r64m16_imm8 => E::handler::<MmInsert<W16, Gpr<W32>>>(),
        Code::Movq2dq_xmm_mm => E::handler::<MmToXmm<W64>>(),
        Code::Movdq2q_mm_xmm => E::handler::<XmmToMm<W64>>(),
        _ => return None,
    })
}

/// Helpers of this module.
pub(super) fn lookup(i: &Instruction) -> Option<Helper> {
    match (i.mnemonic(), i.op0_kind()) {
        (Mnemonic::Emms, _) => Helper::straight(emms),
        (Mnemonic::Maskmovq, OpKind::MemorySegDI) => Helper::straight(maskmovq::<16>),
        (Mnemonic::Maskmovq, OpKind::MemorySegEDI) => Helper::straight(maskmovq::<32>),
        (Mnemonic::Maskmovq, _) => Helper::straight(maskmovq::<64>),
        (Mnemonic::Maskmovdqu, OpKind::MemorySegDI) => Helper::straight(maskmovdqu::<16>),
        (Mnemonic::Maskmovdqu, OpKind::MemorySegEDI) => Helper::straight(maskmovdqu::<32>),
        (Mnemonic::Maskmovdqu, _) => Helper::straight(maskmovdqu::<64>),
        (Mnemonic::Vmaskmovdqu, OpKind::MemorySegDI) => Helper::straight(vmaskmovdqu::<16>),
        (Mnemonic::Vmaskmovdqu, OpKind::MemorySegEDI) => Helper::straight(vmaskmovdqu::<32>),
        (Mnemonic::Vmaskmovdqu, _) => Helper::straight(vmaskmovdqu::<64>),
        _ => None,
    }
}

/// EMMS: all x87 registers empty.
fn emms(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    cpu.mmx_check()?;
    cpu.state.fpu.top = 0;
    cpu.state.fpu.empty = 0xff;
    Ok(())
}

fn maskmovq<const ADDRESS: u32>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.mmx_check()?;
    let (v, mask) = (VecExec::mm(cpu, op.src), VecExec::mm(cpu, op.src2));
    masked_store::<ADDRESS>(cpu, op, &v.to_le_bytes(), &mask.to_le_bytes())?;
    cpu.enter_mmx();
    Ok(())
}

fn maskmovdqu<const ADDRESS: u32>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.sse_check()?;
    store_chosen_bytes::<ADDRESS>(cpu, op)
}

fn vmaskmovdqu<const ADDRESS: u32>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.avx_check()?;
    store_chosen_bytes::<ADDRESS>(cpu, op)
}

fn store_chosen_bytes<const ADDRESS: u32>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let (v, mask) = (cpu.xmm(op.src), cpu.xmm(op.src2));
    masked_store::<ADDRESS>(cpu, op, &v.to_le_bytes(), &mask.to_le_bytes())
}

/// Stores at DS:[rDI] (or the overriding segment) those bytes whose mask byte has its top bit set. The whole operand
/// must be writable, also where no byte is stored, which the manual leaves to the implementation.
fn masked_store<const ADDRESS: u32>(cpu: &mut Cpu, op: &Op, v: &[u8], mask: &[u8]) -> Result<(), Stop> {
    let len = v.len() as u64;
    let offset = cpu.state.gpr[gpr::RDI] & u64::MAX >> (64 - ADDRESS);
    let lin = if op.flags & CHECKED == 0 {
        cpu.view[usize::from(op.seg & 7)].base.wrapping_add(offset)
    } else {
        cpu.linear(usize::from(op.seg), offset, len, true)?
    };
    cpu.probe_write(lin, len, op.seg)?;
    for k in (0..v.len()).filter(|&k| mask[k] & 0x80 != 0) {
        cpu.store_bytes(lin.wrapping_add(k as u64), &v[k..=k], op.seg)?;
    }
    Ok(())
}
