//! F2XM1, FYL2X, FYL2XP1, FPATAN, FSIN, FCOS, FSINCOS, FPTAN in software.
//!
//! Range reduction, then a power series with 128-bit significands. The chip's own results differ in the last
//! place now and then, among makers too (the manual promises less than one unit). Trigonometry reduces by the
//! 66-bit pi of SDM volume 1, 8.3.8, as the chip does.
use super::wide::Wide;
use super::*;
use std::cmp::Ordering;

/// DE, and whether it ends the operation.
fn denormal(cw: u16, a: F80, b: F80) -> Result<u16, Out> {
    let de = denormals(a, b);
    if de & !cw != 0 { Err(Out { v: INDEFINITE, sw: DE }) } else { Ok(de) }
}

fn one(sign: u16) -> F80 {
    F80 { mant: J, exp: BIAS as u16 | sign & 0x8000 }
}

// ---- exponential
// ---------------------------------------------------------------------------------------------------

/// e^y - 1 for |y| < 0.7.
fn expm1(y: Wide) -> Wide {
    let mut s = Wide::ONE;
    for n in (2..=36).rev() {
        s = Wide::ONE.plus(y.times(s).div_int(n));
    }
    y.times(s)
}

/// F2XM1: 2^a - 1. Beyond -1...+1, where the manual leaves it undefined, it is that all the same.
pub fn f2xm1(cw: u16, a: F80) -> Out {
    match kind(a) {
        Kind::Zero => return exact(a),
        Kind::Inf if a.exp & 0x8000 != 0 => return exact(one(0x8000)),
        Kind::Inf => return exact(a),
        Kind::Finite => {}
        _ => return nan1(a),
    }
    let de = match denormal(cw, a, a) {
        Ok(x) => x,
        Err(o) => return o,
    };
    if a.exp & 0x7fff == BIAS as u16 && a.mant == J {
        let half = F80 { mant: J, exp: (BIAS - 1) as u16 | 0x8000 };
        return exact(if a.exp & 0x8000 != 0 { half } else { one(0) });
    }
    let x = Wide::of(a);
    let r = if x.exp < 0 {
        expm1(x.times(Wide::LN2))
    } else if x.exp >= 15 {
        // 2^32768 or -1.
        if x.neg { Wide::ONE.negate() } else { Wide::ONE.scaled(1 << 17) }
    } else {
        let k = (x.mant >> (127 - x.exp)) as i32;
        let k = if x.neg { -k } else { k };
        let f = x.minus(Wide::int(k));
        expm1(f.times(Wide::LN2)).plus(Wide::ONE).scaled(k).minus(Wide::ONE)
    };
    let mut o = r.out(cw);
    o.sw |= de;
    o
}

// ---- logarithm
// -----------------------------------------------------------------------------------------------------

/// ln((1 + z) / (1 - z)) = 2 atanh(z) for |z| < 0.18.
fn ln_ratio(z: Wide) -> Wide {
    let zz = z.times(z);
    let mut s = Wide::ZERO;
    for n in (0..=28u32).rev() {
        s = s.times(zz).plus(Wide::ONE.div_int(2 * n + 1));
    }
    s.times(z).scaled(1)
}

/// log2(x) of a positive number.
fn log2(x: Wide) -> Wide {
    let (mut k, mut m) = (x.exp, Wide { exp: 0, ..x });
    if m.mant > Wide::SQRT2 {
        k += 1;
        m.exp = -1;
    }
    let z = m.minus(Wide::ONE).over(m.plus(Wide::ONE));
    Wide::int(k).plus(ln_ratio(z).over(Wide::LN2))
}

