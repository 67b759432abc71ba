//! Binary floating point with 128 bits of significand and no limits of exponent: the workspace of the
//! elementary functions. Each operation truncates, so its error is below 2^-126 of the result.
use super::{BIAS, Out, parts, round};
use crate::state::F80;
use std::cmp::Ordering;

/// +-`mant` x 2^(`exp` - 127); the top bit of `mant` is set, or all of it is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wide {
    /// Negative.
    pub neg: bool,
    /// Exponent of the significand read as 1.x.
    pub exp: i32,
    /// Significand.
    pub mant: u128,
}

impl Wide {
    /// 0.
    pub const ZERO: Self = Self { neg: false, exp: 0, mant: 0 };
    /// 1.
    pub const ONE: Self = Self { neg: false, exp: 0, mant: 1 << 127 };
    /// Pi.
    pub const PI: Self = Self { neg: false, exp: 1, mant: 0xc90f_daa2_2168_c234_c4c6_628b_80dc_1cd1 };
    /// The natural logarithm of 2.
    pub const LN2: Self = Self { neg: false, exp: -1, mant: 0xb172_17f7_d1cf_79ab_c9e3_b398_03f2_f6af };
    /// The square root of 2, its first bits: where logarithms split their range.
    pub const SQRT2: u128 = 0xb504_f333_f9de_6484_597d_89b3_754a_be9f;

    /// Normalises.
    pub fn new(neg: bool, exp: i32, mant: u128) -> Self {
        if mant == 0 {
            return Self::ZERO;
        }
        let n = mant.leading_zeros();
        Self { neg, exp: exp - n as i32, mant: mant << n }
    }
    /// A finite extended number.
    pub fn of(x: F80) -> Self {
        if x.mant == 0 {
            return Self { neg: x.exp & 0x8000 != 0, ..Self::ZERO };
        }
        let (e, m) = parts(x);
        Self { neg: x.exp & 0x8000 != 0, exp: e - BIAS, mant: u128::from(m) << 64 }
    }
    /// An integer.
    pub fn int(v: i32) -> Self {
        Self::new(v < 0, 127, u128::from(v.unsigned_abs()))
    }
    /// Whether it is zero.
    pub fn is_zero(&self) -> bool {
        self.mant == 0
    }
    /// The magnitude.
    pub fn abs(self) -> Self {
        Self { neg: false, ..self }
    }
    /// The negative.
    pub fn negate(self) -> Self {
        Self { neg: !self.neg, ..self }
    }
    /// Times 2^n.
    pub fn scaled(self, n: i32) -> Self {
        Self { exp: self.exp + n, ..self }
    }
    /// Compares magnitudes.
    pub fn cmp_abs(&self, o: &Self) -> Ordering {
        match (self.mant, o.mant) {
            (0, 0) => Ordering::Equal,
            (0, _) => Ordering::Less,
            (_, 0) => Ordering::Greater,
            (a, b) => self.exp.cmp(&o.exp).then(a.cmp(&b)),
        }
    }

