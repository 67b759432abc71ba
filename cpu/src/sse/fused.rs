//! FMA: multiplication and addition, rounded once (SDM volume 2, VFMADD132PD and its kin; volume 1, 14.5).
//!
//! The three forms of an operation differ in which operands are multiplied: 132 the first and the third, 213 the
//! second and the first, 231 the second and the third. A result that is a NaN comes from the operand that the
//! formula names first.
use super::exec::{FusedOp, VecId};
use super::mxcsr::IE;
use super::soft::{
    Double, Env, Format, Kind, Single, cancelled, daz, invalid, is_nan, is_snan, note_denormals, open, round,
    shift_sticky, signed,
};

/// x * y + z with the signs of product and addend changed if asked for.
pub fn multiply_add<F: Format>(x: u64, y: u64, z: u64, negate: bool, minus: bool, env: &mut Env) -> u64 {
    let (x, y, z) = (daz::<F>(x, env), daz::<F>(y, env), daz::<F>(z, env));
    let all = [x, y, z];
    if all.iter().any(|&v| is_snan::<F>(v)) {
        env.flags |= IE;
    }
    if let Some(&n) = all.iter().find(|&&v| is_nan::<F>(v)) {
        return n | F::QUIET;
    }
    let (p, q, s) = (open::<F>(x), open::<F>(y), open::<F>(z));
    let product_negative = (p.negative != q.negative) != negate;
    let addend_negative = s.negative != minus;
    let product = match (p.kind, q.kind) {
        (Kind::Infinite, Kind::Zero) | (Kind::Zero, Kind::Infinite) => return invalid::<F>(env),
        (Kind::Infinite, _) | (_, Kind::Infinite) => None,
        (Kind::Finite { sig: a, exp: i }, Kind::Finite { sig: b, exp: j }) => {
            Some((u128::from(a) * u128::from(b), i + j))
        }
        _ => Some((0, 0)),
    };
    if product.is_none() && s.kind == Kind::Infinite && product_negative != addend_negative {
        return invalid::<F>(env);
    }
    note_denormals::<F>(&all, env);
    let Some((sig, exp)) = product else {
        return signed::<F>(product_negative, F::INF);
    };
    match s.kind {
        Kind::Infinite => signed::<F>(addend_negative, F::INF),
        Kind::Zero if sig == 0 && product_negative == addend_negative => signed::<F>(product_negative, 0),
        Kind::Zero if sig == 0 => cancelled::<F>(env),
        Kind::Zero => round::<F>(product_negative, sig, exp, env),
        Kind::Finite { sig: c, exp: k } if sig == 0 => round::<F>(addend_negative, c.into(), k, env),
        Kind::Finite { sig: c, exp: k } => {
            sum::<F>((product_negative, sig, exp), (addend_negative, c.into(), k), env)
        }
    }
}

/// The rounded sum of two numbers `sig * 2^exp`, `sig` not zero and below 2^107.
fn sum<F: Format>(a: (bool, u128, i32), b: (bool, u128, i32), env: &mut Env) -> u64 {
    // Both as 256-bit numbers, the greater one's top bit at 254. If the smaller one then loses bits, it is so far
    // below that a sticky lowest bit stands for them, also when it is subtracted.
    let top = |v: (bool, u128, i32)| v.2 + 127 - v.1.leading_zeros() as i32;
    let base = top(a).max(top(b)) - 254;
    let x = Wide::of(a.1, a.2 - base);
    let y = Wide::of(b.1, b.2 - base);
    let (negative, r) = if a.0 == b.0 {
        (a.0, x.add(y))
    } else if x == y {
        return cancelled::<F>(env);
    } else if x > y {
        (a.0, x.sub(y))
    } else {
        (b.0, y.sub(x))
    };
    let (sig, exp) = r.top(base);
    round::<F>(negative, sig, exp, env)
}

/// A number of 256 bits: high and low half.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Wide(u128, u128);

