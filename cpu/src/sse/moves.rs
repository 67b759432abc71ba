//! Moves: between XMM registers and memory of every size, between XMM and general registers, with and without
//! a temporal hint (the hint is of no consequence here), and single elements in and out (PEXTR, PINSR,
//! EXTRACTPS).
use super::declare::vec_ops;
use super::exec::{VecExec, VecOp};
use super::forms::{
    Bin, Gpr, IntSource, Load, M128, M128U, Mem, VecSource, Xmm, form, source_in_memory, target_in_memory,
};
use super::lanes::{LOW32, LOW64};
use crate::event::Stop;
use crate::exec::Sem;
use crate::op::Op;
use crate::width::{W8, W16, W32, W64, Width};
use iced_x86::{Code, Instruction};
use std::marker::PhantomData;

vec_ops! {
    // Register forms: the low element is replaced.
    Movss = |a, b, i| a & !LOW32 | b & LOW32;
    Movsd = |a, b, i| a & !LOW64 | b & LOW64;
    Movlps = |a, b, i| a & !LOW64 | b & LOW64;
    Movhps = |a, b, i| a & LOW64 | b << 64;
    Movlhps = |a, b, i| a & LOW64 | b << 64;
    Movhlps = |a, b, i| a & !LOW64 | b >> 64;
    Movq = |a, b, i| b & LOW64;
}

form! {
    /// Aligned m128 = xmm.
    StoreAligned<S: VecSource> |e, op| {
        e.sse_check()?;
        let v = S::get(e, op)?;
        e.store_vec(op, v, true)?;
    }
}
form! {
    /// m128 = xmm.
    StoreAny<S: VecSource> |e, op| {
        e.sse_check()?;
        let v = S::get(e, op)?;
        e.store_vec(op, v, false)?;
    }
}
form! {
    /// Memory of width W = the low element of xmm.
    StoreLow<W: Width> |e, op| {
        e.sse_check()?;
        let v = e.xmm(op.src);
        let x = e.lane::<W>(v, 0);
        e.store::<W>(op, x)?;
    }
}
form! {
    /// m64 = the high half of xmm.
    StoreHigh<S: VecSource> |e, op| {
        e.sse_check()?;
        let v = S::get(e, op)?;
        let x = e.lane::<W64>(v, 1);
        e.store::<W64>(op, x)?;
    }
}
form! {
    /// xmm = an integer of width W, zero-extended.
    FromInt<W: Width, S: IntSource> |e, op| {
        e.sse_check()?;
        let x = S::get(e, op)?;
        let v = e.vec_of::<W>(x);
        e.set_xmm(op.dst, v);
    }
}
form! {
    /// Register of width R = element imm8 of width W of xmm, zero-extended. (Bits 32-63 of a register are
    /// zeroed by writes of 32 bits.)
    Extract<W: Width, R: Width> |e, op| {
        e.sse_check()?;
        let v = e.xmm(op.src);
        let x = e.lane::<W>(v, op.imm as u8);
        e.set_reg::<R>(op.dst, x);
    }
}
form! {
    /// Memory of width W = element imm8 of xmm.
    ExtractStore<W: Width> |e, op| {
        e.sse_check()?;
        let v = e.xmm(op.src);
        let x = e.lane::<W>(v, op.imm as u8);
        e.store::<W>(op, x)?;
    }
}
form! {
    /// Element imm8 of width W of xmm = an integer.
    Insert<W: Width, S: IntSource> |e, op| {
        e.sse_check()?;
        let x = S::get(e, op)?;
        let v = e.xmm(op.dst);
        let r = e.with_lane::<W>(v, op.imm as u8, x);
        e.set_xmm(op.dst, r);
    }
}
form! {
    /// Register of width W = the low element of xmm.
    LowToReg<W: Width> |e, op| {
        e.sse_check()?;
        let v = e.xmm(op.src);
        let x = e.lane::<W>(v, 0);
        e.set_reg::<W>(op.dst, x);
    }
}
form! {
    /// MOVNTI: memory = register. The instruction does not depend on CR0.EM, CR0.TS or CR4.OSFXSR.
    StoreReg<W: Width> |e, op| {
        let x = e.reg::<W>(op.src);
        e.store::<W>(op, x)?;
    }
}

