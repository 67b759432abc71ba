//! Floating-point arithmetic: add, subtract, multiply, divide, square root, minimum, maximum, horizontal and
//! alternating sums, dot products, rounding to integral values, and the approximations RCP and RSQRT (SDM
//! volume 2).
use super::declare::vec_ops;
use super::exec::{FloatOp, VecExec, VecId};
use super::forms::{float_packed, float32, float64, narrow32, packed};
use super::lanes::{LOW32, each_u32};
use super::soft::{self, Double, Env, Format, Single};
use iced_x86::{Instruction, Mnemonic};

/// The operation of `{a} = name({a}, {b})` with its portable form.
macro_rules! float_op {
    ($name:ident, $text:expr $(, needs $feature:tt)?, |$a:ident, $b:ident, $i:ident, $env:ident| $soft:expr) => {
        #[doc = concat!("The operation of `", stringify!($name), "`.")]
        pub struct $name;
        impl $crate::sse::exec::FloatOp for $name {
            const ID: $crate::sse::exec::VecId = $crate::sse::exec::VecId::$name;
            $(
                #[cfg(target_arch = "x86_64")]
                #[inline(always)]
                fn on_host() -> bool {
                    is_x86_feature_detected!($feature)
                }
            )?
            #[cfg(target_arch = "x86_64")]
            #[inline(always)]
            unsafe fn host<const FAST: bool>(a: u128, b: u128, _: u8, c: *mut $crate::sse::mxcsr::Csr) -> u128 {
                $crate::sse::host::frame_vec!(FAST, c, concat!($text, " {a}, {b}"), a, b)
            }
            #[allow(unused_variables)]
            fn soft($a: u128, $b: u128, $i: u8, $env: &mut $crate::sse::soft::Env) -> u128 {
                $soft
            }
        }
    };
}
pub(super) use float_op;

/// The four forms of an operation on two numbers.
macro_rules! binary {
    ($($ps:ident $ss:ident $pd:ident $sd:ident = $text:literal, $f:ident;)*) => {$(
        float_op!($ps, concat!($text, "ps"), |a, b, i, env| soft::packed::<Single>(a, b, |x, y| soft::$f::<Single>(x, y, env)));
        float_op!($ss, concat!($text, "ss"), |a, b, i, env| soft::scalar::<Single>(a, b, |x, y| soft::$f::<Single>(x, y, env)));
        float_op!($pd, concat!($text, "pd"), |a, b, i, env| soft::packed::<Double>(a, b, |x, y| soft::$f::<Double>(x, y, env)));
        float_op!($sd, concat!($text, "sd"), |a, b, i, env| soft::scalar::<Double>(a, b, |x, y| soft::$f::<Double>(x, y, env)));
    )*};
}
binary! {
    Addps Addss Addpd Addsd = "add", add;
    Subps Subss Subpd Subsd = "sub", sub;
    Mulps Mulss Mulpd Mulsd = "mul", mul;
    Divps Divss Divpd Divsd = "div", div;
    Minps Minss Minpd Minsd = "min", min;
    Maxps Maxss Maxpd Maxsd = "max", max;
}
float_op!(Sqrtps, "sqrtps", |a, b, i, env| soft::packed::<Single>(a, b, |_, y| soft::sqrt::<Single>(y, env)));
float_op!(Sqrtss, "sqrtss", |a, b, i, env| soft::scalar::<Single>(a, b, |_, y| soft::sqrt::<Single>(y, env)));
float_op!(Sqrtpd, "sqrtpd", |a, b, i, env| soft::packed::<Double>(a, b, |_, y| soft::sqrt::<Double>(y, env)));
float_op!(Sqrtsd, "sqrtsd", |a, b, i, env| soft::scalar::<Double>(a, b, |_, y| soft::sqrt::<Double>(y, env)));

