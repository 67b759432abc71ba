//! Forms: how an instruction's operands are found and its result put back. Each is a [`Sem`] for one
//! operation and source kind.
//!
//! The legacy forms here read the destination as the first operand and keep its bits above 127. A
//! three-operand (VEX) form is another struct over the same operations and sources.
use super::exec::{FloatOp, VecExec, VecFlags, VecOp, VecOp3, VecToInt};
use crate::event::Stop;
use crate::exec::Sem;
use crate::op::Op;
use crate::width::{W16, W32, W64, Width};
use iced_x86::{Instruction, OpKind};
use std::marker::PhantomData;

/// Where a form's source vector comes from.
pub trait VecSource: 'static {
    /// Reads it.
    fn get<E: VecExec>(e: &mut E, op: &Op) -> Result<E::Vec, Stop>;
}

/// The XMM register that is operand 1.
pub struct Xmm;
/// Aligned 128-bit memory.
pub struct M128;
/// 128-bit memory of any alignment.
pub struct M128U;
/// Memory of width W, zero-extended.
pub struct Mem<W>(PhantomData<W>);

impl VecSource for Xmm {
    #[inline(always)]
    fn get<E: VecExec>(e: &mut E, op: &Op) -> Result<E::Vec, Stop> {
        Ok(e.xmm(op.src))
    }
}
impl VecSource for M128 {
    #[inline(always)]
    fn get<E: VecExec>(e: &mut E, op: &Op) -> Result<E::Vec, Stop> {
        e.load_vec(op, true)
    }
}
impl VecSource for M128U {
    #[inline(always)]
    fn get<E: VecExec>(e: &mut E, op: &Op) -> Result<E::Vec, Stop> {
        e.load_vec(op, false)
    }
}
impl<W: Width> VecSource for Mem<W> {
    #[inline(always)]
    fn get<E: VecExec>(e: &mut E, op: &Op) -> Result<E::Vec, Stop> {
        e.load_low::<W>(op)
    }
}

/// Where a form's source integer comes from.
pub trait IntSource: 'static {
    /// Reads it.
    fn get<E: VecExec>(e: &mut E, op: &Op) -> Result<E::Int, Stop>;
}
/// The MMX register that is operand 1.
pub struct Mm;
/// The general register of width W that is operand 1.
pub struct Gpr<W>(PhantomData<W>);

impl IntSource for Mm {
    #[inline(always)]
    fn get<E: VecExec>(e: &mut E, op: &Op) -> Result<E::Int, Stop> {
        Ok(e.mm(op.src))
    }
}
impl<W: Width> IntSource for Gpr<W> {
    #[inline(always)]
    fn get<E: VecExec>(e: &mut E, op: &Op) -> Result<E::Int, Stop> {
        Ok(e.reg::<W>(op.src))
    }
}
impl<W: Width> IntSource for Mem<W> {
    #[inline(always)]
    fn get<E: VecExec>(e: &mut E, op: &Op) -> Result<E::Int, Stop> {
        e.load::<W>(op)
    }
}

