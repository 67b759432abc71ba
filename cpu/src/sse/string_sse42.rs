//! PCMPESTRI, PCMPESTRM, PCMPISTRI, PCMPISTRM and their VEX forms (SDM volume 1, 12.11; volume 2, 4.1).
//!
//! Immediate: bit 0 words (else bytes), bit 1 signed, bits 2-3 aggregation (equal any, ranges, equal each,
//! equal ordered), bits 4-5 polarity (bit 4 negates, with bit 5 only the valid elements), bit 6 the last
//! (else first) index, or a mask expanded to elements.
use super::exec::VecExec;
use super::lanes::{i8s, i16s, u8s, u16s};
use crate::cpu::Cpu;
use crate::event::Stop;
use crate::op::{Helper, Op};
use crate::state::{fl, gpr};
use crate::width::{W32, Width};
use iced_x86::{Code, Instruction};

/// What a comparison yields.
pub(super) struct Outcome {
    /// IntRes2: one bit per element.
    pub bits: u32,
    /// Number of elements, 16 or 8.
    pub count: u32,
    /// The arithmetic flags, at their places in RFLAGS.
    pub flags: u64,
}

impl Outcome {
    /// The index form's result.
    pub fn index(&self, imm: u8) -> u32 {
        match (self.bits, imm & 0x40 != 0) {
            (0, _) => self.count,
            (b, false) => b.trailing_zeros(),
            (b, true) => 31 - b.leading_zeros(),
        }
    }
    /// The mask form's result.
    pub fn mask(&self, imm: u8) -> u128 {
        if imm & 0x40 == 0 {
            return self.bits.into();
        }
        let width = 128 / self.count;
        let one = u128::MAX >> (128 - width);
        (0..self.count).filter(|k| self.bits >> k & 1 != 0).fold(0, |m, k| m | one << (k * width))
    }
}

fn elements(v: u128, imm: u8) -> [i32; 16] {
    match imm & 3 {
        0 => u8s(v).map(i32::from),
        2 => i8s(v).map(i32::from),
        1 => {
            let w = u16s(v);
            std::array::from_fn(|k| if k < 8 { w[k].into() } else { 0 })
        }
        _ => {
            let w = i16s(v);
            std::array::from_fn(|k| if k < 8 { w[k].into() } else { 0 })
        }
    }
}

/// Number of elements before the first zero.
fn implicit_length(v: u128, imm: u8) -> usize {
    let count = if imm & 1 != 0 { 8 } else { 16 };
    elements(v, imm)[..count].iter().position(|&x| x == 0).unwrap_or(count)
}

/// Compares the first `la` elements of `a` with the first `lb` of `b`.
fn compare(a: u128, la: usize, b: u128, lb: usize, imm: u8) -> Outcome {
    let count = if imm & 1 != 0 { 8 } else { 16 };
    let (x, y) = (elements(a, imm), elements(b, imm));
    let (la, lb) = (la.min(count), lb.min(count));
    let holds = |j: usize| match imm >> 2 & 3 {
        0 => j < lb && x[..la].contains(&y[j]),
        1 => j < lb && (0..la / 2).any(|k| x[2 * k] <= y[j] && y[j] <= x[2 * k + 1]),
        // Two elements beyond the ends are equal.
        2 => (j < la) == (j < lb) && (j >= la || x[j] == y[j]),
        // An element beyond the end of the first matches anything; beyond the end of the vector there is
        // nothing to compare with.
        _ => (0..la.min(count - j)).all(|k| j + k < lb && x[k] == y[j + k]),
    };
    let res1 = (0..count).filter(|&j| holds(j)).fold(0u32, |r, j| r | 1 << j);
    let negated = match imm >> 4 & 3 {
        1 => (1 << count) - 1,
        3 => (1 << lb) - 1,
        _ => 0,
    };
    let bits = res1 ^ negated;
    let flag = |on: bool, f: u64| if on { f } else { 0 };
    let flags = flag(bits != 0, fl::CF)
        | flag(lb < count, fl::ZF)
        | flag(la < count, fl::SF)
        | flag(bits & 1 != 0, fl::OF);
    Outcome { bits, count: count as u32, flags }
}

