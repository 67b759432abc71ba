//! Addition to square root, remainder, scaling, rounding to integer.
use super::*;

/// The value, with DE added; under an unmasked DE only DE (nothing is computed then).
#[inline(always)]
fn with_denormal(cw: u16, de: u16, f: impl FnOnce() -> Out) -> Out {
    if de & !cw != 0 {
        return Out { v: INDEFINITE, sw: DE };
    }
    let mut r = f();
    r.sw |= de;
    r
}

/// a + b.
#[inline(always)]
pub fn add(cw: u16, a: F80, b: F80) -> Out {
    if both_normal(a, b) {
        return add_finite(cw, a, b);
    }
    add_special(cw, a, b)
}

/// a - b.
#[inline(always)]
pub fn sub(cw: u16, a: F80, b: F80) -> Out {
    let negated = F80 { exp: b.exp ^ 0x8000, ..b };
    if both_normal(a, b) {
        return add_finite(cw, a, negated);
    }
    if !is_number(a) || !is_number(b) {
        return nan2(a, b);
    }
    add_special(cw, a, negated)
}

#[cold]
fn add_special(cw: u16, a: F80, b: F80) -> Out {
    use Kind::{Inf, Zero};
    match (kind(a), kind(b)) {
        _ if !is_number(a) || !is_number(b) => nan2(a, b),
        (Inf, Inf) if (a.exp ^ b.exp) & 0x8000 != 0 => invalid(),
        (Inf, _) => with_denormal(cw, denormals(a, b), || exact(a)),
        (_, Inf) => with_denormal(cw, denormals(a, b), || exact(b)),
        (Zero, Zero) if a.exp == b.exp => exact(a),
        (Zero, Zero) => exact(cancelled(cw)),
        (Zero, _) => with_denormal(cw, denormals(b, b), || again(cw, b)),
        (_, Zero) => with_denormal(cw, denormals(a, a), || again(cw, a)),
        _ => with_denormal(cw, denormals(a, b), || add_finite(cw, a, b)),
    }
}

/// A finite number, rounded to the precision in effect.
fn again(cw: u16, a: F80) -> Out {
    let (e, m) = parts(a);
    round(a.exp, e, m, 0, precision(cw), cw)
}

/// The zero that x - x gives.
fn cancelled(cw: u16) -> F80 {
    zero(if cw & RC == RC_DOWN { 0x8000 } else { 0 })
}

#[inline(always)]
fn add_finite(cw: u16, a: F80, b: F80) -> Out {
    let (ea, ma) = parts(a);
    let (eb, mb) = parts(b);
    let ((ea, ma, sa), (eb, mb)) =
        if ea >= eb { ((ea, ma, a.exp), (eb, mb)) } else { ((eb, mb, b.exp), (ea, ma)) };
    let d = (ea - eb) as u32;
    let large = u128::from(ma) << 63;
    let small = u128::from(mb) << 63;
    let small = if d >= 127 { 1 } else { small >> d | u128::from(small & ((1u128 << d) - 1) != 0) };
    let (sign, sum) = if (a.exp ^ b.exp) & 0x8000 == 0 {
        (sa, large + small)
    } else if large >= small {
        (sa, large - small)
    } else {
        (sa ^ 0x8000, small - large)
    };
    if sum == 0 {
        return exact(cancelled(cw));
    }
    let n = sum.leading_zeros();
    let sum = sum << n;
    round(sign, ea + 1 - n as i32, (sum >> 64) as u64, sum as u64, precision(cw), cw)
}

/// a x b.
#[inline(always)]
pub fn mul(cw: u16, a: F80, b: F80) -> Out {
    if both_normal(a, b) {
        return mul_finite(cw, a, b);
    }
    mul_special(cw, a, b)
}

#[cold]
fn mul_special(cw: u16, a: F80, b: F80) -> Out {
    use Kind::{Inf, Zero};
    let sign = a.exp ^ b.exp;
    let de = denormals(a, b);
    match (kind(a), kind(b)) {
        _ if !is_number(a) || !is_number(b) => nan2(a, b),
        (Inf, Zero) | (Zero, Inf) => invalid(),
        (Inf, _) | (_, Inf) => with_denormal(cw, de, || exact(infinity(sign))),
        (Zero, _) | (_, Zero) => with_denormal(cw, de, || exact(zero(sign))),
        _ => with_denormal(cw, de, || mul_finite(cw, a, b)),
    }
}

#[inline(always)]
fn mul_finite(cw: u16, a: F80, b: F80) -> Out {
    let (ea, ma) = parts(a);
    let (eb, mb) = parts(b);
    let p = u128::from(ma) * u128::from(mb);
    let n = p.leading_zeros();
    let p = p << n;
    round(a.exp ^ b.exp, ea + eb - BIAS + 1 - n as i32, (p >> 64) as u64, p as u64, precision(cw), cw)
}

