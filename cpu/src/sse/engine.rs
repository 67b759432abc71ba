//! The interpreter as a vector engine: [`VecExec`] for [`Cpu`], with vectors as `u128`.
use super::exec::{FloatOp, FusedOp, PairOp, VecExec, VecFlags, VecOp, VecOp3, VecToInt};
use super::{mxcsr, soft};
use crate::cpu::Cpu;
use crate::event::{Stop, vector};
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
    fn avx_check(&mut self) -> Result<(), Stop> {
        match self.avx_trap {
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
        if self.state.fpu.sw & ES == 0 { Ok(()) } else { crate::x87::unit::pending(self) }
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
    fn ymm_high(&mut self, r: u8) -> u128 {
        self.state.xmm[usize::from(r & 31)].y_high()
    }
    #[inline(always)]
    fn set_ymm_high(&mut self, r: u8, v: u128) {
        self.state.xmm[usize::from(r & 31)].set_y_high(v);
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
    fn load_pair(&mut self, op: &Op, aligned: bool) -> Result<[u128; 2], Stop> {
        self.load_op256(op, aligned)
    }
    #[inline(always)]
    fn store_pair(&mut self, op: &Op, v: [u128; 2], aligned: bool) -> Result<(), Stop> {
        self.store_op256(op, v, aligned)
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
        if O::BY_HOST && self.portable { O::portable(a, b, imm) } else { O::eval(a, b, imm) }
    }
    #[inline(always)]
    fn vec64<O: VecOp>(&mut self, a: u64, b: u64, imm: u8) -> u64 {
        if O::BY_HOST && self.portable { O::portable64(a, b, imm) } else { O::eval64(a, b, imm) }
    }
    #[inline(always)]
    fn vec3<O: VecOp3>(&mut self, a: u128, b: u128, c: u128) -> u128 {
        if self.portable { O::portable(a, b, c) } else { O::eval(a, b, c) }
    }
    #[inline(always)]
    fn pair<O: PairOp>(&mut self, a: [u128; 2], b: [u128; 2]) -> [u128; 2] {
        O::eval(a, b)
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
    fn vec_flags_pair<O: VecFlags>(&mut self, a: [u128; 2], b: [u128; 2]) {
        self.state.set_arith_flags(O::eval(a[0], b[0]) & O::eval(a[1], b[1]));
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
    #[inline(always)]
    fn float_pair<O: FloatOp>(&mut self, a: [u128; 2], b: [u128; 2], imm: u8) -> Result<[u128; 2], Stop> {
        run_pair::<O>(self, a, b, imm)
    }
    #[inline(always)]
    fn fused<O: FusedOp>(&mut self, a: u128, b: u128, c: u128) -> Result<u128, Stop> {
        #[cfg(target_arch = "x86_64")]
        if usual(self)
            && is_x86_feature_detected!("fma")
            && let Some((r, flags)) = super::host::quick_fused::<O>(a, b, c, self.state.mxcsr)
        {
            self.state.mxcsr |= flags;
            return Ok(r);
        }
        Ok(fused_slow::<O>(self, [a, 0], [b, 0], [c, 0], 1)?[0])
    }
    #[inline(always)]
    fn fused_pair<O: FusedOp>(
        &mut self,
        a: [u128; 2],
        b: [u128; 2],
        c: [u128; 2],
    ) -> Result<[u128; 2], Stop> {
        #[cfg(target_arch = "x86_64")]
        if usual(self)
            && is_x86_feature_detected!("fma")
            && let Some((low, f)) = super::host::quick_fused::<O>(a[0], b[0], c[0], self.state.mxcsr)
            && let Some((high, g)) = super::host::quick_fused::<O>(a[1], b[1], c[1], self.state.mxcsr | f)
        {
            self.state.mxcsr |= f | g;
            return Ok([low, high]);
        }
        fused_slow::<O>(self, a, b, c, 2)
    }
}

/// Whether the guest's control bits are the host's own.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn usual(cpu: &Cpu) -> bool {
    cpu.state.mxcsr & !mxcsr::FLAGS == cpu.quick_mxcsr
}

/// Evaluates under the guest's MXCSR. The quick way is for the usual MXCSR (all masked, nearest, denormals
/// kept) on an x86-64 host.
#[inline(always)]
fn run<O: FloatOp>(cpu: &mut Cpu, a: u128, b: u128, imm: u8) -> Result<u128, Stop> {
    #[cfg(target_arch = "x86_64")]
    if usual(cpu)
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
    let evaluate = if cpu.portable { portable::<O> } else { evaluate::<O> };
    let (r, found) = evaluate(a, b, imm, cpu.state.mxcsr);
    mxcsr::finish(cpu, found)?;
    Ok(r)
}

/// `run` on both lanes of 256-bit vectors.
#[inline(always)]
fn run_pair<O: FloatOp>(cpu: &mut Cpu, a: [u128; 2], b: [u128; 2], imm: u8) -> Result<[u128; 2], Stop> {
    #[cfg(target_arch = "x86_64")]
    if usual(cpu)
        && O::on_host()
        && let Some((low, f)) = super::host::quick::<O>(a[0], b[0], imm, cpu.state.mxcsr)
        && let Some((high, g)) = super::host::quick::<O>(a[1], b[1], imm, cpu.state.mxcsr | f)
    {
        cpu.state.mxcsr |= f | g;
        return Ok([low, high]);
    }
    run_pair_slow::<O>(cpu, a, b, imm)
}

#[inline(never)]
fn run_pair_slow<O: FloatOp>(cpu: &mut Cpu, a: [u128; 2], b: [u128; 2], imm: u8) -> Result<[u128; 2], Stop> {
    let evaluate = if cpu.portable { portable_pair::<O> } else { evaluate_pair::<O> };
    let (r, found) = evaluate(a, b, imm, cpu.state.mxcsr);
    mxcsr::finish(cpu, found)?;
    Ok(r)
}

/// The first `lanes` lanes of a fused operation under any MXCSR.
#[inline(never)]
fn fused_slow<O: FusedOp>(
    cpu: &mut Cpu,
    a: [u128; 2],
    b: [u128; 2],
    c: [u128; 2],
    lanes: usize,
) -> Result<[u128; 2], Stop> {
    let evaluate = if cpu.portable { portable_fused::<O> } else { evaluate_fused::<O> };
    let mut r = [0; 2];
    let mut found = 0;
    for k in 0..lanes.min(2) {
        let flags;
        (r[k], flags) = evaluate(a[k], b[k], c[k], cpu.state.mxcsr);
        found |= flags;
    }
    mxcsr::finish(cpu, found)?;
    Ok(r)
}

/// Whether the host tells all flags under this MXCSR. With underflow or overflow unmasked they are others than the
/// masked ones, which are all that the host would tell.
#[cfg(target_arch = "x86_64")]
fn told_by_host(staged: bool, mxcsr: u32) -> bool {
    let masked = if staged { mxcsr::MASKS } else { mxcsr::UM | mxcsr::OM };
    mxcsr & masked == masked
}

/// The masked result and the exceptions found, under any MXCSR; from bit 8 those of earlier steps, which were masked.
pub(super) fn evaluate<O: FloatOp>(a: u128, b: u128, imm: u8, mxcsr: u32) -> (u128, u32) {
    #[cfg(target_arch = "x86_64")]
    if told_by_host(O::STAGED, mxcsr) && O::on_host() {
        return super::host::full::<O>(a, b, imm, mxcsr);
    }
    portable::<O>(a, b, imm, mxcsr)
}

fn portable<O: FloatOp>(a: u128, b: u128, imm: u8, mxcsr: u32) -> (u128, u32) {
    let mut env = soft::Env::new(mxcsr);
    let r = O::soft(a, b, imm, &mut env);
    (r, env.flags | env.earlier << 8)
}

/// The same for both lanes of 256-bit vectors.
pub(super) fn evaluate_pair<O: FloatOp>(a: [u128; 2], b: [u128; 2], imm: u8, mxcsr: u32) -> ([u128; 2], u32) {
    #[cfg(target_arch = "x86_64")]
    if told_by_host(O::STAGED, mxcsr) && O::on_host() {
        let (low, f) = super::host::full::<O>(a[0], b[0], imm, mxcsr);
        let (high, g) = super::host::full::<O>(a[1], b[1], imm, mxcsr);
        return ([low, high], f | g);
    }
    portable_pair::<O>(a, b, imm, mxcsr)
}

fn portable_pair<O: FloatOp>(a: [u128; 2], b: [u128; 2], imm: u8, mxcsr: u32) -> ([u128; 2], u32) {
    let mut env = soft::Env::new(mxcsr);
    let r = O::soft_pair(a, b, imm, &mut env);
    (r, env.flags | env.earlier << 8)
}

/// The same for a fused operation.
pub(super) fn evaluate_fused<O: FusedOp>(a: u128, b: u128, c: u128, mxcsr: u32) -> (u128, u32) {
    #[cfg(target_arch = "x86_64")]
    if told_by_host(false, mxcsr) && is_x86_feature_detected!("fma") {
        return super::host::full_fused::<O>(a, b, c, mxcsr);
    }
    portable_fused::<O>(a, b, c, mxcsr)
}

fn portable_fused<O: FusedOp>(a: u128, b: u128, c: u128, mxcsr: u32) -> (u128, u32) {
    let mut env = soft::Env::new(mxcsr);
    let r = O::soft(a, b, c, &mut env);
    (r, env.flags)
}
