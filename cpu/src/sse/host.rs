//! Floating point by the x86-64 host's own instructions.
//!
//! Each operation is one `asm!` block that holds the instruction between accesses to the host's MXCSR, so
//! that no compiled code ever runs under another rounding mode. There are two such frames:
//!
//! * quick: store MXCSR, operate, store MXCSR. It is for a guest whose control bits are the host's own. The
//!   host's sticky flags may have been set by anyone; the outcome is used only if they were a subset of the
//!   guest's sticky flags before, for then the union of the guest's flags and those after is exact. So a
//!   guest that runs floating point costs no LDMXCSR, which is slow.
//! * full: load the guest's control bits (all masked, flags clear), operate, store, load the default.
use super::exec::{FloatOp, FusedOp};
use super::mxcsr::{Csr, DAZ, DEFAULT, FLAGS, FTZ, MASKS, RC};
use std::arch::x86_64::__m128i;

/// A `u128` in a host vector register's type.
#[inline(always)]
pub fn vec(v: u128) -> __m128i {
    // SAFETY: both are 16 bytes of plain data, lowest first on x86.
    unsafe { std::mem::transmute(v) }
}
/// And back.
#[inline(always)]
pub fn bits(v: __m128i) -> u128 {
    // SAFETY: as above.
    unsafe { std::mem::transmute(v) }
}

/// One instruction in its frame: `frame!(FAST, csr pointer, "template", asm operands)`.
macro_rules! frame {
    ($fast:ident, $c:ident, $ins:expr, $($operands:tt)*) => {
        if $fast {
            // SAFETY: the caller of `FloatOp::host` vouches for the pointer and the instruction. Control bits
            // stay; sticky flags may change, as a block without `preserves_flags` may.
            unsafe {
                std::arch::asm!(
                    "stmxcsr [{c}]", $ins, "stmxcsr [{c} + 4]", c = in(reg) $c, $($operands)*, options(nostack),
                )
            }
        } else {
            // SAFETY: as above; the control bits in force before are the default, which is loaded again at
            // the end.
            unsafe {
                std::arch::asm!(
                    "ldmxcsr [{c}]", $ins, "stmxcsr [{c} + 4]", "ldmxcsr [{c} + 8]",
                    c = in(reg) $c, $($operands)*, options(nostack),
                )
            }
        }
    };
}
pub(super) use frame;

/// `frame!` for an instruction `{a} = op({a}, {b})` on vectors; yields the result.
macro_rules! frame_vec {
    ($fast:ident, $c:ident, $ins:expr, $a:expr, $b:expr $(, $i:ident = const $n:expr)?) => {{
        let mut v = $crate::sse::host::vec($a);
        let w = $crate::sse::host::vec($b);
        $crate::sse::host::frame!(
            $fast, $c, $ins, a = inout(xmm_reg) v, b = in(xmm_reg) w $(, $i = const $n)?
        );
        $crate::sse::host::bits(v)
    }};
}
pub(super) use frame_vec;

/// `frame_vec!` for an instruction whose immediate operand, the last, is that of the guest's: `by_immediate!(FAST, csr
/// pointer, "template", a, b, value; 0 1 2, 3)` has the values 0 to 3, the last one for all others too.
macro_rules! by_immediate {
    ($fast:ident, $c:ident, $ins:expr, $a:expr, $b:expr, $imm:expr; $($n:literal)*, $last:literal) => {
        match $imm {
            $($n => $crate::sse::host::frame_vec!($fast, $c, concat!($ins, ", ", $n), $a, $b),)*
            _ => $crate::sse::host::frame_vec!($fast, $c, concat!($ins, ", ", $last), $a, $b),
        }
    };
}
pub(super) use by_immediate;

/// The result and the flags to add to the guest's, if `guest` (whose control bits must be the default) allows
/// the quick frame.
#[inline(always)]
pub fn quick<O: FloatOp>(a: u128, b: u128, imm: u8, guest: u32) -> Option<(u128, u32)> {
    // SAFETY: the frame passes a valid pointer; the caller has tested `on_host`.
    quick_frame(guest, |c| unsafe { O::host::<true>(a, b, imm, c) })
}
/// The same for a fused operation; the host must have FMA.
#[inline(always)]
pub fn quick_fused<O: FusedOp>(a: u128, b: u128, c: u128, guest: u32) -> Option<(u128, u32)> {
    // SAFETY: the frame passes a valid pointer; the caller has tested for FMA.
    quick_frame(guest, |csr| unsafe { O::host::<true>(a, b, c, csr) })
}
#[inline(always)]
fn quick_frame(guest: u32, f: impl FnOnce(*mut Csr) -> u128) -> Option<(u128, u32)> {
    let mut c = Csr::default();
    let r = f(&mut c);
    ((c.first ^ DEFAULT) & !(guest & FLAGS) == 0).then_some((r, c.last & FLAGS))
}

/// The masked result and the exceptions found under the guest's rounding, DAZ and FTZ.
pub fn full<O: FloatOp>(a: u128, b: u128, imm: u8, guest: u32) -> (u128, u32) {
    // SAFETY: the frame passes a valid pointer; the caller has tested `on_host`.
    full_frame(guest, |c| unsafe { O::host::<false>(a, b, imm, c) })
}
/// The same for a fused operation; the host must have FMA.
pub fn full_fused<O: FusedOp>(a: u128, b: u128, c: u128, guest: u32) -> (u128, u32) {
    // SAFETY: the frame passes a valid pointer; the caller has tested for FMA.
    full_frame(guest, |csr| unsafe { O::host::<false>(a, b, c, csr) })
}
fn full_frame(guest: u32, f: impl FnOnce(*mut Csr) -> u128) -> (u128, u32) {
    let mut c = Csr { first: guest & (RC | DAZ | FTZ) | MASKS, last: 0, rest: DEFAULT };
    let r = f(&mut c);
    (r, c.last & FLAGS)
}
