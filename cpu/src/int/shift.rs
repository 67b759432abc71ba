//! SHL, SHR, SAR, ROL, ROR, RCL, RCR, SHLD, SHRD.
//!
//! Flags where the manual leaves them undefined follow what processors do: OF of a shift by more than one is computed
//! as for a shift by one on the last step.
use super::operand::{Dst, Kind, Mem, Place, by_width, kind, sem};
use crate::cpu::Cpu;
use crate::event::Stop;
use crate::exec::Exec;
use crate::op::{Helper, Op};
use crate::width::{W8, W32, W64, Width};
use iced_x86::{Instruction, Mnemonic};

/// Where the count comes from.
pub trait Count: 'static {
    /// The count, masked to 5 or 6 bits.
    fn get<E: Exec, W: Width>(e: &mut E, op: &Op) -> E::Int;
}
/// An immediate (or an implied 1).
pub struct ByImm;
/// CL.
pub struct ByCl;

impl Count for ByImm {
    #[inline(always)]
    fn get<E: Exec, W: Width>(e: &mut E, op: &Op) -> E::Int {
        e.imm::<W>(op.imm & W::COUNT_MASK)
    }
}
impl Count for ByCl {
    #[inline(always)]
    fn get<E: Exec, W: Width>(e: &mut E, op: &Op) -> E::Int {
        let _ = op;
        let c = e.reg::<W8>(1);
        let c = if W::BITS == 8 { c } else { e.zext::<W8, W>(c) };
        let m = e.imm::<W>(W::COUNT_MASK);
        e.and::<W>(c, m)
    }
}

sem!(
    /// SHL.
    Shl[W: Width, D: Place, C: Count][] |e, op| {
        let n = C::get::<E, W>(e, op);
        let (a, r) = D::modify::<E, W>(e, op, |e, a| e.shl::<W>(a, n))?;
        // CF: the last bit shifted out, the top bit of a << (n - 1).
        let one = e.imm::<W>(1);
        let m = e.sub::<W>(n, one);
        let before = e.shl::<W>(a, m);
        let cf = e.bit::<W>(before, W::BITS - 1);
        let top = e.bit::<W>(r, W::BITS - 1);
        let of = e.differ(cf, top);
        e.flags_shift::<W>(n, r, cf, of);
        Ok(e.next(op))
    }
);
sem!(
    /// SHR.
    Shr[W: Width, D: Place, C: Count][] |e, op| {
        let n = C::get::<E, W>(e, op);
        let (a, r) = D::modify::<E, W>(e, op, |e, a| e.shr::<W>(a, n))?;
        let one = e.imm::<W>(1);
        let m = e.sub::<W>(n, one);
        let before = e.shr::<W>(a, m);
        let cf = e.bit::<W>(before, 0);
        let of = e.bit::<W>(before, W::BITS - 1);
        e.flags_shift::<W>(n, r, cf, of);
        Ok(e.next(op))
    }
);
sem!(
    /// SAR.
    Sar[W: Width, D: Place, C: Count][] |e, op| {
        let n = C::get::<E, W>(e, op);
        let (a, r) = D::modify::<E, W>(e, op, |e, a| e.sar::<W>(a, n))?;
        let one = e.imm::<W>(1);
        let m = e.sub::<W>(n, one);
        let before = e.sar::<W>(a, m);
        let cf = e.bit::<W>(before, 0);
        let of = e.differ(cf, cf);
        e.flags_shift::<W>(n, r, cf, of);
        Ok(e.next(op))
    }
);
sem!(
    /// ROL.
    Rol[W: Width, D: Place, C: Count][] |e, op| {
        let n = C::get::<E, W>(e, op);
        let (_, r) = D::modify::<E, W>(e, op, |e, a| e.rotl::<W>(a, n))?;
        let cf = e.bit::<W>(r, 0);
        let top = e.bit::<W>(r, W::BITS - 1);
        let of = e.differ(cf, top);
        e.flags_rotate::<W>(n, cf, of);
        Ok(e.next(op))
    }
);
sem!(
    /// ROR.
    Ror[W: Width, D: Place, C: Count][] |e, op| {
        let n = C::get::<E, W>(e, op);
        let zero = e.imm::<W>(0);
        let left = e.sub::<W>(zero, n);
        let (_, r) = D::modify::<E, W>(e, op, |e, a| e.rotl::<W>(a, left))?;
        let cf = e.bit::<W>(r, W::BITS - 1);
        let second = e.bit::<W>(r, W::BITS - 2);
        let of = e.differ(cf, second);
        e.flags_rotate::<W>(n, cf, of);
        Ok(e.next(op))
    }
);

