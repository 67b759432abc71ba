//! The interpreter as a vector engine: [`VecExec`] for [`Cpu`], with vectors as `u128`.
use super::{FloatOp, VecExec, VecFlags, VecOp, VecOp3, VecToInt, mxcsr, soft};
use crate::cpu::{Cpu, Stop, vector};
use crate::op::Op;
use crate::state::cr0;
use crate::width::Width;

/// Exception summary: bit 7 of the x87 status word.
const ES: u16 = 1 << 7;

impl VecExec for Cpu {
    type Vec = u128;

    #[inline(always)]
    fn sse_check(&mut self) -> Result<(), Stop> {
        match self.sse_trap {
            0 => Ok(()),
            v => Err(self.raise(v)),
        }
    }
    #[inline(always)]
    fn mmx_check(&mut self) -> Result<(), Stop> {
        if self.state.cr0 & (cr0::EM | cr0::TS) != 0 {
            let v = if self.state.cr0 & cr0::EM != 0 { vector::UD } else { vector::NM };
            return Err(self.raise(v));
        }
        self.x87_check()
    }
    #[inline(always)]
    fn x87_check(&mut self) -> Result<(), Stop> {
        if self.state.fpu.sw & ES == 0 { Ok(()) } else { crate::x87::pending(self) }
    }
    #[inline(always)]
    fn enter_mmx(&mut self) {
        self.state.fpu.top = 0;
        self.state.fpu.empty = 0;
    }
    #[inline(always)]
    fn xmm(&mut self, r: u8) -> u128 {
        self.state.xmm[usize::from(r & 31)].x()
    }
    #[inline(always)]
    fn set_xmm(&mut self, r: u8, v: u128) {
        self.state.xmm[usize::from(r & 31)].set_x(v);
    }
    #[inline(always)]
    fn mm(&mut self, r: u8) -> u64 {
        self.state.fpu.r[usize::from(r & 7)].mant
    }
    #[inline(always)]
    fn set_mm(&mut self, r: u8, v: u64) {
        let f = &mut self.state.fpu.r[usize::from(r & 7)];
        f.mant = v;
        f.exp = 0xffff;
    }
    #[inline(always)]
    fn load_vec(&mut self, op: &Op, aligned: bool) -> Result<u128, Stop> {
        self.load_op128(op, aligned)
    }
    #[inline(always)]
    fn store_vec(&mut self, op: &Op, v: u128, aligned: bool) -> Result<(), Stop> {
        self.store_op128(op, v, aligned)
    }

    #[inline(always)]
    fn vec_of<W: Width>(&mut self, v: u64) -> u128 {
        u128::from(v)
    }
    #[inline(always)]
    fn lane<W: Width>(&mut self, v: u128, n: u8) -> u64 {
        (v >> ((u32::from(n) * W::BITS) & 127)) as u64 & W::MASK
    }
    #[inline(always)]
    fn with_lane<W: Width>(&mut self, v: u128, n: u8, x: u64) -> u128 {
        let shift = (u32::from(n) * W::BITS) & 127;
        v & !(u128::from(W::MASK) << shift) | u128::from(x & W::MASK) << shift
    }

    #[inline(always)]
    fn vec<O: VecOp>(&mut self, a: u128, b: u128, imm: u8) -> u128 {
        O::eval(a, b, imm)
    }
    #[inline(always)]
    fn vec64<O: VecOp>(&mut self, a: u64, b: u64, imm: u8) -> u64 {
        O::eval64(a, b, imm)
    }
    #[inline(always)]
    fn vec3<O: VecOp3>(&mut self, a: u128, b: u128, c: u128) -> u128 {
        O::eval(a, b, c)
    }
    #[inline(always)]
    fn vec_int<O: VecToInt>(&mut self, b: u128) -> u64 {
        O::eval(b)
    }
    #[inline(always)]
    fn vec_flags<O: VecFlags>(&mut self, a: u128, b: u128) {
        self.state.set_arith_flags(O::eval(a, b));
    }
    #[inline(always)]
    fn float<O: FloatOp>(&mut self, a: u128, b: u128, imm: u8) -> Result<u128, Stop> {
        run::<O>(self, a, b, imm)
    }
    #[inline(always)]
    fn float_int<O: FloatOp>(&mut self, b: u128) -> Result<u64, Stop> {
        Ok(run::<O>(self, 0, b, 0)? as u64)
    }
    #[inline(always)]
    fn int_float<O: FloatOp>(&mut self, a: u128, b: u64) -> Result<u128, Stop> {
        run::<O>(self, a, u128::from(b), 0)
    }
    #[inline(always)]
    fn float_flags<O: FloatOp>(&mut self, a: u128, b: u128) -> Result<(), Stop> {
        let flags = run::<O>(self, a, b, 0)? as u64;
        self.state.set_arith_flags(flags);
        Ok(())
    }
}

/// Evaluates under the guest's MXCSR. The quick way is for the usual MXCSR (all masked, nearest, denormals
/// kept) on an x86-64 host.
#[inline(always)]
fn run<O: FloatOp>(cpu: &mut Cpu, a: u128, b: u128, imm: u8) -> Result<u128, Stop> {
    #[cfg(target_arch = "x86_64")]
    if cpu.state.mxcsr & !mxcsr::FLAGS == mxcsr::DEFAULT
        && O::on_host()
        && let Some((r, flags)) = super::host::quick::<O>(a, b, imm, cpu.state.mxcsr)
    {
        cpu.state.mxcsr |= flags;
        return Ok(r);
    }
    run_slow::<O>(cpu, a, b, imm)
}

#[inline(never)]
fn run_slow<O: FloatOp>(cpu: &mut Cpu, a: u128, b: u128, imm: u8) -> Result<u128, Stop> {
    let (r, found) = evaluate::<O>(a, b, imm, cpu.state.mxcsr);
    mxcsr::finish(cpu, found)?;
    Ok(r)
}

/// The masked result and the exceptions found, under any MXCSR; from bit 8 those of earlier steps, which were masked.
pub(super) fn evaluate<O: FloatOp>(a: u128, b: u128, imm: u8, mxcsr: u32) -> (u128, u32) {
    // With underflow or overflow unmasked the flags are others than the masked ones, which are all that the
    // host would tell.
    #[cfg(target_arch = "x86_64")]
    let masked = if O::STAGED { mxcsr::MASKS } else { mxcsr::UM | mxcsr::OM };
    #[cfg(target_arch = "x86_64")]
    if mxcsr & masked == masked && O::on_host() {
        return super::host::full::<O>(a, b, imm, mxcsr);
    }
    let mut env = soft::Env::new(mxcsr);
    let r = O::soft(a, b, imm, &mut env);
    (r, env.flags | env.earlier << 8)
}