impl Wide {
    /// `sig` shifted to the left by `n` bits, or to the right if that is negative, with a sticky lowest bit.
    fn of(sig: u128, n: i32) -> Self {
        match n {
            ..0 => Self(0, shift_sticky(sig, n.unsigned_abs())),
            0 => Self(0, sig),
            1..128 => Self(sig >> (128 - n), sig << n),
            _ => Self(sig << (n - 128).min(127), 0),
        }
    }
    fn add(self, o: Self) -> Self {
        let (low, carry) = self.1.overflowing_add(o.1);
        Self(self.0.wrapping_add(o.0).wrapping_add(carry.into()), low)
    }
    fn sub(self, o: Self) -> Self {
        let (low, borrow) = self.1.overflowing_sub(o.1);
        Self(self.0.wrapping_sub(o.0).wrapping_sub(borrow.into()), low)
    }
    /// The number times 2^base as `sig * 2^exp`, with a sticky lowest bit.
    fn top(self, base: i32) -> (u128, i32) {
        if self.0 == 0 {
            return (self.1, base);
        }
        let up = self.0.leading_zeros();
        let (high, low) = match up {
            0 => (self.0, self.1),
            _ => (self.0 << up | self.1 >> (128 - up), self.1 << up),
        };
        (high | u128::from(low != 0), base + 128 - up as i32)
    }
}

/// `f` on all lanes; `n` is the lane's number.
fn packed<F: Format>(_: u128, mut f: impl FnMut(usize) -> u64) -> u128 {
    F::fill(&mut f)
}
/// `f` on the lowest lane; the rest of the destination.
fn scalar<F: Format>(a: u128, mut f: impl FnMut(usize) -> u64) -> u128 {
    F::with_low(a, f(0))
}

/// Factor, factor and addend among the operands of form `order`.
fn roles(order: u32, [a, b, c]: [u128; 3]) -> [u128; 3] {
    match order {
        132 => [a, c, b],
        213 => [b, a, c],
        _ => [b, c, a],
    }
}