sem!(
    /// RCL of 32 or 64 bits, whose masked counts are below the width.
    Rcl[W: Width, D: Place, C: Count][] |e, op| {
        let n = C::get::<E, W>(e, op);
        let (carry, one, bits) = (e.cf(), e.imm::<W>(1), e.imm::<W>(u64::from(W::BITS)));
        let carry = e.int_of::<W>(carry);
        // Counts from the width up, and so n - 1 of n = 0, give 0.
        let (less, rest) = (e.sub::<W>(n, one), e.sub::<W>(bits, n));
        let over = e.add::<W>(rest, one);
        let (a, r) = D::modify::<E, W>(e, op, |e, a| {
            let (high, middle, low) = (e.shl::<W>(a, n), e.shl::<W>(carry, less), e.shr::<W>(a, over));
            let v = e.or::<W>(high, middle);
            e.or::<W>(v, low)
        })?;
        let last = e.shr::<W>(a, rest);
        let cf = e.bit::<W>(last, 0);
        let top = e.bit::<W>(r, W::BITS - 1);
        let of = e.differ(cf, top);
        e.flags_rotate::<W>(n, cf, of);
        Ok(e.next(op))
    }
);
sem!(
    /// RCR of 32 or 64 bits.
    Rcr[W: Width, D: Place, C: Count][] |e, op| {
        let n = C::get::<E, W>(e, op);
        let (carry, one, bits) = (e.cf(), e.imm::<W>(1), e.imm::<W>(u64::from(W::BITS)));
        let carry = e.int_of::<W>(carry);
        let (less, rest) = (e.sub::<W>(n, one), e.sub::<W>(bits, n));
        let over = e.add::<W>(rest, one);
        let (a, r) = D::modify::<E, W>(e, op, |e, a| {
            let (low, middle, high) = (e.shr::<W>(a, n), e.shl::<W>(carry, rest), e.shl::<W>(a, over));
            let v = e.or::<W>(high, middle);
            e.or::<W>(v, low)
        })?;
        let last = e.shr::<W>(a, less);
        let cf = e.bit::<W>(last, 0);
        let (top, second) = (e.bit::<W>(r, W::BITS - 1), e.bit::<W>(r, W::BITS - 2));
        let of = e.differ(top, second);
        e.flags_rotate::<W>(n, cf, of);
        Ok(e.next(op))
    }
);
sem!(
    /// SHLD of 32 or 64 bits: shifted left, filled from the top of the second operand.
    Shld[W: Width, D: Place, C: Count][] |e, op| {
        let n = C::get::<E, W>(e, op);
        let b = e.reg::<W>(op.src);
        let bits = e.imm::<W>(u64::from(W::BITS));
        let rest = e.sub::<W>(bits, n);
        let low = e.shr::<W>(b, rest);
        let (a, r) = D::modify::<E, W>(e, op, |e, a| {
            let high = e.shl::<W>(a, n);
            e.or::<W>(high, low)
        })?;
        // The last bit shifted out is also the top bit of the result for a count less by one.
        let last = e.shr::<W>(a, rest);
        let cf = e.bit::<W>(last, 0);
        let top = e.bit::<W>(r, W::BITS - 1);
        let of = e.differ(cf, top);
        e.flags_shift::<W>(n, r, cf, of);
        Ok(e.next(op))
    }
);
sem!(
    /// SHRD of 32 or 64 bits: shifted right, filled from the bottom of the second operand.
    Shrd[W: Width, D: Place, C: Count][] |e, op| {
        let n = C::get::<E, W>(e, op);
        let b = e.reg::<W>(op.src);
        let (one, bits) = (e.imm::<W>(1), e.imm::<W>(u64::from(W::BITS)));
        let (less, rest) = (e.sub::<W>(n, one), e.sub::<W>(bits, n));
        let high = e.shl::<W>(b, rest);
        let (a, r) = D::modify::<E, W>(e, op, |e, a| {
            let low = e.shr::<W>(a, n);
            e.or::<W>(high, low)
        })?;
        // The result for a count less by one.
        let over = e.add::<W>(rest, one);
        let (low, high) = (e.shr::<W>(a, less), e.shl::<W>(b, over));
        let before = e.or::<W>(high, low);
        let cf = e.bit::<W>(before, 0);
        let (top, old) = (e.bit::<W>(r, W::BITS - 1), e.bit::<W>(before, W::BITS - 1));
        let of = e.differ(top, old);
        e.flags_shift::<W>(n, r, cf, of);
        Ok(e.next(op))
    }
);

