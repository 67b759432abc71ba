//! BMI1, BMI2 (VEX-coded general-register instructions) and ADX.
use super::operand::{Kind, Mem, Source, Src, kind, sem};
use crate::event::Stop;
use crate::exec::{Exec, cc};
use crate::op::Op;
use crate::width::{W32, W64, Width};
use iced_x86::{Instruction, Mnemonic};

/// Register `op.src2`.
pub struct Src2;
impl Source for Src2 {
    #[inline(always)]
    fn get<E: Exec, W: Width>(e: &mut E, op: &Op) -> Result<E::Int, Stop> {
        Ok(e.reg::<W>(op.src2))
    }
}

/// Ones from bit `n` up; none if `n` is the width or more.
#[inline(always)]
fn ones_from<E: Exec, W: Width>(e: &mut E, n: E::Int) -> E::Int {
    let ones = e.imm::<W>(W::MASK);
    e.shl::<W>(ones, n)
}

sem!(
    /// ANDN.
    Andn[W: Width, S: Source][] |e, op| {
        let b = S::get::<E, W>(e, op)?;
        let a = e.reg::<W>(op.src);
        let a = e.not::<W>(a);
        let r = e.and::<W>(a, b);
        e.set_reg::<W>(op.dst, r);
        e.flags_logic::<W>(r);
        Ok(e.next(op))
    }
);
sem!(
    /// BEXTR.
    Bextr[W: Width, S: Source][] |e, op| {
        let a = S::get::<E, W>(e, op)?;
        let c = e.reg::<W>(op.src2);
        let (low, eight) = (e.imm::<W>(0xff), e.imm::<W>(8));
        let start = e.and::<W>(c, low);
        let len = e.shr::<W>(c, eight);
        let len = e.and::<W>(len, low);
        let v = e.shr::<W>(a, start);
        let above = ones_from::<E, W>(e, len);
        let below = e.not::<W>(above);
        let r = e.and::<W>(v, below);
        e.set_reg::<W>(op.dst, r);
        e.flags_logic::<W>(r);
        Ok(e.next(op))
    }
);

/// What BLSI and its kin make of a number; CF is set if the source is not zero (`CF_NONZERO`), or if it is.
pub trait Lowest: 'static {
    /// See the trait.
    const CF_NONZERO: bool;
    /// The result.
    fn of<E: Exec, W: Width>(e: &mut E, a: E::Int, less: E::Int) -> E::Int;
}
/// BLSI: the lowest bit that is set.
pub struct Isolate;
/// BLSMSK: ones up to it.
pub struct MaskTo;
/// BLSR: without it.
pub struct Without;
impl Lowest for Isolate {
    const CF_NONZERO: bool = true;
    #[inline(always)]
    fn of<E: Exec, W: Width>(e: &mut E, a: E::Int, less: E::Int) -> E::Int {
        let n = e.not::<W>(less);
        e.and::<W>(a, n)
    }
}
impl Lowest for MaskTo {
    const CF_NONZERO: bool = false;
    #[inline(always)]
    fn of<E: Exec, W: Width>(e: &mut E, a: E::Int, less: E::Int) -> E::Int {
        e.xor::<W>(a, less)
    }
}
impl Lowest for Without {
    const CF_NONZERO: bool = false;
    #[inline(always)]
    fn of<E: Exec, W: Width>(e: &mut E, a: E::Int, less: E::Int) -> E::Int {
        e.and::<W>(a, less)
    }
}
sem!(
    /// BLSI, BLSMSK, BLSR: destination is operand 0 (VEX.vvvv), source operand 1.
    Low[W: Width, L: Lowest, S: Source][] |e, op| {
        let a = S::get::<E, W>(e, op)?;
        let (zero, one) = (e.imm::<W>(0), e.imm::<W>(1));
        let less = e.sub::<W>(a, one);
        let r = L::of::<E, W>(e, a, less);
        e.set_reg::<W>(op.dst, r);
        let cf = if L::CF_NONZERO { e.ult::<W>(zero, a) } else { e.eq::<W>(a, zero) };
        let of = e.differ(cf, cf);
        e.flags_result::<W>(r, cf, of);
        Ok(e.next(op))
    }
);
sem!(
    /// BZHI.
    Bzhi[W: Width, S: Source][] |e, op| {
        let a = S::get::<E, W>(e, op)?;
        let n = e.reg::<W>(op.src2);
        let (low, last) = (e.imm::<W>(0xff), e.imm::<W>(u64::from(W::BITS) - 1));
        let n = e.and::<W>(n, low);
        let above = ones_from::<E, W>(e, n);
        let below = e.not::<W>(above);
        let r = e.and::<W>(a, below);
        e.set_reg::<W>(op.dst, r);
        let cf = e.ult::<W>(last, n);
        let of = e.differ(cf, cf);
        e.flags_result::<W>(r, cf, of);
        Ok(e.next(op))
    }
);
sem!(
    /// MULX.
    Mulx[W: Width, S: Source][] |e, op| {
        let b = S::get::<E, W>(e, op)?;
        let a = e.reg::<W>(2);
        let (lo, hi) = (e.mul::<W>(a, b), e.umulh::<W>(a, b));
        // The low half first: with equal destinations the high half remains.
        e.set_reg::<W>(op.src, lo);
        e.set_reg::<W>(op.dst, hi);
        Ok(e.next(op))
    }
);
sem!(
    /// PDEP.
    Pdep[W: Width, S: Source][] |e, op| {
        let mask = S::get::<E, W>(e, op)?;
        let a = e.reg::<W>(op.src);
        let r = e.deposit::<W>(a, mask);
        e.set_reg::<W>(op.dst, r);
        Ok(e.next(op))
    }
);
sem!(
    /// PEXT.
    Pext[W: Width, S: Source][] |e, op| {
        let mask = S::get::<E, W>(e, op)?;
        let a = e.reg::<W>(op.src);
        let r = e.gather::<W>(a, mask);
        e.set_reg::<W>(op.dst, r);
        Ok(e.next(op))
    }
);
sem!(
    /// RORX.
    Rorx[W: Width, S: Source][] |e, op| {
        let a = S::get::<E, W>(e, op)?;
        let n = e.imm::<W>(0u64.wrapping_sub(op.imm & W::COUNT_MASK) & W::COUNT_MASK);
        let r = e.rotl::<W>(a, n);
        e.set_reg::<W>(op.dst, r);
        Ok(e.next(op))
    }
);
sem!(
    /// SHLX (KIND 0), SHRX (1), SARX (2).
    ShiftX[W: Width, S: Source][const KIND: u8] |e, op| {
        let a = S::get::<E, W>(e, op)?;
        let (n, m) = (e.reg::<W>(op.src2), e.imm::<W>(W::COUNT_MASK));
        let n = e.and::<W>(n, m);
        let r = match KIND {
            0 => e.shl::<W>(a, n),
            1 => e.shr::<W>(a, n),
            _ => e.sar::<W>(a, n),
        };
        e.set_reg::<W>(op.dst, r);
        Ok(e.next(op))
    }
);
sem!(
    /// ADCX (carry in CF) and ADOX (carry in OF).
    Adx[W: Width, S: Source][const OF: bool] |e, op| {
        let b = S::get::<E, W>(e, op)?;
        let a = e.reg::<W>(op.dst);
        let carry = if OF { e.cond(cc::O) } else { e.cf() };
        let carry = e.int_of::<W>(carry);
        let sum = e.add::<W>(a, b);
        let r = e.add::<W>(sum, carry);
        e.set_reg::<W>(op.dst, r);
        // At most one of the additions carries.
        let (first, second) = (e.ult::<W>(sum, a), e.ult::<W>(r, sum));
        let out = e.differ(first, second);
        if OF {
            e.set_of(out);
        } else {
            e.set_cf(out);
        }
        Ok(e.next(op))
    }
);