/// Name, mnemonic, shape, format, form, whether the product is negated, whether the addend is in even and in odd
/// lanes.
macro_rules! fused_ops {
    ($($name:ident, $text:literal, $shape:ident, $format:ident, $order:literal, $negate:literal, $minus:expr;)*) => {$(
        #[doc = concat!("The operation of `", stringify!($name), "`.")]
        pub struct $name;
        impl FusedOp for $name {
            const ID: VecId = VecId::$name;
            #[cfg(target_arch = "x86_64")]
            #[inline(always)]
            unsafe fn host<const FAST: bool>(a: u128, b: u128, c: u128, csr: *mut super::mxcsr::Csr) -> u128 {
                let mut v = super::host::vec(a);
                let (w, x) = (super::host::vec(b), super::host::vec(c));
                super::host::frame!(
                    FAST, csr, concat!($text, " {v}, {w}, {x}"),
                    v = inout(xmm_reg) v, w = in(xmm_reg) w, x = in(xmm_reg) x
                );
                super::host::bits(v)
            }
            fn soft(a: u128, b: u128, c: u128, env: &mut Env) -> u128 {
                let [x, y, z] = roles($order, [a, b, c]);
                $shape::<$format>(a, |n| {
                    let (x, y, z) = ($format::lane(x, n), $format::lane(y, n), $format::lane(z, n));
                    multiply_add::<$format>(x, y, z, $negate, $minus[n & 1], env)
                })
            }
        }
    )*};
}
fused_ops! {
    Vfmadd132ps, "vfmadd132ps", packed, Single, 132, false, [false, false];
    Vfmadd132pd, "vfmadd132pd", packed, Double, 132, false, [false, false];
    Vfmadd132ss, "vfmadd132ss", scalar, Single, 132, false, [false, false];
    Vfmadd132sd, "vfmadd132sd", scalar, Double, 132, false, [false, false];
    Vfmadd213ps, "vfmadd213ps", packed, Single, 213, false, [false, false];
    Vfmadd213pd, "vfmadd213pd", packed, Double, 213, false, [false, false];
    Vfmadd213ss, "vfmadd213ss", scalar, Single, 213, false, [false, false];
    Vfmadd213sd, "vfmadd213sd", scalar, Double, 213, false, [false, false];
    Vfmadd231ps, "vfmadd231ps", packed, Single, 231, false, [false, false];
    Vfmadd231pd, "vfmadd231pd", packed, Double, 231, false, [false, false];
    Vfmadd231ss, "vfmadd231ss", scalar, Single, 231, false, [false, false];
    Vfmadd231sd, "vfmadd231sd", scalar, Double, 231, false, [false, false];
    Vfmsub132ps, "vfmsub132ps", packed, Single, 132, false, [true, true];
    Vfmsub132pd, "vfmsub132pd", packed, Double, 132, false, [true, true];
    Vfmsub132ss, "vfmsub132ss", scalar, Single, 132, false, [true, true];
    Vfmsub132sd, "vfmsub132sd", scalar, Double, 132, false, [true, true];
    Vfmsub213ps, "vfmsub213ps", packed, Single, 213, false, [true, true];
    Vfmsub213pd, "vfmsub213pd", packed, Double, 213, false, [true, true];
    Vfmsub213ss, "vfmsub213ss", scalar, Single, 213, false, [true, true];
    Vfmsub213sd, "vfmsub213sd", scalar, Double, 213, false, [true, true];
    Vfmsub231ps, "vfmsub231ps", packed, Single, 231, false, [true, true];
    Vfmsub231pd, "vfmsub231pd", packed, Double, 231, false, [true, true];
    Vfmsub231ss, "vfmsub231ss", scalar, Single, 231, false, [true, true];
    Vfmsub231sd, "vfmsub231sd", scalar, Double, 231, false, [true, true];
    Vfnmadd132ps, "vfnmadd132ps", packed, Single, 132, true, [false, false];
    Vfnmadd132pd, "vfnmadd132pd", packed, Double, 132, true, [false, false];
    Vfnmadd132ss, "vfnmadd132ss", scalar, Single, 132, true, [false, false];
    Vfnmadd132sd, "vfnmadd132sd", scalar, Double, 132, true, [false, false];
    Vfnmadd213ps, "vfnmadd213ps", packed, Single, 213, true, [false, false];
    Vfnmadd213pd, "vfnmadd213pd", packed, Double, 213, true, [false, false];
    Vfnmadd213ss, "vfnmadd213ss", scalar, Single, 213, true, [false, false];
    Vfnmadd213sd, "vfnmadd213sd", scalar, Double, 213, true, [false, false];
    Vfnmadd231ps, "vfnmadd231ps", packed, Single, 231, true, [false, false];
    Vfnmadd231pd, "vfnmadd231pd", packed, Double, 231, true, [false, false];
    Vfnmadd231ss, "vfnmadd231ss", scalar, Single, 231, true, [false, false];
    Vfnmadd231sd, "vfnmadd231sd", scalar, Double, 231, true, [false, false];
    Vfnmsub132ps, "vfnmsub132ps", packed, Single, 132, true, [true, true];
    Vfnmsub132pd, "vfnmsub132pd", packed, Double, 132, true, [true, true];
    Vfnmsub132ss, "vfnmsub132ss", scalar, Single, 132, true, [true, true];
    Vfnmsub132sd, "vfnmsub132sd", scalar, Double, 132, true, [true, true];
    Vfnmsub213ps, "vfnmsub213ps", packed, Single, 213, true, [true, true];
    Vfnmsub213pd, "vfnmsub213pd", packed, Double, 213, true, [true, true];
    Vfnmsub213ss, "vfnmsub213ss", scalar, Single, 213, true, [true, true];
    Vfnmsub213sd, "vfnmsub213sd", scalar, Double, 213, true, [true, true];
    Vfnmsub231ps, "vfnmsub231ps", packed, Single, 231, true, [true, true];
    Vfnmsub231pd, "vfnmsub231pd", packed, Double, 231, true, [true, true];
    Vfnmsub231ss, "vfnmsub231ss", scalar, Single, 231, true, [true, true];
    Vfnmsub231sd, "vfnmsub231sd", scalar, Double, 231, true, [true, true];
    Vfmaddsub132ps, "vfmaddsub132ps", packed, Single, 132, false, [true, false];
    Vfmaddsub132pd, "vfmaddsub132pd", packed, Double, 132, false, [true, false];
    Vfmaddsub213ps, "vfmaddsub213ps", packed, Single, 213, false, [true, false];
    Vfmaddsub213pd, "vfmaddsub213pd", packed, Double, 213, false, [true, false];
    Vfmaddsub231ps, "vfmaddsub231ps", packed, Single, 231, false, [true, false];
    Vfmaddsub231pd, "vfmaddsub231pd", packed, Double, 231, false, [true, false];
    Vfmsubadd132ps, "vfmsubadd132ps", packed, Single, 132, false, [false, true];
    Vfmsubadd132pd, "vfmsubadd132pd", packed, Double, 132, false, [false, true];
    Vfmsubadd213ps, "vfmsubadd213ps", packed, Single, 213, false, [false, true];
    Vfmsubadd213pd, "vfmsubadd213pd", packed, Double, 213, false, [false, true];
    Vfmsubadd231ps, "vfmsubadd231ps", packed, Single, 231, false, [false, true];
    Vfmsubadd231pd, "vfmsubadd231pd", packed, Double, 231, false, [false, true];
}
