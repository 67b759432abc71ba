//! Forms of VEX instructions: a destination, two sources or one, of 128 or 256 bits ([`crate::op::WIDE`]), with bits
//! up to 511 of the destination zeroed.
//!
//! A value is a pair of lanes, `[low, high]`; of 128-bit forms the high lane is a copy that nothing is made of.
//! Memory operands need not be aligned.
use super::super::exec::{FloatOp, FusedOp, PairOp, VecExec, VecFlags, VecId, VecOp, VecOp3, VecToInt};
use super::super::forms::form;
use crate::event::Stop;
use crate::exec::Sem;
use crate::op::Op;
use crate::sse::int_lanes::Psrldq;
use crate::width::{W16, W32, W64, Width};
use std::marker::PhantomData;

/// Both lanes.
pub type Pair<E> = [<E as VecExec>::Vec; 2];

/// Zero.
#[inline(always)]
fn zero<E: VecExec>(e: &mut E) -> E::Vec {
    let z = e.imm::<W64>(0);
    e.vec_of::<W64>(z)
}
/// Reads register `r`.
#[inline(always)]
fn read<E: VecExec>(e: &mut E, op: &Op, r: u8) -> Pair<E> {
    let low = e.xmm(r);
    let high = if op.is_wide() { e.ymm_high(r) } else { low };
    [low, high]
}
/// Writes the destination.
#[inline(always)]
fn write<E: VecExec>(e: &mut E, op: &Op, v: Pair<E>) {
    let high = if op.is_wide() { v[1] } else { zero(e) };
    e.set_xmm(op.dst, v[0]);
    e.set_ymm_high(op.dst, high);
}
/// Writes 128 bits to the destination.
#[inline(always)]
fn write_low<E: VecExec>(e: &mut E, op: &Op, v: E::Vec) {
    let high = zero(e);
    e.set_xmm(op.dst, v);
    e.set_ymm_high(op.dst, high);
}
/// `f` of each lane's number.
#[inline(always)]
fn lanes<E: VecExec>(e: &mut E, op: &Op, mut f: impl FnMut(&mut E, usize) -> E::Vec) -> Pair<E> {
    let low = f(e, 0);
    let high = if op.is_wide() { f(e, 1) } else { low };
    [low, high]
}
/// The immediate of lane `k`: some operations use bits that follow for the upper lane.
#[inline(always)]
fn immediate<O: VecOp>(op: &Op, k: usize) -> u8 {
    let imm = op.imm as u8;
    match O::ID {
        _ if k == 0 => imm,
        VecId::Shufpd | VecId::Blendpd => imm >> 2,
        VecId::Blendps => imm >> 4,
        VecId::Mpsadbw => imm >> 3,
        _ => imm,
    }
}
/// `v` and `v` moved down by `BYTES`: what each lane of a widening operation reads.
#[inline(always)]
fn parts<E: VecExec, const BYTES: u64>(e: &mut E, op: &Op, v: E::Vec) -> Pair<E> {
    if !op.is_wide() {
        return [v, v];
    }
    let n = e.imm::<W64>(BYTES);
    let n = e.vec_of::<W64>(n);
    let high = e.vec::<Psrldq>(v, n, 0);
    [v, high]
}

/// Where the last source comes from.
pub trait Last: 'static {
    /// Reads it; `r` is its register if it is not in memory.
    fn get<E: VecExec>(e: &mut E, op: &Op, r: u8) -> Result<Pair<E>, Stop>;
}
/// A register, or memory of the operation's width.
pub struct Full;
/// The same; memory must be aligned.
pub struct Aligned;
/// An XMM register or 128 bits of memory, whatever the width, for both lanes.
pub struct Xmm128;
/// An XMM register, or memory of width W, for both lanes.
pub struct Low<W>(PhantomData<W>);
/// The low half of an operand of the operation's width, lane by lane.
pub struct Half;
/// The low quarter.
pub struct Quarter;
/// The low eighth.
pub struct Eighth;
/// VMOVDDUP: 64 bits, or 256.
pub struct Duplicated;

