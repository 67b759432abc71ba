//! Instructions that access memory element by element: masked moves, which do not touch what is masked out, and
//! gathers; and VCVTPS2PH to memory.
use super::super::exec::VecExec;
use super::super::f16c::Vcvtps2ph;
use crate::cpu::Cpu;
use crate::event::Stop;
use crate::model::Vendor;
use crate::op::{Helper, Op};
use crate::state::gpr;
use crate::width::{W32, W64, Width};
use iced_x86::{Instruction, Mnemonic, OpKind};

/// Helpers of this module.
pub(crate) fn lookup(i: &Instruction) -> Option<Helper> {
    use Mnemonic as M;
    let to = i.op_count() > 0 && i.op0_kind() == OpKind::Memory;
    match i.mnemonic() {
        M::Vmaskmovps | M::Vpmaskmovd if to => Helper::straight(masked_store::<W32>),
        M::Vmaskmovpd | M::Vpmaskmovq if to => Helper::straight(masked_store::<W64>),
        M::Vmaskmovps | M::Vpmaskmovd => Helper::straight(masked_load::<W32>),
        M::Vmaskmovpd | M::Vpmaskmovq => Helper::straight(masked_load::<W64>),
        M::Vpgatherdd | M::Vgatherdps => Helper::straight(gather::<W32, W32>),
        M::Vpgatherdq | M::Vgatherdpd => Helper::straight(gather::<W32, W64>),
        M::Vpgatherqd | M::Vgatherqps => Helper::straight(gather::<W64, W32>),
        M::Vpgatherqq | M::Vgatherqpd => Helper::straight(gather::<W64, W64>),
        M::Vcvtps2ph if to => Helper::straight(store_halves),
        _ => None,
    }
}

impl Cpu {
    /// Element `n` of width W of a YMM register.
    #[inline(always)]
    fn element<W: Width>(&self, r: u8, n: usize) -> u64 {
        let bit = n * W::BITS as usize;
        self.state.xmm[usize::from(r & 31)].0[(bit / 64) & 3] >> (bit & 63) & W::MASK
    }
    #[inline(always)]
    fn set_element<W: Width>(&mut self, r: u8, n: usize, v: u64) {
        let bit = n * W::BITS as usize;
        let q = &mut self.state.xmm[usize::from(r & 31)].0[(bit / 64) & 3];
        *q = *q & !(W::MASK << (bit & 63)) | (v & W::MASK) << (bit & 63);
    }
    /// Zeros the bits of a register behind the first `n` elements.
    fn zero_behind<W: Width>(&mut self, r: u8, n: usize) {
        for k in n..256 / W::BITS as usize {
            self.set_element::<W>(r, k, 0);
        }
    }
}

/// Whether element `n` of a mask register is chosen: its top bit.
#[inline(always)]
fn chosen<W: Width>(cpu: &Cpu, mask: u8, n: usize) -> bool {
    cpu.element::<W>(mask, n) >> (W::BITS - 1) != 0
}

/// Elements of width W in the operation.
#[inline(always)]
fn count<W: Width>(op: &Op) -> usize {
    (if op.is_wide() { 256 } else { 128 }) / W::BITS as usize
}

/// The linear address of element `k` of the memory operand. The address size wraps the operand's address, not those of
/// its elements.
fn element_address<W: Width>(cpu: &mut Cpu, op: &Op, k: usize, write: bool) -> Result<u64, Stop> {
    let offset = cpu.ea(op).wrapping_add(k as u64 * W::BYTES);
    cpu.linear(usize::from(op.seg), offset, W::BYTES, write)
}

/// VMASKMOVPS and its kin from memory: elements that are not chosen are zero, and not read.
fn masked_load<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.avx_check()?;
    let n = count::<W>(op);
    let mut r = [0; 8];
    for k in (0..n).filter(|&k| chosen::<W>(cpu, op.src, k)).collect::<Chosen>() {
        let lin = element_address::<W>(cpu, op, k, false)?;
        r[k & 7] = cpu.load::<W>(lin, op.seg)?;
    }
    for (k, v) in r[..n].iter().enumerate() {
        cpu.set_element::<W>(op.dst, k, *v);
    }
    cpu.zero_behind::<W>(op.dst, n);
    Ok(())
}