/// a / b.
pub fn div(cw: u16, a: F80, b: F80) -> Out {
    if both_normal(a, b) {
        return div_finite(cw, a, b);
    }
    use Kind::{Finite, Inf, Zero};
    let sign = a.exp ^ b.exp;
    let de = denormals(a, b);
    match (kind(a), kind(b)) {
        _ if !is_number(a) || !is_number(b) => nan2(a, b),
        (Inf, Inf) | (Zero, Zero) => invalid(),
        (Finite, Zero) => Out { v: infinity(sign), sw: ZE },
        (Inf, _) => with_denormal(cw, de, || exact(infinity(sign))),
        (_, Inf) | (Zero, _) => with_denormal(cw, de, || exact(zero(sign))),
        _ => with_denormal(cw, de, || div_finite(cw, a, b)),
    }
}

fn div_finite(cw: u16, a: F80, b: F80) -> Out {
    let (ea, ma) = parts(a);
    let (eb, mb) = parts(b);
    let (shift, e) = if ma >= mb { (63, ea - eb + BIAS) } else { (64, ea - eb + BIAS - 1) };
    let n = u128::from(ma) << shift;
    let d = u128::from(mb);
    let q = (n / d) as u64;
    let r = n - u128::from(q) * d;
    // Only how the rest compares with one half counts.
    let lo = match (r << 1).cmp(&d) {
        std::cmp::Ordering::Less => u64::from(r != 0),
        std::cmp::Ordering::Equal => 1 << 63,
        std::cmp::Ordering::Greater => 1 << 63 | 1,
    };
    round(a.exp ^ b.exp, e, q, lo, precision(cw), cw)
}

/// The square root.
pub fn sqrt(cw: u16, a: F80) -> Out {
    match kind(a) {
        Kind::Zero => exact(a),
        Kind::Quiet | Kind::Signaling | Kind::Unsupported => nan1(a),
        _ if a.exp & 0x8000 != 0 => invalid(),
        Kind::Inf => exact(a),
        Kind::Finite => with_denormal(cw, denormals(a, a), || {
            let (e, m) = parts(a);
            // m x 2^(e - bias - 63) = n x 2^2k with n of 127 or 128 bits.
            let odd = (e - BIAS) & 1 != 0;
            let n = u128::from(m) << if odd { 64 } else { 63 };
            let root = root(n);
            let rest = n - u128::from(root) * u128::from(root);
            let lo = match rest {
                0 => 0,
                r if r > u128::from(root) => 1 << 63 | 1,
                _ => 1,
            };
            round(0, ((e - BIAS) >> 1) + BIAS, root, lo, precision(cw), cw)
        }),
    }
}

/// The integer square root of a number of 127 or 128 bits.
fn root(n: u128) -> u64 {
    // The host's double has 53 bits of it, one step of Newton's iteration all but the last one or two.
    let first = ((n >> 64) as f64).sqrt() * 4_294_967_296.0;
    let first = u128::from(first as u64 | 1 << 63);
    let mut r = (first + n / first) >> 1;
    while r > u128::from(u64::MAX) || r * r > n {
        r -= 1;
    }
    while r < u128::from(u64::MAX) && (r + 1) * (r + 1) <= n {
        r += 1;
    }
    r as u64
}

/// ST(0) rounded to an integer as RC says.
pub fn rint(cw: u16, a: F80) -> Out {
    match kind(a) {
        Kind::Zero | Kind::Inf => exact(a),
        Kind::Finite => with_denormal(cw, denormals(a, a), || {
            let (e, m) = parts(a);
            if e >= BIAS + 63 {
                return exact(a);
            }
            let (hi, lo) = shift_right_jam(m, 0, (BIAS + 63 - e).min(128) as u32);
            let (int, inexact, up) = round_significand(a.exp, hi, lo, 64, cw);
            let sw = if inexact { PE } else { 0 } | if up { C1 } else { 0 };
            let v = if int == 0 {
                zero(a.exp)
            } else {
                let n = int.leading_zeros();
                F80 { mant: int << n, exp: (BIAS + 63 - n as i32) as u16 | a.exp & 0x8000 }
            };
            Out { v, sw }
        }),
        _ => nan1(a),
    }
}