impl Last for Full {
    #[inline(always)]
    fn get<E: VecExec>(e: &mut E, op: &Op, r: u8) -> Result<Pair<E>, Stop> {
        if !op.is_mem() {
            return Ok(read(e, op, r));
        }
        if op.is_wide() {
            return e.load_pair(op, false);
        }
        let v = e.load_vec(op, false)?;
        Ok([v, v])
    }
}
impl Last for Aligned {
    #[inline(always)]
    fn get<E: VecExec>(e: &mut E, op: &Op, r: u8) -> Result<Pair<E>, Stop> {
        if !op.is_mem() {
            return Ok(read(e, op, r));
        }
        if op.is_wide() {
            return e.load_pair(op, true);
        }
        let v = e.load_vec(op, true)?;
        Ok([v, v])
    }
}
impl Last for Xmm128 {
    #[inline(always)]
    fn get<E: VecExec>(e: &mut E, op: &Op, r: u8) -> Result<Pair<E>, Stop> {
        let v = if op.is_mem() { e.load_vec(op, false)? } else { e.xmm(r) };
        Ok([v, v])
    }
}
impl<W: Width> Last for Low<W> {
    #[inline(always)]
    fn get<E: VecExec>(e: &mut E, op: &Op, r: u8) -> Result<Pair<E>, Stop> {
        let v = if op.is_mem() { e.load_low::<W>(op)? } else { e.xmm(r) };
        Ok([v, v])
    }
}
/// How memory of the operation's width is stored to.
pub trait Target: 'static {
    /// Whether it must be aligned.
    const ALIGNED: bool;
}
impl Target for Full {
    const ALIGNED: bool = false;
}
impl Target for Aligned {
    const ALIGNED: bool = true;
}
/// Widening operations: their lanes read parts of one register or of memory.
macro_rules! part {
    ($name:ident, $bytes:literal, $narrow:ident, $wide:ty) => {
        impl Last for $name {
            #[inline(always)]
            fn get<E: VecExec>(e: &mut E, op: &Op, r: u8) -> Result<Pair<E>, Stop> {
                let [v, _] =
                    if op.is_wide() { <$wide>::get(e, op, r)? } else { Low::<$narrow>::get(e, op, r)? };
                Ok(parts::<E, $bytes>(e, op, v))
            }
        }
    };
}
part!(Half, 8, W64, Xmm128);
part!(Quarter, 4, W32, Low<W64>);
part!(Eighth, 2, W16, Low<W32>);

impl Last for Duplicated {
    #[inline(always)]
    fn get<E: VecExec>(e: &mut E, op: &Op, r: u8) -> Result<Pair<E>, Stop> {
        if op.is_wide() { Full::get(e, op, r) } else { Low::<W64>::get(e, op, r) }
    }
}

/// An integer of width W: register `r`, or memory.
#[inline(always)]
fn integer<E: VecExec, W: Width>(e: &mut E, op: &Op, r: u8) -> Result<E::Int, Stop> {
    if op.is_mem() { e.load::<W>(op) } else { Ok(e.reg::<W>(r)) }
}