fn pick<E: Exec, W: Width>(i: &Instruction) -> Option<E::Handler> {
    // The r/m operand is the second or the third.
    macro_rules! second {
        ($name:ident $(, $p:tt)*) => {
            if kind(i, 1) == Kind::Mem { E::handler::<$name<W, $($p,)* Mem>>() } else { E::handler::<$name<W, $($p,)* Src>>() }
        };
    }
    macro_rules! third {
        ($name:ident) => {
            if kind(i, 2) == Kind::Mem {
                E::handler::<$name<W, Mem>>()
            } else {
                E::handler::<$name<W, Src2>>()
            }
        };
    }
    macro_rules! valued {
        ($name:ident, $c:literal) => {
            if kind(i, 1) == Kind::Mem {
                E::handler::<$name<W, Mem, $c>>()
            } else {
                E::handler::<$name<W, Src, $c>>()
            }
        };
    }
    Some(match i.mnemonic() {
        Mnemonic::Andn => third!(Andn),
        Mnemonic::Bextr => second!(Bextr),
        Mnemonic::Blsi => second!(Low, Isolate),
        Mnemonic::Blsmsk => second!(Low, MaskTo),
        Mnemonic::Blsr => second!(Low, Without),
        Mnemonic::Bzhi => second!(Bzhi),
        Mnemonic::Mulx => third!(Mulx),
        Mnemonic::Pdep => third!(Pdep),
        Mnemonic::Pext => third!(Pext),
        Mnemonic::Rorx => second!(Rorx),
        Mnemonic::Shlx => valued!(ShiftX, 0),
        Mnemonic::Shrx => valued!(ShiftX, 1),
        Mnemonic::Sarx => valued!(ShiftX, 2),
        Mnemonic::Adcx => valued!(Adx, false),
        Mnemonic::Adox => valued!(Adx, true),
        _ => return None,
    })
}

pub(crate) fn select<E: Exec>(i: &Instruction, _: &Op) -> Option<E::Handler> {
    if i.op0_register().size() == 8 { pick::<E, W64>(i) } else { pick::<E, W32>(i) }
}
