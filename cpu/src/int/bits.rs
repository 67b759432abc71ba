//! BT, BTS, BTR, BTC, BSF, BSR, POPCNT, TZCNT, LZCNT, CLC, STC, CMC, CLD, STD.
use super::operand::{Dst, Imm, Kind, Mem, Place, Source, Src, by_width, kind, sem};
use crate::exec::Exec;
use crate::op::Op;
use crate::width::{W64, Width};
use iced_x86::{Instruction, Mnemonic};

/// What a bit test does to the bit.
pub trait BitChange: 'static {
    /// Whether the operand is written.
    const WRITES: bool;
    /// The changed operand; `mask` has the bit set.
    fn apply<E: Exec, W: Width>(e: &mut E, a: E::Int, mask: E::Int) -> E::Int;
}
/// BT.
pub struct Keep;
/// BTS.
pub struct Set;
/// BTR.
pub struct Reset;
/// BTC.
pub struct Complement;
impl BitChange for Keep {
    const WRITES: bool = false;
    #[inline(always)]
    fn apply<E: Exec, W: Width>(_: &mut E, a: E::Int, _: E::Int) -> E::Int {
        a
    }
}
impl BitChange for Set {
    const WRITES: bool = true;
    #[inline(always)]
    fn apply<E: Exec, W: Width>(e: &mut E, a: E::Int, m: E::Int) -> E::Int {
        e.or::<W>(a, m)
    }
}
impl BitChange for Reset {
    const WRITES: bool = true;
    #[inline(always)]
    fn apply<E: Exec, W: Width>(e: &mut E, a: E::Int, m: E::Int) -> E::Int {
        let m = e.not::<W>(m);
        e.and::<W>(a, m)
    }
}
impl BitChange for Complement {
    const WRITES: bool = true;
    #[inline(always)]
    fn apply<E: Exec, W: Width>(e: &mut E, a: E::Int, m: E::Int) -> E::Int {
        e.xor::<W>(a, m)
    }
}

sem!(
    /// A bit test whose bit is in the operand itself (register, or memory with an immediate bit number).
    BitTest[W: Width, B: BitChange, D: Place, S: Source][] |e, op| {
        let n = S::get::<E, W>(e, op)?;
        let low = e.imm::<W>(u64::from(W::BITS) - 1);
        let n = e.and::<W>(n, low);
        let one = e.imm::<W>(1);
        let mask = e.shl::<W>(one, n);
        let a = if B::WRITES {
            D::modify::<E, W>(e, op, |e, a| B::apply::<E, W>(e, a, mask))?.0
        } else {
            D::get::<E, W>(e, op)?
        };
        let v = e.shr::<W>(a, n);
        let c = e.bit::<W>(v, 0);
        e.set_cf(c);
        Ok(e.next(op))
    }
);
sem!(
    /// A bit test of memory by a register: the bit number is a signed offset from the operand.
    BitString[W: Width, B: BitChange][] |e, op| {
        let n = e.reg::<W>(op.src);
        let low = e.imm::<W>(u64::from(W::BITS) - 1);
        let bit = e.and::<W>(n, low);
        let one = e.imm::<W>(1);
        let mask = e.shl::<W>(one, bit);
        let shift = e.imm::<W>(u64::from(W::BITS.trailing_zeros()));
        let words = e.sar::<W>(n, shift);
        let words = e.sext::<W, W64>(words);
        let size = e.imm::<W64>(W::BYTES);
        let offset = e.mul::<W64>(words, size);
        let a = if B::WRITES {
            e.modify_at::<W>(op, offset, |e, a| B::apply::<E, W>(e, a, mask))?.0
        } else {
            e.load_at::<W>(op, offset)?
        };
        let v = e.shr::<W>(a, bit);
        let c = e.bit::<W>(v, 0);
        e.set_cf(c);
        Ok(e.next(op))
    }
);
sem!(
    /// BSF: a zero source leaves the destination (for 32-bit operands its upper half too, as processors do) and sets
    /// ZF.
    Bsf[W: Width, S: Source][] |e, op| {
        let a = S::get::<E, W>(e, op)?;
        let r = e.ctz::<W>(a);
        let zero = e.imm::<W>(0);
        let none = e.eq::<W>(a, zero);
        let old = e.reg::<W64>(op.dst);
        e.set_reg::<W>(op.dst, r);
        let new = e.reg::<W64>(op.dst);
        let v = e.select::<W64>(none, old, new);
        e.set_reg::<W64>(op.dst, v);
        e.flags_logic::<W>(a);
        Ok(e.next(op))
    }
);
sem!(
    /// BSR.
    Bsr[W: Width, S: Source][] |e, op| {
        let a = S::get::<E, W>(e, op)?;
        let r = e.clz::<W>(a);
        let top = e.imm::<W>(u64::from(W::BITS) - 1);
        let r = e.sub::<W>(top, r);
        let zero = e.imm::<W>(0);
        let none = e.eq::<W>(a, zero);
        let old = e.reg::<W64>(op.dst);
        e.set_reg::<W>(op.dst, r);
        let new = e.reg::<W64>(op.dst);
        let v = e.select::<W64>(none, old, new);
        e.set_reg::<W64>(op.dst, v);
        e.flags_logic::<W>(a);
        Ok(e.next(op))
    }
);
sem!(
    /// POPCNT: ZF of the source, the other flags are cleared.
    Popcnt[W: Width, S: Source][] |e, op| {
        let a = S::get::<E, W>(e, op)?;
        let r = e.popcnt::<W>(a);
        e.set_reg::<W>(op.dst, r);
        e.flags_zero_only::<W>(a);
        Ok(e.next(op))
    }
);
sem!(
    /// TZCNT and LZCNT: CF = the source is zero, ZF = the result is.
    CountZeros[W: Width, S: Source][const LEADING: bool] |e, op| {
        let a = S::get::<E, W>(e, op)?;
        let r = if LEADING { e.clz::<W>(a) } else { e.ctz::<W>(a) };
        e.set_reg::<W>(op.dst, r);
        let zero = e.imm::<W>(0);
        let none = e.eq::<W>(a, zero);
        let no = e.differ(none, none);
        e.flags_result::<W>(r, none, no);
        Ok(e.next(op))
    }
);
sem!(
    /// CLC, STC, CMC.
    Carry[][const WHAT: u8] |e, op| {
        let c = e.cf();
        let no = e.differ(c, c);
        let one = e.imm::<W64>(1);
        let yes = e.bit::<W64>(one, 0);
        let v = match WHAT {
            0 => no,
            1 => yes,
            _ => e.differ(c, yes),
        };
        e.set_cf(v);
        Ok(e.next(op))
    }
);

