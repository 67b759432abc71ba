//! Conversions between floating-point formats, integers in vectors, general registers and MMX registers (SDM
//! volume 2, CVT*).
use super::exec::{FloatOp, VecExec, VecId};
use super::float_arith::float_op;
use super::forms::{
    FloatInt, Gpr, IntFloat, IntSource, M128, Mem, Mm, VecSource, Xmm, float_packed, float32, float64, form,
    source_in_memory,
};
use super::lanes::{LOW64, i32s, of_u32s};
use super::soft::{self, Double, Env, Format, Single};
use crate::event::Stop;
use crate::exec::Sem;
use crate::op::Op;
use crate::width::{W32, W64, Width};
use iced_x86::{Code, Instruction};
use std::marker::PhantomData;

/// Rounding mode of the CVTT forms: towards zero.
const TRUNCATE: u8 = 3;

/// Lanes of `b` to 32-bit integers, from lane 0 up; lanes beyond are zero.
fn ints<F: Format>(b: u128, rc: u8, env: &mut Env) -> u128 {
    let count = 128 / F::BITS as usize;
    of_u32s(std::array::from_fn(|k| {
        if k < count { soft::to_int::<F>(F::lane(b, k), 32, rc, env) as u32 } else { 0 }
    }))
}

float_op!(Cvtdq2ps, "cvtdq2ps", |a, b, i, env| {
    let b = i32s(b);
    Single::fill(|k| soft::from_int::<Single>(b[k].into(), env))
});
float_op!(Cvtdq2pd, "cvtdq2pd", |a, b, i, env| {
    let b = i32s(b);
    Double::fill(|k| soft::from_int::<Double>(b[k].into(), env))
});
float_op!(Cvtps2dq, "cvtps2dq", |a, b, i, env| ints::<Single>(b, env.rc, env));
float_op!(Cvttps2dq, "cvttps2dq", |a, b, i, env| ints::<Single>(b, TRUNCATE, env));
float_op!(Cvtpd2dq, "cvtpd2dq", |a, b, i, env| ints::<Double>(b, env.rc, env));
float_op!(Cvttpd2dq, "cvttpd2dq", |a, b, i, env| ints::<Double>(b, TRUNCATE, env));
float_op!(Cvtps2pd, "cvtps2pd", |a, b, i, env| {
    Double::fill(|k| soft::convert::<Single, Double>(Single::lane(b, k), env))
});
float_op!(Cvtpd2ps, "cvtpd2ps", |a, b, i, env| {
    Single::fill(|k| if k < 2 { soft::convert::<Double, Single>(Double::lane(b, k), env) } else { 0 })
});
float_op!(Cvtss2sd, "cvtss2sd", |a, b, i, env| {
    Double::with_low(a, soft::convert::<Single, Double>(Single::lane(b, 0), env))
});
float_op!(Cvtsd2ss, "cvtsd2ss", |a, b, i, env| {
    Single::with_low(a, soft::convert::<Double, Single>(Double::lane(b, 0), env))
});

/// Operations on MMX operands, which are the low halves of vectors here: the host runs the XMM form on
/// operands whose other lanes are zero and raise nothing.
macro_rules! mmx_op {
    ($($name:ident = $text:literal, |$a:ident, $b:ident| $before:expr, |$r:ident| $after:expr, $soft:ident;)*) => {$(
        #[doc = concat!("The operation of `", stringify!($name), "`.")]
        pub struct $name;
        impl FloatOp for $name {
            const ID: VecId = VecId::$name;
            #[cfg(target_arch = "x86_64")]
            #[allow(unused_variables)]
            #[inline(always)]
            unsafe fn host<const FAST: bool>($a: u128, $b: u128, _: u8, c: *mut super::mxcsr::Csr) -> u128 {
                let $r = super::host::frame_vec!(FAST, c, concat!($text, " {a}, {b}"), 0, $before);
                $after
            }
            #[allow(unused_variables)]
            fn soft($a: u128, $b: u128, imm: u8, env: &mut Env) -> u128 {
                let $r = $soft::soft(0, $before, imm, env);
                $after
            }
        }
    )*};
}
mmx_op! {
    Cvtpi2ps = "cvtdq2ps", |a, b| b & LOW64, |r| a & !LOW64 | r & LOW64, Cvtdq2ps;
    Cvtpi2pd = "cvtdq2pd", |a, b| b, |r| r, Cvtdq2pd;
    Cvtps2pi = "cvtps2dq", |a, b| b & LOW64, |r| r, Cvtps2dq;
    Cvttps2pi = "cvttps2dq", |a, b| b & LOW64, |r| r, Cvttps2dq;
    Cvtpd2pi = "cvtpd2dq", |a, b| b, |r| r, Cvtpd2dq;
    Cvttpd2pi = "cvttpd2dq", |a, b| b, |r| r, Cvttpd2dq;
}

