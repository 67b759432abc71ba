//! DIV and IDIV; the decimal divisions' relative AAM is in `legacy`.
use super::operand::{Dst, Kind, Mem, Source, by_width, kind, sem};
use crate::exec::Exec;
use crate::op::Op;
use crate::width::{W8, Width};
use iced_x86::{Instruction, Mnemonic};

/// Coded number of AH, CH, DH, BH's first: see [`Op::dst`].
const AH: u8 = 0x20;
const RAX: u8 = 0;
const RDX: u8 = 2;

sem!(
    /// DIV and IDIV: RDX:RAX (AX for bytes) by the operand.
    Divide[W: Width, S: Source][const SIGNED: bool] |e, op| {
        let d = S::get::<E, W>(e, op)?;
        let high = if W::BITS == 8 { AH } else { RDX };
        let (hi, lo) = if W::BITS == 8 { (e.reg::<W8>(high), e.reg::<W8>(RAX)) } else { (e.reg::<W>(high), e.reg::<W>(RAX)) };
        let (q, r) = e.divide::<W>(hi, lo, d, SIGNED)?;
        e.set_reg::<W>(RAX, q);
        e.set_reg::<W>(high, r);
        Ok(e.next(op))
    }
);

pub(crate) fn select<E: Exec>(i: &Instruction, _: &Op) -> Option<E::Handler> {
    let memory = kind(i, 0) != Kind::Reg;
    let width = if memory { i.memory_size().size() } else { i.op0_register().size() };
    macro_rules! go {
        ($signed:literal) => {
            by_width!(width, W => if memory {
                E::handler::<Divide<W, Mem, $signed>>()
            } else {
                E::handler::<Divide<W, Dst, $signed>>()
            })
        };
    }
    match i.mnemonic() {
        Mnemonic::Div => Some(go!(false)),
        Mnemonic::Idiv => Some(go!(true)),
        _ => None,
    }
}
