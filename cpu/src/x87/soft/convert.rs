//! Conversions from and to single, double, integer and packed decimal; comparison.
use super::*;

/// A single-precision operand as an extended one: SNaNs stay signaling; the flag says that it was denormal.
#[inline(always)]
pub fn from_f32(v: u32) -> (F80, bool) {
    let sign = (v >> 16 & 0x8000) as u16;
    let e = (v >> 23 & 0xff) as i32;
    let f = u64::from(v & 0x7f_ffff);
    from_small(sign, e, f << 40, 0xff, 127)
}

/// A double-precision operand as an extended one.
#[inline(always)]
pub fn from_f64(v: u64) -> (F80, bool) {
    let sign = (v >> 48 & 0x8000) as u16;
    let e = (v >> 52 & 0x7ff) as i32;
    from_small(sign, e, (v & 0xf_ffff_ffff_ffff) << 11, 0x7ff, 1023)
}

#[inline(always)]
fn from_small(sign: u16, e: i32, fraction: u64, top: i32, bias: i32) -> (F80, bool) {
    if e != 0 && e != top {
        return (F80 { mant: J | fraction, exp: (e - bias + BIAS) as u16 | sign }, false);
    }
    if e == top {
        return (F80 { mant: J | fraction, exp: 0x7fff | sign }, false);
    }
    if fraction == 0 {
        return (zero(sign), false);
    }
    let n = fraction.leading_zeros();
    (F80 { mant: fraction << n, exp: (1 - bias + BIAS - n as i32) as u16 | sign }, true)
}

/// An integer.
#[inline(always)]
pub fn from_int(v: i64) -> F80 {
    if v == 0 {
        return F80::default();
    }
    let m = v.unsigned_abs();
    let n = m.leading_zeros();
    F80 { mant: m << n, exp: (BIAS + 63 - n as i32) as u16 | if v < 0 { 0x8000 } else { 0 } }
}

/// To single precision: the encoding and the exceptions. An unmasked OE or UE comes alone, and without a
/// result.
pub fn to_f32(cw: u16, a: F80) -> (u32, u16) {
    let (v, sw) = to_small(cw, a, 24, 8);
    (v as u32, sw)
}

/// To double precision.
#[inline(always)]
pub fn to_f64(cw: u16, a: F80) -> (u64, u16) {
    // Most of what is stored was loaded or rounded as a double: exact and in range.
    let e = i32::from(a.exp & 0x7fff) - BIAS + 1023;
    if a.mant & (J | 0x7ff) == J && e > 0 && e < 0x7ff {
        return (u64::from(a.exp & 0x8000) << 48 | (e as u64) << 52 | (a.mant << 1 >> 12), 0);
    }
    to_small(cw, a, 53, 11)
}

fn to_small(cw: u16, a: F80, bits: u32, ebits: u32) -> (u64, u16) {
    let sign = u64::from(a.exp >> 15) << (bits + ebits - 1);
    let top = (1u64 << ebits) - 1;
    let bias = (1i32 << (ebits - 1)) - 1;
    let fraction_bits = bits - 1;
    let infinite = top << fraction_bits;
    match kind(a) {
        Kind::Zero => (sign, 0),
        Kind::Inf => (sign | infinite, 0),
        Kind::Unsupported => (1 << (bits + ebits - 1) | infinite | 1 << (bits - 2), IE),
        k @ (Kind::Quiet | Kind::Signaling) => {
            let payload = (a.mant | QUIET) << 1 >> (65 - bits);
            (sign | infinite | payload, if k == Kind::Signaling { IE } else { 0 })
        }
        Kind::Finite => {
            let (exp, m) = parts(a);
            let (mut mant, inexact, up) = round_significand(a.exp, m, 0, bits, cw);
            let mut e = exp - BIAS + bias;
            let unrounded = e;
            if mant & J == 0 {
                mant = J;
                e += 1;
            }
            let sw = if inexact { PE } else { 0 } | if up { C1 } else { 0 };
            if e >= top as i32 {
                if cw & OE == 0 {
                    return (0, OE);
                }
                let to_infinity = match cw & RC {
                    RC_NEAREST => true,
                    RC_DOWN => sign != 0,
                    RC_UP => sign == 0,
                    _ => false,
                };
                return if to_infinity {
                    (sign | infinite, OE | PE | C1)
                } else {
                    (sign | (infinite - 1), OE | PE)
                };
            }
            if e > 0 {
                return (sign | (e as u64) << fraction_bits | (mant << 1 >> (65 - bits)), sw);
            }
            if cw & UE == 0 {
                return (0, UE);
            }
            let (hi, lo) = shift_right_jam(m, 0, (1 - unrounded).min(128) as u32);
            let (mant, inexact, up) = round_significand(a.exp, hi, lo, bits, cw);
            let sw = if inexact { UE | PE } else { 0 } | if up { C1 } else { 0 };
            // A carry into the integer bit is the exponent 1.
            (sign | mant >> (64 - bits), sw)
        }
    }
}

