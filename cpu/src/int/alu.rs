//! ADD, OR, ADC, SBB, AND, SUB, XOR, CMP, TEST, INC, DEC, NEG, NOT, XADD, CMPXCHG, MUL, IMUL.
use super::operand::{Dst, Imm, Kind, Mem, Place, Source, Src, by_width, kind, sem};
use crate::exec::Exec;
use crate::op::Op;
use crate::width::{W8, W64, Width};
use iced_x86::{Instruction, Mnemonic};

/// A binary operation with its flags.
pub trait Binary: 'static {
    /// The result.
    fn result<E: Exec, W: Width>(e: &mut E, a: E::Int, b: E::Int) -> E::Int;
    /// The flags.
    fn flags<E: Exec, W: Width>(e: &mut E, a: E::Int, b: E::Int, r: E::Int);
}

macro_rules! binary {
    ($name:ident, $doc:literal, $flags:ident $(, $carry:ident)?; |$e:ident, $a:ident, $b:ident| $r:expr) => {
        #[doc = $doc]
        pub struct $name;
        impl Binary for $name {
            #[inline(always)]
            fn result<E: Exec, W: Width>($e: &mut E, $a: E::Int, $b: E::Int) -> E::Int {
                $r
            }
            #[inline(always)]
            fn flags<E: Exec, W: Width>(e: &mut E, a: E::Int, b: E::Int, r: E::Int) {
                binary!(@flags $flags e a b r);
            }
        }
    };
    (@flags add $e:ident $a:ident $b:ident $r:ident) => { $e.flags_add::<W>($a, $b, $r) };
    (@flags sub $e:ident $a:ident $b:ident $r:ident) => { $e.flags_sub::<W>($a, $b, $r) };
    (@flags logic $e:ident $a:ident $b:ident $r:ident) => {{ let _ = ($a, $b); $e.flags_logic::<W>($r) }};
}

binary!(Add, "ADD.", add; |e, a, b| e.add::<W>(a, b));
binary!(Sub, "SUB and CMP.", sub; |e, a, b| e.sub::<W>(a, b));
binary!(And, "AND and TEST.", logic; |e, a, b| e.and::<W>(a, b));
binary!(Or, "OR.", logic; |e, a, b| e.or::<W>(a, b));
binary!(Xor, "XOR.", logic; |e, a, b| e.xor::<W>(a, b));
binary!(Adc, "ADC.", add; |e, a, b| {
    let c = e.cf();
    let c = e.int_of::<W>(c);
    let s = e.add::<W>(a, b);
    e.add::<W>(s, c)
});
binary!(Sbb, "SBB.", sub; |e, a, b| {
    let c = e.cf();
    let c = e.int_of::<W>(c);
    let s = e.sub::<W>(a, b);
    e.sub::<W>(s, c)
});