/// FYL2X: b x log2(a).
pub fn fyl2x(cw: u16, a: F80, b: F80) -> Out {
    if !is_number(a) || !is_number(b) {
        return nan2(a, b);
    }
    let (ka, kb) = (kind(a), kind(b));
    if a.exp & 0x8000 != 0 && ka != Kind::Zero {
        return invalid();
    }
    let is_one = a == one(0);
    let above = a.exp >= BIAS as u16; // log2(a) >= 0
    let sign = if above { b.exp } else { b.exp ^ 0x8000 };
    match (ka, kb) {
        (Kind::Zero, Kind::Zero) | (Kind::Inf, Kind::Zero) => return invalid(),
        (Kind::Zero, Kind::Finite) => return Out { v: infinity(b.exp ^ 0x8000), sw: ZE },
        (Kind::Zero, _) => return exact(infinity(b.exp ^ 0x8000)),
        (_, Kind::Inf) if is_one => return invalid(),
        _ => {}
    }
    let de = match denormal(cw, a, b) {
        Ok(x) => x,
        Err(o) => return o,
    };
    let mut o = match (ka, kb) {
        (Kind::Inf, _) => exact(infinity(b.exp)),
        (_, Kind::Inf) => exact(infinity(sign)),
        (_, Kind::Zero) => exact(zero(sign)),
        _ if is_one => exact(zero(b.exp)),
        _ => {
            let (e, m) = parts(a);
            if m == J {
                // A power of two: a product of two exact numbers.
                basic::mul(cw | PC, b, convert::from_int(i64::from(e - BIAS)))
            } else {
                Wide::of(b).times(log2(Wide::of(a))).out(cw)
            }
        }
    };
    o.sw |= de;
    o
}

/// FYL2XP1: b x log2(a + 1). Beyond the range in which the manual defines it, it is that as long as a > -1.
pub fn fyl2xp1(cw: u16, a: F80, b: F80) -> Out {
    if !is_number(a) || !is_number(b) {
        return nan2(a, b);
    }
    let (ka, kb) = (kind(a), kind(b));
    let x = Wide::of(if ka == Kind::Finite { a } else { F80::default() });
    if a.exp & 0x8000 != 0 && (ka == Kind::Inf || x.exp >= 0 && !x.is_zero()) {
        return invalid();
    }
    match (ka, kb) {
        (Kind::Zero, Kind::Inf) | (Kind::Inf, Kind::Zero) => return invalid(),
        _ => {}
    }
    let de = match denormal(cw, a, b) {
        Ok(x) => x,
        Err(o) => return o,
    };
    let sign = a.exp ^ b.exp;
    let mut o = match (ka, kb) {
        (Kind::Inf, _) | (_, Kind::Inf) => exact(infinity(sign)),
        (Kind::Zero, _) | (_, Kind::Zero) => exact(zero(sign)),
        _ => {
            let log = if x.exp < -2 {
                ln_ratio(x.over(x.plus(Wide::int(2)))).over(Wide::LN2)
            } else {
                log2(x.plus(Wide::ONE))
            };
            Wide::of(b).times(log).out(cw)
        }
    };
    o.sw |= de;
    o
}

// ---- arctangent
// ----------------------------------------------------------------------------------------------------

/// arctan(t) for 0 <= t <= 1.
fn arctan(t: Wide) -> Wide {
    if t.exp < -64 {
        return t.below();
    }
    if t.is_zero() {
        return t;
    }
    // arctan(t) = 2 arctan(t / (1 + sqrt(1 + t^2))), twice: t below 0.2.
    let halve = |t: Wide| t.over(Wide::ONE.plus(Wide::ONE.plus(t.times(t)).sqrt()));
    let u = halve(halve(t));
    let uu = u.times(u).negate();
    let mut s = Wide::ZERO;
    for n in (0..=28u32).rev() {
        s = s.times(uu).plus(Wide::ONE.div_int(2 * n + 1));
    }
    s.times(u).scaled(2)
}

