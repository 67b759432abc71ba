//! 80-bit arithmetic in portable integer code: what every x87 instruction computes, to the bit, with its
//! exceptions.
//!
//! Nothing here knows the register stack. Every function takes operands and the control word and gives an
//! [`Out`]: the value that the destination gets *under that control word*, and status bits (IE, DE, ZE, OE,
//! UE, PE, and C1 = "rounded up"). Where an exception in it is unmasked and of a kind that stores nothing
//! (IE, DE, ZE), the value means nothing. For unmasked OE and UE it is the one with the exponent wrapped by
//! 24,576 (SDM volume 1, 8.5.4 and 8.5.5).
//!
//! * this file: classes, NaN rules, rounding. [`basic`]: add to square root, remainder, scale. [`convert`]:
//!   other formats, comparison.
//! * [`wide`]: 128-bit significands, and on them [`elementary`]: logarithm, power, trigonometry (within 0.51
//!   units in the last place).
//!
//! Precision control narrows the significand of add, subtract, multiply, divide and square root and leaves
//! the exponent alone, as the chip does.

pub mod basic;
pub mod convert;
pub mod elementary;
pub mod wide;

use super::word::*;
use crate::state::F80;

/// The result of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Out {
    /// The value.
    pub v: F80,
    /// Status word bits that the operation raises: exceptions and C1.
    pub sw: u16,
}

/// What [`Wide2`] holds of its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// One: the result proper.
    One,
    /// Two: `a` replaces ST(0), then `b` is pushed.
    Two,
}

/// The result of an operation that may push a second value (FPTAN, FSINCOS, FXTRACT).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wide2 {
    /// First result.
    pub a: F80,
    /// Second result.
    pub b: F80,
    /// How many there are.
    pub count: Count,
    /// Status bits, with C2 where the operand was out of range.
    pub sw: u16,
}

/// Classes of encodings (SDM volume 1, 4.2.2 and 8.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Plus or minus zero.
    Zero,
    /// Finite: normal, denormal or pseudo-denormal.
    Finite,
    /// Infinity.
    Inf,
    /// Quiet NaN.
    Quiet,
    /// Signaling NaN.
    Signaling,
    /// Pseudo-NaN, pseudo-infinity, unnormal: an invalid operand everywhere.
    Unsupported,
}

/// The bias of the exponent.
pub const BIAS: i32 = 16383;
/// What an unmasked overflow or underflow adds to or takes from the exponent (3 x 2^13).
pub const WRAP: i32 = 24576;
/// The QNaN floating-point indefinite.
pub const INDEFINITE: F80 = F80 { mant: 0xc000_0000_0000_0000, exp: 0xffff };
/// The integer bit.
pub const J: u64 = 1 << 63;
/// The bit that makes a NaN quiet.
pub const QUIET: u64 = 1 << 62;

/// The class of `x`.
#[inline(always)]
pub fn kind(x: F80) -> Kind {
    let e = x.exp & 0x7fff;
    if e.wrapping_sub(1) < 0x7ffe {
        return if x.mant & J != 0 { Kind::Finite } else { Kind::Unsupported };
    }
    if e == 0 {
        return if x.mant == 0 { Kind::Zero } else { Kind::Finite };
    }
    if x.mant & J == 0 {
        Kind::Unsupported
    } else if x.mant == J {
        Kind::Inf
    } else if x.mant & QUIET != 0 {
        Kind::Quiet
    } else {
        Kind::Signaling
    }
}

/// Whether `x` is a denormal or pseudo-denormal: what raises DE.
#[inline(always)]
pub fn is_denormal(x: F80) -> bool {
    x.exp & 0x7fff == 0 && x.mant != 0
}

/// Whether both are normal numbers: the common case of arithmetic.
#[inline(always)]
pub fn both_normal(a: F80, b: F80) -> bool {
    (a.exp & 0x7fff).wrapping_sub(1) < 0x7ffe
        && (b.exp & 0x7fff).wrapping_sub(1) < 0x7ffe
        && a.mant & b.mant & J != 0
}

/// Biased exponent and normalised significand of a finite number other than zero. The exponent may be below
/// 1.
#[inline(always)]
pub fn parts(x: F80) -> (i32, u64) {
    let e = i32::from(x.exp & 0x7fff).max(1);
    let shift = x.mant.leading_zeros();
    (e - shift as i32, x.mant << (shift & 63))
}

/// A zero of the given sign (bit 15).
pub fn zero(sign: u16) -> F80 {
    F80 { mant: 0, exp: sign & 0x8000 }
}

/// An infinity of the given sign (bit 15).
pub fn infinity(sign: u16) -> F80 {
    F80 { mant: J, exp: 0x7fff | sign & 0x8000 }
}

/// The invalid operation's result.
pub fn invalid() -> Out {
    Out { v: INDEFINITE, sw: IE }
}

/// An exact result without exceptions.
#[inline(always)]
pub fn exact(v: F80) -> Out {
    Out { v, sw: 0 }
}

/// The result of an operation on one operand that is a NaN or unsupported.
pub fn nan1(a: F80) -> Out {
    match kind(a) {
        Kind::Quiet => exact(a),
        Kind::Signaling => Out { v: F80 { mant: a.mant | QUIET, ..a }, sw: IE },
        _ => invalid(),
    }
}