fn bit_test<E: Exec, B: BitChange>(i: &Instruction, op: &Op) -> Option<E::Handler> {
    by_width!(op.width, W => Some(match (kind(i, 0), kind(i, 1)) {
        (Kind::Reg, Kind::Reg) => E::handler::<BitTest<W, B, Dst, Src>>(),
        (Kind::Reg, Kind::Imm) => E::handler::<BitTest<W, B, Dst, Imm>>(),
        (Kind::Mem, Kind::Imm) => E::handler::<BitTest<W, B, Mem, Imm>>(),
        (Kind::Mem, Kind::Reg) => E::handler::<BitString<W, B>>(),
        _ => return None,
    }))
}

pub(crate) fn select<E: Exec>(i: &Instruction, op: &Op) -> Option<E::Handler> {
    let mem = kind(i, 1) == Kind::Mem;
    macro_rules! scan {
        ($name:ident $(, $c:literal)?) => {
            by_width!(op.width, W => Some(if mem {
                E::handler::<$name<W, Mem $(, $c)?>>()
            } else {
                E::handler::<$name<W, Src $(, $c)?>>()
            }))
        };
    }
    match i.mnemonic() {
        Mnemonic::Bt => bit_test::<E, Keep>(i, op),
        Mnemonic::Bts => bit_test::<E, Set>(i, op),
        Mnemonic::Btr => bit_test::<E, Reset>(i, op),
        Mnemonic::Btc => bit_test::<E, Complement>(i, op),
        Mnemonic::Bsf => scan!(Bsf),
        Mnemonic::Bsr => scan!(Bsr),
        Mnemonic::Popcnt => scan!(Popcnt),
        Mnemonic::Tzcnt => scan!(CountZeros, false),
        Mnemonic::Lzcnt => scan!(CountZeros, true),
        Mnemonic::Clc => Some(E::handler::<Carry<0>>()),
        Mnemonic::Stc => Some(E::handler::<Carry<1>>()),
        Mnemonic::Cmc => Some(E::handler::<Carry<2>>()),
        _ => None,
    }
}
