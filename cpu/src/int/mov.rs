//! Moves: MOV, MOVZX, MOVSX, MOVSXD, MOVBE, LEA, XCHG, BSWAP, CMOVcc, SETcc, CBW/CWDE/CDQE, CWD/CDQ/CQO, XLAT, NOP.
use super::operand::{Dst, Imm, Kind, Mem, Place, Source, Src, by_width, kind, sem};
use crate::exec::Exec;
use crate::op::Op;
use crate::width::{W8, W16, W32, W64, Width};
use iced_x86::{ConditionCode, Instruction, Mnemonic, OpKind, Register};

sem!(
    /// MOV.
    Mov[W: Width, D: Place, S: Source][] |e, op| {
        let v = S::get::<E, W>(e, op)?;
        D::put::<E, W>(e, op, v)?;
        Ok(e.next(op))
    }
);
sem!(
    /// MOVZX.
    Movzx[F: Width, W: Width, S: Source][] |e, op| {
        let v = S::get::<E, F>(e, op)?;
        let v = e.zext::<F, W>(v);
        e.set_reg::<W>(op.dst, v);
        Ok(e.next(op))
    }
);
sem!(
    /// MOVSX, MOVSXD.
    Movsx[F: Width, W: Width, S: Source][] |e, op| {
        let v = S::get::<E, F>(e, op)?;
        let v = e.sext::<F, W>(v);
        e.set_reg::<W>(op.dst, v);
        Ok(e.next(op))
    }
);
sem!(
    /// LEA.
    Lea[W: Width][] |e, op| {
        let a = e.ea(op);
        let v = e.trunc::<W64, W>(a);
        e.set_reg::<W>(op.dst, v);
        Ok(e.next(op))
    }
);
sem!(
    /// XCHG of registers.
    XchgReg[W: Width][] |e, op| {
        let a = e.reg::<W>(op.dst);
        let b = e.reg::<W>(op.src);
        e.set_reg::<W>(op.dst, b);
        e.set_reg::<W>(op.src, a);
        Ok(e.next(op))
    }
);
sem!(
    /// XCHG with memory: always locked.
    XchgMem[W: Width][] |e, op| {
        let b = e.reg::<W>(op.src);
        let (a, _) = e.modify::<W>(op, true, |_, _| b)?;
        e.set_reg::<W>(op.src, a);
        Ok(e.next(op))
    }
);
sem!(
    /// BSWAP. Of a 16-bit register the result is undefined (SDM volume 2A, BSWAP): processors give zero.
    Bswap[W: Width][] |e, op| {
        let v = e.reg::<W>(op.dst);
        let v = if W::BITS == 16 { e.imm::<W>(0) } else { e.bswap::<W>(v) };
        e.set_reg::<W>(op.dst, v);
        Ok(e.next(op))
    }
);
sem!(
    /// MOVBE load.
    MovbeLoad[W: Width][] |e, op| {
        let v = e.load::<W>(op)?;
        let v = e.bswap::<W>(v);
        e.set_reg::<W>(op.dst, v);
        Ok(e.next(op))
    }
);
sem!(
    /// MOVBE store.
    MovbeStore[W: Width][] |e, op| {
        let v = e.reg::<W>(op.src);
        let v = e.bswap::<W>(v);
        e.store::<W>(op, v)?;
        Ok(e.next(op))
    }
);
sem!(
    /// CMOVcc: the source is read, and a 32-bit destination's upper half cleared, whether or not the condition holds.
    Cmov[W: Width, S: Source][const CC: u8] |e, op| {
        let v = S::get::<E, W>(e, op)?;
        let old = e.reg::<W>(op.dst);
        let c = e.cond(CC);
        let v = e.select::<W>(c, v, old);
        e.set_reg::<W>(op.dst, v);
        Ok(e.next(op))
    }
);
sem!(
    /// SETcc.
    Setcc[D: Place][const CC: u8] |e, op| {
        let c = e.cond(CC);
        let v = e.int_of::<W8>(c);
        D::put::<E, W8>(e, op, v)?;
        Ok(e.next(op))
    }
);
sem!(
    /// CBW, CWDE, CDQE.
    SignExtendAcc[F: Width, W: Width][] |e, op| {
        let v = e.reg::<F>(0);
        let v = e.sext::<F, W>(v);
        e.set_reg::<W>(0, v);
        Ok(e.next(op))
    }
);
sem!(
    /// CWD, CDQ, CQO.
    SignToDx[W: Width][] |e, op| {
        let v = e.reg::<W>(0);
        let top = e.imm::<W>(u64::from(W::BITS) - 1);
        let v = e.sar::<W>(v, top);
        e.set_reg::<W>(2, v);
        Ok(e.next(op))
    }
);
sem!(
    /// NOP and hints.
    Nop[][] |e, op| { Ok(e.next(op)) }
);

fn mov<E: Exec>(i: &Instruction, op: &Op) -> Option<E::Handler> {
    let gpr = |n: u32| i.op_kind(n) != OpKind::Register || i.op_register(n).is_gpr();
    if !gpr(0) || !gpr(1) {
        return None;
    }
    by_width!(op.width, W => Some(match (kind(i, 0), kind(i, 1)) {
        (Kind::Reg, Kind::Reg) => E::handler::<Mov<W, Dst, Src>>(),
        (Kind::Reg, Kind::Mem) => E::handler::<Mov<W, Dst, Mem>>(),
        (Kind::Reg, Kind::Imm) => E::handler::<Mov<W, Dst, Imm>>(),
        (Kind::Mem, Kind::Reg) => E::handler::<Mov<W, Mem, Src>>(),
        (Kind::Mem, Kind::Imm) => E::handler::<Mov<W, Mem, Imm>>(),
        _ => return None,
    }))
}