    /// Sum.
    pub fn plus(self, o: Self) -> Self {
        let (a, b) = if self.cmp_abs(&o) == Ordering::Less { (o, self) } else { (self, o) };
        if b.mant == 0 {
            return a;
        }
        let d = a.exp - b.exp;
        let small = if d > 127 { 0 } else { b.mant >> d };
        if a.neg == b.neg {
            let (sum, carry) = a.mant.overflowing_add(small);
            return if carry {
                Self { mant: sum >> 1 | 1 << 127, exp: a.exp + 1, ..a }
            } else {
                Self { mant: sum, ..a }
            };
        }
        Self::new(a.neg, a.exp, a.mant - small)
    }
    /// Difference.
    pub fn minus(self, o: Self) -> Self {
        self.plus(o.negate())
    }
    /// Product.
    pub fn times(self, o: Self) -> Self {
        if self.mant == 0 || o.mant == 0 {
            return Self::ZERO;
        }
        let (ah, al) = (self.mant >> 64, self.mant & u128::from(u64::MAX));
        let (bh, bl) = (o.mant >> 64, o.mant & u128::from(u64::MAX));
        let low = (al * bl) >> 64;
        let (m1, m2) = (ah * bl, al * bh);
        let middle = low + (m1 & u128::from(u64::MAX)) + (m2 & u128::from(u64::MAX));
        let high = ah * bh + (m1 >> 64) + (m2 >> 64) + (middle >> 64);
        let neg = self.neg != o.neg;
        let exp = self.exp + o.exp + 1;
        if high >> 127 != 0 {
            Self { neg, exp, mant: high }
        } else {
            Self { neg, exp: exp - 1, mant: high << 1 | (middle >> 63 & 1) }
        }
    }
    /// Quotient; `o` is not zero.
    pub fn over(self, o: Self) -> Self {
        if self.mant == 0 || o.mant == 0 {
            return Self::ZERO;
        }
        let neg = self.neg != o.neg;
        let mut exp = self.exp - o.exp;
        let mut rest = self.mant;
        let mut carry = false;
        if rest < o.mant {
            exp -= 1;
            carry = true;
            rest <<= 1;
        }
        let mut q = 0u128;
        for _ in 0..128 {
            q <<= 1;
            if carry || rest >= o.mant {
                rest = rest.wrapping_sub(o.mant);
                q |= 1;
            }
            carry = rest >> 127 != 0;
            rest <<= 1;
        }
        Self { neg, exp, mant: q }
    }
    /// Quotient by a small integer.
    pub fn div_int(self, d: u32) -> Self {
        let d = u128::from(d.max(1));
        let low = u128::from(u64::MAX);
        let (hi, lo) = (self.mant >> 64, self.mant & low);
        let (q1, r1) = (hi / d, hi % d);
        let t = r1 << 64 | lo;
        let (q2, r2) = (t / d, t % d);
        let q3 = (r2 << 64) / d;
        // q1:q2:q3 in digits of 64 bits.
        let top = q1 << 64 | q2;
        let n = top.leading_zeros();
        if n == 0 || top == 0 {
            return Self { mant: top, ..self };
        }
        Self { neg: self.neg, exp: self.exp - n as i32, mant: top << n | (q3 << 64 >> (128 - n)) }
    }
    /// Square root of a positive number.
    pub fn sqrt(self) -> Self {
        if self.mant == 0 {
            return self;
        }
        let odd = self.exp & 1;
        // 64 bits exactly, then one step of Newton's iteration doubles them.
        let root = if odd == 0 { self.mant >> 1 } else { self.mant }.isqrt();
        let first = Self::new(false, self.exp >> 1, root << 64);
        let first = if odd == 0 && root >> 63 == 0 { first.scaled(1) } else { first };
        first.plus(self.over(first)).scaled(-1)
    }

    /// The next number towards zero, for what lies below this one by less than 128 bits can tell: rounding must know
    /// on which side. Zero stays.
    pub fn below(self) -> Self {
        match self.mant {
            0 => self,
            0x8000_0000_0000_0000_0000_0000_0000_0000 => Self { exp: self.exp - 1, mant: !0, ..self },
            m => Self { mant: m - 1, ..self },
        }
    }

    /// The extended number, rounded as `cw` says and marked inexact.
    pub fn out(self, cw: u16) -> Out {
        if self.mant == 0 {
            return super::exact(super::zero(if self.neg { 0x8000 } else { 0 }));
        }
        let sign = if self.neg { 0x8000 } else { 0 };
        let exp = self.exp.saturating_add(BIAS).clamp(-200_000, 200_000);
        round(sign, exp, (self.mant >> 64) as u64, self.mant as u64 | 1, 64, cw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: Wide, b: Wide) -> bool {
        let d = a.minus(b);
        d.is_zero() || a.exp - d.exp > 122
    }

    #[test]
    fn division_undoes_multiplication() {
        let mut x = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835_u128;
        for i in 0..200 {
            x = x.wrapping_mul(0xda94_2042_e4dd_58b5).rotate_left(37) ^ i;
            let a = Wide::new(i & 1 != 0, i as i32 - 100, x);
            let b = Wide::new(i & 2 != 0, 7, x.rotate_left(61));
            assert!(near(a.times(b).over(b), a));
            assert!(near(a.div_int(77).times(Wide::int(77)), a));
        }
    }

    #[test]
    fn square_root_squared_is_the_number() {
        let mut x = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835_u128;
        for i in 0..200 {
            x = x.wrapping_mul(0xda94_2042_e4dd_58b5).rotate_left(37) ^ i;
            let a = Wide::new(false, i as i32 - 100, x);
            let r = a.sqrt();
            assert!(near(r.times(r), a), "{a:x?} {r:x?}");
        }
        assert!(near(Wide::int(4).sqrt(), Wide::int(2)));
    }
}