float_op!(Addsubps, "addsubps", needs "sse3", |a, b, i, env| alternate::<Single>(a, b, env));
float_op!(Addsubpd, "addsubpd", needs "sse3", |a, b, i, env| alternate::<Double>(a, b, env));
float_op!(Haddps, "haddps", needs "sse3", |a, b, i, env| neighbours::<Single>(a, b, |x, y| soft::add::<Single>(x, y, env)));
float_op!(Haddpd, "haddpd", needs "sse3", |a, b, i, env| neighbours::<Double>(a, b, |x, y| soft::add::<Double>(x, y, env)));
float_op!(Hsubps, "hsubps", needs "sse3", |a, b, i, env| neighbours::<Single>(a, b, |x, y| soft::sub::<Single>(x, y, env)));
float_op!(Hsubpd, "hsubpd", needs "sse3", |a, b, i, env| neighbours::<Double>(a, b, |x, y| soft::sub::<Double>(x, y, env)));

/// Even lanes are subtracted, odd ones added.
fn alternate<F: Format>(a: u128, b: u128, env: &mut Env) -> u128 {
    F::fill(|k| {
        let (x, y) = (F::lane(a, k), F::lane(b, k));
        if k & 1 == 0 { soft::sub::<F>(x, y, env) } else { soft::add::<F>(x, y, env) }
    })
}

/// `f` of neighbours: those of `a`, then those of `b`.
fn neighbours<F: Format>(a: u128, b: u128, mut f: impl FnMut(u64, u64) -> u64) -> u128 {
    let lanes = 128 / F::BITS as usize;
    F::fill(|k| {
        let (v, at) = if 2 * k < lanes { (a, 2 * k) } else { (b, 2 * k - lanes) };
        f(F::lane(v, at), F::lane(v, at + 1))
    })
}

/// Dot products of N lanes of 128 bits, which go step by step together: immediate bits 4 and up choose the products,
/// bits 0 and up the elements that receive the sum.
fn dot<F: Format, const N: usize>(a: [u128; N], b: [u128; N], imm: u8, env: &mut Env) -> [u128; N] {
    let product: [u128; N] = std::array::from_fn(|n| {
        let (a, b) = chosen::<F>(a[n], b[n], imm);
        soft::packed::<F>(a, b, |x, y| soft::mul::<F>(x, y, env))
    });
    if !env.step() {
        return [0; N];
    }
    let mut sum = product.map(|p| soft::add::<F>(F::lane(p, 0), F::lane(p, 1), env));
    if F::BITS == 32 {
        let high = product.map(|p| soft::add::<F>(F::lane(p, 2), F::lane(p, 3), env));
        if !env.step() {
            return [0; N];
        }
        sum = std::array::from_fn(|n| soft::add::<F>(sum[n], high[n], env));
    }
    sum.map(|s| received::<F>(F::fill(|_| s), imm))
}
/// The operands with zeros in the lanes that take no part: their product is +0 and raises nothing.
#[inline(always)]
fn chosen<F: Format>(a: u128, b: u128, imm: u8) -> (u128, u128) {
    let keep = lane_mask::<F>(imm >> 4);
    (a & keep, b & keep)
}
#[inline(always)]
fn received<F: Format>(v: u128, imm: u8) -> u128 {
    v & lane_mask::<F>(imm)
}
#[inline(always)]
fn lane_mask<F: Format>(bits: u8) -> u128 {
    F::fill(|k| if bits >> k & 1 != 0 { u64::MAX } else { 0 })
}

macro_rules! dot_op {
    ($name:ident, $text:literal, $all:literal, $format:ident) => {
        #[doc = concat!("The operation of `", stringify!($name), "`.")]
        pub struct $name;
        impl FloatOp for $name {
            const ID: VecId = VecId::$name;
            const STAGED: bool = true;
            #[cfg(target_arch = "x86_64")]
            #[inline(always)]
            fn on_host() -> bool {
                is_x86_feature_detected!("sse4.1")
            }
            #[cfg(target_arch = "x86_64")]
            #[inline(always)]
            unsafe fn host<const FAST: bool>(a: u128, b: u128, imm: u8, c: *mut super::mxcsr::Csr) -> u128 {
                let (a, b) = chosen::<$format>(a, b, imm);
                let r = super::host::frame_vec!(FAST, c, concat!($text, " {a}, {b}, ", $all), a, b);
                received::<$format>(r, imm)
            }
            fn soft(a: u128, b: u128, imm: u8, env: &mut Env) -> u128 {
                let [r] = dot::<$format, 1>([a], [b], imm, env);
                r
            }
            fn soft_pair(a: [u128; 2], b: [u128; 2], imm: u8, env: &mut Env) -> [u128; 2] {
                dot::<$format, 2>(a, b, imm, env)
            }
        }
    };
}
dot_op!(Dpps, "dpps", 255, Single);
dot_op!(Dppd, "dppd", 51, Double);