/// FPATAN: the angle of the point (a, b) = (ST(0), ST(1)).
pub fn fpatan(cw: u16, a: F80, b: F80) -> Out {
    if !is_number(a) || !is_number(b) {
        return nan2(a, b);
    }
    let de = match denormal(cw, a, b) {
        Ok(x) => x,
        Err(o) => return o,
    };
    let (ka, kb) = (kind(a), kind(b));
    let left = a.exp & 0x8000 != 0;
    let neg = b.exp & 0x8000 != 0;
    let angle = match (ka, kb) {
        (Kind::Inf, Kind::Inf) => {
            let quarter = Wide::PI.scaled(-2);
            if left { Wide::PI.minus(quarter) } else { quarter }
        }
        (_, Kind::Inf) => Wide::PI.scaled(-1),
        (_, Kind::Zero) | (Kind::Inf, _) => {
            if !left {
                return Out { v: zero(b.exp), sw: de };
            }
            Wide::PI
        }
        (Kind::Zero, _) => Wide::PI.scaled(-1),
        _ => {
            let (x, y) = (Wide::of(a).abs(), Wide::of(b).abs());
            let base = match y.cmp_abs(&x) {
                Ordering::Greater => Wide::PI.scaled(-1).minus(arctan(x.over(y))),
                _ => arctan(y.over(x)),
            };
            if left { Wide::PI.minus(base) } else { base }
        }
    };
    let mut o = Wide { neg, ..angle }.out(cw);
    o.sw |= de;
    o
}

// ---- sine, cosine, tangent
// -------------------------------------------------------------------------------------------

/// Pi as the reduction uses it: 66 bits, x 2^-64.
const PI66: u128 = 0x3_243f_6a88_85a3_08d3;

/// Reduces |x| < 2^63 to -pi/4...pi/4 and its octant's axis: x = r + q x pi/2, q modulo 4.
fn reduce(a: F80) -> (Wide, u32) {
    let x = Wide::of(a);
    if x.exp < -1 {
        return (x, 0);
    }
    // In units of 2^-65: |x| = m x 2^s, pi/2 = PI66.
    let (e, m) = parts(a);
    let quarter = PI66;
    let turn = quarter << 2;
    let s = e - BIAS - 63 + 65;
    let mut rest = u128::from(m);
    // What is below the unit, and by how many bits.
    let mut below = (0u128, 0i32);
    if s >= 0 {
        let mut s = s as u32;
        rest %= turn;
        while s > 0 {
            let n = s.min(58);
            rest = (rest << n) % turn;
            s -= n;
        }
    } else {
        below = (rest & ((1 << -s) - 1), -s);
        rest >>= -s;
    }
    let mut q = (rest / quarter) as u32;
    let unit = 127 - 65;
    let mut r = Wide::new(false, unit, rest % quarter).plus(Wide::new(false, unit - below.1, below.0));
    let quarter = Wide::new(false, unit, quarter);
    if r.cmp_abs(&quarter.scaled(-1)) == Ordering::Greater {
        r = r.minus(quarter);
        q += 1;
    }
    if x.neg { (r.negate(), (4 - (q & 3)) & 3) } else { (r, q & 3) }
}

fn sin_series(r: Wide) -> Wide {
    if r.exp < -64 {
        return r.below();
    }
    let rr = r.times(r).negate();
    let mut s = Wide::ONE;
    for n in (1..=18u32).rev() {
        s = Wide::ONE.plus(rr.times(s).div_int(2 * n * (2 * n + 1)));
    }
    r.times(s)
}

fn cos_series(r: Wide) -> Wide {
    if r.exp < -64 {
        return if r.is_zero() { Wide::ONE } else { Wide::ONE.below() };
    }
    let rr = r.times(r).negate();
    let mut s = Wide::ONE;
    for n in (1..=18u32).rev() {
        s = Wide::ONE.plus(rr.times(s).div_int((2 * n - 1) * 2 * n));
    }
    s
}

/// Sine and cosine.
fn sin_cos(a: F80) -> (Wide, Wide) {
    let (r, q) = reduce(a);
    let (s, c) = (sin_series(r), cos_series(r));
    match q {
        0 => (s, c),
        1 => (c, s.negate()),
        2 => (s.negate(), c.negate()),
        _ => (c.negate(), s),
    }
}