fn pick<E: Exec>(i: &Instruction, op: &Op) -> Option<E::Handler> {
    let by_cl = kind(i, 1) == Kind::Reg;
    let mem = kind(i, 0) == Kind::Mem;
    macro_rules! go {
        ($name:ident) => {
            by_width!(op.width, W => Some(match (mem, by_cl) {
                (false, false) => E::handler::<$name<W, Dst, ByImm>>(),
                (false, true) => E::handler::<$name<W, Dst, ByCl>>(),
                (true, false) => E::handler::<$name<W, Mem, ByImm>>(),
                (true, true) => E::handler::<$name<W, Mem, ByCl>>(),
            }))
        };
    }
    // Narrower ones have counts beyond their width: helpers.
    macro_rules! wide {
        ($name:ident, $count:literal) => {{
            type Wide<E> = <E as Exec>::Handler;
            fn of<E: Exec, W: Width>(mem: bool, by_cl: bool) -> Wide<E> {
                match (mem, by_cl) {
                    (false, false) => E::handler::<$name<W, Dst, ByImm>>(),
                    (false, true) => E::handler::<$name<W, Dst, ByCl>>(),
                    (true, false) => E::handler::<$name<W, Mem, ByImm>>(),
                    (true, true) => E::handler::<$name<W, Mem, ByCl>>(),
                }
            }
            let by_cl = kind(i, $count) == Kind::Reg;
            match op.width {
                4 => Some(of::<E, W32>(mem, by_cl)),
                8 => Some(of::<E, W64>(mem, by_cl)),
                _ => None,
            }
        }};
    }
    match i.mnemonic() {
        Mnemonic::Rcl => wide!(Rcl, 1),
        Mnemonic::Rcr => wide!(Rcr, 1),
        Mnemonic::Shld => wide!(Shld, 2),
        Mnemonic::Shrd => wide!(Shrd, 2),
        Mnemonic::Shl | Mnemonic::Sal => go!(Shl),
        Mnemonic::Shr => go!(Shr),
        Mnemonic::Sar => go!(Sar),
        Mnemonic::Rol => go!(Rol),
        Mnemonic::Ror => go!(Ror),
        _ => None,
    }
}

pub(crate) fn select<E: Exec>(i: &Instruction, op: &Op) -> Option<E::Handler> {
    pick::<E>(i, op)
}

fn count<W: Width>(cpu: &Cpu, op: &Op, by_cl: bool) -> u32 {
    let c = if by_cl { cpu.state.gpr[1] } else { op.imm };
    (c & W::COUNT_MASK) as u32
}

fn modify_operand<W: Width>(
    cpu: &mut Cpu,
    op: &Op,
    f: impl FnMut(&mut Cpu, u64) -> u64,
) -> Result<(u64, u64), Stop> {
    if op.is_mem() { Mem::modify::<Cpu, W>(cpu, op, f) } else { Dst::modify::<Cpu, W>(cpu, op, f) }
}

fn rcl<W: Width, const CL: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let n = count::<W>(cpu, op, CL);
    let steps = n % (W::BITS + 1);
    let mut cf = u64::from(cpu.state.cf());
    let cf0 = cf;
    let (_, r) = modify_operand::<W>(cpu, op, |_, mut a| {
        cf = cf0;
        for _ in 0..steps {
            let out = a >> (W::BITS - 1) & 1;
            a = (a << 1 | cf) & W::MASK;
            cf = out;
        }
        a
    })?;
    let of = (r >> (W::BITS - 1) ^ cf) & 1 != 0;
    cpu.flags_rotate::<W>(u64::from(n), cf != 0, of);
    Ok(())
}