/// The result of an operation on two operands of which one at least is a NaN or unsupported (SDM volume 1,
/// table 4-7).
pub fn nan2(a: F80, b: F80) -> Out {
    let (ka, kb) = (kind(a), kind(b));
    if ka == Kind::Unsupported || kb == Kind::Unsupported {
        return invalid();
    }
    let quiet = |x: F80| F80 { mant: x.mant | QUIET, ..x };
    let larger = |a: F80, b: F80| {
        let (ma, mb) = (a.mant & !QUIET, b.mant & !QUIET);
        // Equal significands: the positive one.
        if ma > mb || (ma == mb && a.exp < b.exp) { a } else { b }
    };
    use Kind::{Quiet, Signaling};
    match (ka, kb) {
        (Signaling, Signaling) | (Quiet, Quiet) => {
            let sw = if ka == Signaling { IE } else { 0 };
            Out { v: quiet(larger(a, b)), sw }
        }
        (Signaling, Quiet) => Out { v: b, sw: IE },
        (Quiet, Signaling) => Out { v: a, sw: IE },
        (Signaling, _) => Out { v: quiet(a), sw: IE },
        (_, Signaling) => Out { v: quiet(b), sw: IE },
        (Quiet, _) => exact(a),
        _ => exact(b),
    }
}

/// Whether neither is a NaN or unsupported.
#[inline(always)]
pub fn is_number(x: F80) -> bool {
    matches!(kind(x), Kind::Zero | Kind::Finite | Kind::Inf)
}

/// DE if either operand is denormal.
#[inline(always)]
pub fn denormals(a: F80, b: F80) -> u16 {
    if is_denormal(a) || is_denormal(b) { DE } else { 0 }
}

/// Bits of significand under the precision control of `cw`. The reserved setting 01 is extended precision.
#[inline(always)]
pub fn precision(cw: u16) -> u32 {
    match cw >> 8 & 3 {
        0 => 24,
        2 => 53,
        _ => 64,
    }
}

/// Rounds the significand `hi:lo` to `bits` bits: the result, and whether it was inexact and went up (away
/// from zero). A carry out of the top shows as a result below `hi`'s top bit: zero.
#[inline(always)]
fn round_significand(sign: u16, hi: u64, lo: u64, bits: u32, cw: u16) -> (u64, bool, bool) {
    let (kept, unit, rest, half) = if bits == 64 {
        (hi, 1u64, u128::from(lo), 1u128 << 63)
    } else {
        let drop = 64 - bits;
        let mask = (1u64 << drop) - 1;
        let rest = u128::from(hi & mask) << 64 | u128::from(lo);
        (hi & !mask, 1 << drop, rest, 1u128 << (drop + 63))
    };
    if rest == 0 {
        return (kept, false, false);
    }
    let up = match cw & RC {
        RC_NEAREST => rest > half || (rest == half && kept & unit != 0),
        RC_DOWN => sign & 0x8000 != 0,
        RC_UP => sign & 0x8000 == 0,
        _ => false,
    };
    (if up { kept.wrapping_add(unit) } else { kept }, true, up)
}

/// Shifts `hi:lo` right, keeping in the last bit whether anything was lost.
pub fn shift_right_jam(hi: u64, lo: u64, n: u32) -> (u64, u64) {
    let v = u128::from(hi) << 64 | u128::from(lo);
    let r = if n == 0 {
        v
    } else if n >= 128 {
        u128::from(v != 0)
    } else {
        v >> n | u128::from(v << (128 - n) != 0)
    };
    ((r >> 64) as u64, r as u64)
}

/// Rounds the number +-`hi.lo` x 2^(`exp` - bias - 63) to `bits` bits of significand and the range of the
/// extended format. `hi` has its top bit set; the last bit of `lo` may stand for all that is below it. What
/// even a wrapped exponent cannot hold (FSCALE) becomes infinity or zero.
#[inline(always)]
pub fn round(sign: u16, exp: i32, hi: u64, lo: u64, bits: u32, cw: u16) -> Out {
    let (mut mant, inexact, up) = round_significand(sign, hi, lo, bits, cw);
    let mut e = exp;
    if mant & J == 0 {
        mant = J;
        e += 1;
    }
    let sw = if inexact { PE } else { 0 } | if up { C1 } else { 0 };
    if e > 0 && e < 0x7fff {
        return Out { v: F80 { mant, exp: e as u16 | sign & 0x8000 }, sw };
    }
    if e >= 0x7fff {
        return overflow(sign, e, mant, sw, bits, cw);
    }
    if cw & UE == 0 {
        e += WRAP;
        return if e > 0 {
            Out { v: F80 { mant, exp: e as u16 | sign & 0x8000 }, sw: sw | UE }
        } else {
            Out { v: zero(sign), sw: UE | PE }
        };
    }
    let (hi, lo) = shift_right_jam(hi, lo, (1 - exp).min(128) as u32);
    let (mant, inexact, up) = round_significand(sign, hi, lo, bits, cw);
    let exp = if mant & J != 0 { 1 } else { 0 };
    let sw = if inexact { UE | PE } else { 0 } | if up { C1 } else { 0 };
    Out { v: F80 { mant, exp: exp | sign & 0x8000 }, sw }
}

#[cold]
fn overflow(sign: u16, e: i32, mant: u64, sw: u16, bits: u32, cw: u16) -> Out {
    let wrapped = e - WRAP;
    if cw & OE == 0 {
        return if wrapped < 0x7fff {
            Out { v: F80 { mant, exp: wrapped as u16 | sign & 0x8000 }, sw: sw | OE }
        } else {
            Out { v: infinity(sign), sw: OE | PE | C1 }
        };
    }
    let to_infinity = match cw & RC {
        RC_NEAREST => true,
        RC_DOWN => sign & 0x8000 != 0,
        RC_UP => sign & 0x8000 == 0,
        _ => false,
    };
    if to_infinity {
        Out { v: infinity(sign), sw: OE | PE | C1 }
    } else {
        let largest = !0u64 << (64 - bits);
        Out { v: F80 { mant: largest, exp: 0x7ffe | sign & 0x8000 }, sw: OE | PE }
    }
}