sem!(
    /// A binary operation that writes its first operand.
    Alu[W: Width, O: Binary, D: Place, S: Source][] |e, op| {
        let b = S::get::<E, W>(e, op)?;
        let (a, r) = D::modify::<E, W>(e, op, |e, a| O::result::<E, W>(e, a, b))?;
        O::flags::<E, W>(e, a, b, r);
        Ok(e.next(op))
    }
);
sem!(
    /// A binary operation of which only the flags are wanted.
    Test[W: Width, O: Binary, D: Source, S: Source][] |e, op| {
        let a = D::get::<E, W>(e, op)?;
        let b = S::get::<E, W>(e, op)?;
        let r = O::result::<E, W>(e, a, b);
        O::flags::<E, W>(e, a, b, r);
        Ok(e.next(op))
    }
);
sem!(
    /// INC.
    Inc[W: Width, D: Place][] |e, op| {
        let one = e.imm::<W>(1);
        let (_, r) = D::modify::<E, W>(e, op, |e, a| e.add::<W>(a, one))?;
        e.flags_inc::<W>(r);
        Ok(e.next(op))
    }
);
sem!(
    /// DEC.
    Dec[W: Width, D: Place][] |e, op| {
        let one = e.imm::<W>(1);
        let (_, r) = D::modify::<E, W>(e, op, |e, a| e.sub::<W>(a, one))?;
        e.flags_dec::<W>(r);
        Ok(e.next(op))
    }
);
sem!(
    /// NEG.
    Neg[W: Width, D: Place][] |e, op| {
        let zero = e.imm::<W>(0);
        let (a, r) = D::modify::<E, W>(e, op, |e, a| e.sub::<W>(zero, a))?;
        e.flags_sub::<W>(zero, a, r);
        Ok(e.next(op))
    }
);
sem!(
    /// NOT.
    Not[W: Width, D: Place][] |e, op| {
        D::modify::<E, W>(e, op, |e, a| e.not::<W>(a))?;
        Ok(e.next(op))
    }
);
sem!(
    /// XADD.
    Xadd[W: Width, D: Place][] |e, op| {
        let b = e.reg::<W>(op.src);
        let (a, r) = D::modify::<E, W>(e, op, |e, a| e.add::<W>(a, b))?;
        e.set_reg::<W>(op.src, a);
        if D::IS_REG {
            D::put::<E, W>(e, op, r)?; // XADD of a register with itself leaves the sum
        }
        e.flags_add::<W>(a, b, r);
        Ok(e.next(op))
    }
);
sem!(
    /// CMPXCHG.
    Cmpxchg[W: Width, D: Place][] |e, op| {
        let acc = e.reg::<W>(0);
        let new = e.reg::<W>(op.src);
        let whole = e.reg::<W64>(op.dst & 0x1f);
        let (old, _) = D::modify::<E, W>(e, op, |e, old| {
            let hit = e.eq::<W>(old, acc);
            e.select::<W>(hit, new, old)
        })?;
        let r = e.sub::<W>(acc, old);
        let hit = e.eq::<W>(old, acc);
        if D::IS_REG && W::BITS == 32 {
            // On a miss a register is not written at all, its upper half stays.
            let now = e.reg::<W64>(op.dst);
            let v = e.select::<W64>(hit, now, whole);
            e.set_reg::<W64>(op.dst, v);
        }
        // On a hit the whole 64-bit accumulator keeps its value.
        let keep = e.reg::<W64>(0);
        e.set_reg::<W>(0, old);
        let replaced = e.reg::<W64>(0);
        let acc64 = e.select::<W64>(hit, keep, replaced);
        e.set_reg::<W64>(0, acc64);
        e.flags_sub::<W>(acc, old, r);
        Ok(e.next(op))
    }
);
sem!(
    /// MUL and IMUL of the accumulator: double-width product.
    Mul[W: Width, S: Source][const SIGNED: bool] |e, op| {
        let a = e.reg::<W>(0);
        let b = S::get::<E, W>(e, op)?;
        let lo = e.mul::<W>(a, b);
        let hi = if SIGNED { e.smulh::<W>(a, b) } else { e.umulh::<W>(a, b) };
        if W::BITS == 8 {
            e.set_reg::<W8>(0, lo);
            e.set_reg::<W8>(0x20, hi);
        } else {
            e.set_reg::<W>(0, lo);
            e.set_reg::<W>(2, hi);
        }
        // CF = OF = the high half says more than the low one's extension.
        let want = if SIGNED {
            let top = e.imm::<W>(u64::from(W::BITS) - 1);
            e.sar::<W>(lo, top)
        } else {
            e.imm::<W>(0)
        };
        let fits = e.eq::<W>(hi, want);
        let yes = e.imm::<W>(1);
        let no = e.imm::<W>(0);
        let v = e.select::<W>(fits, no, yes);
        let over = e.bit::<W>(v, 0);
        e.flags_result::<W>(lo, over, over);
        Ok(e.next(op))
    }
);
sem!(
    /// IMUL r, r/m (, imm).
    Imul[W: Width, A: Source, B: Source][] |e, op| {
        let a = A::get::<E, W>(e, op)?;
        let b = B::get::<E, W>(e, op)?;
        let lo = e.mul::<W>(a, b);
        let hi = e.smulh::<W>(a, b);
        e.set_reg::<W>(op.dst, lo);
        let top = e.imm::<W>(u64::from(W::BITS) - 1);
        let want = e.sar::<W>(lo, top);
        let fits = e.eq::<W>(hi, want);
        let yes = e.imm::<W>(1);
        let no = e.imm::<W>(0);
        let v = e.select::<W>(fits, no, yes);
        let over = e.bit::<W>(v, 0);
        e.flags_result::<W>(lo, over, over);
        Ok(e.next(op))
    }
);

