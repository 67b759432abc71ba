//! Where the operands of integer instructions are, and the two macros that their semantics are declared and chosen
//! with.
use crate::event::Stop;
use crate::exec::Exec;
use crate::op::Op;
use crate::width::Width;
use iced_x86::{Instruction, OpKind};

/// A place that an operand is read from.
pub trait Source {
    /// Reads it.
    fn get<E: Exec, W: Width>(e: &mut E, op: &Op) -> Result<E::Int, Stop>;
}

/// Register `op.dst`.
pub struct Dst;
/// Register `op.src`.
pub struct Src;
/// The memory operand.
pub struct Mem;
/// The immediate.
pub struct Imm;

impl Source for Dst {
    #[inline(always)]
    fn get<E: Exec, W: Width>(e: &mut E, op: &Op) -> Result<E::Int, Stop> {
        Ok(e.reg::<W>(op.dst))
    }
}
impl Source for Src {
    #[inline(always)]
    fn get<E: Exec, W: Width>(e: &mut E, op: &Op) -> Result<E::Int, Stop> {
        Ok(e.reg::<W>(op.src))
    }
}
impl Source for Mem {
    #[inline(always)]
    fn get<E: Exec, W: Width>(e: &mut E, op: &Op) -> Result<E::Int, Stop> {
        e.load::<W>(op)
    }
}
impl Source for Imm {
    #[inline(always)]
    fn get<E: Exec, W: Width>(e: &mut E, op: &Op) -> Result<E::Int, Stop> {
        Ok(e.imm::<W>(op.imm))
    }
}

/// A place that is read, changed and written.
pub trait Place: Source {
    /// A register.
    const IS_REG: bool;
    /// Replaces the value by `f` of it; returns old and new. `f` is pure.
    fn modify<E: Exec, W: Width>(
        e: &mut E,
        op: &Op,
        f: impl FnMut(&mut E, E::Int) -> E::Int,
    ) -> Result<(E::Int, E::Int), Stop>;
    /// Writes it.
    fn put<E: Exec, W: Width>(e: &mut E, op: &Op, v: E::Int) -> Result<(), Stop>;
}

impl Place for Dst {
    const IS_REG: bool = true;
    #[inline(always)]
    fn modify<E: Exec, W: Width>(
        e: &mut E,
        op: &Op,
        mut f: impl FnMut(&mut E, E::Int) -> E::Int,
    ) -> Result<(E::Int, E::Int), Stop> {
        let old = e.reg::<W>(op.dst);
        let new = f(e, old);
        e.set_reg::<W>(op.dst, new);
        Ok((old, new))
    }
    #[inline(always)]
    fn put<E: Exec, W: Width>(e: &mut E, op: &Op, v: E::Int) -> Result<(), Stop> {
        e.set_reg::<W>(op.dst, v);
        Ok(())
    }
}
impl Place for Mem {
    const IS_REG: bool = false;
    #[inline(always)]
    fn modify<E: Exec, W: Width>(
        e: &mut E,
        op: &Op,
        f: impl FnMut(&mut E, E::Int) -> E::Int,
    ) -> Result<(E::Int, E::Int), Stop> {
        e.modify::<W>(op, false, f)
    }
    #[inline(always)]
    fn put<E: Exec, W: Width>(e: &mut E, op: &Op, v: E::Int) -> Result<(), Stop> {
        e.store::<W>(op, v)
    }
}

/// The kind of an operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Reg,
    Mem,
    Imm,
    None,
}

pub(crate) fn kind(i: &Instruction, n: u32) -> Kind {
    if n >= i.op_count() {
        return Kind::None;
    }
    match i.op_kind(n) {
        OpKind::Register => Kind::Reg,
        OpKind::Memory => Kind::Mem,
        k if (OpKind::Immediate8..=OpKind::Immediate32to64).contains(&k) => Kind::Imm,
        _ => Kind::None,
    }
}

/// Evaluates `$e` with the type `$w` bound to the width of `$n` bytes.
macro_rules! by_width {
    ($n:expr, $w:ident => $e:expr) => {
        match $n {
            1 => {
                type $w = $crate::width::W8;
                $e
            }
            2 => {
                type $w = $crate::width::W16;
                $e
            }
            4 => {
                type $w = $crate::width::W32;
                $e
            }
            _ => {
                type $w = $crate::width::W64;
                $e
            }
        }
    };
}
pub(crate) use by_width;

/// Defines a semantics: a type with the given parameters and its [`crate::Sem`].
macro_rules! sem {
    ($(#[$doc:meta])* $name:ident [$($t:ident : $b:path),*] [$(const $c:ident : $ct:ty),*] |$e:ident, $op:ident| $body:block) => {
        $(#[$doc])*
        pub struct $name<$($t,)* $(const $c: $ct),*>(std::marker::PhantomData<($($t,)*)>);
        impl<E: $crate::exec::Exec, $($t: $b,)* $(const $c: $ct),*> $crate::exec::Sem<E> for $name<$($t,)* $($c),*> {
            #[inline(always)]
            fn exec($e: &mut E, $op: &$crate::op::Op) -> Result<E::Next, $crate::event::Stop> $body
        }
    };
}
pub(crate) use sem;