/// With implicit lengths.
pub(super) fn implicit(a: u128, b: u128, imm: u8) -> Outcome {
    compare(a, implicit_length(a, imm), b, implicit_length(b, imm), imm)
}
/// With explicit lengths, whose magnitudes count.
pub(super) fn explicit(a: u128, la: i64, b: u128, lb: i64, imm: u8) -> Outcome {
    compare(a, la.unsigned_abs().min(16) as usize, b, lb.unsigned_abs().min(16) as usize, imm)
}

/// Helpers of this module.
pub(super) fn lookup(i: &Instruction) -> Option<Helper> {
    match i.code() {
        Code::Pcmpestrm_xmm_xmmm128_imm8 => Helper::straight(pcmpestrm::<false, false>),
        Code::Pcmpestrm64_xmm_xmmm128_imm8 => Helper::straight(pcmpestrm::<true, false>),
        Code::Pcmpestri_xmm_xmmm128_imm8 => Helper::straight(pcmpestri::<false, false>),
        Code::Pcmpestri64_xmm_xmmm128_imm8 => Helper::straight(pcmpestri::<true, false>),
        Code::Pcmpistrm_xmm_xmmm128_imm8 => Helper::straight(pcmpistrm::<false>),
        Code::Pcmpistri_xmm_xmmm128_imm8 => Helper::straight(pcmpistri::<false>),
        Code::VEX_Vpcmpestrm_xmm_xmmm128_imm8 => Helper::straight(pcmpestrm::<false, true>),
        Code::VEX_Vpcmpestrm64_xmm_xmmm128_imm8 => Helper::straight(pcmpestrm::<true, true>),
        Code::VEX_Vpcmpestri_xmm_xmmm128_imm8 => Helper::straight(pcmpestri::<false, true>),
        Code::VEX_Vpcmpestri64_xmm_xmmm128_imm8 => Helper::straight(pcmpestri::<true, true>),
        Code::VEX_Vpcmpistrm_xmm_xmmm128_imm8 => Helper::straight(pcmpistrm::<true>),
        Code::VEX_Vpcmpistri_xmm_xmmm128_imm8 => Helper::straight(pcmpistri::<true>),
        _ => None,
    }
}

/// Both vectors; memory may be unaligned.
fn operands<const VEX: bool>(cpu: &mut Cpu, op: &Op) -> Result<(u128, u128), Stop> {
    if VEX {
        cpu.avx_check()?
    } else {
        cpu.sse_check()?
    }
    let b = if op.is_mem() { cpu.load_op128(op, false)? } else { cpu.xmm(op.src) };
    Ok((cpu.xmm(op.dst), b))
}

fn run_explicit<const LONG: bool, const VEX: bool>(cpu: &mut Cpu, op: &Op) -> Result<Outcome, Stop> {
    let (a, b) = operands::<VEX>(cpu, op)?;
    let length = |r: usize| {
        let n = cpu.state.gpr[r];
        if LONG { n as i64 } else { W32::sext(n) as i64 }
    };
    Ok(explicit(a, length(gpr::RAX), b, length(gpr::RDX), op.imm as u8))
}

fn put_index(cpu: &mut Cpu, op: &Op, r: &Outcome) {
    cpu.state.gpr[gpr::RCX] = r.index(op.imm as u8).into();
    cpu.state.set_arith_flags(r.flags);
}
fn put_mask<const VEX: bool>(cpu: &mut Cpu, op: &Op, r: &Outcome) {
    cpu.set_xmm(0, r.mask(op.imm as u8));
    if VEX {
        cpu.set_ymm_high(0, 0);
    }
    cpu.state.set_arith_flags(r.flags);
}

fn pcmpestrm<const LONG: bool, const VEX: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let r = run_explicit::<LONG, VEX>(cpu, op)?;
    put_mask::<VEX>(cpu, op, &r);
    Ok(())
}
fn pcmpestri<const LONG: bool, const VEX: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let r = run_explicit::<LONG, VEX>(cpu, op)?;
    put_index(cpu, op, &r);
    Ok(())
}
fn pcmpistrm<const VEX: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let (a, b) = operands::<VEX>(cpu, op)?;
    put_mask::<VEX>(cpu, op, &implicit(a, b, op.imm as u8));
    Ok(())
}
fn pcmpistri<const VEX: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let (a, b) = operands::<VEX>(cpu, op)?;
    put_index(cpu, op, &implicit(a, b, op.imm as u8));
    Ok(())
}