form! {
    /// dst = O(src, last, imm8).
    Bin<O: VecOp, S: Last> |e, op| {
        e.avx_check()?;
        let b = S::get(e, op, op.src2)?;
        let a = read(e, op, op.src);
        let r = lanes(e, op, |e, k| e.vec::<O>(a[k], b[k], immediate::<O>(op, k)));
        write(e, op, r);
    }
}
form! {
    /// dst = O(src, imm8 as the second vector).
    BinImm<O: VecOp> |e, op| {
        e.avx_check()?;
        let n = e.imm::<W64>(op.imm & 0xff);
        let b = e.vec_of::<W64>(n);
        let a = read(e, op, op.src);
        let r = lanes(e, op, |e, k| e.vec::<O>(a[k], b, 0));
        write(e, op, r);
    }
}
form! {
    /// dst = O(last, last, imm8): operations of one source.
    Un<O: VecOp, S: Last> |e, op| {
        e.avx_check()?;
        let b = S::get(e, op, op.src)?;
        let r = lanes(e, op, |e, k| e.vec::<O>(b[k], b[k], immediate::<O>(op, k)));
        write(e, op, r);
    }
}
form! {
    /// dst = O(src, last, register imm8).
    Bin3<O: VecOp3> |e, op| {
        e.avx_check()?;
        let b = Full::get(e, op, op.src2)?;
        let a = read(e, op, op.src);
        let c = read(e, op, op.imm as u8 & 15);
        let r = lanes(e, op, |e, k| e.vec3::<O>(a[k], b[k], c[k]));
        write(e, op, r);
    }
}
form! {
    /// dst = O(src, last) across lanes.
    Across<O: PairOp> |e, op| {
        e.avx_check()?;
        let b = Full::get(e, op, op.src2)?;
        let a = read(e, op, op.src);
        let r = e.pair::<O>(a, b);
        write(e, op, r);
    }
}
form! {
    /// dst = last.
    Load<S: Last> |e, op| {
        e.avx_check()?;
        let v = S::get(e, op, op.src)?;
        write(e, op, v);
    }
}
form! {
    /// Memory = src.
    Store<S: Target> |e, op| {
        e.avx_check()?;
        let v = read(e, op, op.src);
        if op.is_wide() { e.store_pair(op, v, S::ALIGNED)? } else { e.store_vec(op, v[0], S::ALIGNED)? }
    }
}
form! {
    /// Memory of width W = the low element of src.
    StoreLow<W: Width> |e, op| {
        e.avx_check()?;
        let v = e.xmm(op.src);
        let x = e.lane::<W>(v, 0);
        e.store::<W>(op, x)?;
    }
}
form! {
    /// Memory of width W = element 1 of src.
    StoreSecond<W: Width> |e, op| {
        e.avx_check()?;
        let v = e.xmm(op.src);
        let x = e.lane::<W>(v, 1);
        e.store::<W>(op, x)?;
    }
}
form! {
    /// dst = an integer of width W, zero-extended.
    FromInt<W: Width> |e, op| {
        e.avx_check()?;
        let x = integer::<_, W>(e, op, op.src)?;
        let v = e.vec_of::<W>(x);
        write_low(e, op, v);
    }
}
form! {
    /// Memory, or register of width R, = element imm8 of width W of src, zero-extended.
    Extract<W: Width, R: Width> |e, op| {
        e.avx_check()?;
        let v = e.xmm(op.src);
        let x = e.lane::<W>(v, op.imm as u8);
        if op.is_mem() { e.store::<W>(op, x)? } else { e.set_reg::<R>(op.dst, x) }
    }
}
form! {
    /// dst = src with element imm8 of width W replaced by an integer (a register of width R, of which the low part
    /// counts).
    Insert<W: Width, R: Width> |e, op| {
        e.avx_check()?;
        let x = if op.is_mem() { e.load::<W>(op)? } else { e.reg::<R>(op.src2) };
        let v = e.xmm(op.src);
        let r = e.with_lane::<W>(v, op.imm as u8, x);
        write_low(e, op, r);
    }
}
form! {
    /// Register = O of each lane, the upper lane's bits behind those of the lower one.
    ToInt<O: VecToInt> |e, op| {
        e.avx_check()?;
        let v = read(e, op, op.src);
        let mut r = e.vec_int::<O>(v[0]);
        if op.is_wide() {
            let bits = match O::ID {
                VecId::Pmovmskb => 16,
                VecId::Movmskps => 4,
                _ => 2,
            };
            let n = e.imm::<W32>(bits);
            let high = e.vec_int::<O>(v[1]);
            let high = e.shl::<W32>(high, n);
            r = e.or::<W32>(r, high);
        }
        e.set_reg::<W32>(op.dst, r);
    }
}
form! {
    /// Flags of O(dst, last).
    Flags<O: VecFlags> |e, op| {
        e.avx_check()?;
        let b = Full::get(e, op, op.src)?;
        let a = read(e, op, op.dst);
        if op.is_wide() { e.vec_flags_pair::<O>(a, b) } else { e.vec_flags::<O>(a[0], b[0]) }
    }
}

form! {
    /// VINSERTF128: dst = src with lane imm8 replaced.
    InsertLane<> |e, op| {
        e.avx_check()?;
        let [b, _] = Xmm128::get(e, op, op.src2)?;
        let a = read(e, op, op.src);
        let r = if op.imm & 1 != 0 { [a[0], b] } else { [b, a[1]] };
        write(e, op, r);
    }
}
form! {
    /// VEXTRACTF128: a register or memory = lane imm8 of src.
    ExtractLane<> |e, op| {
        e.avx_check()?;
        let v = if op.imm & 1 != 0 { e.ymm_high(op.src) } else { e.xmm(op.src) };
        if op.is_mem() { e.store_vec(op, v, false)? } else { write_low(e, op, v) }
    }
}
form! {
    /// VPERM2F128: each lane is one of the sources' four, or zero, as four bits of imm8 say.
    ChooseLanes<> |e, op| {
        e.avx_check()?;
        let b = Full::get(e, op, op.src2)?;
        let a = read(e, op, op.src);
        let z = zero(e);
        let pick = |n: u64| match n & 15 {
            8.. => z,
            n => [a[0], a[1], b[0], b[1]][n as usize & 3],
        };
        let r = [pick(op.imm), pick(op.imm >> 4)];
        write(e, op, r);
    }
}
form! {
    /// VPERMQ: each 64-bit element is the one that two bits of imm8 name.
    Permute<> |e, op| {
        e.avx_check()?;
        let b = Full::get(e, op, op.src)?;
        let mut r = b;
        for (k, lane) in r.iter_mut().enumerate() {
            for n in 0..2 {
                let from = (op.imm >> (4 * k + 2 * n)) as u8 & 3;
                let x = e.lane::<W64>(b[usize::from(from >> 1)], from & 1);
                *lane = e.with_lane::<W64>(*lane, n as u8, x);
            }
        }
        write(e, op, r);
    }
}
form! {
    /// VZEROUPPER (ALL false) and VZEROALL: registers 8-15 in 64-bit mode only.
    ZeroRegisters<A: Flag> |e, op| {
        e.avx_check()?;
        let z = zero(e);
        for r in 0..if op.is_long() { 16 } else { 8 } {
            if A::ON {
                e.set_xmm(r, z);
            }
            e.set_ymm_high(r, z);
        }
    }
}
/// A choice in a type.
pub trait Flag {
    /// Which.
    const ON: bool;
}
/// Yes.
pub struct Yes;
/// No.
pub struct No;
impl Flag for Yes {
    const ON: bool = true;
}
impl Flag for No {
    const ON: bool = false;
}