/// From a general register.
macro_rules! from_gpr {
    ($($name:ident: $id:ident = $text:literal, $format:ident, $int:ty;)*) => {$(
        #[doc = concat!("`", stringify!($id), "` from an `", stringify!($int), "`.")]
        pub struct $name;
        impl FloatOp for $name {
            const ID: VecId = VecId::$id;
            #[cfg(target_arch = "x86_64")]
            #[inline(always)]
            unsafe fn host<const FAST: bool>(a: u128, b: u128, _: u8, c: *mut super::mxcsr::Csr) -> u128 {
                let mut v = super::host::vec(a);
                super::host::frame!(FAST, c, $text, a = inout(xmm_reg) v, n = in(reg) b as u64);
                super::host::bits(v)
            }
            fn soft(a: u128, b: u128, _: u8, env: &mut Env) -> u128 {
                $format::with_low(a, soft::from_int::<$format>((b as $int).into(), env))
            }
        }
    )*};
}
from_gpr! {
    Cvtsi2ss32: Cvtsi2ss = "cvtsi2ss {a}, {n:e}", Single, i32;
    Cvtsi2ss64: Cvtsi2ss = "cvtsi2ss {a}, {n:r}", Single, i64;
    Cvtsi2sd32: Cvtsi2sd = "cvtsi2sd {a}, {n:e}", Double, i32;
    Cvtsi2sd64: Cvtsi2sd = "cvtsi2sd {a}, {n:r}", Double, i64;
}

/// To a general register.
macro_rules! to_gpr {
    ($($name:ident: $id:ident = $text:literal, $format:ident, $bits:literal, |$env:ident| $rc:expr;)*) => {$(
        #[doc = concat!("`", stringify!($id), "` to ", stringify!($bits), " bits.")]
        pub struct $name;
        impl FloatOp for $name {
            const ID: VecId = VecId::$id;
            #[cfg(target_arch = "x86_64")]
            #[inline(always)]
            unsafe fn host<const FAST: bool>(_: u128, b: u128, _: u8, c: *mut super::mxcsr::Csr) -> u128 {
                let n: u64;
                super::host::frame!(FAST, c, $text, n = out(reg) n, b = in(xmm_reg) super::host::vec(b));
                u128::from(n)
            }
            fn soft(_: u128, b: u128, _: u8, $env: &mut Env) -> u128 {
                u128::from(soft::to_int::<$format>($format::lane(b, 0), $bits, $rc, $env))
            }
        }
    )*};
}
to_gpr! {
    Cvtss2si32: Cvtss2si = "cvtss2si {n:e}, {b}", Single, 32, |env| env.rc;
    Cvtss2si64: Cvtss2si = "cvtss2si {n:r}, {b}", Single, 64, |env| env.rc;
    Cvtsd2si32: Cvtsd2si = "cvtsd2si {n:e}, {b}", Double, 32, |env| env.rc;
    Cvtsd2si64: Cvtsd2si = "cvtsd2si {n:r}, {b}", Double, 64, |env| env.rc;
    Cvttss2si32: Cvttss2si = "cvttss2si {n:e}, {b}", Single, 32, |env| TRUNCATE;
    Cvttss2si64: Cvttss2si = "cvttss2si {n:r}, {b}", Single, 64, |env| TRUNCATE;
    Cvttsd2si32: Cvttsd2si = "cvttsd2si {n:e}, {b}", Double, 32, |env| TRUNCATE;
    Cvttsd2si64: Cvttsd2si = "cvttsd2si {n:r}, {b}", Double, 64, |env| TRUNCATE;
}

form! {
    /// mm = O(source): the x87 unit goes over to MMX operation.
    FloatToMm<O: FloatOp, S: VecSource> |e, op| {
        e.sse_check()?;
        e.x87_check()?;
        let b = S::get(e, op)?;
        let r = e.float_int::<O>(b)?;
        e.enter_mmx();
        e.set_mm(op.dst, r);
    }
}
form! {
    /// xmm = O(xmm, 64-bit source): the x87 unit goes over to MMX operation.
    MmToFloat<O: FloatOp, S: IntSource> |e, op| {
        e.sse_check()?;
        e.x87_check()?;
        let b = S::get(e, op)?;
        let a = e.xmm(op.dst);
        let r = e.int_float::<O>(a, b)?;
        e.enter_mmx();
        e.set_xmm(op.dst, r);
    }
}