/// a x 2^trunc(b).
pub fn scale(cw: u16, a: F80, b: F80) -> Out {
    use Kind::{Inf, Zero};
    let de = denormals(a, b);
    let up = b.exp & 0x8000 == 0;
    match (kind(a), kind(b)) {
        _ if !is_number(a) || !is_number(b) => nan2(a, b),
        (Zero, Inf) if up => invalid(),
        (Inf, Inf) if !up => invalid(),
        (_, Inf) => with_denormal(cw, de, || exact(if up { infinity(a.exp) } else { zero(a.exp) })),
        (Zero | Inf, _) => with_denormal(cw, de, || exact(a)),
        (_, Zero) => with_denormal(cw, de, || {
            let (e, m) = parts(a);
            round(a.exp, e, m, 0, 64, cw)
        }),
        _ => with_denormal(cw, de, || {
            let (eb, mb) = parts(b);
            // Beyond 2^16 everything over- or underflows even with a wrapped exponent.
            let n = match eb - BIAS {
                x if x < 0 => 0,
                x if x > 16 => 1 << 17,
                x => (mb >> (63 - x)) as i32,
            };
            let (e, m) = parts(a);
            round(a.exp, if up { e + n } else { e - n }, m, 0, 64, cw)
        }),
    }
}

/// FXTRACT: `a` is the exponent, `b` the significand.
pub fn extract(cw: u16, a: F80) -> Wide2 {
    let two = |x: F80, y: F80, sw| Wide2 { a: x, b: y, count: Count::Two, sw };
    match kind(a) {
        Kind::Zero => two(infinity(0x8000), a, ZE),
        Kind::Inf => two(infinity(0), a, 0),
        Kind::Finite => {
            let (e, m) = parts(a);
            let e = e - BIAS;
            let n = e.unsigned_abs();
            let exponent = if n == 0 {
                zero(0)
            } else {
                let lz = u64::from(n).leading_zeros();
                let sign = if e < 0 { 0x8000 } else { 0 };
                F80 { mant: u64::from(n) << lz, exp: (BIAS + 63 - lz as i32) as u16 | sign }
            };
            two(
                exponent,
                F80 { mant: m, exp: BIAS as u16 | a.exp & 0x8000 },
                denormals(a, a) & if cw & DE == 0 { DE } else { !0 },
            )
        }
        _ => {
            let r = nan1(a);
            two(r.v, r.v, r.sw)
        }
    }
}

/// FPREM (quotient truncated) and FPREM1 (`nearest`: rounded to nearest): remainder, and C0, C3, C1 with the
/// quotient's low bits, or C2 if the reduction is incomplete.
pub fn rem(cw: u16, a: F80, b: F80, nearest: bool) -> Out {
    use Kind::{Inf, Zero};
    let de = denormals(a, b);
    match (kind(a), kind(b)) {
        _ if !is_number(a) || !is_number(b) => nan2(a, b),
        (Inf, _) | (_, Zero) => invalid(),
        (Zero, _) => with_denormal(cw, de, || exact(a)),
        (_, Inf) => with_denormal(cw, de, || {
            let (e, m) = parts(a);
            round(a.exp, e, m, 0, 64, cw)
        }),
        _ => with_denormal(cw, de, || rem_finite(cw, a, b, nearest)),
    }
}

fn rem_finite(cw: u16, a: F80, b: F80, nearest: bool) -> Out {
    let (ea, ma) = parts(a);
    let (eb, mb) = parts(b);
    let d = ea - eb;
    if d >= 64 {
        // Partial: the manual leaves open how much (32 to 63 bits); the exponents' difference becomes a
        // multiple of 32, at least 32 less.
        let n = (d & 31) + 32;
        let left = (u128::from(ma) << n) % u128::from(mb);
        let r = pack_rest(cw, a.exp, eb + d - n, left);
        return Out { sw: r.sw | C2, ..r };
    }
    let mut sign = a.exp;
    let (mut q, mut left, mut e) = (0u64, u128::from(ma), ea);
    if d >= 0 {
        let n = u128::from(ma) << d;
        q = (n / u128::from(mb)) as u64;
        (left, e) = (n - u128::from(q) * u128::from(mb), eb);
    }
    if nearest && d >= -1 {
        // Twice the rest against the divisor, both in units of the rest.
        let divisor = if d >= 0 { u128::from(mb) } else { u128::from(mb) << 1 };
        let twice = left << 1;
        if twice > divisor || (twice == divisor && q & 1 != 0) {
            q = q.wrapping_add(1);
            left = divisor - left;
            sign ^= 0x8000;
        }
    }
    let r = pack_rest(cw, sign, e, left);
    let v = if left == 0 { zero(a.exp) } else { r.v };
    let bits =
        if q & 4 != 0 { C0 } else { 0 } | if q & 2 != 0 { C3 } else { 0 } | if q & 1 != 0 { C1 } else { 0 };
    Out { v, sw: r.sw | bits }
}

/// `m` x 2^(`e` - bias - 63), which needs no rounding but may be tiny.
fn pack_rest(cw: u16, sign: u16, e: i32, m: u128) -> Out {
    if m == 0 {
        return exact(zero(sign));
    }
    let n = m.leading_zeros();
    let m = m << n;
    round(sign, e + 64 - n as i32, (m >> 64) as u64, m as u64, 64, cw)
}