/// Handlers of this module's instructions.
pub(super) fn select<E: VecExec>(i: &Instruction) -> Option<E::Handler> {
    let (to, from) = (target_in_memory(i), source_in_memory(i));
    Some(match i.code() {
        Code::Movaps_xmm_xmmm128
        | Code::Movapd_xmm_xmmm128
        | Code::Movdqa_xmm_xmmm128
        | Code::Movntdqa_xmm_m128
            if from =>
        {
            E::handler::<Load<M128>>()
        }
        Code::Movups_xmm_xmmm128
        | Code::Movupd_xmm_xmmm128
        | Code::Movdqu_xmm_xmmm128
        | Code::Lddqu_xmm_m128
            if from =>
        {
            E::handler::<Load<M128U>>()
        }
        Code::Movaps_xmmm128_xmm
        | Code::Movapd_xmmm128_xmm
        | Code::Movdqa_xmmm128_xmm
        | Code::Movntps_m128_xmm
        | Code::Movntpd_m128_xmm
        | Code::Movntdq_m128_xmm
            if to =>
        {
            E::handler::<StoreAligned<Xmm>>()
        }
        Code::Movups_xmmm128_xmm | Code::Movupd_xmmm128_xmm | Code::Movdqu_xmmm128_xmm if to => {
            E::handler::<StoreAny<Xmm>>()
        }
        Code::Movaps_xmm_xmmm128
        | Code::Movapd_xmm_xmmm128
        | Code::Movdqa_xmm_xmmm128
        | Code::Movups_xmm_xmmm128
        | Code::Movupd_xmm_xmmm128
        | Code::Movdqu_xmm_xmmm128
        | Code::Movaps_xmmm128_xmm
        | Code::Movapd_xmmm128_xmm
        | Code::Movdqa_xmmm128_xmm
        | Code::Movups_xmmm128_xmm
        | Code::Movupd_xmmm128_xmm
        | Code::Movdqu_xmmm128_xmm => E::handler::<Load<Xmm>>(),

        Code::Movss_xmm_xmmm32 | Code::Movss_xmmm32_xmm => scalar::<E, Movss, W32>(i),
        Code::Movsd_xmm_xmmm64 | Code::Movsd_xmmm64_xmm => scalar::<E, Movsd, W64>(i),
        Code::Movq_xmm_xmmm64 | Code::Movq_xmmm64_xmm => scalar::<E, Movq, W64>(i),
        Code::Movlps_xmm_m64 | Code::Movlpd_xmm_m64 => E::handler::<Bin<Movlps, Mem<W64>>>(),
        Code::Movhps_xmm_m64 | Code::Movhpd_xmm_m64 => E::handler::<Bin<Movhps, Mem<W64>>>(),
        Code::Movlps_m64_xmm | Code::Movlpd_m64_xmm => E::handler::<StoreLow<W64>>(),
        Code::Movhps_m64_xmm | Code::Movhpd_m64_xmm => E::handler::<StoreHigh<Xmm>>(),
        Code::Movlhps_xmm_xmm => E::handler::<Bin<Movlhps, Xmm>>(),
        Code::Movhlps_xmm_xmm => E::handler::<Bin<Movhlps, Xmm>>(),

        Code::Movd_xmm_rm32 if from => E::handler::<FromInt<W32, Mem<W32>>>(),
        Code::Movd_xmm_rm32 => E::handler::<FromInt<W32, Gpr<W32>>>(),
        Code::Movq_xmm_rm64 if from => E::handler::<FromInt<W64, Mem<W64>>>(),
        Code::Movq_xmm_rm64 => E::handler::<FromInt<W64, Gpr<W64>>>(),
        Code::Movd_rm32_xmm if to => E::handler::<StoreLow<W32>>(),
        Code::Movd_rm32_xmm => E::handler::<LowToReg<W32>>(),
        Code::Movq_rm64_xmm if to => E::handler::<StoreLow<W64>>(),
        Code::Movq_rm64_xmm => E::handler::<LowToReg<W64>>(),
        Code::Movnti_m32_r32 => E::handler::<StoreReg<W32>>(),
        Code::Movnti_m64_r64 => E::handler::<StoreReg<W64>>(),

        Code::Pextrb_r32m8_xmm_imm8 | Code::Pextrb_r64m8_xmm_imm8 => extract::<E, W8>(i),
        Code::Pextrw_r32_xmm_imm8
        | Code::Pextrw_r64_xmm_imm8
        | Code::Pextrw_r32m16_xmm_imm8
        | Code::Pextrw_r64m16_xmm_imm8 => extract::<E, W16>(i),
        Code::Pextrd_rm32_xmm_imm8 | Code::Extractps_rm32_xmm_imm8 | Code::Extractps_r64m32_xmm_imm8 => {
            extract::<E, W32>(i)
        }
        Code::Pextrq_rm64_xmm_imm8 => extract::<E, W64>(i),
        Code::Pinsrb_xmm_r32m8_imm8 | Code::Pinsrb_xmm_r64m8_imm8 => insert_narrow::<E, W8>(i),
        Code::Pinsrw_xmm_r32m16_imm8 | Code::Pinsrw_xmm_r64m16_imm8 => insert_narrow::<E, W16>(i),
        Code::Pinsrd_xmm_rm32_imm8 => insert::<E, W32>(i),
        Code::Pinsrq_xmm_rm64_imm8 => insert::<E, W64>(i),
        _ => return None,
    })
}

/// PEXTRx: to memory, or to a register.
fn extract<E: VecExec, W: Width>(i: &Instruction) -> E::Handler {
    match (target_in_memory(i), W::BITS) {
        (true, _) => E::handler::<ExtractStore<W>>(),
        (false, 64) => E::handler::<Extract<W, W64>>(),
        (false, _) => E::handler::<Extract<W, W32>>(),
    }
}

/// PINSRD and PINSRQ.
fn insert<E: VecExec, W: Width>(i: &Instruction) -> E::Handler {
    if source_in_memory(i) { E::handler::<Insert<W, Mem<W>>>() } else { E::handler::<Insert<W, Gpr<W>>>() }
}

/// A move of a low lane: between registers it keeps the rest of the destination.
fn scalar<E: VecExec, O: VecOp, W: Width>(i: &Instruction) -> E::Handler {
    match (target_in_memory(i), source_in_memory(i)) {
        (true, _) => E::handler::<StoreLow<W>>(),
        (_, true) => E::handler::<Load<Mem<W>>>(),
        _ => E::handler::<Bin<O, Xmm>>(),
    }
}

/// PINSRB and PINSRW name a 32-bit register of which they take the low part (so that number 4 is ESP, never
/// AH).
fn insert_narrow<E: VecExec, W: Width>(i: &Instruction) -> E::Handler {
    if source_in_memory(i) { E::handler::<Insert<W, Mem<W>>>() } else { E::handler::<Insert<W, Gpr<W32>>>() }
}
