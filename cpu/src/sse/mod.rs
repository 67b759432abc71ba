//! SSE, SSE2, SSE3, SSSE3, SSE4.1, SSE4.2, AES-NI, PCLMULQDQ, SHA and MMX in their legacy encodings, and AVX,
//! AVX2, FMA, F16C, VAES and VPCLMULQDQ in VEX encodings, with MXCSR.
//!
//! An operation is a type: [`VecOp`] for those that only map bits to bits, [`FloatOp`] for those that round
//! and may raise SIMD floating-point exceptions. How an operation's operands are found (register, aligned
//! memory, scalar memory, MMX register) is a second type, the *form* ([`forms`]); a form with an operation is
//! a [`crate::Sem`], generic over the engine. Engines implement [`VecExec`]: the interpreter ([`crate::Cpu`],
//! `Vec = u128`) evaluates an operation in place; a translator matches its `ID` to emit host instructions, or
//! else emits a call of `eval`.
//!
//! * [`moves`], [`int_lanes`], [`shuffle`], [`crypto`]: operations on bits. [`lanes`]: vectors as arrays.
//! * [`float_arith`], [`float_cmp`], [`convert`]: floating point. [`host`] runs the very instruction on an
//!   x86-64 host under the guest's MXCSR; [`soft`] is the portable arithmetic, which also serves where the
//!   host cannot (unmasked underflow). [`mxcsr`] ends both.
//! * [`string_sse42`], [`mxcsr`]: helpers. [`mmx`]: the 64-bit registers.
//! * [`vex`]: three-operand forms of 128 and 256 bits over the same operations, and what only VEX encodes.
//!   [`fused`]: FMA. [`f16c`]: half precision.
//!
//! An operation on 256 bits is a pair of operations on 128 bits, `[low, high]`; what crosses the two lanes is
//! made of lane transfers or is a [`PairOp`].
//!
//! Not here: EVEX forms, SSE4a, 3DNow!; fences, prefetches, CRC32 and POPCNT (integer instructions); FXSAVE and
//! XSAVE (system). Faults come before any change of state. Bits above 127 of a vector register stay in legacy
//! forms and are zeroed by VEX forms of 128 bits.
mod control;
mod convert;
mod crypto;
mod declare;
mod engine;
pub(crate) mod exec;
mod f16c;
mod float_arith;
mod float_cmp;
mod forms;
mod fused;
#[cfg(target_arch = "x86_64")]
mod host;
mod int_lanes;
mod lanes;
mod mmx;
mod moves;
pub(crate) mod mxcsr;
mod shuffle;
mod soft;
mod string_sse42;
#[cfg(test)]
mod tests;
mod vex;

use crate::op::Helper;
use iced_x86::{EncodingKind, Instruction};

pub use exec::{FloatOp, FusedOp, PairOp, VecExec, VecFlags, VecId, VecOp, VecOp3, VecToInt};

/// The handler for a vector instruction with generic semantics, `None` if it is not one of this module's.
pub fn select<E: VecExec>(i: &Instruction) -> Option<E::Handler> {
    if i.encoding() == EncodingKind::VEX {
        return vex::select::<E>(i);
    }
    moves::select::<E>(i)
        .or_else(|| int_lanes::select::<E>(i))
        .or_else(|| shuffle::select::<E>(i))
        .or_else(|| float_arith::select::<E>(i))
        .or_else(|| float_cmp::select::<E>(i))
        .or_else(|| convert::select::<E>(i))
        .or_else(|| crypto::select::<E>(i))
        .or_else(|| mmx::select::<E>(i))
}

/// The helper for a vector instruction that has no generic semantics.
pub(crate) fn lookup(i: &Instruction) -> Option<Helper> {
    control::lookup(i)
        .or_else(|| string_sse42::lookup(i))
        .or_else(|| mmx::lookup(i))
        .or_else(|| vex::lookup(i))
}