fn rcr<W: Width, const CL: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let n = count::<W>(cpu, op, CL);
    let steps = n % (W::BITS + 1);
    let mut cf = u64::from(cpu.state.cf());
    let cf0 = cf;
    let (_, r) = modify_operand::<W>(cpu, op, |_, mut a| {
        cf = cf0;
        for _ in 0..steps {
            let out = a & 1;
            a = a >> 1 | cf << (W::BITS - 1);
            cf = out;
        }
        a
    })?;
    let of = (r >> (W::BITS - 1) ^ r >> (W::BITS - 2)) & 1 != 0;
    cpu.flags_rotate::<W>(u64::from(n), cf != 0, of);
    Ok(())
}

/// SHLD: `a` shifted left, filled from the top of `b`. Counts beyond the width (16-bit operands) act on the pair as
/// hardware does: a:b:a.
fn shld<W: Width, const CL: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let n = count::<W>(cpu, op, CL);
    let b = cpu.reg::<W>(op.src);
    if n == 0 {
        // Nothing changes, but a 32-bit register destination is written, and memory must be writable.
        return modify_operand::<W>(cpu, op, |_, a| a).map(|_| ());
    }
    let bits = W::BITS;
    let wide = |a: u64| -> u128 { u128::from(a) << (2 * bits) | u128::from(b) << bits | u128::from(a) };
    let (a, r) = modify_operand::<W>(cpu, op, |_, a| {
        let w = if bits == 64 { u128::from(a) << 64 | u128::from(b) } else { wide(a) };
        let top = if bits == 64 { w << n >> 64 } else { w << n >> (2 * bits) };
        top as u64 & W::MASK
    })?;
    let w = if bits == 64 { u128::from(a) << 64 | u128::from(b) } else { wide(a) };
    let before =
        if bits == 64 { (w << (n - 1)) >> 64 } else { (w << (n - 1)) >> (2 * bits) } as u64 & W::MASK;
    let cf = before >> (bits - 1) & 1 != 0;
    let of = (r >> (bits - 1) & 1 != 0) != (before >> (bits - 1) & 1 != 0);
    cpu.flags_result::<W>(r, cf, of);
    Ok(())
}

/// SHRD: `a` shifted right, filled from the bottom of `b`.
fn shrd<W: Width, const CL: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let n = count::<W>(cpu, op, CL);
    let b = cpu.reg::<W>(op.src);
    if n == 0 {
        return modify_operand::<W>(cpu, op, |_, a| a).map(|_| ());
    }
    let bits = W::BITS;
    let wide = move |a: u64| -> u128 {
        let pair = u128::from(b) << bits | u128::from(a);
        if bits == 64 { pair } else { pair | u128::from(a) << (2 * bits) }
    };
    let (a, r) = modify_operand::<W>(cpu, op, |_, a| (wide(a) >> n) as u64 & W::MASK)?;
    let before = (wide(a) >> (n - 1)) as u64 & W::MASK;
    let cf = before & 1 != 0;
    let of = (r >> (bits - 1) & 1) != (before >> (bits - 1) & 1);
    cpu.flags_result::<W>(r, cf, of);
    Ok(())
}

pub(crate) fn lookup(i: &Instruction) -> Option<Helper> {
    macro_rules! go {
        ($f:ident, $cl:expr) => {{
            let width = match kind(i, 0) {
                Kind::Reg => i.op0_register().size(),
                _ => i.memory_size().size(),
            };
            by_width!(width, W => if $cl { Helper::straight($f::<W, true>) } else { Helper::straight($f::<W, false>) })
        }};
    }
    match i.mnemonic() {
        Mnemonic::Rcl => go!(rcl, kind(i, 1) == Kind::Reg),
        Mnemonic::Rcr => go!(rcr, kind(i, 1) == Kind::Reg),
        Mnemonic::Shld => go!(shld, kind(i, 2) == Kind::Reg),
        Mnemonic::Shrd => go!(shrd, kind(i, 2) == Kind::Reg),
        _ => None,
    }
}
