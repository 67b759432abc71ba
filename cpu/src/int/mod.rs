//! Integer instructions. Semantics generic over the engine are picked by [`select`]; what is rare or long is a helper
//! found by [`lookup`].

pub mod alu;
pub mod bits;
pub mod bmi;
pub mod divide;
pub mod flow;
pub mod legacy;
pub mod mov;
pub(crate) mod operand;
pub mod shift;
pub mod stack;
pub mod string;

use crate::exec::Exec;
use crate::op::{Helper, Op};
use iced_x86::Instruction;

/// The handler of an integer instruction whose semantics are generic.
pub fn select<E: Exec>(i: &Instruction, op: &Op) -> Option<E::Handler> {
    alu::select::<E>(i, op)
        .or_else(|| mov::select::<E>(i, op))
        .or_else(|| shift::select::<E>(i, op))
        .or_else(|| bits::select::<E>(i, op))
        .or_else(|| stack::select::<E>(i, op))
        .or_else(|| flow::select::<E>(i, op))
        .or_else(|| divide::select::<E>(i, op))
        .or_else(|| bmi::select::<E>(i, op))
        .or_else(|| string::select::<E>(i, op))
}

/// The helper of an integer instruction.
pub fn lookup(i: &Instruction) -> Option<Helper> {
    shift::lookup(i)
        .or_else(|| string::lookup(i))
        .or_else(|| flow::lookup(i))
        .or_else(|| legacy::lookup(i))
        .or_else(|| stack::lookup(i))
}