/// What the trigonometric instructions do before they compute: `Ok` with DE for a finite operand in range,
/// `Err` with the result.
fn trig(cw: u16, a: F80) -> Result<u16, Out> {
    match kind(a) {
        Kind::Zero => Ok(0),
        Kind::Inf => Err(invalid()),
        Kind::Finite => {
            if i32::from(a.exp & 0x7fff) >= BIAS + 63 {
                return Err(Out { v: a, sw: C2 });
            }
            denormal(cw, a, a)
        }
        _ => Err(nan1(a)),
    }
}

/// FSIN.
pub fn fsin(cw: u16, a: F80) -> Out {
    match trig(cw, a) {
        Err(o) => o,
        Ok(_) if a.mant == 0 => exact(a),
        Ok(de) => {
            let mut o = sin_cos(a).0.out(cw);
            o.sw |= de;
            o
        }
    }
}

/// FCOS.
pub fn fcos(cw: u16, a: F80) -> Out {
    match trig(cw, a) {
        Err(o) => o,
        Ok(_) if a.mant == 0 => exact(one(0)),
        Ok(de) => {
            let mut o = sin_cos(a).1.out(cw);
            o.sw |= de;
            o
        }
    }
}

/// FSINCOS: the sine, then the cosine pushed.
pub fn fsincos(cw: u16, a: F80) -> Wide2 {
    match trig(cw, a) {
        Err(o) if o.sw & C2 != 0 => Wide2 { a, b: a, count: Count::One, sw: C2 },
        Err(o) => Wide2 { a: o.v, b: o.v, count: Count::Two, sw: o.sw },
        Ok(_) if a.mant == 0 => Wide2 { a, b: one(0), count: Count::Two, sw: 0 },
        Ok(de) => {
            let (s, c) = sin_cos(a);
            let (s, c) = (s.out(cw), c.out(cw));
            Wide2 { a: s.v, b: c.v, count: Count::Two, sw: s.sw | c.sw | de }
        }
    }
}

/// FPTAN: the tangent, then 1.0 pushed.
pub fn fptan(cw: u16, a: F80) -> Wide2 {
    match trig(cw, a) {
        Err(o) if o.sw & C2 != 0 => Wide2 { a, b: a, count: Count::One, sw: C2 },
        Err(o) => Wide2 {
            a: o.v,
            b: if o.sw & IE != 0 || !is_number(a) { o.v } else { one(0) },
            count: Count::Two,
            sw: o.sw,
        },
        Ok(_) if a.mant == 0 => Wide2 { a, b: one(0), count: Count::Two, sw: 0 },
        Ok(de) => {
            let (s, c) = sin_cos(a);
            let o = s.over(c).out(cw);
            Wide2 { a: o.v, b: one(0), count: Count::Two, sw: o.sw | de }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_just_below_a_number_is_rounded_from_below_it() {
        let tiny = F80 { mant: J, exp: (BIAS - 80) as u16 };
        let next_down = |x: F80| F80 { mant: !0, exp: x.exp - 1 };
        for (cw, down) in [(0x37f, false), (0x77f, true), (0xb7f, false), (0xf7f, true)] {
            let small = if down { next_down(tiny) } else { tiny };
            let unit = if down { next_down(one(0)) } else { one(0) };
            assert_eq!((fsin(cw, tiny).v, fcos(cw, tiny).v), (small, unit), "{cw:x}");
            assert_eq!((fsincos(cw, tiny).a, fsincos(cw, tiny).b), (small, unit), "{cw:x}");
            assert_eq!(fpatan(cw, one(0), tiny).v, small, "{cw:x}");
            // The tangent lies above.
            let above = if cw == 0xb7f { F80 { mant: J | 1, ..tiny } } else { tiny };
            assert_eq!(fptan(cw, tiny).a, above, "{cw:x}");
        }
    }

    #[test]
    fn the_sine_of_the_least_normal_number_underflows_where_it_is_rounded_down() {
        let least = F80 { mant: J, exp: 1 };
        assert_eq!(fsin(0x37f, least).sw & (UE | PE), PE);
        assert_eq!(fsin(0xf7f, least), Out { v: F80 { mant: J - 1, exp: 0 }, sw: UE | PE });
    }
}