macro_rules! extend {
    ($name:ident, $i:expr, $op:expr) => {{
        let from = match kind($i, 1) {
            Kind::Reg => $i.op1_register().size(),
            _ => $i.memory_size().size(),
        };
        let mem = kind($i, 1) == Kind::Mem;
        macro_rules! pick {
            ($f:ty, $w:ty) => {
                if mem {
                    Some(E::handler::<$name<$f, $w, Mem>>())
                } else {
                    Some(E::handler::<$name<$f, $w, Src>>())
                }
            };
        }
        match (from, $op.width) {
            (1, 2) => pick!(W8, W16),
            (1, 4) => pick!(W8, W32),
            (1, 8) => pick!(W8, W64),
            (2, 2) => pick!(W16, W16),
            (2, 4) => pick!(W16, W32),
            (2, 8) => pick!(W16, W64),
            (4, 2) => pick!(W32, W16),
            (4, 4) => pick!(W32, W32),
            (4, 8) => pick!(W32, W64),
            _ => None,
        }
    }};
}

/// Evaluates `$e` with the constant `CC` bound to the condition number.
macro_rules! by_condition {
    ($n:expr, $cc:ident => $e:expr) => {{
        macro_rules! arm {
            ($v:literal) => {{
                const $cc: u8 = $v;
                $e
            }};
        }
        match $n {
            0 => arm!(0),
            1 => arm!(1),
            2 => arm!(2),
            3 => arm!(3),
            4 => arm!(4),
            5 => arm!(5),
            6 => arm!(6),
            7 => arm!(7),
            8 => arm!(8),
            9 => arm!(9),
            10 => arm!(10),
            11 => arm!(11),
            12 => arm!(12),
            13 => arm!(13),
            14 => arm!(14),
            _ => arm!(15),
        }
    }};
}
pub(crate) use by_condition;

/// The condition number (low four bits of the opcode) of a conditional instruction.
pub(crate) fn condition(i: &Instruction) -> Option<u8> {
    use crate::exec::cc;
    Some(match i.condition_code() {
        ConditionCode::o => cc::O,
        ConditionCode::no => cc::NO,
        ConditionCode::b => cc::B,
        ConditionCode::ae => cc::AE,
        ConditionCode::e => cc::E,
        ConditionCode::ne => cc::NE,
        ConditionCode::be => cc::BE,
        ConditionCode::a => cc::A,
        ConditionCode::s => cc::S,
        ConditionCode::ns => cc::NS,
        ConditionCode::p => cc::P,
        ConditionCode::np => cc::NP,
        ConditionCode::l => cc::L,
        ConditionCode::ge => cc::GE,
        ConditionCode::le => cc::LE,
        ConditionCode::g => cc::G,
        ConditionCode::None => return None,
    })
}

pub(crate) fn select<E: Exec>(i: &Instruction, op: &Op) -> Option<E::Handler> {
    let mem = kind(i, 0) == Kind::Mem || kind(i, 1) == Kind::Mem;
    match i.mnemonic() {
        Mnemonic::Mov => mov::<E>(i, op),
        Mnemonic::Movzx => extend!(Movzx, i, op),
        Mnemonic::Movsx | Mnemonic::Movsxd => extend!(Movsx, i, op),
        Mnemonic::Lea => by_width!(op.width, W => Some(E::handler::<Lea<W>>())),
        Mnemonic::Xchg if mem => by_width!(op.width, W => Some(E::handler::<XchgMem<W>>())),
        Mnemonic::Xchg => by_width!(op.width, W => Some(E::handler::<XchgReg<W>>())),
        Mnemonic::Bswap => by_width!(op.width, W => Some(E::handler::<Bswap<W>>())),
        Mnemonic::Movbe if kind(i, 0) == Kind::Reg => {
            by_width!(op.width, W => Some(E::handler::<MovbeLoad<W>>()))
        }
        Mnemonic::Movbe => by_width!(op.width, W => Some(E::handler::<MovbeStore<W>>())),
        Mnemonic::Cbw => Some(E::handler::<SignExtendAcc<W8, W16>>()),
        Mnemonic::Cwde => Some(E::handler::<SignExtendAcc<W16, W32>>()),
        Mnemonic::Cdqe => Some(E::handler::<SignExtendAcc<W32, W64>>()),
        Mnemonic::Cwd => Some(E::handler::<SignToDx<W16>>()),
        Mnemonic::Cdq => Some(E::handler::<SignToDx<W32>>()),
        Mnemonic::Cqo => Some(E::handler::<SignToDx<W64>>()),
        Mnemonic::Nop
        | Mnemonic::Reservednop
        | Mnemonic::Endbr32
        | Mnemonic::Endbr64
        | Mnemonic::Prefetchnta
        | Mnemonic::Prefetcht0
        | Mnemonic::Prefetcht1
        | Mnemonic::Prefetcht2
        | Mnemonic::Prefetchw
        | Mnemonic::Prefetch => Some(E::handler::<Nop>()),
        _ => {
            let n = condition(i)?;
            if i.is_jcc_short_or_near() {
                return None;
            }
            if i.op0_register() != Register::None && i.op_count() == 2 {
                // CMOVcc
                if !i.op0_register().is_gpr() {
                    return None;
                }
                return by_condition!(n, CC => by_width!(op.width, W => Some(if mem {
                    E::handler::<Cmov<W, Mem, CC>>()
                } else {
                    E::handler::<Cmov<W, Src, CC>>()
                })));
            }
            if i.op_count() == 1 && op.width == 1 {
                return by_condition!(n, CC => Some(if mem {
                    E::handler::<Setcc<Mem, CC>>()
                } else {
                    E::handler::<Setcc<Dst, CC>>()
                }));
            }
            None
        }
    }
}