/// To a signed integer of `bits` bits, rounding as `cw` says: two's complement, sign-extended; the integer
/// indefinite with IE if it does not fit.
#[inline(always)]
pub fn to_int(cw: u16, a: F80, bits: u32) -> (u64, u16) {
    let indefinite = (-1i64 << (bits - 1)) as u64;
    match kind(a) {
        Kind::Zero => (0, 0),
        Kind::Finite => {
            let Some((m, sw)) = magnitude(cw, a) else {
                return (indefinite, IE);
            };
            let negative = a.exp & 0x8000 != 0;
            let limit = 1u64 << (bits - 1);
            if m > limit || (m == limit && !negative) {
                return (indefinite, IE);
            }
            (if negative { m.wrapping_neg() } else { m }, sw)
        }
        _ => (indefinite, IE),
    }
}

/// The magnitude of a finite number rounded to an integer, with PE and C1; `None` from 2^64 on.
fn magnitude(cw: u16, a: F80) -> Option<(u64, u16)> {
    let (e, m) = parts(a);
    if e > BIAS + 63 {
        return None;
    }
    let (hi, lo) = shift_right_jam(m, 0, (BIAS + 63 - e).min(128) as u32);
    let (int, inexact, up) = round_significand(a.exp, hi, lo, 64, cw);
    if up && int == 0 {
        return None;
    }
    Some((int, if inexact { PE } else { 0 } | if up { C1 } else { 0 }))
}

/// 18 packed decimal digits and a sign. Digits above 9 count as what they are worth (the manual leaves them
/// undefined).
pub fn from_bcd(b: &[u8; 10]) -> F80 {
    let mut v = 0u64;
    for &x in b[..9].iter().rev() {
        v = v.wrapping_mul(100).wrapping_add(u64::from(x >> 4) * 10 + u64::from(x & 15));
    }
    let mut r = from_int(v as i64);
    r.exp |= u16::from(b[9] & 0x80) << 8;
    r
}

/// To packed decimal.
pub fn to_bcd(cw: u16, a: F80) -> ([u8; 10], u16) {
    const INDEFINITE_BCD: [u8; 10] = [0, 0, 0, 0, 0, 0, 0, 0xc0, 0xff, 0xff];
    let sign = (a.exp >> 8) as u8 & 0x80;
    let (mut v, sw) = match kind(a) {
        Kind::Zero => (0, 0),
        Kind::Finite => match magnitude(cw, a) {
            Some((m, sw)) if m < 1_000_000_000_000_000_000 => (m, sw),
            _ => return (INDEFINITE_BCD, IE),
        },
        _ => return (INDEFINITE_BCD, IE),
    };
    let mut b = [0; 10];
    for x in &mut b[..9] {
        let two = (v % 100) as u8;
        *x = ((two / 10) << 4) | (two % 10);
        v /= 100;
    }
    b[9] = sign;
    (b, sw)
}

/// Compares: C3, C2, C0 as FCOM sets them, with IE and DE. `quiet`: a QNaN is not invalid (FUCOM).
#[inline(always)]
pub fn compare(a: F80, b: F80, quiet: bool) -> u16 {
    if !is_number(a) || !is_number(b) {
        let bad = |x: F80| match kind(x) {
            Kind::Signaling | Kind::Unsupported => true,
            Kind::Quiet => !quiet,
            _ => false,
        };
        return C0 | C2 | C3 | if bad(a) || bad(b) { IE } else { 0 };
    }
    let de = denormals(a, b);
    let key = |x: F80| -> i128 {
        // A pseudo-denormal has the value of exponent 1.
        let e = if is_denormal(x) && x.mant & J != 0 { 1 } else { x.exp & 0x7fff };
        let m = i128::from(e) << 64 | i128::from(x.mant);
        if x.exp & 0x8000 != 0 { -m } else { m }
    };
    de | match key(a).cmp(&key(b)) {
        std::cmp::Ordering::Greater => 0,
        std::cmp::Ordering::Less => C0,
        std::cmp::Ordering::Equal => C3,
    }
}