/// Handlers of this module's instructions.
pub(super) fn select<E: VecExec>(i: &Instruction) -> Option<E::Handler> {
    fn from_gpr<E: VecExec, O: FloatOp, W: Width>(i: &Instruction) -> E::Handler {
        if source_in_memory(i) {
            E::handler::<IntFloat<O, Mem<W>>>()
        } else {
            E::handler::<IntFloat<O, Gpr<W>>>()
        }
    }
    fn to_gpr<E: VecExec, O: FloatOp, W: Width, T: Width>(i: &Instruction) -> E::Handler {
        if source_in_memory(i) {
            E::handler::<FloatInt<O, Mem<W>, T>>()
        } else {
            E::handler::<FloatInt<O, Xmm, T>>()
        }
    }
    fn to_mm<E: VecExec, O: FloatOp, S: VecSource>(i: &Instruction) -> E::Handler {
        if source_in_memory(i) { E::handler::<FloatToMm<O, S>>() } else { E::handler::<FloatToMm<O, Xmm>>() }
    }
    let memory = source_in_memory(i);
    Some(match i.code() {
        Code::Cvtdq2ps_xmm_xmmm128 => float_packed::<E, Cvtdq2ps>(i),
        Code::Cvtps2dq_xmm_xmmm128 => float_packed::<E, Cvtps2dq>(i),
        Code::Cvttps2dq_xmm_xmmm128 => float_packed::<E, Cvttps2dq>(i),
        Code::Cvtpd2dq_xmm_xmmm128 => float_packed::<E, Cvtpd2dq>(i),
        Code::Cvttpd2dq_xmm_xmmm128 => float_packed::<E, Cvttpd2dq>(i),
        Code::Cvtpd2ps_xmm_xmmm128 => float_packed::<E, Cvtpd2ps>(i),
        Code::Cvtdq2pd_xmm_xmmm64 => float64::<E, Cvtdq2pd>(i),
        Code::Cvtps2pd_xmm_xmmm64 => float64::<E, Cvtps2pd>(i),
        Code::Cvtss2sd_xmm_xmmm32 => float32::<E, Cvtss2sd>(i),
        Code::Cvtsd2ss_xmm_xmmm64 => float64::<E, Cvtsd2ss>(i),

        Code::Cvtsi2ss_xmm_rm32 => from_gpr::<E, Cvtsi2ss32, W32>(i),
        Code::Cvtsi2ss_xmm_rm64 => from_gpr::<E, Cvtsi2ss64, W64>(i),
        Code::Cvtsi2sd_xmm_rm32 => from_gpr::<E, Cvtsi2sd32, W32>(i),
        Code::Cvtsi2sd_xmm_rm64 => from_gpr::<E, Cvtsi2sd64, W64>(i),
        Code::Cvtss2si_r32_xmmm32 => to_gpr::<E, Cvtss2si32, W32, W32>(i),
        Code::Cvtss2si_r64_xmmm32 => to_gpr::<E, Cvtss2si64, W32, W64>(i),
        Code::Cvtsd2si_r32_xmmm64 => to_gpr::<E, Cvtsd2si32, W64, W32>(i),
        Code::Cvtsd2si_r64_xmmm64 => to_gpr::<E, Cvtsd2si64, W64, W64>(i),
        Code::Cvttss2si_r32_xmmm32 => to_gpr::<E, Cvttss2si32, W32, W32>(i),
        Code::Cvttss2si_r64_xmmm32 => to_gpr::<E, Cvttss2si64, W32, W64>(i),
        Code::Cvttsd2si_r32_xmmm64 => to_gpr::<E, Cvttsd2si32, W64, W32>(i),
        Code::Cvttsd2si_r64_xmmm64 => to_gpr::<E, Cvttsd2si64, W64, W64>(i),

        Code::Cvtps2pi_mm_xmmm64 => to_mm::<E, Cvtps2pi, Mem<W64>>(i),
        Code::Cvttps2pi_mm_xmmm64 => to_mm::<E, Cvttps2pi, Mem<W64>>(i),
        Code::Cvtpd2pi_mm_xmmm128 => to_mm::<E, Cvtpd2pi, M128>(i),
        Code::Cvttpd2pi_mm_xmmm128 => to_mm::<E, Cvttpd2pi, M128>(i),
        // From memory these two leave the x87 unit alone (the first of them at least with AMD's processors).
        Code::Cvtpi2ps_xmm_mmm64 if memory => E::handler::<IntFloat<Cvtpi2ps, Mem<W64>>>(),
        Code::Cvtpi2ps_xmm_mmm64 => E::handler::<MmToFloat<Cvtpi2ps, Mm>>(),
        Code::Cvtpi2pd_xmm_mmm64 if memory => E::handler::<IntFloat<Cvtpi2pd, Mem<W64>>>(),
        Code::Cvtpi2pd_xmm_mmm64 => E::handler::<MmToFloat<Cvtpi2pd, Mm>>(),
        _ => return None,
    })
}