/// Declares a form: a struct of the given type parameters with its semantics.
macro_rules! form {
    ($(#[$doc:meta])* $name:ident<$($p:ident: $bound:path),*> |$e:ident, $op:ident| $body:block) => {
        $(#[$doc])*
        pub struct $name<$($p),*>(PhantomData<($($p,)*)>);
        impl<Z: VecExec, $($p: $bound + 'static),*> Sem<Z> for $name<$($p),*> {
            #[inline(always)]
            fn exec($e: &mut Z, $op: &Op) -> Result<Z::Next, Stop> {
                $body
                Ok($e.next($op))
            }
        }
    };
}
pub(super) use form;

form! {
    /// xmm = O(xmm, source, imm8).
    Bin<O: VecOp, S: VecSource> |e, op| {
        e.sse_check()?;
        let b = S::get(e, op)?;
        let a = e.xmm(op.dst);
        let r = e.vec::<O>(a, b, op.imm as u8);
        e.set_xmm(op.dst, r);
    }
}
form! {
    /// xmm = O(xmm, imm8 as the second vector).
    BinImm<O: VecOp> |e, op| {
        e.sse_check()?;
        let n = e.imm::<W64>(op.imm & 0xff);
        let b = e.vec_of::<W64>(n);
        let a = e.xmm(op.dst);
        let r = e.vec::<O>(a, b, 0);
        e.set_xmm(op.dst, r);
    }
}
form! {
    /// xmm = O(xmm, source, xmm0).
    Bin3<O: VecOp3, S: VecSource> |e, op| {
        e.sse_check()?;
        let b = S::get(e, op)?;
        let a = e.xmm(op.dst);
        let c = e.xmm(0);
        let r = e.vec3::<O>(a, b, c);
        e.set_xmm(op.dst, r);
    }
}
form! {
    /// xmm = source.
    Load<S: VecSource> |e, op| {
        e.sse_check()?;
        let b = S::get(e, op)?;
        e.set_xmm(op.dst, b);
    }
}
form! {
    /// r32 = O(xmm).
    ToInt<O: VecToInt> |e, op| {
        e.sse_check()?;
        let b = e.xmm(op.src);
        let r = e.vec_int::<O>(b);
        e.set_reg::<W32>(op.dst, r);
    }
}
form! {
    /// Flags of O(xmm, source).
    Flags<O: VecFlags, S: VecSource> |e, op| {
        e.sse_check()?;
        let b = S::get(e, op)?;
        let a = e.xmm(op.dst);
        e.vec_flags::<O>(a, b);
    }
}
form! {
    /// mm = O(mm, source, imm8).
    MmBin<O: VecOp, S: IntSource> |e, op| {
        e.mmx_check()?;
        let b = S::get(e, op)?;
        e.enter_mmx();
        let a = e.mm(op.dst);
        let r = e.vec64::<O>(a, b, op.imm as u8);
        e.set_mm(op.dst, r);
    }
}
form! {
    /// mm = O(mm, imm8 as the second vector).
    MmImm<O: VecOp> |e, op| {
        e.mmx_check()?;
        e.enter_mmx();
        let b = e.imm::<W64>(op.imm & 0xff);
        let a = e.mm(op.dst);
        let r = e.vec64::<O>(a, b, 0);
        e.set_mm(op.dst, r);
    }
}
form! {
    /// xmm = O(xmm, source, imm8), floating point.
    Float<O: FloatOp, S: VecSource> |e, op| {
        e.sse_check()?;
        let b = S::get(e, op)?;
        let a = e.xmm(op.dst);
        let r = e.float::<O>(a, b, op.imm as u8)?;
        e.set_xmm(op.dst, r);
    }
}
form! {
    /// Flags of O(xmm, source), floating point.
    FloatFlags<O: FloatOp, S: VecSource> |e, op| {
        e.sse_check()?;
        let b = S::get(e, op)?;
        let a = e.xmm(op.dst);
        e.float_flags::<O>(a, b)?;
    }
}
form! {
    /// Register of width W = O(source), floating point.
    FloatInt<O: FloatOp, S: VecSource, W: Width> |e, op| {
        e.sse_check()?;
        let b = S::get(e, op)?;
        let r = e.float_int::<O>(b)?;
        e.set_reg::<W>(op.dst, r);
    }
}
form! {
    /// xmm = O(xmm, integer), floating point.
    IntFloat<O: FloatOp, S: IntSource> |e, op| {
        e.sse_check()?;
        let b = S::get(e, op)?;
        let a = e.xmm(op.dst);
        let r = e.int_float::<O>(a, b)?;
        e.set_xmm(op.dst, r);
    }
}

/// Whether operand 1 is in memory.
pub fn source_in_memory(i: &Instruction) -> bool {
    i.op_count() > 1 && i.op1_kind() == OpKind::Memory
}
/// Whether operand 0 is in memory.
pub fn target_in_memory(i: &Instruction) -> bool {
    i.op0_kind() == OpKind::Memory
}

/// Operation O on xmm, xmm/m128 (aligned).
pub fn packed<E: VecExec, O: VecOp>(i: &Instruction) -> E::Handler {
    if source_in_memory(i) { E::handler::<Bin<O, M128>>() } else { E::handler::<Bin<O, Xmm>>() }
}
/// Operations on xmm, xmm/memory of less than 128 bits.
macro_rules! narrow_forms {
    ($($name:ident $float:ident $w:ident;)*) => {$(
        #[doc = concat!("Operation O on xmm, xmm/memory of width ", stringify!($w), ".")]
        pub fn $name<E: VecExec, O: VecOp>(i: &Instruction) -> E::Handler {
            if source_in_memory(i) { E::handler::<Bin<O, Mem<$w>>>() } else { E::handler::<Bin<O, Xmm>>() }
        }
        #[doc = concat!("Floating-point operation O on xmm, xmm/memory of width ", stringify!($w), ".")]
        pub fn $float<E: VecExec, O: FloatOp>(i: &Instruction) -> E::Handler {
            if source_in_memory(i) { E::handler::<Float<O, Mem<$w>>>() } else { E::handler::<Float<O, Xmm>>() }
        }
    )*};
}
narrow_forms! {
    narrow32 float32 W32;
    narrow64 float64 W64;
}
/// Operation O on xmm, xmm/m16.
pub fn narrow16<E: VecExec, O: VecOp>(i: &Instruction) -> E::Handler {
    if source_in_memory(i) { E::handler::<Bin<O, Mem<W16>>>() } else { E::handler::<Bin<O, Xmm>>() }
}
/// Operation O on mm, mm/m64 or on xmm, xmm/m128.
pub fn packed_or_mmx<E: VecExec, O: VecOp>(i: &Instruction) -> E::Handler {
    match (i.op0_register().is_mm(), source_in_memory(i)) {
        (false, _) => packed::<E, O>(i),
        (true, false) => E::handler::<MmBin<O, Mm>>(),
        (true, true) => E::handler::<MmBin<O, Mem<W64>>>(),
    }
}
/// Operation O on mm, mm/m32 or on xmm, xmm/m128 (PUNPCKL: the MMX form reads 32 bits of memory).
pub fn packed_or_mmx32<E: VecExec, O: VecOp>(i: &Instruction) -> E::Handler {
    if i.op0_register().is_mm() && source_in_memory(i) {
        E::handler::<MmBin<O, Mem<W32>>>()
    } else {
        packed_or_mmx::<E, O>(i)
    }
}
/// Shift O by a register, memory or immediate count.
pub fn shift<E: VecExec, O: VecOp>(i: &Instruction) -> E::Handler {
    match (i.op1_kind() == OpKind::Immediate8, i.op0_register().is_mm()) {
        (true, false) => E::handler::<BinImm<O>>(),
        (true, true) => E::handler::<MmImm<O>>(),
        (false, _) => packed_or_mmx::<E, O>(i),
    }
}
/// Floating-point operation O on xmm, xmm/m128 (aligned).
pub fn float_packed<E: VecExec, O: FloatOp>(i: &Instruction) -> E::Handler {
    if source_in_memory(i) { E::handler::<Float<O, M128>>() } else { E::handler::<Float<O, Xmm>>() }
}