form! {
    /// dst = O(src, last, imm8), floating point.
    Float<O: FloatOp, S: Last> |e, op| {
        e.avx_check()?;
        let b = S::get(e, op, op.src2)?;
        let a = read(e, op, op.src);
        let r = float::<_, O>(e, op, a, b)?;
        write(e, op, r);
    }
}
form! {
    /// dst = O(last, imm8), floating point.
    FloatUn<O: FloatOp, S: Last> |e, op| {
        e.avx_check()?;
        let b = S::get(e, op, op.src)?;
        let r = float::<_, O>(e, op, b, b)?;
        write(e, op, r);
    }
}
form! {
    /// dst = O(last, imm8), floating point, whose results are half as wide as the source.
    FloatNarrow<O: FloatOp> |e, op| {
        e.avx_check()?;
        let b = Full::get(e, op, op.src)?;
        let r = float::<_, O>(e, op, b, b)?;
        let r = joined(e, op, r);
        write_low(e, op, r);
    }
}
form! {
    /// dst = O(dst, src, last), fused.
    Fused<O: FusedOp, S: Last> |e, op| {
        e.avx_check()?;
        let c = S::get(e, op, op.src2)?;
        let a = read(e, op, op.dst);
        let b = read(e, op, op.src);
        let r = if op.is_wide() {
            e.fused_pair::<O>(a, b, c)?
        } else {
            let r = e.fused::<O>(a[0], b[0], c[0])?;
            [r, r]
        };
        write(e, op, r);
    }
}
form! {
    /// Flags of O(dst, last), floating point.
    FloatFlags<O: FloatOp, S: Last> |e, op| {
        e.avx_check()?;
        let [b, _] = S::get(e, op, op.src)?;
        let a = e.xmm(op.dst);
        e.float_flags::<O>(a, b)?;
    }
}
form! {
    /// Register of width W = O(last), floating point.
    FloatInt<O: FloatOp, S: Last, W: Width> |e, op| {
        e.avx_check()?;
        let [b, _] = S::get(e, op, op.src)?;
        let r = e.float_int::<O>(b)?;
        e.set_reg::<W>(op.dst, r);
    }
}
form! {
    /// dst = O(src, integer), floating point.
    IntFloat<O: FloatOp, W: Width> |e, op| {
        e.avx_check()?;
        let b = integer::<_, W>(e, op, op.src2)?;
        let a = e.xmm(op.src);
        let r = e.int_float::<O>(a, b)?;
        write_low(e, op, r);
    }
}

#[inline(always)]
fn float<E: VecExec, O: FloatOp>(e: &mut E, op: &Op, a: Pair<E>, b: Pair<E>) -> Result<Pair<E>, Stop> {
    if op.is_wide() {
        return e.float_pair::<O>(a, b, op.imm as u8);
    }
    let r = e.float::<O>(a[0], b[0], op.imm as u8)?;
    Ok([r, r])
}
/// The low halves of both lanes as one; of 128-bit forms the lane itself.
#[inline(always)]
fn joined<E: VecExec>(e: &mut E, op: &Op, v: Pair<E>) -> E::Vec {
    if !op.is_wide() {
        return v[0];
    }
    let x = e.lane::<W64>(v[1], 0);
    e.with_lane::<W64>(v[0], 1, x)
}