fn alu<E: Exec, O: Binary>(i: &Instruction, op: &Op) -> Option<E::Handler> {
    by_width!(op.width, W => Some(match (kind(i, 0), kind(i, 1)) {
        (Kind::Reg, Kind::Reg) => E::handler::<Alu<W, O, Dst, Src>>(),
        (Kind::Reg, Kind::Mem) => E::handler::<Alu<W, O, Dst, Mem>>(),
        (Kind::Reg, Kind::Imm) => E::handler::<Alu<W, O, Dst, Imm>>(),
        (Kind::Mem, Kind::Reg) => E::handler::<Alu<W, O, Mem, Src>>(),
        (Kind::Mem, Kind::Imm) => E::handler::<Alu<W, O, Mem, Imm>>(),
        _ => return None,
    }))
}

fn test<E: Exec, O: Binary>(i: &Instruction, op: &Op) -> Option<E::Handler> {
    by_width!(op.width, W => Some(match (kind(i, 0), kind(i, 1)) {
        (Kind::Reg, Kind::Reg) => E::handler::<Test<W, O, Dst, Src>>(),
        (Kind::Reg, Kind::Mem) => E::handler::<Test<W, O, Dst, Mem>>(),
        (Kind::Reg, Kind::Imm) => E::handler::<Test<W, O, Dst, Imm>>(),
        (Kind::Mem, Kind::Reg) => E::handler::<Test<W, O, Mem, Src>>(),
        (Kind::Mem, Kind::Imm) => E::handler::<Test<W, O, Mem, Imm>>(),
        _ => return None,
    }))
}

macro_rules! one {
    ($name:ident, $i:expr, $op:expr) => {
        by_width!($op.width, W => match kind($i, 0) {
            Kind::Reg => Some(E::handler::<$name<W, Dst>>()),
            Kind::Mem => Some(E::handler::<$name<W, Mem>>()),
            _ => None,
        })
    };
}

pub(crate) fn select<E: Exec>(i: &Instruction, op: &Op) -> Option<E::Handler> {
    match i.mnemonic() {
        Mnemonic::Add => alu::<E, Add>(i, op),
        Mnemonic::Or => alu::<E, Or>(i, op),
        Mnemonic::Adc => alu::<E, Adc>(i, op),
        Mnemonic::Sbb => alu::<E, Sbb>(i, op),
        Mnemonic::And => alu::<E, And>(i, op),
        Mnemonic::Sub => alu::<E, Sub>(i, op),
        Mnemonic::Xor => alu::<E, Xor>(i, op),
        Mnemonic::Cmp => test::<E, Sub>(i, op),
        Mnemonic::Test => test::<E, And>(i, op),
        Mnemonic::Inc => one!(Inc, i, op),
        Mnemonic::Dec => one!(Dec, i, op),
        Mnemonic::Neg => one!(Neg, i, op),
        Mnemonic::Not => one!(Not, i, op),
        Mnemonic::Xadd => one!(Xadd, i, op),
        Mnemonic::Cmpxchg => one!(Cmpxchg, i, op),
        Mnemonic::Mul => multiply::<E, false>(i, op),
        Mnemonic::Imul if i.op_count() == 1 => multiply::<E, true>(i, op),
        Mnemonic::Imul => by_width!(op.width, W => match (kind(i, 1), kind(i, 2)) {
            (Kind::Reg, Kind::None) => Some(E::handler::<Imul<W, Dst, Src>>()),
            (Kind::Mem, Kind::None) => Some(E::handler::<Imul<W, Dst, Mem>>()),
            (Kind::Reg, Kind::Imm) => Some(E::handler::<Imul<W, Src, Imm>>()),
            (Kind::Mem, Kind::Imm) => Some(E::handler::<Imul<W, Mem, Imm>>()),
            _ => None,
        }),
        _ => None,
    }
}

fn multiply<E: Exec, const SIGNED: bool>(i: &Instruction, op: &Op) -> Option<E::Handler> {
    by_width!(op.width, W => match kind(i, 0) {
        Kind::Reg => Some(E::handler::<Mul<W, Dst, SIGNED>>()),
        Kind::Mem => Some(E::handler::<Mul<W, Mem, SIGNED>>()),
        _ => None,
    })
}