macro_rules! round_op {
    ($name:ident, $text:literal, |$a:ident, $b:ident, $i:ident, $env:ident| $soft:expr) => {
        #[doc = concat!("The operation of `", stringify!($name), "`.")]
        pub struct $name;
        impl FloatOp for $name {
            const ID: VecId = VecId::$name;
            #[cfg(target_arch = "x86_64")]
            #[inline(always)]
            fn on_host() -> bool {
                is_x86_feature_detected!("sse4.1")
            }
            #[cfg(target_arch = "x86_64")]
            #[inline(always)]
            unsafe fn host<const FAST: bool>(a: u128, b: u128, imm: u8, c: *mut super::mxcsr::Csr) -> u128 {
                macro_rules! with {
                    ($n:literal) => {
                        super::host::frame_vec!(FAST, c, concat!($text, " {a}, {b}, ", $n), a, b)
                    };
                }
                match imm & 15 {
                    0 => with!(0),
                    1 => with!(1),
                    2 => with!(2),
                    3 => with!(3),
                    4..8 => with!(4),
                    8 => with!(8),
                    9 => with!(9),
                    10 => with!(10),
                    11 => with!(11),
                    _ => with!(12),
                }
            }
            fn soft($a: u128, $b: u128, $i: u8, $env: &mut Env) -> u128 {
                $soft
            }
        }
    };
}
round_op!(Roundps, "roundps", |a, b, i, env| soft::packed::<Single>(a, b, |_, y| soft::round_int::<Single>(
    y, i, env
)));
round_op!(Roundss, "roundss", |a, b, i, env| soft::scalar::<Single>(a, b, |_, y| soft::round_int::<Single>(
    y, i, env
)));
round_op!(Roundpd, "roundpd", |a, b, i, env| soft::packed::<Double>(a, b, |_, y| soft::round_int::<Double>(
    y, i, env
)));
round_op!(Roundsd, "roundsd", |a, b, i, env| soft::scalar::<Double>(a, b, |_, y| soft::round_int::<Double>(
    y, i, env
)));

vec_ops! {
    // The approximations neither read nor change MXCSR: they are plain vector operations.
    Rcpps: "sse2" = |a, b, i| each_u32(b, soft::rcp);
    Rcpss: "sse2" = |a, b, i| scalar_u32(a, b, soft::rcp);
    Rsqrtps: "sse2" = |a, b, i| each_u32(b, soft::rsqrt);
    Rsqrtss: "sse2" = |a, b, i| scalar_u32(a, b, soft::rsqrt);
}
fn scalar_u32(a: u128, b: u128, f: impl Fn(u32) -> u32) -> u128 {
    (a & !LOW32) | u128::from(f(b as u32))
}

/// Handlers of this module's instructions.
pub(super) fn select<E: VecExec>(i: &Instruction) -> Option<E::Handler> {
    macro_rules! by_name {
        ($($form:ident: $($name:ident)*;)*) => {
            match i.mnemonic() {
                $($(Mnemonic::$name => $form::<E, $name>(i),)*)*
                _ => return None,
            }
        };
    }
    Some(by_name! {
        float_packed: Addps Addpd Subps Subpd Mulps Mulpd Divps Divpd Minps Minpd Maxps Maxpd Sqrtps Sqrtpd Addsubps
            Addsubpd Haddps Haddpd Hsubps Hsubpd Dpps Dppd Roundps Roundpd;
        float32: Addss Subss Mulss Divss Minss Maxss Sqrtss Roundss;
        float64: Addsd Subsd Mulsd Divsd Minsd Maxsd Sqrtsd Roundsd;
        packed: Rcpps Rsqrtps;
        narrow32: Rcpss Rsqrtss;
    })
}