/// VMASKMOVPS and its kin to memory: nothing is written if a chosen element faults.
fn masked_store<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.avx_check()?;
    let list = (0..count::<W>(op)).filter(|&k| chosen::<W>(cpu, op.src, k)).collect::<Chosen>();
    let mut at = [0; 8];
    for k in list {
        let lin = element_address::<W>(cpu, op, k, true)?;
        cpu.probe_write(lin, W::BYTES, op.seg)?;
        at[k & 7] = lin;
    }
    for k in list {
        let v = cpu.element::<W>(op.src2, k);
        cpu.store::<W>(at[k & 7], v, op.seg)?;
    }
    Ok(())
}

/// Numbers of chosen elements, as bits.
#[derive(Clone, Copy)]
struct Chosen(u8);

impl FromIterator<usize> for Chosen {
    fn from_iter<T: IntoIterator<Item = usize>>(list: T) -> Self {
        Self(list.into_iter().fold(0, |m, k| m | 1 << (k & 7)))
    }
}
impl Iterator for Chosen {
    type Item = usize;
    fn next(&mut self) -> Option<usize> {
        let k = self.0.trailing_zeros();
        self.0 &= self.0.wrapping_sub(1);
        (k < 8).then_some(k as usize)
    }
}

/// Gathers elements of width D at base + index * scale + displacement, with indices of width I: those whose mask
/// element (in the third operand) has its top bit set. Each mask element is cleared when its element is there, so that
/// after a fault the instruction goes on where it was; elements behind the one that faults are as they were.
///
/// With Intel all of the mask becomes ones and zeros by its top bits before the first element is read, and what is
/// behind 128 bits becomes zero with the first one that is there (SDM volume 2, VGATHERDPS, operation). With AMD that
/// comes at the end.
fn gather<I: Width, D: Width>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.avx_check()?;
    let (dst, indices, mask) = (op.dst, op.index, op.src2);
    let width = if op.is_wide() { 256 } else { 128 };
    let n = (width / I::BITS.max(D::BITS)) as usize;
    let at = Op { index: gpr::ZERO as u8, ..*op };
    let intel = cpu.model.vendor == Vendor::Intel;
    if intel {
        for k in 0..(width / D::BITS) as usize {
            let ones = if chosen::<D>(cpu, mask, k) { D::MASK } else { 0 };
            cpu.set_element::<D>(mask, k, ones);
        }
        cpu.zero_behind::<D>(mask, (width / D::BITS) as usize);
    }
    for k in 0..n {
        if chosen::<D>(cpu, mask, k) {
            let index = I::sext(cpu.element::<I>(indices, k)) << (op.scale & 3);
            let offset = (cpu.ea(&at).wrapping_add(index) << (op.ashift & 63)) >> (op.ashift & 63);
            let lin = cpu.linear(usize::from(op.seg), offset, D::BYTES, false)?;
            let v = cpu.load::<D>(lin, op.seg)?;
            cpu.set_element::<D>(dst, k, v);
            if intel {
                cpu.zero_behind::<D>(dst, (width / D::BITS) as usize);
            }
        }
        cpu.set_element::<D>(mask, k, 0);
    }
    cpu.zero_behind::<D>(dst, n);
    cpu.zero_behind::<D>(mask, n);
    Ok(())
}

/// VCVTPS2PH to memory. With AMD MXCSR changes only if the store does not fault; with Intel the conversion comes first,
/// and #XM before the faults of the store (SDM volume 3A, table 7-2, leaves the order open).
fn store_halves(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.avx_check()?;
    let low = cpu.xmm(op.src);
    let imm = op.imm as u8;
    let intel = cpu.model.vendor == Vendor::Intel;
    if !op.is_wide() {
        let first = if intel { Some(cpu.float::<Vcvtps2ph>(low, low, imm)?) } else { None };
        let lin = cpu.operand(op, 8, true)?;
        cpu.probe_write(lin, 8, op.seg)?;
        let r = match first {
            Some(r) => r,
            None => cpu.float::<Vcvtps2ph>(low, low, imm)?,
        };
        return cpu.store::<W64>(lin, r as u64, op.seg);
    }
    let v = [low, cpu.ymm_high(op.src)];
    let first = if intel { Some(cpu.float_pair::<Vcvtps2ph>(v, v, imm)?) } else { None };
    let lin = cpu.operand(op, 16, true)?;
    cpu.probe_write(lin, 16, op.seg)?;
    let r = match first {
        Some(r) => r,
        None => cpu.float_pair::<Vcvtps2ph>(v, v, imm)?,
    };
    cpu.store128(lin, r[0] & u128::from(u64::MAX) | r[1] << 64, op.seg)
}
